"""Any MMPretrain classifier with APA activations."""

from __future__ import annotations

from typing import Any

from mmpretrain.registry import MODELS
from torch import nn

from ..models.build_converted import build_converted


@MODELS.register_module()
def APAClassifier(base_type: str | type | None = None, **kwargs: Any) -> nn.Module:
    """Build a classifier and make its activations learnable.

    A config uses it as a type, whatever the backbone is::

        _base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
        custom_imports = dict(
            imports=['apa_mmdet.classification'], allow_failed_imports=False
        )
        model = dict(type='APAClassifier', base_type={{_base_.model.type}})

    The result is the classifier itself, of its own class, so that its checkpoint keys
    are those of the unconverted one plus ``lambda_param`` and ``kappa_param`` of each
    site. Checkpoints of both load. The report is printed to the log and stored as
    ``conversion_report``.

    Args:
        base_type: Type of the classifier, such as ``'ImageClassifier'``.
        **kwargs: The options of :func:`~apa_mmdet.conversion.convert_activations`
            (``parts``, ``activation``, ``init``, ``types``, ``exclude``, ``gates``,
            ``filter_fn``), and the arguments of the classifier.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If ``base_type`` is missing or is APAClassifier itself, or if an
            option does not fit the classifier.
    """
    return build_converted(MODELS, APAClassifier, "classifier", base_type, kwargs)

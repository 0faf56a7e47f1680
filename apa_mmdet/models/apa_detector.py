"""Any MMDetection detector with APA activations."""

from __future__ import annotations

from typing import Any

from mmdet.registry import MODELS
from torch import nn

from .build_converted import build_converted


@MODELS.register_module()
def APADetector(base_type: str | type | None = None, **kwargs: Any) -> nn.Module:
    """Build a detector and make its activations learnable.

    A config uses it as a type, whatever the detector is::

        _base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
        custom_imports = dict(imports=['apa_mmdet'], allow_failed_imports=False)
        model = dict(type='APADetector', base_type={{_base_.model.type}})

    The result is the detector itself, of its own class, so that its checkpoint keys are
    those of the unconverted one plus ``lambda_param`` and ``kappa_param`` of each site.
    Checkpoints of both load. The report is printed to the log and stored as
    ``conversion_report``.

    Args:
        base_type: Type of the detector.
        **kwargs: The options of :func:`~apa_mmdet.conversion.convert_activations`
            (``parts``, ``activation``, ``init``, ``types``, ``exclude``, ``gates``,
            ``filter_fn``), and the arguments of the detector.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If ``base_type`` is missing or is APADetector itself, or if an
            option does not fit the detector.
    """
    return build_converted(MODELS, APADetector, "detector", base_type, kwargs)

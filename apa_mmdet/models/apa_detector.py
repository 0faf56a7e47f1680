"""Any MMDetection detector with APA activations."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import nn

from ..conversion import convert_activations
from ..optim.constructor import decay_advice

_, *_OPTIONS = inspect.signature(convert_activations).parameters


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
    if base_type is None:
        raise ValueError(
            "APADetector needs base_type, the type of the detector to convert: "
            "model = dict(type='APADetector', base_type={{_base_.model.type}})"
        )
    name = base_type.rpartition(".")[2] if isinstance(base_type, str) else None
    if name == "APADetector" or base_type is APADetector:
        raise ValueError(
            f"base_type={base_type!r}: the base config has a converted detector "
            "already; inherit from it without a type, or change its options there"
        )
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    detector = MODELS.build(dict(type=base_type, **kwargs))
    report = convert_activations(detector, **options)
    print_log(f"{type(detector).__name__}: {report}", logger="current")
    advice = decay_advice() if report.sites else None
    if advice is not None:
        print_log(advice, logger="current", level=logging.WARNING)
    return detector

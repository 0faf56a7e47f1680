"""Any MMDetection detector with APA activations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import nn

from ..conversion import convert_activations
from ..optim import decay_advice


@MODELS.register_module()
def APADetector(
    base_type: str | None = None,
    parts: Sequence[str] | None = None,
    activation: str | Mapping | type = "AGLU",
    init: str | Mapping = "auto",
    types: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    gates: bool = False,
    filter_fn: str | Callable[[nn.Module, str], bool] | None = None,
    **kwargs: Any,
) -> nn.Module:
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
        parts: Parts to convert, such as ``['backbone', 'neck']``; by default all.
        activation: What to put in.
        init: Starting values, by default those closest to what is replaced.
        types: Activation types to convert.
        exclude: Patterns of paths to leave.
        gates: If True, sigmoid gates become bare APA.
        filter_fn: ``filter_fn(module, path) -> bool``, which selects activations; or
            its name, ``'package.module.function'``, with which a config can be saved.
        **kwargs: Everything else of the detector.

    Returns:
        The detector. See :func:`apa_mmdet.conversion.convert_activations` for the
        options above, how it works and what is decided at the conversion.

    Raises:
        TypeError: If ``activation`` is not an APA or AGLU.
        ValueError: If ``base_type`` is missing or is APADetector itself, if an option
            matches nothing in the detector, or if ``filter_fn`` names nothing.
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
    detector = MODELS.build(dict(type=base_type, **kwargs))
    report = convert_activations(
        detector, activation, init, parts, types, exclude, gates, filter_fn
    )
    print_log(f"{type(detector).__name__}: {report}", logger="current")
    advice = decay_advice() if report.sites else None
    if advice is not None:
        print_log(advice, logger="current", level=logging.WARNING)
    return detector

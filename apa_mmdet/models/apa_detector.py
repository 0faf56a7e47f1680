"""Any MMDetection detector with APA activations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
    **kwargs: Any,
) -> nn.Module:
    """Build a detector and make its activations learnable.

    It is used as a type: whatever the detector is, a config converts it by::

        _base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
        custom_imports = dict(imports=['apa_mmdet'], allow_failed_imports=False)
        model = dict(type='APADetector', base_type={{_base_.model.type}})

    What is returned is the detector itself, of its own class, so that its keys in a
    checkpoint are those of the unconverted one plus ``lambda_param`` and
    ``kappa_param`` of each site. A checkpoint of either kind can be loaded. The
    report is printed to the log and kept as ``conversion_report``.

    Args:
        base_type: Type of the detector.
        parts: Parts to convert, such as ``['backbone', 'neck']``; by default all.
        activation: What to put in.
        init: Starting values, by default those closest to what is replaced.
        types: Activation types to convert.
        exclude: Patterns of paths to leave.
        gates: If True, sigmoid gates become bare APA.
        **kwargs: Everything else of the detector.

    Returns:
        The detector; see :func:`apa_mmdet.conversion.convert_activations` for the
        options above, how it is done and what it costs.

    Raises:
        TypeError: If ``activation`` is no APA or AGLU.
        ValueError: If ``base_type`` is missing or is APADetector itself, or if an
            option matches nothing in the detector.
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
        detector, activation, init, parts, types, exclude, gates
    )
    print_log(f"{type(detector).__name__}: {report}", logger="current")
    advice = decay_advice() if report.sites else None
    if advice is not None:
        print_log(advice, logger="current", level=logging.WARNING)
    return detector

"""What APADetector and APAClassifier share: build a model, then convert it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

from mmengine.logging import print_log
from mmengine.registry import Registry
from torch import nn

from ..conversion import convert_activations
from ..optim.constructor import decay_advice

_, *_OPTIONS = inspect.signature(convert_activations).parameters


def build_converted(
    registry: Registry,
    converter: Callable[..., nn.Module],
    kind: str,
    base_type: str | type | None,
    kwargs: dict,
) -> nn.Module:
    """Build a model and make its activations learnable.

    The report is printed to the log and stored as ``conversion_report``.

    Args:
        registry: Where the model's type is registered.
        converter: The type that the config names, for messages.
        kind: What is converted, in a word.
        base_type: Type of the model.
        kwargs: The options of :func:`~apa_mmdet.conversion.convert_activations` and the
            arguments of the model.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If ``base_type`` is missing or is ``converter`` itself, or if an
            option does not fit the model.
    """
    own_name = converter.__name__
    if base_type is None:
        raise ValueError(
            f"{own_name} needs base_type, the type of the {kind} to convert: "
            f"model = dict(type='{own_name}', base_type={{{{_base_.model.type}}}})"
        )
    name = base_type.rpartition(".")[2] if isinstance(base_type, str) else None
    if name == own_name or base_type is converter:
        raise ValueError(
            f"base_type={base_type!r}: the base config has a converted {kind} "
            "already; inherit from it without a type, or change its options there"
        )
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    model = registry.build(dict(type=base_type, **kwargs))
    report = convert_activations(model, **options)
    print_log(f"{type(model).__name__}: {report}", logger="current")
    advice = decay_advice() if report.sites else None
    if advice is not None:
        print_log(advice, logger="current", level=logging.WARNING)
    return model

"""Calibrations by name, as configs and command lines give them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import TASK_UTILS

from .rules import Calibration

_UNCALIBRATED = "none"


def build_calibrations(
    config: Mapping | str | Sequence[Mapping | str],
) -> dict[str, Calibration | None]:
    """Return the calibrations of a config by their names.

    Args:
        config: One or several: a dict with ``type`` and arguments, or a string such as
            ``'FRACAL'``, ``'NORCAL:gamma=0.5'`` or ``'none'`` for the uncalibrated
            scores.

    Raises:
        ValueError: If a calibration is unknown, given twice or has a wrong argument.
    """
    is_one = isinstance(config, (Mapping, str))
    calibrations: dict[str, Calibration | None] = {}
    for each in [config] if is_one else config:
        arguments = _parse(each) if isinstance(each, str) else dict(each)
        name, rule = _build(arguments)
        if name in calibrations:
            raise ValueError(f"calibration: {name!r} is given twice")
        calibrations[name] = rule
    if not calibrations:
        raise ValueError("calibration is empty; give at least one type")
    return calibrations


def _parse(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    arguments: dict[str, Any] = dict(type=kind)
    for item in filter(None, rest.split(",")):
        name, _, value = item.partition("=")
        try:
            arguments[name] = float(value)
        except ValueError:
            raise ValueError(
                f"calibration {text!r}: expected a name with numbers for arguments, "
                f"such as NORCAL:gamma=0.5, got {item!r}"
            ) from None
    return arguments


def _build(arguments: dict[str, Any]) -> tuple[str, Calibration | None]:
    kind = arguments.pop("type", None)
    if kind == _UNCALIBRATED and not arguments:
        return _UNCALIBRATED, None
    rule_type = TASK_UTILS.get(kind) if isinstance(kind, str) else kind
    if not (inspect.isclass(rule_type) and issubclass(rule_type, Calibration)):
        known = sorted(rule.__name__ for rule in Calibration.__subclasses__())
        raise ValueError(
            f"calibration: type={kind!r}, expected one of "
            f"{', '.join(known)}, or {_UNCALIBRATED!r}"
        )
    known = inspect.signature(rule_type).parameters
    for name in arguments:
        if name not in known:
            raise ValueError(
                f"calibration {rule_type.__name__}: unknown argument {name!r}, "
                f"expected {', '.join(known)}"
            )
    rule = rule_type(**arguments)
    name = ",".join(f"{key}={value:g}" for key, value in arguments.items())
    return f"{rule_type.__name__}:{name}" if name else rule_type.__name__, rule

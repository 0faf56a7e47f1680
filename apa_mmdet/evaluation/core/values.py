"""Fields of the entries in JSON files: ids, counts and numbers.

Any other value is a ValueError that says what was expected. ``name`` is the field;
the caller adds the file and the entry.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

_MAX_SHOWN = 60  # characters
_MAX_INT = 2**63 - 1


def show(value: Any) -> str:
    """Return a value as JSON has it, on one line and shortened, for a message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def as_id(value: Any, name: str) -> int:
    """Return an id: a whole number of 64 bits, also if it is written 7.0."""
    if type(value) is int and -_MAX_INT <= value <= _MAX_INT:
        return value
    if type(value) is float and value.is_integer() and abs(value) < _MAX_INT:
        return int(value)
    if isinstance(value, np.integer):
        return int(value)
    raise ValueError(
        f"{name} is {show(value)}; expected a whole number below 2^63, without quotes"
    )


def as_count(value: Any, name: str, limit: int = 2**31) -> int:
    """Return a whole number from 0 to below a limit."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value < limit:
        return value
    raise ValueError(
        f"{name} is {show(value)}; expected a whole number from 0 to below {limit:,}"
    )


def as_number(value: Any, name: str) -> float:
    """Return a number; it may be NaN or infinite."""
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise ValueError(f"{name} is {show(value)}; expected a number, without quotes")


def as_box(value: Any, name: str) -> list[float]:
    """Return the four numbers of a box; they may be NaN or infinite."""
    if type(value) is not list or len(value) != 4:
        raise ValueError(
            f"{name} is {show(value)}; expected 4 numbers [x, y, width, height]"
        )
    return [as_number(number, name) for number in value]


def as_object(value: Any) -> dict[str, Any]:
    """Return an entry of a list of JSON objects."""
    if type(value) is not dict:
        raise ValueError(f"expected an object {{...}}, found {show(value)}")
    return value


def field(item: dict[str, Any], name: str) -> Any:
    """Return a field that an entry must have."""
    if name not in item:
        raise ValueError(f"has no {name}")
    return item[name]


def describe_entry(kind: str, item: Any, position: int) -> str:
    """Return an entry's name for a message: its id, or its position from one."""
    if isinstance(item, dict) and item.get("id") is not None:
        return f"{kind} {show(item['id'])}"
    return f"{kind} number {position}"

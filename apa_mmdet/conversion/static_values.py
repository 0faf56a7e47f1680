"""What an expression in a module's method evaluates to, before the module has run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

UNKNOWN = object()

_FUNCTIONS: dict[str, Callable] = {
    function.__name__: function
    for function in (all, any, bool, enumerate, getattr, hasattr, int, isinstance, len)
    + (list, max, min, range, reversed, sorted, tuple, zip)
}
_VIEWS = ("items", "keys", "values", "children", "named_children")
# Attributes that change from one call to the next.
_CHANGING = ("training", "requires_grad")
_LONGEST_LOOP = 1000


def evaluate(
    expression: ast.expr, known: Mapping[str, Any], module_globals: Mapping[str, Any]
) -> Any:
    """Return the value of an expression, or UNKNOWN.

    It may read attributes, index, compare and count; any other call makes it UNKNOWN.
    ``known`` has the values of local names, ``self`` among them.
    """
    if isinstance(expression, ast.Starred):
        return UNKNOWN
    names = {**module_globals, **_FUNCTIONS, **known}
    for node in ast.walk(expression):
        if isinstance(node, ast.Call):
            func = node.func
            is_view = isinstance(func, ast.Attribute) and func.attr in _VIEWS
            is_known = is_view or getattr(func, "id", None) in _FUNCTIONS
        elif isinstance(node, ast.Attribute):
            is_known = node.attr not in _CHANGING
        elif isinstance(node, ast.Name):
            is_known = node.id in names
        else:
            unknown = (ast.Lambda, ast.NamedExpr, ast.Await, ast.Yield)
            is_known = not isinstance(node, unknown)
        if not is_known:
            return UNKNOWN
    code = compile(ast.Expression(expression), "<expression>", "eval")
    try:
        # A comprehension looks its names up among the globals.
        return eval(code, names)  # noqa: S307
    except Exception:  # whatever a property or an index may raise
        return UNKNOWN


def decide(
    test: ast.expr, known: Mapping[str, Any], module_globals: Mapping[str, Any]
) -> Any:
    """Return whether a condition holds, or UNKNOWN."""
    if isinstance(test, ast.BoolOp):
        operands = [decide(value, known, module_globals) for value in test.values]
        settles = isinstance(test.op, ast.Or)
        if any(operand is settles for operand in operands):
            return settles
        return UNKNOWN if UNKNOWN in operands else not settles
    value = evaluate(test, known, module_globals)
    try:
        return value if value is UNKNOWN else bool(value)
    except Exception:  # for instance the truth of a tensor
        return UNKNOWN


def loop_values(iterable: Any) -> list | None:
    """Return the values that a loop over ``iterable`` takes, None if unknown."""
    if isinstance(iterable, (str, Tensor)) or not isinstance(iterable, Iterable):
        return None
    values = list(islice(iterable, _LONGEST_LOOP + 1))
    is_unknown = any(isinstance(value, Tensor) for value in values)
    return None if is_unknown or len(values) > _LONGEST_LOOP else values


def contain_modules(values: list) -> bool:
    """Return whether any of a loop's values is a module, or a tuple with one."""
    return any(
        isinstance(item, nn.Module)
        for value in values
        for item in (value if isinstance(value, tuple) else (value,))
    )


def bind(target: ast.expr, value: Any) -> dict[str, Any]:
    """Return the local names that ``target = value`` would set."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    names: dict[str, Any] = {}
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, Iterable):
        values = list(value)
        if len(values) == len(target.elts):
            for element, item in zip(target.elts, values):
                names.update(bind(element, item))
    return names

"""What an expression in a module's method is worth, before the module has run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

UNKNOWN = object()

_FUNCTIONS: dict[str, Callable] = {
    function.__name__: function
    for function in (all, any, bool, enumerate, getattr, hasattr, int, isinstance, len)
    + (list, max, min, range, reversed, sorted, tuple, zip)
}
_VIEWS = ("items", "keys", "values")
# They change from one call to the next.
_CHANGING = ("training", "requires_grad")
_LONGEST_LOOP = 1000


def evaluate(
    expression: ast.expr, known: Mapping[str, Any], module_globals: Mapping[str, Any]
) -> Any:
    """Return the value of an expression, or UNKNOWN.

    Args:
        expression: It may read attributes of what is known, index, compare and count;
            whatever else it calls makes it UNKNOWN.
        known: Values of local names, ``self`` among them.
        module_globals: The globals of the function it stands in.
    """
    for node in ast.walk(expression):
        if isinstance(node, ast.Call):
            func = node.func
            is_view = isinstance(func, ast.Attribute) and func.attr in _VIEWS
            is_known = isinstance(func, ast.Name) and func.id in _FUNCTIONS
            if not is_view and not is_known:
                return UNKNOWN
        elif isinstance(node, ast.Attribute):
            if node.attr in _CHANGING:
                return UNKNOWN
        elif isinstance(node, ast.Name):
            name = node.id
            if name not in known and name not in _FUNCTIONS:
                if name not in module_globals:
                    return UNKNOWN
        elif isinstance(node, (ast.Lambda, ast.NamedExpr, ast.Await, ast.Yield)):
            return UNKNOWN
    code = compile(ast.Expression(expression), "<expression>", "eval")
    try:
        # A comprehension looks its names up among the globals.
        return eval(code, {**module_globals, **_FUNCTIONS, **known})  # noqa: S307
    except Exception:  # whatever a property or an index may raise
        return UNKNOWN


def decide(
    test: ast.expr, known: Mapping[str, Any], module_globals: Mapping[str, Any]
) -> Any:
    """Return whether a condition holds, or UNKNOWN."""
    if isinstance(test, ast.BoolOp):
        parts = [decide(part, known, module_globals) for part in test.values]
        settles = isinstance(test.op, ast.Or)
        if any(part is settles for part in parts):
            return settles
        return UNKNOWN if UNKNOWN in parts else not settles
    value = evaluate(test, known, module_globals)
    try:
        return value if value is UNKNOWN else bool(value)
    except Exception:  # the truth of a tensor, for one
        return UNKNOWN


def items(value: Any) -> list | None:
    """Return what a loop over ``value`` would go through, None if that is unknown."""
    if value is UNKNOWN or isinstance(value, (str, Tensor)):
        return None
    if isinstance(value, nn.Module) and not hasattr(value, "__iter__"):
        return None
    if not isinstance(value, Iterable):
        return None
    found = []
    for item in value:
        if isinstance(item, Tensor) or len(found) == _LONGEST_LOOP:
            return None
        found.append(item)
    return found


def hold_modules(values: list) -> bool:
    """Tell whether a loop over these values goes through modules."""
    return any(
        isinstance(part, nn.Module)
        for value in values
        for part in (value if isinstance(value, tuple) else (value,))
    )


def bind(target: ast.expr, value: Any) -> dict[str, Any]:
    """Return the local names that ``target = value`` would set."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, (ast.Tuple, ast.List)):
        try:
            parts = list(value)
        except TypeError:
            parts = []
        if len(parts) == len(target.elts):
            names: dict[str, Any] = {}
            for element, part in zip(target.elts, parts):
                names.update(bind(element, part))
            return names
    return {}

"""What a module or a function computes, as its values on a grid.

Code that is not known by name is recognised by what it computes. It is called only if
:mod:`purity` has found that a call changes nothing, and on tensors made here, so that
the model, its device and the random state are not involved.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Hashable
from functools import partial
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from .purity import attributes, called_if_pure, is_constant

# Most points are where activations bend; the others tell a ReLU from a clamp.
_FAR = (-1e4, -1e3, -50.0, -20.0, 20.0, 50.0, 1e3, 1e4)
GRID = torch.cat(
    [
        torch.linspace(-12, 12, 1912, dtype=torch.float64, device="cpu"),
        torch.tensor(_FAR, dtype=torch.float64, device="cpu"),
    ]
)
IS_NEAR = GRID.abs() <= 12
# Inputs have these shapes, of which an activation need not take all.
_SHAPES = ((2, 3, -1, 4), (4, -1, 6), (12, -1), (-1,))


def curve(activation: Callable) -> Tensor | None:
    """Return the values of an activation on ``GRID``, (1920,), in float64.

    Returns:
        None if it is not one: it is not pure, not elementwise, differs between training
        and evaluation, takes several inputs, or is linear, as an identity is.
    """
    if not _takes_one_input(activation) or called_if_pure(activation) is None:
        return None
    is_module = isinstance(activation, nn.Module)
    curves = [
        _elementwise(_in_mode(activation, training) if is_module else activation)
        for training in ((True, False) if is_module else (True,))
    ]
    values = curves[0]
    if any(other is None or not agree(other, values) for other in curves):
        return None
    return None if _is_linear(values) else values


def agree(values: Tensor, expected: Tensor) -> bool:
    """Return whether two curves are equal up to rounding.

    Far from 0 one of them may be undefined, as ``exp(x) / (1 + exp(x))`` is.
    """
    either = values.isnan() | expected.isnan()
    if (either & IS_NEAR).any():
        return False
    # A module may compute in float32.
    return torch.allclose(values[~either], expected[~either], rtol=1e-5, atol=2e-6)


def configuration(activation: Callable) -> Hashable | None:
    """Return what a call depends on: a class and attributes, or a function.

    None if something in it can change.
    """
    if isinstance(activation, nn.Module):
        own = attributes(activation)
        items = tuple((name, _frozen(value, activation)) for name, value in own.items())
        if any(value is None for _, value in items):
            return None
        return type(activation), type(activation).forward, items
    return _frozen(activation, None)


def _frozen(value: object, owner: nn.Module | None) -> Hashable | None:
    """Return a key that is equal for equal constants; None if it is not a constant."""
    if isinstance(value, MethodType):
        return (value.__func__,) if value.__self__ is owner else None
    if not is_constant(value):
        return None
    if isinstance(value, partial):
        return value.func, value.args, tuple(value.keywords.items())
    return type(value), value


def _takes_one_input(activation: Callable) -> bool:
    """Return whether it can be called with exactly one tensor."""
    if isinstance(activation, nn.Module):
        if type(activation).__call__ is not nn.Module.__call__:
            return False
        activation = partial(type(activation).forward, activation)
    elif isinstance(activation, torch.jit.ScriptFunction):
        return len(list(activation.graph.inputs())) == 1
    elif not isinstance(activation, (FunctionType, MethodType, partial)):
        return False
    try:
        parameters = inspect.signature(activation).parameters.values()
    except (TypeError, ValueError):
        # Of torch's functions in C++, those that are wrapped are activations.
        return isinstance(activation, partial) and not activation.args
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return len(required) == 1 and required[0].kind is not inspect.Parameter.KEYWORD_ONLY


def _in_mode(module: nn.Module, training: bool) -> Callable:
    """Return a module's forward in training or evaluation mode, without its hooks."""
    copied = object.__new__(type(module))
    vars(copied).update(vars(module), training=training)
    return partial(type(module).forward, copied)


def _elementwise(function: Callable) -> Tensor | None:
    """Return the values on ``GRID`` of a function that maps each element by itself."""
    # The same elements among others: a mean, a largest or a first one would differ.
    some = ((GRID > -3) & (GRID < 5)).nonzero().flatten().flip(0)
    some = some[: len(some) // 24 * 24]
    found: Tensor | None = None
    for shape in _SHAPES:
        values = _call(function, GRID.reshape(shape))
        if values is None:
            continue
        again = _call(function, GRID[some].reshape(shape))
        if found is None:
            found = values
        if again is None or not agree(values, found):
            return None
        if not torch.allclose(again, found[some], rtol=1e-5, atol=2e-6):
            return None
    if found is None or not found[IS_NEAR].isfinite().all():
        return None
    return found


def _call(function: Callable, x: Tensor) -> Tensor | None:
    """Return a function's values, flat; None if it fails or they have another shape."""
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=()),
        ):
            warnings.simplefilter("ignore")
            y = function(x.clone())
            if isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point():
                return y.to(GRID).flatten()
    except Exception:  # whatever it may raise: then it is not an activation
        pass
    return None


def _is_linear(values: Tensor) -> bool:
    x, y = GRID[IS_NEAR], values[IS_NEAR]
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    # A clamp is linear between its bounds.
    line = y[0] + slope * (GRID - x[0])
    is_defined = values.isfinite()
    return torch.allclose(values[is_defined], line[is_defined], rtol=1e-5, atol=1e-5)

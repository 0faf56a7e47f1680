"""Which kind of activation a module or a function is.

It is known by its class, or it is recognised by what it computes: transformers'
``QuickGELUActivation`` and a user's ``def swish(x)`` are in no table.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .curves import GRID, agree, configuration, curve
from .kinds import GATE, KINDS, UNLIKE_AGLU, look_up, why_unconvertible
from .purity import called_if_pure

# A reason; of functions, which may be any mathematics, it says nothing.
UNLISTED = "it is elementwise and not linear, but none of the known activations"
_CLAMP = "it clamps its input, which need not be an activation; use nn.{0} if it is one"


@dataclass(frozen=True)
class Activation:
    """What a module or a function is.

    Attributes:
        kind: A key of ``KINDS``, or ``GATE``; ``""`` if it cannot be converted.
        options: AGLU's arguments, besides ``init``, in its place.
        start: AGLU's starting values, where they are not those of the kind.
        reason: Why it cannot be converted, instead.
        form: A function that computes the same, if it was recognised by that.
    """

    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, float] | None = None
    reason: str = ""
    form: Callable | None = None

    @property
    def category(self) -> tuple:
        """Equal for activations that compute the same."""
        start = self.start or {}
        return self.kind, tuple(self.options.items()), tuple(start.items())


def identify(activation: nn.Module | Callable) -> Activation | None:
    """Return what a module or a function is, None if it is not an activation."""
    kind = look_up(activation)
    if kind == GATE:
        return Activation(GATE)
    if kind is not None:
        arguments = KINDS[kind].arguments_of(activation)
        misfit = KINDS[kind].misfit(arguments)
        if misfit:
            return Activation(reason=misfit)
        return Activation(kind, KINDS[kind].aglu_options(arguments))
    reason = why_unconvertible(activation)
    return Activation(reason=reason) if reason else _recognised(activation)


def identify_expression(
    expression: ast.expr,
    variable: str,
    module: nn.Module,
    self_name: str,
    names: dict[str, Any],
) -> Activation | None:
    """Return which activation an expression computes from a variable.

    Only smooth ones count: others cannot be told from masks and bounds.

    Args:
        expression: In a method of ``module``, which calls it ``self_name``.
        variable: The name of what it is computed from.
        module: The module.
        self_name: Its name in the expression.
        names: The method's globals.
    """
    if any(getattr(node, "attr", "") == "training" for node in ast.walk(expression)):
        return None
    parameters = [ast.arg(self_name), ast.arg(variable)]
    arguments = ast.arguments([], parameters, None, [], [], None, [])
    node = ast.copy_location(ast.Lambda(arguments, expression), expression)
    tree = ast.fix_missing_locations(ast.Expression(node))
    function = eval(compile(tree, "<expression>", "eval"), names)  # noqa: S307
    function.syntax = node
    values = curve(MethodType(function, module))
    found = None if values is None else _closest(values, function)
    is_smooth = found is not None and found.kind in ("SiLU", "GELU", "Mish")
    return found if is_smooth else None


_RECOGNISED: dict[Any, Activation | None] = {}  # by configuration


def _recognised(activation: nn.Module | Callable) -> Activation | None:
    if not _may_be_one(activation):
        return None
    key = configuration(activation)
    if key is None:
        return None
    if key not in _RECOGNISED:
        values = curve(activation)
        _RECOGNISED[key] = None if values is None else _closest(values, activation)
    return _RECOGNISED[key]


def _may_be_one(activation: nn.Module | Callable) -> bool:
    """Return whether it is of a user's or another library's making, and has no state.

    torch's own are all known.
    """
    if isinstance(activation, FunctionType):
        owner = activation.__module__ or ""
        return not owner.startswith(("torch.", "mmengine.", "numpy."))
    if not isinstance(activation, nn.Module):
        return True
    has_state = activation._parameters or activation._buffers or activation._modules
    return not has_state and not type(activation).__module__.startswith("torch.")


def _closest(values: Tensor, activation: nn.Module | Callable) -> Activation | None:
    """Return what an activation is by its values on ``GRID``."""
    if agree(values, GRID.sigmoid()):
        # A function's name for a sigmoid is as little a gate as torch.sigmoid is.
        return Activation(GATE) if isinstance(activation, nn.Module) else None
    for kind, form, expected in _known_curves():
        if agree(values, expected):
            called = called_if_pure(activation) or ()
            is_clamp = any(name.startswith(("clamp", "clip")) for name in called)
            if is_clamp and kind in ("ReLU", "ReLU6"):
                return Activation(reason=_CLAMP.format(kind))
            return Activation(kind, KINDS[kind].constants, form=form)
    slope = _rounded((values / GRID)[GRID < 0].mean().item())
    if 0 < slope < 1 and agree(values, nn.functional.leaky_relu(GRID, slope)):
        return Activation("LeakyReLU", {"negative_slope": slope})
    at = int((GRID - 1).abs().argmin())
    gate = (values / GRID)[at].item()
    if 0 < gate < 1:
        kappa = _rounded(math.log(gate / (1 - gate)) / GRID[at].item())
        if kappa > 0 and agree(values, _swish(GRID, kappa)):
            form = partial(_swish, beta=kappa)
            if kappa == 1.702:  # how GELU is approximated
                return Activation("GELU", form=form)
            return Activation("SiLU", start={"lam": 1.0, "kappa": kappa}, form=form)
    for module in (*UNLIKE_AGLU, nn.Hardsigmoid):
        if agree(values, module()(GRID)):
            return Activation(reason=why_unconvertible(module()) or "")
    return Activation(reason=UNLISTED)


@cache
def _known_curves() -> list[tuple[str, Callable, Tensor]]:
    return [
        (name, form, form(GRID.clone()))
        for name, kind in KINDS.items()
        for form in (kind.functions[0], *kind.forms)
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _swish(x: Tensor, beta: float) -> Tensor:
    return x * torch.sigmoid(beta * x)

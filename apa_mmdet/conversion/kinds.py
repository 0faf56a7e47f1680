"""The kinds of activation that AGLU can replace, and the activations that stay.

To add a kind:

1. Add an entry to ``KINDS``, whose fields :class:`Kind` describes, and remove the
   module and its functions from ``UNLIKE_AGLU``, ``_NO_COUNTERPART`` or
   ``_UNCONVERTIBLE``. Everything else follows from the entry, such as the names
   accepted in ``types`` and ``init``.
2. Add the largest difference at the start to the two tests that measure it,
   ``test_how_far_the_start_is_from_what_it_replaces`` in
   ``tests/test_conversion/test_convert.py`` and ``documented`` in ``test_closeness.py``
   beside it. Tests that use the kind as one that stays need another
   (``test_what_cannot_be_reached_is_named``).
3. In ``docs/conversion.md``, add it to the option ``types`` and to the table of single
   activations, and remove it from the list of what is not converted. If it occurs in
   MMDetection, regenerate ``docs/coverage.md``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import AGLU


@dataclass(frozen=True)
class Kind:
    """A kind of activation that AGLU can replace.

    Attributes:
        module: torch's module of this kind. A composite or derived class may do more,
            so only the exact type counts.
        init: AGLU's starting values, as in ``AGLU(init=...)``.
        functions: Functions that compute it, at least one; the first takes all of
            ``arguments``.
        forms: Functions that compute nearly the same, and are recognised as this kind.
        methods: Tensor methods that compute it.
        aliases: Qualified names of other libraries' modules of this kind.
        arguments: Arguments of the module and, in this order after the input, of the
            functions, with torch's defaults. An argument that AGLU has too, such as
            ``negative_slope``, is handed on; with another one, an activation is
            converted only if the argument has its default.
        constants: Further arguments of AGLU for this kind, such as ``max_value``.
        skip_reason: For a kind that AGLU approximates badly: why it is left unless
            ``types`` names it.
    """

    module: type[nn.Module]
    init: str | dict
    functions: tuple[Callable, ...] = ()
    forms: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    skip_reason: str = ""

    def arguments_of(self, activation: nn.Module | Callable) -> dict[str, Any]:
        """Return a module's arguments; a function's are the defaults."""
        return {k: getattr(activation, k, v) for k, v in self.arguments.items()}

    def misfit(self, arguments: Mapping[str, Any]) -> str:
        """Return which of these arguments AGLU cannot express, or ""."""
        for name, default in self.arguments.items():
            if name not in _AGLU_ARGUMENTS and arguments[name] != default:
                return f"AGLU stands in for {name}={default}, not {arguments[name]}"
        return ""

    def aglu_options(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return AGLU's arguments, besides ``init``, for these."""
        shared = {k: v for k, v in arguments.items() if k in _AGLU_ARGUMENTS}
        return {**self.constants, **shared}


_AGLU_ARGUMENTS = inspect.signature(AGLU).parameters

# The starts of Mish and Hardswish minimise the largest difference over lam and kappa.
# GELU's is the usual one, the nearest on average for inputs of unit variance.
KINDS: dict[str, Kind] = {
    "SiLU": Kind(nn.SiLU, "silu", (F.silu,), aliases=("mmcv.cnn.bricks.swish.Swish",)),
    "ReLU": Kind(
        nn.ReLU,
        "relu",
        (F.relu, F.relu_, torch.relu, torch.relu_),
        methods=("relu", "relu_"),
    ),
    "ReLU6": Kind(nn.ReLU6, "relu", (F.relu6,), constants={"max_value": 6.0}),
    "LeakyReLU": Kind(
        nn.LeakyReLU,
        "relu",
        (F.leaky_relu, F.leaky_relu_),
        arguments={"negative_slope": 0.01},
    ),
    "GELU": Kind(
        nn.GELU,
        "gelu",
        (F.gelu,),
        forms=(partial(F.gelu, approximate="tanh"),),
        aliases=("mmcv.cnn.bricks.activation.GELU",),
    ),
    "Mish": Kind(nn.Mish, {"lam": 2.2, "kappa": 1.9}, (F.mish,)),
    "Hardswish": Kind(
        nn.Hardswish,
        {"lam": 1.0, "kappa": 1.048},
        (F.hardswish,),
        aliases=("mmcv.cnn.bricks.hswish.HSwish",),
        skip_reason="AGLU differs from Hardswish by at least 0.124, at (1, 1.048); "
        "list it in types to convert it anyway",
    ),
}
GATE = "Sigmoid"  # not a Kind: APA replaces it, and only if gates=True

_HARD_GATE = (
    "a hard sigmoid reaches 0 and 1, APA only in the limit, so the gate could not "
    "start equal to it"
)
# Modules that are elementwise, without required arguments, and recognised when another
# class computes the same.
UNLIKE_AGLU: tuple[type[nn.Module], ...] = (
    *(nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Softsign, nn.Tanh, nn.Hardtanh),
    nn.LogSigmoid,
)
_NO_COUNTERPART: tuple[type[nn.Module] | Callable, ...] = (
    *(*UNLIKE_AGLU, nn.RReLU, nn.GLU, nn.Threshold),
    *(F.elu, F.elu_, F.celu, F.selu, F.rrelu, F.glu, F.hardtanh),
)
_UNCONVERTIBLE: dict[Any, str] = {
    nn.PReLU: "PReLU has a weight of its own in every checkpoint",
    nn.Hardsigmoid: _HARD_GATE,
    "mmcv.cnn.bricks.hsigmoid.HSigmoid": _HARD_GATE,
    **{
        activation: f"AGLU cannot approximate {activation.__name__}"
        for activation in _NO_COUNTERPART
    },
}

_KIND_OF: dict[Any, str] = {
    key: name
    for name, kind in KINDS.items()
    for key in (kind.module, *kind.aliases, *kind.functions)
}
_KIND_OF[nn.Sigmoid] = GATE
WITH_ARGUMENTS = {name for name, kind in KINDS.items() if kind.arguments}
KIND_OF_METHOD = {m: name for name, kind in KINDS.items() for m in kind.methods}
# Words that the source of an inline activation contains, converted or not.
FUNCTION_NAMES = tuple(
    {f.__name__ for kind in KINDS.values() for f in kind.functions}
    | {activation.__name__ for activation in _NO_COUNTERPART}
)


def look_up(activation: nn.Module | Callable) -> str | None:
    """Return the kind that a class or function is listed as, ``GATE`` for a sigmoid."""
    return _look_up(_KIND_OF, activation)


def why_unconvertible(activation: nn.Module | Callable) -> str | None:
    """Return why nothing can stand in for an activation, if that is known."""
    if isinstance(activation, torch.jit.ScriptModule):
        return "TorchScript has compiled it"
    if isinstance(activation, (nn.RNNBase, nn.RNNCellBase)):
        return "torch computes its activations within one operation"
    return _look_up(_UNCONVERTIBLE, activation)


def _look_up(table: dict[Any, str], activation: nn.Module | Callable) -> str | None:
    if isinstance(activation, nn.Module):
        cls = type(activation)
        return table.get(cls) or table.get(f"{cls.__module__}.{cls.__qualname__}")
    try:
        return None if isinstance(activation, type) else table.get(activation)
    except TypeError:  # not hashable
        return None

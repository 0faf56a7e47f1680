"""The kinds of activation that AGLU can replace, and the activations that stay.

To add a kind:

1. Add an entry to ``KINDS``: torch's module, AGLU's starting values, and the functions
   and tensor methods that compute it. If the kind has an argument that AGLU must keep
   (a slope, an upper bound), name it in ``options``; AGLU's own arguments are in
   ``apa_mmdet/layers/activation.py``.
2. Remove its entry in ``_NO_COUNTERPART`` or ``_UNCONVERTIBLE``, if it has one.
3. Add its largest difference at the start to the two tests that measure it,
   ``test_how_far_the_start_is_from_what_it_replaces`` in
   ``tests/test_conversion/test_convert.py`` and ``documented`` in
   ``test_closeness.py`` beside it, and to the table of single activations in
   ``docs/conversion.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Kind:
    """A kind of activation that AGLU can replace.

    Attributes:
        module: torch's module of this kind. A composite or derived class may do more,
            so only the exact type counts.
        init: AGLU's starting values, as in ``AGLU(init=...)``.
        functions: Functions that compute it.
        methods: Tensor methods that compute it.
        aliases: Qualified names of other libraries' modules of this kind.
        options: Further arguments of AGLU: a value, or the name of the module's
            attribute that holds it.
        why_not: Why it is left unless ``types`` names it; "" if it is not.
    """

    module: type[nn.Module]
    init: str | dict
    functions: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    options: dict[str, str | float] = field(default_factory=dict)
    why_not: str = ""


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
    "ReLU6": Kind(nn.ReLU6, "relu", (F.relu6,), options={"max_value": 6.0}),
    "LeakyReLU": Kind(
        nn.LeakyReLU,
        "relu",
        (F.leaky_relu, F.leaky_relu_),
        options={"negative_slope": "negative_slope"},
    ),
    "GELU": Kind(
        nn.GELU, "gelu", (F.gelu,), aliases=("mmcv.cnn.bricks.activation.GELU",)
    ),
    "Mish": Kind(nn.Mish, {"lam": 2.2, "kappa": 1.9}, (F.mish,)),
    "Hardswish": Kind(
        nn.Hardswish,
        {"lam": 1.0, "kappa": 1.048},
        (F.hardswish,),
        aliases=("mmcv.cnn.bricks.hswish.HSwish",),
        why_not="AGLU comes no nearer to Hardswish than 0.124, at (1, 1.048); name it "
        "in types to convert it nevertheless",
    ),
}
GATE = "Sigmoid"  # not a Kind: APA replaces it, and only if gates=True
DEFAULT_SLOPE = 0.01  # of torch's leaky_relu

_HARD_GATE = (
    "a hard sigmoid reaches 0 and 1, APA only in the limit, so the gate could not "
    "start equal to it"
)
_NO_COUNTERPART: tuple[type[nn.Module] | Callable, ...] = (
    *(nn.ELU, nn.CELU, nn.SELU, nn.RReLU, nn.Softplus, nn.Softsign, nn.Tanh),
    *(nn.Hardtanh, nn.GLU, nn.Threshold, nn.LogSigmoid),
    *(F.elu, F.elu_, F.celu, F.selu, F.rrelu, F.glu, F.hardtanh),
)
_UNCONVERTIBLE: dict[Any, str] = {
    nn.PReLU: "PReLU has a weight of its own in every checkpoint",
    nn.Hardsigmoid: _HARD_GATE,
    "mmcv.cnn.bricks.hsigmoid.HSigmoid": _HARD_GATE,
    **{
        activation: f"no AGLU comes near {activation.__name__}"
        for activation in _NO_COUNTERPART
    },
}

_KIND_OF: dict[Any, str] = {
    key: name
    for name, kind in KINDS.items()
    for key in (kind.module, *kind.aliases, *kind.functions)
}
_KIND_OF[nn.Sigmoid] = GATE
KIND_OF_METHOD = {m: name for name, kind in KINDS.items() for m in kind.methods}
# Words that the source of an inline activation contains, converted or not.
FUNCTION_NAMES = tuple(
    {f.__name__ for kind in KINDS.values() for f in kind.functions}
    | {activation.__name__ for activation in _NO_COUNTERPART}
)


def kind_of(activation: nn.Module | Callable) -> str | None:
    """Return the kind of a module or function, ``GATE`` for a sigmoid; None if none."""
    return _look_up(_KIND_OF, activation)


def reason_to_leave(activation: nn.Module | Callable) -> str | None:
    """Return why an activation cannot be converted; None if it can or is not one."""
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

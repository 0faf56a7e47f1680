"""Which activations can become AGLU, where each starts, and which are left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Kind:
    """An activation that AGLU can take the place of.

    Attributes:
        init: AGLU's starting values, as in ``AGLU(init=...)``.
        apart: How far the start is from what it replaces: the largest difference
            over all inputs, with its cause.
        options: Further arguments of AGLU, from the module's attributes.
        by_default: Whether it is converted without being named in ``types``.
        reason: If not, why.
    """

    init: str | dict
    apart: str = "none"
    options: dict[str, str | float] = field(default_factory=dict)
    by_default: bool = True
    reason: str = ""


# The starts of Mish and Hardswish minimise the largest difference over lam and kappa;
# GELU's is the usual one, which is nearest in the mean for inputs of unit variance.
KINDS: dict[str, Kind] = {
    "SiLU": Kind("silu"),
    "ReLU": Kind("relu", "0.0056 near 0, where AGLU is smooth"),
    "ReLU6": Kind(
        "relu", "0.0056 near 0, where AGLU is smooth", options={"max_value": 6.0}
    ),
    "LeakyReLU": Kind(
        "relu",
        "0.0056 near 0, where AGLU is smooth",
        options={"negative_slope": "negative_slope"},
    ),
    "GELU": Kind("gelu", "0.0203, a logistic gate for the Gaussian one"),
    "Mish": Kind({"lam": 2.2, "kappa": 1.9}, "0.017, tanh(softplus) is no APA"),
    "Hardswish": Kind(
        {"lam": 1.0, "kappa": 1.048},
        "0.124, no smooth gate meets the clipped ramp",
        by_default=False,
        reason="Hardswish is no member of AGLU's family: the closest start, (1, 1.048),"
        " is off by up to 0.124; name it in types to convert it all the same",
    ),
}

# An exact type or function each: composite activations hold others inside.
MODULES: dict[type, str] = {
    nn.ReLU: "ReLU",
    nn.ReLU6: "ReLU6",
    nn.LeakyReLU: "LeakyReLU",
    nn.SiLU: "SiLU",
    nn.GELU: "GELU",
    nn.Mish: "Mish",
    nn.Hardswish: "Hardswish",
}
FUNCTIONS: dict[Callable, str] = {
    F.relu: "ReLU",
    F.relu_: "ReLU",
    torch.relu: "ReLU",
    torch.relu_: "ReLU",
    F.relu6: "ReLU6",
    F.leaky_relu: "LeakyReLU",
    F.leaky_relu_: "LeakyReLU",
    F.silu: "SiLU",
    F.gelu: "GELU",
    F.mish: "Mish",
    F.hardswish: "Hardswish",
}
METHODS = {"relu": "ReLU", "relu_": "ReLU"}
_BY_NAME = {
    "mmcv.cnn.bricks.swish.Swish": "SiLU",
    "mmcv.cnn.bricks.hswish.HSwish": "Hardswish",
    "mmcv.cnn.bricks.activation.GELU": "GELU",
}

DEFAULT_SLOPE = 0.01  # torch's, of leaky_relu
GATE = "Sigmoid"
_NO_MEMBER = "no member of AGLU's family comes near {}"
_HARD_GATE = (
    "a hard sigmoid reaches 0 and 1, which APA does only in the limit, so the gate "
    "could not start equal"
)
_LEFT_MODULES: dict[type, str] = {
    nn.PReLU: "PReLU has a weight of its own in every checkpoint",
    nn.Hardsigmoid: _HARD_GATE,
    **{
        module: _NO_MEMBER.format(module.__name__)
        for module in (nn.ELU, nn.CELU, nn.SELU, nn.RReLU, nn.Softplus, nn.Softsign)
        + (nn.Tanh, nn.Hardtanh, nn.GLU, nn.Threshold, nn.LogSigmoid)
    },
}
_LEFT_FUNCTIONS: dict[Callable, str] = {
    function: _NO_MEMBER.format(function.__name__)
    for function in (F.elu, F.elu_, F.celu, F.selu, F.rrelu, F.glu, F.hardtanh)
}
_LEFT_BY_NAME = {"mmcv.cnn.bricks.hsigmoid.HSigmoid": _HARD_GATE}

# Activations whose meaning is not that of a feature, by class (or a base class of it):
# the path of the module below it, or the method that calls a function inline.
_DISTANCE = "its output is a distance, which must not be negative"
_DYNAMIC = "it lies between convolutions whose weights are predicted per instance"
_EXTRA = "it precedes the neck's extra convolutions, after the features have left"
_TEXT = "a text model"
NOT_FEATURES: dict[str, dict[str, str]] = {
    "FSAFHead": {"relu": _DISTANCE},
    "RTMDetInsSepBNHead": {"forward()": _DISTANCE},
    "RTMDetInsHead": {"_mask_predict_by_feat_single()": _DYNAMIC},
    "CondInstMaskHead": {"dynamic_conv_forward()": _DYNAMIC},
    "YOLACTProtonet": {"protonet.-1": "its outputs are prototypes, never negative"},
    "FPN": {"forward()": _EXTRA},
    "FPN_DropBlock": {"forward()": _EXTRA},
    "PAFPN": {"forward()": _EXTRA},
    "DyConv": {"attnconv.-1": "it is half of a hard-sigmoid gate"},
    "GLIP": {"language_model": _TEXT},
    "GroundingDINO": {"language_model": _TEXT},
}


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def kind_of(module: nn.Module) -> str | None:
    """Return the kind of a convertible activation or gate, else None."""
    if type(module) is nn.Sigmoid:
        return GATE
    return MODULES.get(type(module)) or _BY_NAME.get(_qualified(module))


def kind_of_function(function: Callable) -> str | None:
    """Return the kind of a function that is an activation, else None."""
    return _get(FUNCTIONS, function)


def reason_to_leave_function(function: Callable) -> str | None:
    """Return why an inline activation cannot be converted, None if it is none."""
    return _get(_LEFT_FUNCTIONS, function)


def _get(table: dict[Callable, str], function: Callable) -> str | None:
    try:
        return table.get(function)
    except TypeError:  # it has no hash
        return None


def reason_to_leave(module: nn.Module) -> str | None:
    """Return why an activation of this type cannot be converted, None if it is none."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript has compiled it"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "torch computes its activations within one operation"
    return _LEFT_MODULES.get(type(module)) or _LEFT_BY_NAME.get(_qualified(module))


INLINE_NAMES = tuple(sorted({f.__name__ for f in (*FUNCTIONS, *_LEFT_FUNCTIONS)}))

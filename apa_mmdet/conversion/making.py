"""The activations that are put in: their type and starting values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..layers import AGLU, APA
from . import kinds
from .sites import Target

_FIXED = {name: module for module, name in reversed(kinds.MODULES.items())}


class Maker:
    """Builds the activation of each site.

    Args:
        activation: As in ``convert_activations``.
        init: As there.

    Raises:
        TypeError: If ``activation`` is no APA or AGLU.
        ValueError: If it has other than one pair of parameters, or if ``init`` does
            not fit it.
    """

    def __init__(self, activation: str | Mapping | type, init: str | Mapping) -> None:
        options = dict(activation) if isinstance(activation, Mapping) else {}
        named = options.pop("type", None) if options else activation
        self._type = _resolve(named)
        self._options = options
        if options.get("num_parameters", 1) != 1:
            raise ValueError(
                f"activation has num_parameters={options['num_parameters']}, expected "
                f"1: the sites of a model differ in their channels"
            )
        if "init" in options:
            raise ValueError(
                f"activation has init={options['init']!r}; give init beside "
                f"activation, not in it"
            )
        self._by_kind = isinstance(init, Mapping) and not set(init) & {"lam", "kappa"}
        self._init = init
        if self._by_kind:
            for name in init:
                if name not in kinds.KINDS:
                    raise ValueError(
                        f"init={dict(init)!r}: {name!r} is no activation type, "
                        f"expected some of {', '.join(kinds.KINDS)}, or lam and kappa"
                    )
        is_bare = not issubclass(self._type, AGLU)
        if is_bare and (init == "auto" or self._by_kind):
            raise ValueError(
                f"init={init!r} with {self._type.__name__}: a gate cannot start as "
                f"the activation it replaces; give AGLU, or for instance "
                f"init='uniform'"
            )
        for value in init.values() if self._by_kind else [init]:
            if value != "auto":  # so that a wrong one is found before any change
                self._type(init=value, **self._options)

    def build(self, target: Target) -> nn.Module:
        """Return the activation to put in."""
        if target.kind == kinds.GATE:
            return APA(init="sigmoid")
        init = self._init
        if self._by_kind:
            init = init.get(target.kind, "auto")
        if init == "auto":
            init = kinds.KINDS[target.kind].init
        # The slope of a LeakyReLU is its form, not its start; a gate has none.
        form = target.options if issubclass(self._type, AGLU) else {}
        return self._type(init=init, **{**form, **self._options})


def fixed(target: Target) -> nn.Module:
    """Return the activation that a site has without being converted."""
    if target.kind == kinds.GATE:
        return nn.Sigmoid()
    slope = {k: v for k, v in target.options.items() if k == "negative_slope"}
    return _FIXED[target.kind](**slope)


def start_of(activation: nn.Module) -> str:
    """Return the starting values in words."""
    lam, kappa = (
        f"{low:g}" if low == high else f"{low:g} to {high:g}"
        for low, high in activation._ranges
    )
    return f"lambda {lam}, kappa {kappa}"


def _resolve(named: Any) -> type:
    found = {"AGLU": AGLU, "APA": APA}.get(named, named) if _hashable(named) else named
    if isinstance(found, str):
        from mmengine.registry import MODELS

        found = MODELS.get(found)
    if not isinstance(found, type) or not issubclass(found, (AGLU, APA)):
        raise TypeError(
            f"activation={named!r}, expected 'AGLU', 'APA', a subclass of these, or a "
            f"dict with that as type: only these have a lambda and kappa to learn"
        )
    return found


def _hashable(value: Any) -> bool:
    return isinstance(value, (str, type))

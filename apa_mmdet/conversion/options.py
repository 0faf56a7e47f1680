"""What the user of a conversion chooses: which sites, and what to put in."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..layers import AGLU, APA
from . import kinds
from .planning import PlannedSite

FilterFn = Callable[[nn.Module, str], bool]

_A_GATE = "a gate: gates=True makes it APA(1, 1), which equals it at the start"
# MMDetection's names for types that torch has under another.
_ALIASES = {"Swish": "SiLU", "HSwish": "Hardswish"}


class Options:
    """What the arguments of ``convert_activations`` select and put in.

    They are described there.

    Raises:
        TypeError: If ``activation`` is not an APA or AGLU, a list of names is one
            string, or ``filter_fn`` cannot be called.
        ValueError: If ``activation`` has more than one pair of parameters, ``init``
            does not fit it, a type is unknown, or ``filter_fn`` names nothing.
    """

    def __init__(
        self,
        activation: str | Mapping | type,
        init: str | Mapping,
        parts: Sequence[str] | None,
        types: Sequence[str] | None,
        exclude: Sequence[str],
        gates: bool,
        filter_fn: FilterFn | str | None,
    ) -> None:
        for name, value in (("parts", parts), ("types", types), ("exclude", exclude)):
            if isinstance(value, str):
                raise TypeError(f"{name}={value!r}, expected a list: {[value]!r}")
        if isinstance(filter_fn, str):
            filter_fn = _import(filter_fn)
        if filter_fn is not None and not callable(filter_fn):
            raise TypeError(
                f"filter_fn={filter_fn!r}, expected a function of an activation module "
                f"and its path that returns whether to convert it, or its name"
            )
        arguments = dict(activation) if isinstance(activation, Mapping) else {}
        named = arguments.pop("type", None) if arguments else activation
        self._type = _activation_type(named)
        self._arguments = arguments
        self._init = init
        self._init_by_kind = isinstance(init, Mapping) and not (
            "lam" in init or "kappa" in init
        )
        self._check_activation()
        self._parts = None if parts is None else list(parts)
        self._types = None if types is None else _known_types(types)
        self._exclude = list(exclude)
        self._gates = gates
        self._filter_fn = filter_fn

    def _check_activation(self) -> None:
        arguments, init = self._arguments, self._init
        if arguments.get("num_parameters", 1) != 1:
            raise ValueError(
                f"activation has num_parameters={arguments['num_parameters']}, "
                f"expected 1: the sites of a model differ in their channels"
            )
        if "init" in arguments:
            raise ValueError(
                f"activation has init={arguments['init']!r}; give init beside "
                f"activation, not in it"
            )
        if self._init_by_kind:
            for name in init:
                if name not in kinds.KINDS:
                    raise ValueError(
                        f"init={dict(init)!r}: {name!r} is not an activation type, "
                        f"expected some of {', '.join(kinds.KINDS)}, or lam and kappa"
                    )
        is_bare = not issubclass(self._type, AGLU)
        if is_bare and (init == "auto" or self._init_by_kind):
            raise ValueError(
                f"init={init!r} with {self._type.__name__}: a gate cannot start as "
                f"the activation it replaces; use AGLU, or for instance init='uniform'"
            )
        for value in init.values() if self._init_by_kind else [init]:
            if value != "auto":  # a wrong one must raise before anything changes
                self._type(init=value, **arguments)

    def check_names(self, model: nn.Module, paths: Sequence[str]) -> None:
        """Check that ``parts`` and ``exclude`` fit the model.

        Args:
            model: The model, unconverted.
            paths: The paths of all its sites.

        Raises:
            ValueError: If a part or a pattern matches nothing.
        """
        modules = [path for path, _ in model.named_modules()]
        for part in self._parts or ():
            if not any(_is_in(path, part) for path in modules):
                names = [name for name, _ in model.named_children()]
                raise ValueError(
                    f"parts={self._parts}: there is no {part!r} in this "
                    f"{type(model).__name__}, which has {', '.join(names)}; give "
                    f"names of these or of modules inside them, or 'head'"
                )
        for pattern in self._exclude:
            if not any(_matches(path, pattern) for path in paths):
                some = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
                raise ValueError(
                    f"exclude={self._exclude}: {pattern!r} matches none of the "
                    f"{len(paths)} activations of this model ({some}); "
                    f"tools/analysis_tools/show_conversion.py lists them"
                )

    def reason_to_leave(self, site: PlannedSite, module: nn.Module, path: str) -> str:
        """Return why a site is left, "" if it is to be converted.

        Args:
            site: The site.
            module: The module that calls it.
            path: Its path in the converted model.
        """
        if self._parts is not None and not any(_is_in(path, p) for p in self._parts):
            return f"not in parts={self._parts}"
        if site.kind == kinds.GATE:
            if not self._gates:
                return _A_GATE
        elif self._types is None:
            if kinds.KINDS[site.kind].why_not:
                return kinds.KINDS[site.kind].why_not
        elif site.kind not in self._types:
            return f"not in types={self._types}"
        for pattern in self._exclude:
            if _matches(path, pattern):
                return f"excluded by {pattern!r}"
        if self._filter_fn is not None:
            activation = module._modules.get(site.attribute) or site.fixed_activation()
            if not self._filter_fn(activation, path):
                return "filter_fn does not select it"
        return ""

    def build(self, site: PlannedSite) -> nn.Module:
        """Return the activation to put in at a site."""
        if site.kind == kinds.GATE:
            return APA(init="sigmoid")
        init = self._init
        if self._init_by_kind:
            init = init.get(site.kind, "auto")
        if init == "auto":
            init = kinds.KINDS[site.kind].init
        # The slope of a LeakyReLU is its form, not its start; a bare APA has none.
        form = site.options if issubclass(self._type, AGLU) else {}
        return self._type(init=init, **{**form, **self._arguments})


def _import(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ValueError(
            f"filter_fn={name!r}: {error}; give a function, or its name as "
            f"'package.module.function'"
        ) from error


def _activation_type(named: Any) -> type:
    builtin = {"AGLU": AGLU, "APA": APA}
    cls = builtin.get(named, named) if isinstance(named, str) else named
    if isinstance(cls, str):
        from mmengine.registry import MODELS

        cls = MODELS.get(cls)
    if not isinstance(cls, type) or not issubclass(cls, (AGLU, APA)):
        raise TypeError(
            f"activation={named!r}, expected 'AGLU', 'APA', a subclass of these, or a "
            f"dict with that as type: only these have a lambda and kappa to learn"
        )
    return cls


def _known_types(types: Sequence[str]) -> list[str]:
    names = [_ALIASES.get(name, name) for name in types]
    for name in names:
        if name not in kinds.KINDS:
            raise ValueError(
                f"types={list(types)}: {name!r} cannot be converted, expected some of "
                f"{', '.join(kinds.KINDS)}; for sigmoid gates there is gates=True"
            )
    return names


def _is_in(path: str, part: str) -> bool:
    names, wanted = path.split("."), part.split(".")
    if part == "head" and any(name.endswith("head") for name in names):
        return True
    starts = range(len(names) - len(wanted) + 1)
    return any(names[i : i + len(wanted)] == wanted for i in starts)


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")

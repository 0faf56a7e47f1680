"""What the user of a conversion chooses: which sites, and what replaces them."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..layers import AGLU, APA
from .kinds import GATE, KINDS
from .planning import PlannedSite

FilterFn = Callable[[nn.Module, str], bool]

# Types that MMDetection knows under another name than torch, such as Swish.
_ALIASES = {
    alias.rpartition(".")[2]: name for name, k in KINDS.items() for alias in k.aliases
}


@dataclass
class Options:
    """The options of ``convert_activations``, which describes them, checked."""

    activation: str | Mapping | type
    init: str | Mapping
    parts: Sequence[str] | None
    types: Sequence[str] | None
    exclude: Sequence[str]
    gates: bool
    filter_fn: FilterFn | str | None

    def __post_init__(self) -> None:
        for name in ("parts", "types", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name}={value!r}, expected a list: {[value]!r}")
        if isinstance(self.filter_fn, str):
            try:
                self.filter_fn = pkgutil.resolve_name(self.filter_fn)
            except (AttributeError, ImportError, ValueError) as error:
                raise ValueError(
                    f"filter_fn={self.filter_fn!r}: {error}; give a function, or its "
                    f"name as 'package.module.function'"
                ) from error
        if self.filter_fn is not None and not callable(self.filter_fn):
            raise TypeError(
                f"filter_fn={self.filter_fn!r}, expected a callable "
                f"(module, path) -> bool, or the dotted name of such a function"
            )
        if self.types is not None:
            self.types = [_ALIASES.get(name, name) for name in self.types]
            _check_kinds("types", self.types, "; for sigmoid gates there is gates=True")
        self._check_activation()

    def _check_activation(self) -> None:
        is_dict = isinstance(self.activation, Mapping)
        self._arguments = dict(self.activation) if is_dict else {}
        named = self._arguments.pop("type", None) if is_dict else self.activation
        self._type = _activation_type(named)
        if self._arguments.get("num_parameters", 1) != 1:
            raise ValueError(
                f"activation has num_parameters={self._arguments['num_parameters']}, "
                f"expected 1: sites have different channel counts"
            )
        if "init" in self._arguments:
            raise ValueError(
                f"activation has init={self._arguments['init']!r}; give init beside "
                f"activation, not in it"
            )
        init = self.init
        self._by_kind = isinstance(init, Mapping) and not {"lam", "kappa"} & set(init)
        if self._by_kind:
            _check_kinds("init", init, ", or lam and kappa")
        if not issubclass(self._type, AGLU) and (init == "auto" or self._by_kind):
            raise ValueError(
                f"init={init!r} with {self._type.__name__}: a gate cannot start as "
                f"the activation it replaces; use AGLU, or for instance init='uniform'"
            )
        for value in init.values() if self._by_kind else [init]:
            if value != "auto":  # a wrong one must raise before anything changes
                self._type(init=value, **self._arguments)

    def check_names(self, model: nn.Module, paths: Sequence[str]) -> None:
        """Raise a ValueError if a part or a pattern matches nothing in the model.

        ``paths`` are those of all its sites.
        """
        modules = [path for path, _ in model.named_modules()]
        for part in self.parts or ():
            if not any(_is_in(path, part) for path in modules):
                names = [name for name, _ in model.named_children()]
                raise ValueError(
                    f"parts={self.parts}: there is no {part!r} in this "
                    f"{type(model).__name__}, which has {', '.join(names)}; give "
                    f"names of these or of modules inside them, or 'head'"
                )
        for pattern in self.exclude:
            if not any(_matches(path, pattern) for path in paths):
                some = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
                raise ValueError(
                    f"exclude={self.exclude}: {pattern!r} matches none of the "
                    f"{len(paths)} activations of this model ({some}); "
                    f"tools/analysis_tools/show_conversion.py lists them"
                )

    def reason_to_leave(self, site: PlannedSite, module: nn.Module, path: str) -> str:
        """Return why a site is left, "" if it is to be converted.

        ``module`` calls it, and ``path`` is its path in the converted model.
        """
        if self.parts is not None and not any(_is_in(path, p) for p in self.parts):
            return f"not in parts={self.parts}"
        if site.kind == GATE:
            if not self.gates:
                return "a gate: gates=True makes it APA(1, 1), identical at the start"
        elif self.types is None:
            if KINDS[site.kind].skip_reason:
                return KINDS[site.kind].skip_reason
        elif site.kind not in self.types:
            return f"not in types={self.types}"
        for pattern in self.exclude:
            if _matches(path, pattern):
                return f"excluded by {pattern!r}"
        if self.filter_fn is not None:
            activation = module._modules.get(site.attribute) or site.fixed_activation()
            if not self.filter_fn(activation, path):
                return "filter_fn does not select it"
        return ""

    def build(self, site: PlannedSite) -> nn.Module:
        """Return the activation that replaces a site's."""
        if site.kind == GATE:
            return APA(init="sigmoid")
        init = self.init.get(site.kind, "auto") if self._by_kind else self.init
        if init == "auto":
            init = site.activation.start or KINDS[site.kind].init
        # The slope of a LeakyReLU is its form, not its start; a bare APA has none.
        form = site.activation.options if issubclass(self._type, AGLU) else {}
        return self._type(init=init, **{**form, **self._arguments})


def _activation_type(named: Any) -> type:
    cls = {"AGLU": AGLU, "APA": APA}.get(named) if isinstance(named, str) else named
    if cls is None and isinstance(named, str):
        from mmengine.registry import MODELS

        cls = MODELS.get(named)
    if not isinstance(cls, type) or not issubclass(cls, (AGLU, APA)):
        raise TypeError(
            f"activation={named!r}, expected 'AGLU', 'APA', a subclass of these, or a "
            f"dict with that as type: only these have a lambda and kappa to learn"
        )
    return cls


def _check_kinds(option: str, names: Sequence[str] | Mapping, others: str) -> None:
    for name in names:
        if name not in KINDS:
            raise ValueError(
                f"{option}={names!r}: {name!r} cannot be converted, expected some of "
                f"{', '.join(KINDS)}{others}"
            )


def _is_in(path: str, part: str) -> bool:
    if part == "head" and any(name.endswith("head") for name in path.split(".")):
        return True
    return f".{part}." in f".{path}."


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")

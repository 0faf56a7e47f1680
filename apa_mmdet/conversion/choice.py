"""Which sites the options and the meaning of an activation leave as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from . import kinds
from .sites import Target

_A_GATE = "a gate: gates=True makes it APA(1, 1), which equals it at the start"
# MMDetection's names for types that torch has under another.
_ALIASES = {"Swish": "SiLU", "HSwish": "Hardswish"}


def is_loss(module: nn.Module) -> bool:
    """Tell whether a module computes a loss."""
    return type(module).__name__.endswith("Loss")


class Choice:
    """The options of a conversion, checked against the model.

    Args:
        model: The model, before anything in it has changed.
        paths: The paths of all its sites.
        parts: As in ``convert_activations``.
        types: As there.
        exclude: As there.
        gates: As there.

    Raises:
        TypeError: If a list of names is one string.
        ValueError: If a part, a type or a pattern matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Iterable[str],
        parts: Sequence[str] | None,
        types: Sequence[str] | None,
        exclude: Sequence[str],
        gates: bool,
    ) -> None:
        for name, value in (("parts", parts), ("types", types), ("exclude", exclude)):
            if isinstance(value, str):
                raise TypeError(f"{name}={value!r}, expected a list: {[value]!r}")
        self._parts = _check_parts(model, parts)
        self._types = _check_types(types)
        self._exclude = _check_patterns(list(paths), exclude)
        self._gates = gates
        self._kept, self._kept_methods = _not_features(model)

    def reason_to_leave(self, owner: nn.Module, target: Target, path: str) -> str:
        """Return why a site stays as it is, "" if it is to be converted.

        Args:
            owner: The module that calls it.
            target: The site.
            path: Its path in the model.
        """
        kept = self._kept.get((id(owner), target.attribute))
        if target.method is not None:
            kept = self._kept_methods.get((id(owner), target.method))
        if kept:
            return kept
        if self._parts is not None and not any(_is_in(path, p) for p in self._parts):
            return f"it is in none of parts={self._parts}"
        if target.kind == kinds.GATE:
            if not self._gates:
                return _A_GATE
        elif self._types is None:
            if not kinds.KINDS[target.kind].by_default:
                return kinds.KINDS[target.kind].reason
        elif target.kind not in self._types:
            return f"it is none of types={self._types}"
        for pattern in self._exclude:
            if _matches(path, pattern):
                return f"excluded by {pattern!r}"
        return ""

    def keeps_all_of(self, module: nn.Module) -> str | None:
        """Return why nothing below a module is converted, None if something may be."""
        return self._kept.get((id(module), ""))


def _check_parts(model: nn.Module, parts: Sequence[str] | None) -> list[str] | None:
    if parts is None:
        return None
    paths = [path for path, _ in model.named_modules()]
    for part in parts:
        if not any(_is_in(path, part) for path in paths):
            names = [name for name, _ in model.named_children()]
            raise ValueError(
                f"parts={list(parts)}: there is no {part!r} in this "
                f"{type(model).__name__}, which has {', '.join(names)}; give names of "
                f"these or of modules inside them, or 'head'"
            )
    return list(parts)


def _is_in(path: str, part: str) -> bool:
    names, wanted = path.split("."), part.split(".")
    if part == "head" and any(name.endswith("head") for name in names):
        return True
    starts = range(len(names) - len(wanted) + 1)
    return any(names[i : i + len(wanted)] == wanted for i in starts)


def _check_types(types: Sequence[str] | None) -> list[str] | None:
    if types is None:
        return None
    names = [_ALIASES.get(name, name) for name in types]
    for name in names:
        if name not in kinds.KINDS:
            raise ValueError(
                f"types={list(types)}: {name!r} cannot be converted, expected some of "
                f"{', '.join(kinds.KINDS)}; for sigmoid gates there is gates=True"
            )
    return names


def _check_patterns(paths: list[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in paths):
            some = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
            raise ValueError(
                f"exclude={list(patterns)}: {pattern!r} matches none of the "
                f"{len(paths)} activations of this model ({some}); "
                f"tools/analysis_tools/show_conversion.py lists them"
            )
    return list(patterns)


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def _not_features(model: nn.Module) -> tuple[dict, dict]:
    """Find the places of ``kinds.NOT_FEATURES``: (owner, attribute or method)."""
    kept: dict[tuple[int, str], str] = {}
    methods: dict[tuple[int, str], str] = {}
    for module in model.modules():
        if is_loss(module):
            kept[id(module), ""] = "it belongs to a loss"
        for klass in type(module).__mro__:
            for path, reason in kinds.NOT_FEATURES.get(klass.__name__, {}).items():
                if path.endswith("()"):
                    methods[id(module), path[:-2]] = reason
                    continue
                *names, last = path.split(".")
                try:
                    owner = module.get_submodule(".".join(names))
                except AttributeError:
                    continue
                if last == "-1":
                    last = str(len(owner) - 1)
                kept[id(owner), last] = reason
                if isinstance(getattr(owner, last, None), nn.Module):
                    kept[id(getattr(owner, last)), ""] = reason
    return kept, methods

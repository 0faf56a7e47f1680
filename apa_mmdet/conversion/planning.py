"""The sites of a model: the places where an activation can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import kinds
from .call_sites import CallReader
from .grouping import CallGroup, group_calls
from .rewriting import BaseCall, SiteCall, is_rewritten
from .rules import BlockConverter, converter_of
from .source import calls_on_others, is_container, mentions, methods, syntax

# Without any of these, nothing is called inline and nothing repeatedly.
_WORTH_READING = (*kinds.FUNCTION_NAMES, "multi_apply", "map(", "for ")


@dataclass
class PlannedSite:
    """A site, before the user's options decide on it."""

    # The attribute that is the fixed activation, or that will hold the learnable one
    # for a function called inline.
    attribute: str
    # In the ActivationSites that the attribute becomes, or the name that a
    # BlockConverter gives it; None if the attribute becomes the activation itself.
    key: str | None
    kind: str  # a key of kinds.KINDS, or kinds.GATE
    options: dict[str, Any]  # AGLU's further arguments
    shared: tuple[str, ...] = ()  # why more than one call leads to it
    method: str | None = None  # the one that calls a function inline

    def fixed_activation(self) -> nn.Module:
        """Return a module that computes what is there now."""
        if self.kind == kinds.GATE:
            return nn.Sigmoid()
        kind = kinds.KINDS[self.kind]
        arguments = {k: v for k, v in self.options.items() if k in kind.arguments}
        return kind.module(**arguments)


@dataclass
class ModulePlan:
    """The sites of one module, without its children's."""

    module: nn.Module
    paths: list[str] = field(default_factory=list)  # in the model; reports use [0]
    ancestors: tuple[nn.Module, ...] = ()  # the nearest first
    repeated: bool = False  # whether it runs several times in one pass of the model
    sites: list[PlannedSite] = field(default_factory=list)
    # The calls to route to the sites, by their attribute.
    site_calls: dict[str, list[SiteCall]] = field(default_factory=dict)
    base_calls: tuple[BaseCall, ...] = ()  # which may contain one of these calls
    left: list[tuple[str, str, str]] = field(default_factory=list)  # name, kind, reason
    repeated_children: set[str] = field(default_factory=set)  # see CallReader
    converter: BlockConverter | None = None  # used instead of rewriting the source

    def path_of(self, site: PlannedSite) -> str:
        """Return a site's path in the model once it is converted."""
        attribute = None if self.converter else site.attribute
        return join(self.paths[0], attribute, site.key)


def join(*names: str | None) -> str:
    """Return a dotted path of the names that are not empty."""
    return ".".join(name for name in names if name)


def plan_model(model: nn.Module) -> list[ModulePlan]:
    """Plan every module of a model, except what was converted on its own."""
    plans: dict[int, ModulePlan] = {}
    classes = {type(module) for module in model.modules()}

    def is_called_elsewhere(name: str) -> bool:
        return any(calls_on_others(cls, name) for cls in classes)

    def visit(module: nn.Module, path: str, ancestors: tuple, repeated: bool) -> None:
        if id(module) in plans:
            plans[id(module)].paths.append(path)
            return
        if "conversion_report" in vars(module):
            return
        plan = plan_module(module, is_called_elsewhere)
        plan.paths, plan.ancestors, plan.repeated = [path], ancestors, repeated
        plans[id(module)] = plan
        unconvertible = []
        for name, child in module._modules.items():
            if child is None or kinds.kind_of(child) is not None:
                continue
            reason = kinds.reason_to_leave(child)
            if reason is not None:
                unconvertible.append((name, type(child).__name__, reason))
                continue
            again = repeated or name in plan.repeated_children
            visit(child, join(path, name), (module, *ancestors), again)
        plan.left[:0] = unconvertible

    visit(model, "", (), False)
    return list(plans.values())


def plan_module(
    module: nn.Module, is_called_elsewhere: Callable[[str], bool]
) -> ModulePlan:
    """Find the sites of one module.

    ``is_called_elsewhere(name)`` returns whether some module calls an attribute of that
    name on an object other than itself.
    """
    plan = ModulePlan(module)
    # Child modules, or functions such as self.activation = F.relu, with their kinds.
    activations = {
        name: kind
        for name, value in {**module._modules, **vars(module)}.items()
        if callable(value) and (kind := kinds.kind_of(value)) is not None
    }
    converter = converter_of(module)
    if "forward" in vars(module):
        plan.sites = [_whole(module, *item) for item in activations.items()]
        why = "it was replaced on the instance, so the class's source is not what runs"
        plan.left.append(("forward()", "unknown", why))
    elif converter and activations.keys() >= set(converter.sites.values()):
        plan.converter = converter
        for name, attribute in converter.sites.items():
            plan.sites.append(_whole(module, attribute, activations[attribute], name))
    elif is_container(module):
        plan.sites = [_whole(module, *item) for item in activations.items()]
    elif not is_rewritten(module):
        functions = (function for _, function in methods(type(module)).values())
        if (
            activations
            or mentions(type(module), _WORTH_READING)
            or any(syntax(function) is None for function in functions)
        ):
            _read(plan, activations, is_called_elsewhere)
    return plan


def _read(
    plan: ModulePlan,
    activations: dict[str, str],
    is_called_elsewhere: Callable[[str], bool],
) -> None:
    """Plan a module by reading its methods."""
    module = plan.module
    reader = CallReader(module, set(activations))
    groups = group_calls(reader.entries())
    plan.base_calls = tuple(reader.base_calls)
    plan.repeated_children = reader.repeated_children
    plan.left += [(f"{method}()", what, why) for method, what, why in reader.left]
    for method in reader.unreadable:
        why = "the source of this method could not be read"
        plan.left.append((f"{method}()", "unknown", why))
    for attribute, kind in activations.items():
        own = [group for group in groups if group.first.attribute == attribute]
        options = kinds.options_of(getattr(module, attribute), kind)
        if attribute in reader.discarded:
            why = "it is called only for its effect on the input"
            plan.left.append((attribute, kind, why))
        elif kind in kinds.WITH_ARGUMENTS and any(g.first.takes_more for g in own):
            plan.left.append((attribute, kind, "it is called with further arguments"))
        elif own and attribute not in reader.escapes:
            _add_sites(plan, own, attribute, kind, options)
        elif (
            attribute in reader.escapes
            or reader.looks_up
            or reader.unreadable
            or is_called_elsewhere(attribute)
        ):
            plan.sites.append(_whole(module, attribute, kind))
        else:
            plan.left.append((attribute, kind, "never called"))

    inline: dict[tuple, list[CallGroup]] = {}
    for group in groups:
        if group.first.attribute is None:
            inline.setdefault(group.category, []).append(group)
    taken = set(activations)
    for own in inline.values():
        kind = own[0].first.kind
        name = kind.lower()
        while hasattr(module, name) or name in taken:
            name += "_inline"
        taken.add(name)
        _add_sites(plan, own, name, kind, own[0].first.options)


def _add_sites(
    plan: ModulePlan, groups: list[CallGroup], attribute: str, kind: str, options: dict
) -> None:
    """Give every group and pass its site, and route the calls to it."""
    is_only_one = sum(len(group.passes) for group in groups) == 1
    for i, group in enumerate(groups):
        call = group.first
        method = call.place.method if call.attribute is None else None
        number = str(i) if len(groups) > 1 else None
        for index in group.passes:
            numbers = [] if number is None else [number]
            key = None if is_only_one else "_".join([*numbers, *map(str, index)])
            plan.sites.append(
                PlannedSite(attribute, key, kind, options, group.why_shared(), method)
            )
        if is_only_one and call.attribute is not None and not call.takes_more:
            continue
        for place, loops in group.loops.items():
            call = SiteCall(place, attribute, number, () if is_only_one else loops)
            plan.site_calls.setdefault(attribute, []).append(call)


def _whole(
    module: nn.Module, attribute: str, kind: str, key: str | None = None
) -> PlannedSite:
    """Return the one site of whatever calls an attribute."""
    options = kinds.options_of(getattr(module, attribute), kind)
    return PlannedSite(attribute, key, kind, options)

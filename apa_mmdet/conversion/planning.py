"""The sites of a model: the places where an activation can be replaced."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from .call_sites import CallReader, Surroundings
from .grouping import CallGroup, group_calls
from .identify import Activation, identify
from .kinds import FUNCTION_NAMES, GATE, KINDS, WITH_ARGUMENTS, look_up
from .report import NEVER_CALLED
from .rewriting import BaseCall, FixedFunction, SiteCall, is_rewritten
from .rules import BlockConverter, converter_of
from .source import (
    calls_on_others,
    dotted_value,
    is_container,
    mentions,
    methods,
    syntax,
)

# Without any of these, no function of torch is called inline, no activation is written
# out, and nothing is called repeatedly.
_WORTH_READING = (
    *(*FUNCTION_NAMES, "sigmoid(", "tanh(", "erf(", "exp("),
    *("multi_apply", "map(", "for "),
)


@dataclass
class PlannedSite:
    """A site, before the user's options decide on it."""

    # The attribute that is the fixed activation, or that will hold the learnable one
    # for a function called inline.
    attribute: str
    # In the ActivationSites that the attribute becomes, or the name that a
    # BlockConverter gives it; None if the attribute becomes the activation itself.
    key: str | None
    activation: Activation
    # What it replaces, if that was recognised by what it computes.
    original: Callable | None
    shared: tuple[str, ...] = ()  # why more than one call leads to it
    method: str | None = None  # the one that calls a function inline

    @property
    def kind(self) -> str:
        """A key of ``kinds.KINDS``, or ``kinds.GATE``."""
        return self.activation.kind

    def fixed_activation(self) -> nn.Module:
        """Return a module that computes what is there now."""
        if isinstance(self.original, nn.Module):
            return self.original
        if self.original is not None:
            return FixedFunction(self.original)
        if self.kind == GATE:
            return nn.Sigmoid()
        kind = KINDS[self.kind]
        options = self.activation.options
        return kind.module(**{k: v for k, v in options.items() if k in kind.arguments})


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
    surroundings = Surroundings(set(map(id, model.modules())))

    def is_called_elsewhere(name: str, activation: Any) -> bool:
        if id(activation) in surroundings.called:
            return True
        return any(calls_on_others(cls, name) for cls in classes)

    def visit(module: nn.Module, path: str, ancestors: tuple, repeated: bool) -> None:
        if id(module) in plans:
            plans[id(module)].paths.append(path)
            return
        if "conversion_report" in vars(module):
            return
        plan = plan_module(module, surroundings, is_called_elsewhere)
        plan.paths, plan.ancestors, plan.repeated = [path], ancestors, repeated
        plans[id(module)] = plan
        unconvertible = []
        for name, child in module._modules.items():
            if child is None:
                continue
            activation = identify(child)
            if activation is None:
                again = repeated or name in plan.repeated_children
                visit(child, join(path, name), (module, *ancestors), again)
            elif activation.reason:
                left = (name, type(child).__name__, activation.reason)
                unconvertible.append(left)
        plan.left[:0] = unconvertible

    visit(model, "", (), False)
    return list(plans.values())


def plan_module(
    module: nn.Module,
    surroundings: Surroundings,
    is_called_elsewhere: Callable[[str, Any], bool],
) -> ModulePlan:
    """Find the sites of one module.

    ``is_called_elsewhere(name, activation)`` returns whether another module calls an
    activation, or an attribute of that name on an object other than itself.
    """
    plan = ModulePlan(module)
    # Child modules, or functions such as self.activation = F.relu.
    activations = {
        name: activation
        for name, value in {**module._modules, **vars(module)}.items()
        if callable(value)
        and (activation := identify(value)) is not None
        and activation.kind
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
            or _calls_an_activation(type(module))
            or any(syntax(function) is None for function in functions)
        ):
            _read(plan, activations, surroundings, is_called_elsewhere)
    return plan


@cache
def _calls_an_activation(cls: type) -> bool:
    """Return whether a method of a class calls an activation that is not torch's."""
    for _, function in methods(cls).values():
        names = inspect.unwrap(function).__globals__
        for node in ast.walk(syntax(function) or ast.Pass()):
            if isinstance(node, ast.Call):
                called = dotted_value(node.func, names)
                if called is not None and identify(called) is not None:
                    return True
    return False


def _read(
    plan: ModulePlan,
    activations: dict[str, Activation],
    surroundings: Surroundings,
    is_called_elsewhere: Callable[[str, Any], bool],
) -> None:
    """Plan a module by reading its methods."""
    module = plan.module
    reader = CallReader(module, activations, surroundings)
    entries = reader.entries()
    groups = group_calls(entries, reader.escapes | reader.discarded | reader.listed)
    plan.base_calls = tuple(reader.base_calls)
    plan.repeated_children = reader.repeated_children
    plan.left += [(f"{method}()", what, why) for method, what, why in reader.left]
    for method in reader.unreadable:
        why = "the source of this method could not be read"
        plan.left.append((f"{method}()", "unknown", why))
    for attribute, activation in activations.items():
        kind = activation.kind
        own = [group for group in groups if group.attribute == attribute]
        is_called = any(attribute in group.attributes() for group in groups)
        if attribute in reader.listed:
            why = "it runs from a list that is not an nn.ModuleList"
            plan.left.append((attribute, kind, why))
        if attribute in reader.discarded:
            why = "it is called only for its effect on the input"
            plan.left.append((attribute, kind, why))
        elif any(group.first.takes_more for group in own) and (
            kind in WITH_ARGUMENTS or _recognised(module, attribute) is not None
        ):
            plan.left.append((attribute, kind, "it is called with further arguments"))
        elif own and attribute not in reader.escapes:
            _add_sites(plan, own, attribute, activation)
        elif (
            attribute in reader.escapes
            or reader.looks_up
            or reader.unreadable
            or is_called_elsewhere(attribute, getattr(module, attribute))
        ):
            plan.sites.append(_whole(module, attribute, activation))
        elif not is_called and attribute not in reader.listed:
            plan.left.append((attribute, kind, NEVER_CALLED))

    inline: dict[tuple, list[CallGroup]] = {}
    for group in groups:
        in_turn = {c.activation.category: c.activation.kind for c in group.all_calls()}
        if group.attribute is None and (
            len(in_turn) > 1 or not reader.various.isdisjoint(group.calls)
        ):
            why = "it is not the same activation in each pass of a loop"
            method = f"{group.first.place.method}()"
            plan.left.append((method, " and ".join(in_turn.values()), why))
        elif group.attribute is None:
            inline.setdefault(group.category, []).append(group)
    taken = set(activations)
    for own in inline.values():
        activation = own[0].first.activation
        name = activation.kind.lower()
        while hasattr(module, name) or name in taken:
            name += "_inline"
        taken.add(name)
        _add_sites(plan, own, name, activation)


def _add_sites(
    plan: ModulePlan, groups: list[CallGroup], attribute: str, activation: Activation
) -> None:
    """Give every group and pass its site, and route the calls to it."""
    is_only_one = sum(len(group.passes) for group in groups) == 1
    for i, group in enumerate(groups):
        number = str(i) if len(groups) > 1 else None
        for index in group.passes:
            numbers = [] if number is None else [number]
            key = None if is_only_one else "_".join([*numbers, *map(str, index)])
            if group.attribute is None:
                method = group.first.place.method
                original = group.calls[group.first.place][index].function
            else:
                method, original = None, _recognised(plan.module, attribute)
            shared = group.why_shared()
            plan.sites.append(
                PlannedSite(attribute, key, activation, original, shared, method)
            )
        for place, calls in group.calls.items():
            call = next(iter(calls.values()))
            is_direct = call.attribute == attribute
            is_direct = is_direct and not (call.takes_more or call.by_keyword)
            if not (is_only_one and is_direct):
                loops = () if is_only_one else call.loops
                site_call = SiteCall(place, attribute, number, loops, call.variable)
                plan.site_calls.setdefault(attribute, []).append(site_call)


def _whole(
    module: nn.Module, attribute: str, activation: Activation, key: str | None = None
) -> PlannedSite:
    """Return the one site of whatever calls an attribute."""
    return PlannedSite(attribute, key, activation, _recognised(module, attribute))


def _recognised(module: nn.Module, attribute: str) -> Callable | None:
    activation = getattr(module, attribute)
    return activation if look_up(activation) is None else None

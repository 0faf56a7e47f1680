"""Which of a module's activation calls get an activation of their own, and its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import kinds
from .call_sites import Call, Jump, Reader
from .source import is_container, is_rewritten, mentions, methods, syntax
from .walking import Place

REPEATED = "repeated, as its weights are"
# Without any of these, nothing is called inline and nothing repeatedly.
_WORTH_READING = (*kinds.INLINE_NAMES, "multi_apply", "map(", "for ")


@dataclass(frozen=True)
class Edit:
    """A call to be routed to an activation of its own.

    Attributes:
        place: Where it stands.
        attribute: The attribute to call.
        slot: The first part of the key in that attribute's ``ActivationSites``; None
            if there is no such part.
        loops: The loops whose passes are the key's further parts. With neither, the
            attribute is the activation itself.
    """

    place: Place
    attribute: str
    slot: str | None
    loops: tuple[Place, ...]


@dataclass
class Target:
    """An activation to put in.

    Attributes:
        attribute: Its name in the owner.
        key: Its key in the owner's ``ActivationSites`` of that name, or None.
        kind: What it replaces, a key of ``kinds.KINDS``, or ``kinds.GATE``.
        options: AGLU's further arguments.
        shared: Why more than one call leads to it, or "".
        method: For a function that was called inline, the method; else None.
    """

    attribute: str
    key: str | None
    kind: str
    options: dict[str, Any]
    shared: str = ""
    method: str | None = None


@dataclass
class Plan:
    """What to do with one module.

    Attributes:
        targets: The activations to put in.
        edits: The calls to route to them, by the target's attribute.
        jumps: Calls of base classes' methods in which an edit may be.
        left: What stays, as (name, kind, reason).
        repeated_children: Names of children used repeatedly with the same weights.
    """

    targets: list[Target] = field(default_factory=list)
    edits: dict[str, list[Edit]] = field(default_factory=dict)
    jumps: tuple[Jump, ...] = ()
    left: list[tuple[str, str, str]] = field(default_factory=list)
    repeated_children: set[str] = field(default_factory=set)


@dataclass
class _Slot:
    """Calls that one activation serves, or one for each pass of the loops around."""

    first: Call
    passes: list[tuple[int, ...]]
    loops: dict[Place, tuple[Place, ...]]
    repeated: bool

    @property
    def category(self) -> tuple:
        call = self.first
        return call.attribute, call.kind, tuple(call.options.items())

    def why_shared(self) -> str:
        reasons = []
        if self.repeated:
            reasons.append(REPEATED)
        if len(self.loops) > 1:
            calls = (f"{p.method}:{p.position[0]}" for p in self.loops)
            reasons.append(" and ".join(calls))
        return "; ".join(reasons)


def activation_attributes(module: nn.Module) -> dict[str, str]:
    """Return the attributes of a module that are activations, with their kinds.

    They are child modules, or functions such as ``self.activation = F.relu``.
    """
    found = {}
    for name, child in module._modules.items():
        kind = None if child is None else kinds.kind_of(child)
        if kind is not None:
            found[name] = kind
    for name, value in vars(module).items():
        if callable(value) and not isinstance(value, type):
            kind = kinds.kind_of_function(value)
            if kind is not None:
                found[name] = kind
    return found


def plan(module: nn.Module, is_called_elsewhere: Callable[[str], bool]) -> Plan:
    """Find what one module calls, its children's own calls aside.

    Args:
        module: The module.
        is_called_elsewhere: Tells whether a method of another module calls an
            attribute of that name on an object that is not the module itself.
    """
    if is_rewritten(module):
        return Plan()  # its part of the model has been converted on its own
    activations = activation_attributes(module)
    if is_container(module):
        return Plan([_whole(module, *item) for item in activations.items()])
    if not activations and not mentions(type(module), _WORTH_READING):
        functions = (function for _, function in methods(type(module)).values())
        if all(syntax(function) is not None for function in functions):
            return Plan()
    reader = Reader(module, set(activations))
    slots = _slots(reader.entries())
    result = Plan(
        jumps=tuple(reader.jumps),
        repeated_children=reader.repeated_children,
        left=[(f"{method}()", what, why) for method, what, why in reader.left],
    )
    for method in reader.unreadable:
        why = "the source of this method could not be read"
        result.left.append((f"{method}()", "unknown", why))
    for attribute, kind in activations.items():
        own = [slot for slot in slots if slot.first.attribute == attribute]
        if attribute in reader.discarded:
            why = "a call of it is made for its effect on the input alone"
            result.left.append((attribute, kind, why))
        elif own and attribute not in reader.escapes:
            options = _options(getattr(module, attribute), kind)
            _route(result, own, attribute, kind, options)
        elif (
            attribute in reader.escapes
            or reader.looks_up
            or reader.unreadable
            or is_called_elsewhere(attribute)
        ):
            result.targets.append(_whole(module, attribute, kind))
        else:
            result.left.append((attribute, kind, "never called"))

    inline: dict[tuple, list[_Slot]] = {}
    for slot in slots:
        if slot.first.attribute is None:
            inline.setdefault(slot.category, []).append(slot)
    taken = set(activations)
    for own in inline.values():
        kind = own[0].first.kind
        name = kind.lower()
        while hasattr(module, name) or name in taken:
            name += "_inline"
        taken.add(name)
        options = {**kinds.KINDS[kind].options, **own[0].first.options}
        _route(result, own, name, kind, options)
    return result


def _options(activation: Any, kind: str) -> dict[str, Any]:
    options = kinds.KINDS[kind].options if kind in kinds.KINDS else {}
    return {
        name: getattr(activation, value, kinds.DEFAULT_SLOPE)
        if isinstance(value, str)
        else value
        for name, value in options.items()
    }


def _whole(module: nn.Module, attribute: str, kind: str) -> Target:
    """One activation for whatever calls this attribute."""
    activation = module._modules.get(attribute) or vars(module).get(attribute)
    return Target(attribute, None, kind, _options(activation, kind))


def _route(
    result: Plan, slots: list[_Slot], attribute: str, kind: str, options: dict
) -> None:
    """Give every slot and pass its activation, and route the calls to it."""
    alone = sum(len(slot.passes) for slot in slots) == 1
    for number, slot in enumerate(slots):
        call = slot.first
        method = call.place.method if call.attribute is None else None
        prefix = str(number) if len(slots) > 1 else None
        for index in slot.passes:
            parts = [] if prefix is None else [prefix]
            key = None if alone else "_".join([*parts, *map(str, index)])
            target = Target(attribute, key, kind, options, slot.why_shared(), method)
            result.targets.append(target)
        if alone and call.attribute is not None and not call.takes_more:
            continue
        for place, loops in slot.loops.items():
            edit = Edit(place, attribute, prefix, () if alone else loops)
            result.edits.setdefault(attribute, []).append(edit)


def _slots(entries: dict[str, list[Call]]) -> list[_Slot]:
    """Tell apart the calls that need an activation of their own.

    Calls share one where the same layer's result goes in, and where two methods that
    are called instead of each other (``forward`` and ``rfp_forward``) correspond:
    the k-th call of the one to the k-th of the other.
    """
    order = sorted(entries, key=lambda name: name != "forward")
    slots: list[_Slot] = []
    for name in order:
        before = list(slots)
        matched: list[_Slot] = []
        for slot in _by_place(entries[name]):
            twin = (
                _same_place(slot, slots)
                or _same_producer(slot, slots)
                or _next_alike(slot, before, matched)
            )
            if twin is None:
                slots.append(slot)
            else:
                twin.repeated |= slot.repeated
                twin.loops.update(slot.loops)
                matched.append(twin)
    return slots


def _by_place(calls: list[Call]) -> Iterator[_Slot]:
    found: dict[Place, _Slot] = {}
    for call in calls:
        if call.place not in found:
            loops = {call.place: call.loops}
            found[call.place] = _Slot(call, [], loops, False)
        found[call.place].passes.append(call.index)
        found[call.place].repeated |= call.repeated
    return iter(found.values())


def _same_place(slot: _Slot, others: list[_Slot]) -> _Slot | None:
    place = slot.first.place
    return next((other for other in others if place in other.loops), None)


def _same_producer(slot: _Slot, others: list[_Slot]) -> _Slot | None:
    producer = slot.first.producer
    if producer is None or slot.first.loops:
        return None
    alike = (other for other in others if other.category == slot.category)
    return next(
        (o for o in alike if o.first.producer == producer and not o.first.loops), None
    )


def _next_alike(slot: _Slot, others: list[_Slot], matched: list) -> _Slot | None:
    alike = [other for other in others if other.category == slot.category]
    position = sum(other in alike for other in matched)
    if position < len(alike) and alike[position].passes == slot.passes:
        return alike[position]
    return None

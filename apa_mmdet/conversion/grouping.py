"""Which of a module's activation calls share an activation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .call_sites import Call
from .edits import Place

REPEATED = "repeated, as its weights are"


@dataclass
class CallGroup:
    """Calls that share an activation, or one for each pass of the loops around them.

    Attributes:
        first: The first of the calls.
        passes: The pass through each of the loops, for each activation.
        loops: The loops around each of the calls.
        repeated: Whether they run more than once with the same weights.
    """

    first: Call
    passes: list[tuple[int, ...]]
    loops: dict[Place, tuple[Place, ...]]
    repeated: bool

    @property
    def category(self) -> tuple:
        """What is called: the attribute, or the function with its options."""
        call = self.first
        return call.attribute, call.kind, tuple(call.options.items())

    def why_shared(self) -> str:
        """Return why more than one call leads to an activation, or ""."""
        reasons = []
        if self.repeated:
            reasons.append(REPEATED)
        if len(self.loops) > 1:
            calls = (f"{p.method}:{p.position[0]}" for p in self.loops)
            reasons.append(" and ".join(calls))
        return "; ".join(reasons)


def group_calls(entries: dict[str, list[Call]]) -> list[CallGroup]:
    """Group the calls that share an activation.

    Calls share one if their input is the same layer's result. So do corresponding calls
    of two methods that are called instead of each other (``forward`` and
    ``rfp_forward``): the k-th call of one and the k-th of the other.

    Args:
        entries: The calls reached from each method that no other one leads to.
    """
    order = sorted(entries, key=lambda name: name != "forward")
    groups: list[CallGroup] = []
    for name in order:
        before = list(groups)
        matched: list[CallGroup] = []
        for group in _by_place(entries[name]):
            twin = (
                _same_place(group, groups)
                or _same_producer(group, groups)
                or _next_alike(group, before, matched)
            )
            if twin is None:
                groups.append(group)
            else:
                twin.repeated |= group.repeated
                twin.loops.update(group.loops)
                matched.append(twin)
    return groups


def _by_place(calls: list[Call]) -> Iterable[CallGroup]:
    groups: dict[Place, CallGroup] = {}
    for call in calls:
        loops = {call.place: call.loops}
        group = groups.setdefault(call.place, CallGroup(call, [], loops, False))
        group.passes.append(call.index)
        group.repeated |= call.repeated
    return groups.values()


def _same_place(group: CallGroup, others: list[CallGroup]) -> CallGroup | None:
    place = group.first.place
    return next((other for other in others if place in other.loops), None)


def _same_producer(group: CallGroup, others: list[CallGroup]) -> CallGroup | None:
    producer = group.first.producer
    if producer is None or group.first.loops:
        return None
    alike = (other for other in others if other.category == group.category)
    return next(
        (o for o in alike if o.first.producer == producer and not o.first.loops), None
    )


def _next_alike(
    group: CallGroup, others: list[CallGroup], matched: list[CallGroup]
) -> CallGroup | None:
    alike = [other for other in others if other.category == group.category]
    position = sum(other in alike for other in matched)
    if position < len(alike) and alike[position].passes == group.passes:
        return alike[position]
    return None

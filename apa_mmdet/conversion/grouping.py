"""Which of a module's activation calls share an activation."""

from __future__ import annotations

from dataclasses import dataclass

from .call_sites import Call
from .source import Place

REPEATED = "repeated, as its weights are"


@dataclass
class CallGroup:
    """Calls that share an activation, or one for each pass of the loops around them."""

    first: Call
    passes: list[tuple[int, ...]]  # through each of the loops, for each activation
    loops: dict[Place, tuple[Place, ...]]  # around each of the calls
    repeated: bool  # several times with the same weights

    @property
    def category(self) -> tuple:
        """What is called: the attribute, or the function with its options."""
        call = self.first
        return call.attribute, call.kind, tuple(call.options.items())

    def why_shared(self) -> tuple[str, ...]:
        """Return why more than one call leads to an activation."""
        calls = " and ".join(f"{p.method}:{p.position[0]}" for p in self.loops)
        return (REPEATED,) * self.repeated + (calls,) * (len(self.loops) > 1)


def group_calls(entries: dict[str, list[Call]]) -> list[CallGroup]:
    """Group the calls that share an activation.

    ``entries`` has the calls reached from each method that no other one leads to. Calls
    share an activation if their input is the same layer's result. So do corresponding
    calls of two methods that are called instead of each other (``forward`` and
    ``rfp_forward``): the k-th call of one and the k-th of the other.
    """
    groups: list[CallGroup] = []
    for method in sorted(entries, key=lambda name: name != "forward"):
        by_place: dict[Place, CallGroup] = {}
        for call in entries[method]:
            new = CallGroup(call, [], {call.place: call.loops}, False)
            group = by_place.setdefault(call.place, new)
            group.passes.append(call.index)
            group.repeated |= call.repeated
        of_other_methods = list(groups)
        matched: list[CallGroup] = []
        for group in by_place.values():
            twin = _twin(group, groups, of_other_methods, matched)
            if twin is None:
                groups.append(group)
            else:
                twin.repeated |= group.repeated
                twin.loops.update(group.loops)
                matched.append(twin)
    return groups


def _twin(
    group: CallGroup,
    groups: list[CallGroup],
    of_other_methods: list[CallGroup],
    matched: list[CallGroup],
) -> CallGroup | None:
    """Return the group that this one belongs to, if there is one."""
    call = group.first
    for other in groups:
        if call.place in other.loops:
            return other
    alike = [other for other in groups if other.category == group.category]
    for other in alike:
        is_in_loop = call.loops or other.first.loops
        if call.producer and call.producer == other.first.producer and not is_in_loop:
            return other
    alike = [other for other in alike if other in of_other_methods]
    number = sum(other in alike for other in matched)
    if number < len(alike) and alike[number].passes == group.passes:
        return alike[number]
    return None

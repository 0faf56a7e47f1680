"""Which of a module's activation calls share an activation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .call_sites import Call
from .source import Place
from .walker import exclude_each_other

REPEATED = "repeated, as its weights are"


@dataclass
class CallGroup:
    """Calls that share an activation, or one for each pass of the loops around them."""

    first: Call
    passes: list[tuple[int, ...]]  # through each of the loops, for each activation
    calls: dict[Place, dict[tuple[int, ...], Call]]  # each call, in each pass
    repeated: bool  # several times with the same weights

    @property
    def category(self) -> tuple:
        """What is called: the attribute, or the function with its options."""
        return self.first.attribute, self.first.activation.category

    @property
    def attribute(self) -> str | None:
        """The attribute that the first call names, None if all are of functions."""
        return next(iter(self.attributes()), None)

    def attributes(self) -> list[str]:
        """Return the attributes that are called."""
        names = (call.attribute for call in self.all_calls())
        return [name for name in names if name is not None]

    def all_calls(self) -> Iterator[Call]:
        """Go through each call in each pass."""
        return (call for passes in self.calls.values() for call in passes.values())

    def why_shared(self) -> tuple[str, ...]:
        """Return why more than one call leads to an activation."""
        calls = " and ".join(f"{p.method}:{p.position[0]}" for p in self.calls)
        return (REPEATED,) * self.repeated + (calls,) * (len(self.calls) > 1)


def group_calls(
    entries: dict[str, list[Call]], whole: Collection[str]
) -> list[CallGroup]:
    """Group the calls that share an activation.

    ``entries`` has the calls reached from each method that no other one leads to;
    ``whole`` the attributes that stay one activation, whatever calls them. Calls share
    an activation

    - if their input is the same layer's result;
    - if they exclude each other, so that one of two activations would go without a
      gradient: the k-th call in one branch of a condition on the input and the k-th in
      the other;
    - if they are corresponding calls of two methods that are called instead of each
      other (``forward`` and ``rfp_forward``): the k-th call of one and of the other.
    """
    groups: list[CallGroup] = []
    for method in sorted(entries, key=lambda name: name != "forward"):
        by_place: dict[Place, CallGroup] = {}
        for call in entries[method]:
            new = CallGroup(call, [], {call.place: {}}, False)
            group = by_place.setdefault(call.place, new)
            group.passes.append(call.index)
            group.calls[call.place][call.index] = call
            group.repeated |= call.repeated
        of_other_methods = list(groups)
        matched: list[CallGroup] = []
        for group in by_place.values():
            twin = _twin(group, groups, of_other_methods, matched, whole)
            if twin is None:
                groups.append(group)
            else:
                twin.repeated |= group.repeated
                twin.calls.update(group.calls)
                matched.append(twin)
    return groups


def _twin(
    group: CallGroup,
    groups: list[CallGroup],
    of_other_methods: list[CallGroup],
    matched: list[CallGroup],
    whole: Collection[str],
) -> CallGroup | None:
    """Return the group that this one belongs to, if there is one."""
    call = group.first
    for other in groups:
        if call.place in other.calls:
            return other
    alike = [other for other in groups if other.category == group.category]
    excluded = [
        other
        for other in groups
        if _may_join(group, other, whole) and _exclude_each_other(group, other)
    ]
    # Of several branches, the one with the same layer's result first.
    excluded.sort(key=lambda other: other.first.producer != call.producer)
    if excluded:
        return excluded[0]
    for other in alike:
        is_in_loop = call.loops or other.first.loops
        if call.producer and call.producer == other.first.producer and not is_in_loop:
            return other
    alike = [other for other in alike if other in of_other_methods]
    number = sum(other in alike for other in matched)
    if number < len(alike) and alike[number].passes == group.passes:
        return alike[number]
    return None


def _may_join(group: CallGroup, other: CallGroup, whole: Collection[str]) -> bool:
    """Return whether two groups compute the same, so that one's calls can be routed."""
    call, first = group.first, other.first
    return group.category == other.category or (
        call.activation.category == first.activation.category
        and not {call.attribute, other.attribute} & {*whole}
        and not (call.takes_more or first.takes_more)
    )


def _exclude_each_other(group: CallGroup, other: CallGroup) -> bool:
    """Return whether of each pass of a group and of another only one can run."""
    return group.passes == other.passes and all(
        exclude_each_other(arms, other_arms)
        for calls in group.calls.values()
        for index, call in calls.items()
        for other_calls in other.calls.values()
        for arms in call.arms
        for other_arms in other_calls[index].arms
    )

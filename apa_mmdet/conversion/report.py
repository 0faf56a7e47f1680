"""The report of a conversion: what became learnable and what was left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

NEVER_CALLED = "never called"  # a reason

_SHOWN = 3


@dataclass(frozen=True)
class Site:
    """An activation that became learnable.

    Attributes:
        path: Its path in the model; its parameters' keys begin with it.
        was: The activation it replaced.
        becomes: The activation's type now.
        start: Its starting values.
        shared: Why more than one call leads to it, or "".
        trainable: Whether its parameters take a gradient.
    """

    path: str
    was: str
    becomes: str
    start: str
    shared: str
    trainable: bool


@dataclass(frozen=True)
class Left:
    """An activation that was left as it was.

    Attributes:
        path: Its path; a method's name with ``()`` for a function called inline.
        was: The activation.
        reason: Why it was left.
    """

    path: str
    was: str
    reason: str


@dataclass
class ConversionReport:
    """The sites of a converted model and what was left; ``str()`` gives the tables.

    Attributes:
        sites: What became learnable.
        left: What was left as it was.
        disagreements: What a forward pass with ``example_inputs`` showed to be
            otherwise, a sentence each; None if none was asked for.
    """

    sites: list[Site] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    disagreements: list[str] | None = None

    def __str__(self) -> str:
        frozen = sum(not site.trainable for site in self.sites)
        lines = [
            f"{len(self.sites)} activations became learnable"
            + (f", {frozen} of them frozen with their stage" if frozen else "")
            + f"; {len(self.left)} left unconverted."
        ]
        if self.sites:
            rows = [("site", "replaced", "activation", "start", "shared")]
            for site in self.sites:
                start = site.start + ("" if site.trainable else ", frozen")
                rows.append((site.path, site.was, site.becomes, start, site.shared))
            lines += ["", *aligned(rows)]
        if self.left:
            alike: dict[tuple[str, str], list[str]] = {}
            for left in self.left:
                alike.setdefault((left.was, left.reason), []).append(left.path)
            rows = [("left", "activation", "reason")]
            for reason, paths in alike.items():
                rows += [(path, *reason) for path in paths[:_SHOWN]]
                if len(paths) > _SHOWN:
                    rows.append((f"... and {len(paths) - _SHOWN} more", *reason))
            lines += ["", *aligned(rows)]
        if self.disagreements is not None:
            found = self.disagreements or ["agrees with this report."]
            lines += ["", *(f"A forward pass: {sentence}" for sentence in found)]
        return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    ]

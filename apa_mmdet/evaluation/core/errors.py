"""Collecting what is wrong with detections, to report all of it at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MAX_EXAMPLES = 3


class InputErrors:
    """Errors by kind: how many there are, and the first few.

    Args:
        source: What is being checked, for the message.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add_where(
        self, kind: str, is_bad: np.ndarray, describe: Callable[[int], str]
    ) -> None:
        """Add an error for every true element; ``describe(i)`` describes one."""
        bad = np.flatnonzero(is_bad)
        if len(bad):
            self._counts[kind] = self._counts.get(kind, 0) + len(bad)
            examples = self._examples.setdefault(kind, [])
            missing = _MAX_EXAMPLES - len(examples)
            examples += [describe(int(index)) for index in bad[:missing]]

    def add_bad_numbers(
        self, scores: np.ndarray, boxes: np.ndarray, name: Callable[[int], str]
    ) -> None:
        """Add scores and boxes that are not finite, and boxes of negative size.

        Args:
            scores: (n,).
            boxes: (n, 4): x, y, width, height.
            name: ``name(i)`` names a detection.
        """

        def describe_box(i: int) -> str:
            return f"{name(i)} {boxes[i].tolist()}"

        is_finite = np.isfinite(boxes).all(axis=1)
        with np.errstate(invalid="ignore"):
            is_negative = is_finite & (boxes[:, 2:] < 0).any(axis=1)
        self.add_where(
            "score is not finite",
            ~np.isfinite(scores),
            lambda i: f"{name(i)} {scores[i]}",
        )
        self.add_where("box is not finite", ~is_finite, describe_box)
        self.add_where(
            "box of negative size (x, y, width, height)", is_negative, describe_box
        )

    def raise_if_any(self, total: int) -> None:
        """Raise if an error was added.

        Args:
            total: How many detections were checked.

        Raises:
            ValueError: With the number and the first three of each kind.
        """
        if not self._counts:
            return
        lines = [f"{self._source}: cannot be evaluated ({total:,} detections read)"]
        for kind, count in self._counts.items():
            first = ", ".join(self._examples[kind])
            lines.append(f"  {kind}: {count:,}, the first: {first}")
        raise ValueError("\n".join(lines))

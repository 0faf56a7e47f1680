"""Collecting what is wrong with the input, to report all of it at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .ground_truth import lookup
from .masks import PackedMasks, find_damaged

_MAX_EXAMPLES = 3
RowName = Callable[[int], str]


class InputErrors:
    """Errors by kind: how many there are, and the first few.

    Args:
        source: What is being checked, for the message.
    """

    def __init__(self, source: object) -> None:
        self._source = source
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add_unusable_mask(self, name: str, reason: ValueError) -> None:
        """Add an entry whose segmentation :func:`.masks.encode` refuses."""
        kind = (
            "no usable mask (mend the file, or evaluate boxes with --metric bbox, in a "
            "config metric='bbox')"
        )
        self._counts[kind] = self._counts.get(kind, 0) + 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(f"{name} ({reason})")

    def add_where(self, kind: str, is_bad: np.ndarray, describe: RowName) -> None:
        """Add an error for every true element; ``describe(i)`` describes one."""
        bad = np.flatnonzero(is_bad)
        if len(bad):
            self._counts[kind] = self._counts.get(kind, 0) + len(bad)
            examples = self._examples.setdefault(kind, [])
            missing = _MAX_EXAMPLES - len(examples)
            examples += [describe(int(index)) for index in bad[:missing]]

    def index_of(
        self, column: str, sorted_ids: np.ndarray, ids: np.ndarray, name: RowName
    ) -> np.ndarray:
        """Return the index of each id among sorted ids, int32; add those not there."""
        index, is_known = lookup(sorted_ids, ids)
        self.add_where(
            f"unknown {column}", ~is_known, lambda i: f"{name(i)} ({ids[i]})"
        )
        return index.astype(np.int32)

    def add_repeated(self, kind: str, ids: np.ndarray, describe: RowName) -> None:
        """Add ids that occurred before."""
        is_repeated = np.ones(len(ids), bool)
        is_repeated[np.unique(ids, return_index=True)[1]] = False
        self.add_where(kind, is_repeated, describe)

    def add_bad_numbers(
        self, name: RowName, boxes: np.ndarray, **columns: np.ndarray
    ) -> None:
        """Add boxes (n, 4: x, y, width, height) and numbers (n,) that are unusable.

        Numbers must be finite, as must the corners and areas of boxes, and boxes must
        not have a negative size.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            corners, areas = boxes[:, :2] + boxes[:, 2:], boxes[:, 2] * boxes[:, 3]
            is_finite = np.isfinite(corners).all(axis=1) & np.isfinite(areas)
            is_negative = is_finite & (boxes[:, 2:] < 0).any(axis=1)
        checks = [
            (f"{column.replace('_', ' ')} is not finite", ~np.isfinite(values), values)
            for column, values in columns.items()
        ]
        checks += [
            ("box is not finite", ~is_finite, boxes),
            ("box of negative size (x, y, width, height)", is_negative, boxes),
        ]
        for kind, is_bad, values in checks:
            self.add_where(
                kind, is_bad, lambda i, v=values: f"{name(i)} {v[i].tolist()}"
            )

    def add_damaged(
        self, name: RowName, masks: PackedMasks, num_pixels: np.ndarray
    ) -> None:
        """Add masks that do not fill their image; see :func:`.masks.find_damaged`."""
        self.add_where(
            "damaged mask, an RLE that does not fill its image",
            find_damaged(masks, num_pixels),
            name,
        )

    def raise_if_any(self, total: int, what: str = "detections") -> None:
        """Raise if an error was added.

        Args:
            total: How many were checked.
            what: Of what.

        Raises:
            ValueError: In one line, with the number and the first three of each kind.
        """
        if not self._counts:
            return
        kinds = "; ".join(
            f"{kind}: {count:,}, the first: {', '.join(self._examples[kind])}"
            for kind, count in self._counts.items()
        )
        raise ValueError(
            f"{self._source}: cannot be evaluated ({total:,} {what} read): {kinds}"
        )

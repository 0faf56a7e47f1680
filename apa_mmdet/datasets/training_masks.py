"""Checking, before training with masks, that every annotation has one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from ..evaluation.core.masks import PackedMasks, find_damaged
from ..evaluation.core.segmentation import parse_segmentation
from ..evaluation.core.values import describe_entry
from ..evaluation.core.workers import progress_bar
from ..evaluation.files.json_stream import iter_members

_CHECKED_AT_ONCE = 10_000  # compressed RLEs
_DAMAGED = "damaged, an RLE that does not fill its image"


def check_training_masks(
    ann_file: str | os.PathLike[str], classes: Collection[str] | None = None
) -> None:
    """Check that each annotation that mmdet would train on has a usable mask.

    mmdet finds out when it loads an image that shows one: by a ``KeyError`` in a
    worker, or a worker that pycocotools kills.

    Args:
        ann_file: A COCO or LVIS annotation file, plain or gzip; it is read as a stream.
        classes: Names of the classes to train; None for all of the file's.

    Raises:
        ValueError: If some have none, with their number and the first; or if the file
            is truncated or is not JSON.
    """
    reader = _Reader()
    title = f"checking the masks of {os.path.basename(ann_file)}"
    for key, item in progress_bar(title, "entries", iterable=iter_members(ann_file)):
        if isinstance(item, dict):  # of anything else mmdet says what is wrong
            reader.add(key, item)
    unusable, total, first = reader.finish(classes)
    if unusable:
        raise ValueError(
            f"{ann_file}: {unusable:,} of {total:,} annotations to train on have no "
            f"usable mask, the first: {first}; mend or remove them, or train a "
            "detector without masks"
        )


class _Reader:
    """Counts the annotations of each class, and those without a usable mask."""

    def __init__(self) -> None:
        self._sizes: dict[Any, tuple[int, int]] = {}
        self._class_names: dict[Any, Any] = {}
        self._totals: Counter = Counter()
        self._unusable: Counter = Counter()
        self._first: dict[Any, str] = {}
        self._position = 0  # of the annotation in the file, from one
        self._waiting: list[tuple[dict, int]] = []  # their images follow
        self._rles: list[tuple[bytes, int, dict, int]] = []

    def add(self, key: str, item: dict) -> None:
        """Read an entry of one of the file's lists."""
        if key == "images":
            size = _side(item, "height"), _side(item, "width")
            self._sizes[_id(item, "id")] = size
        elif key == "categories":
            self._class_names[_id(item, "id")] = item.get("name")
        elif key == "annotations":
            self._position += 1
            if not _is_trained(item):
                return
            if _id(item, "image_id") in self._sizes:
                self._check(item, self._position)
            else:
                self._waiting.append((item, self._position))

    def finish(self, classes: Collection[str] | None) -> tuple[int, int, str]:
        """Return how many have no usable mask, how many there are, and the first."""
        for item, position in self._waiting:
            if _id(item, "image_id") in self._sizes:  # mmdet drops the others
                self._check(item, position)
        self._check_rles()
        chosen = [
            class_id
            for class_id, name in self._class_names.items()
            if classes is None or name in classes
        ]
        first = [text for class_id, text in self._first.items() if class_id in chosen]
        unusable, total = (
            sum(counts[class_id] for class_id in chosen)
            for counts in (self._unusable, self._totals)
        )
        return unusable, total, first[0] if first else ""

    def _check(self, item: dict, position: int) -> None:
        self._totals[_id(item, "category_id")] += 1
        height, width = self._sizes[_id(item, "image_id")]
        segmentation = item.get("segmentation")
        if isinstance(segmentation, list):  # mmdet leaves out the others
            segmentation = [p for p in segmentation if _is_polygon(p)] or segmentation
        try:
            mask = parse_segmentation(segmentation, height, width)
        except ValueError as error:
            self._add_unusable(item, position, str(error))
            return
        if isinstance(mask, np.ndarray) and mask.sum() != height * width:
            self._add_unusable(item, position, _DAMAGED)
        if isinstance(mask, bytes):
            self._rles.append((mask, height * width, item, position))
            if len(self._rles) >= _CHECKED_AT_ONCE:
                self._check_rles()

    def _check_rles(self) -> None:
        if not self._rles:
            return
        counts, num_pixels, items, positions = zip(*self._rles)
        self._rles = []
        is_damaged = find_damaged(PackedMasks.pack(counts), np.array(num_pixels))
        for row in np.flatnonzero(is_damaged):
            self._add_unusable(items[row], positions[row], _DAMAGED)

    def _add_unusable(self, item: dict, position: int, reason: str) -> None:
        class_id = _id(item, "category_id")
        self._unusable[class_id] += 1
        name = describe_entry("annotation", item, position)
        self._first.setdefault(class_id, f"{name} ({reason})")


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0


def _id(item: dict, name: str) -> Any:
    value = item.get(name)
    return value if isinstance(value, (int, float, str)) else None


def _side(item: dict, name: str) -> int:
    value = item.get(name)
    return int(value) if isinstance(value, (int, float)) and value > 0 else 0


def _is_trained(item: dict) -> bool:
    """Return whether mmdet keeps an annotation: it drops those with hardly a box."""
    try:
        _, _, width, height = item["bbox"]
        return not item.get("ignore") and item["area"] > 0 and min(width, height) >= 1
    except (KeyError, TypeError, ValueError):
        return True

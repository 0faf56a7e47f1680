"""Detections as arrays, what can be wrong with them, and which of them count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .ground_truth import GroundTruth
from .masks import PackedMasks


@dataclass
class Detections:
    """Detections of many images, in the order in which they were found.

    That order decides between equal scores, as in lvis-api. Images and classes are
    indices into the arrays of :class:`~.ground_truth.GroundTruth`.

    Attributes:
        image: int32 (n,).
        category: int32 (n,).
        score: float32 or float64 (n,); the precision they came in.
        box: float64 (n, 4): x, y, width, height in pixels.
        masks: n masks or None. Those of detections that cannot be judged may be left
            out.
        area: float64 (n,) in square pixels, for the area ranges; None for the area of
            the box. lvis-api takes the box's, even for masks, wherever results have
            boxes.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    box: np.ndarray
    masks: PackedMasks | None = None
    area: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image)

    def take(self, index: np.ndarray) -> Detections:
        """Return some of the detections; their masks share this one's buffer."""
        return Detections(
            self.image[index],
            self.category[index],
            self.score[index],
            self.box[index],
            self.masks.take(index) if self.masks is not None else None,
            self.area[index] if self.area is not None else None,
        )

    def within(self, truth: GroundTruth, part: GroundTruth) -> Detections:
        """Return the detections in some of the images, as indices into those.

        Args:
            truth: The annotations that the indices now go by.
            part: What :meth:`~.ground_truth.GroundTruth.only` made of them.
        """
        index = np.full(truth.num_images, -1, np.int32)
        places = np.searchsorted(truth.image_ids, part.image_ids)
        index[places] = np.arange(len(places))
        found = self.take(np.flatnonzero(index[self.image] >= 0))
        return replace(found, image=index[found.image])

    @classmethod
    def concatenate(cls, parts: list[Detections]) -> Detections:
        """Return the detections of all parts; at least one is needed."""

        def joined(name: str):
            return np.concatenate([getattr(part, name) for part in parts])

        masks = [part.masks for part in parts]
        has_masks = all(mask is not None for mask in masks)
        return cls(
            *(joined(name) for name in ("image", "category", "score", "box")),
            PackedMasks.concatenate(masks) if has_masks else None,
            None if parts[0].area is None else joined("area"),
        )

    @classmethod
    def empty(cls) -> Detections:
        """Return no detections."""
        index = np.zeros(0, np.int32)
        masks = PackedMasks.pack([])
        return cls(index, index, np.zeros(0), np.zeros((0, 4)), masks)


class Problems:
    """What is wrong with results: how often, and where first.

    Args:
        source: What is being checked, for the message.
    """

    _SHOWN = 3

    def __init__(self, source: str) -> None:
        self._source = source
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, problem: str, example: str) -> None:
        """Note one case."""
        self._counts[problem] = self._counts.get(problem, 0) + 1
        examples = self._examples.setdefault(problem, [])
        if len(examples) < self._SHOWN:
            examples.append(example)

    def add_where(self, problem: str, is_bad: np.ndarray, describe) -> None:
        """Note every true element of a bool array; ``describe(i)`` tells of one."""
        bad = np.flatnonzero(is_bad)
        if len(bad):
            examples = [describe(int(index)) for index in bad[: self._SHOWN]]
            self._counts[problem] = self._counts.get(problem, 0) + len(bad)
            shown = self._examples.setdefault(problem, [])
            shown += examples[: self._SHOWN - len(shown)]

    def check(self, total: int) -> None:
        """Raise if anything was noted.

        Args:
            total: How many detections were looked at.

        Raises:
            ValueError: With the number and the first three of each kind.
        """
        if not self._counts:
            return
        lines = [f"{self._source}: cannot be evaluated ({total:,} detections read)"]
        for problem, count in self._counts.items():
            first = ", ".join(self._examples[problem])
            lines.append(f"  {problem}: {count:,}, the first: {first}")
        raise ValueError("\n".join(lines))


def note_bad_numbers(
    problems: Problems, score: np.ndarray, box: np.ndarray, name
) -> None:
    """Note scores that are not finite and boxes that are not finite or negative.

    Args:
        problems: Where to note them.
        score: (n,).
        box: (n, 4): x, y, width, height.
        name: ``name(i)`` says which detection that is.
    """
    problems.add_where(
        "score is not finite", ~np.isfinite(score), lambda i: f"{name(i)} {score[i]}"
    )
    is_finite = np.isfinite(box).all(axis=1)
    problems.add_where(
        "box is not finite", ~is_finite, lambda i: f"{name(i)} {box[i].tolist()}"
    )
    with np.errstate(invalid="ignore"):
        is_negative = is_finite & (box[:, 2:] < 0).any(axis=1)
    problems.add_where(
        "box of negative size (x, y, width, height)",
        is_negative,
        lambda i: f"{name(i)} {box[i].tolist()}",
    )


def best_of_each(group: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    """Return the detections with the best scores of each group, in their old order.

    Of equal scores the earlier detections are kept.

    Args:
        group: int (n,), at least 0.
        score: (n,).
        limit: How many of each group to keep; negative for all.

    Returns:
        Sorted indices, int64.
    """
    if limit < 0 or not len(group):
        return np.arange(len(group))
    size = np.bincount(group)
    is_crowded = size > limit
    if not is_crowded.any():
        return np.arange(len(group))
    # Only the groups that lose some are sorted.
    crowd = np.flatnonzero(is_crowded[group])
    crowd = crowd[np.lexsort((-score[crowd], group[crowd]))]
    first = np.cumsum(np.where(is_crowded, size, 0)) - np.where(is_crowded, size, 0)
    rank = np.arange(len(crowd)) - first[group[crowd]]
    is_kept = ~is_crowded[group]
    is_kept[crowd[rank < limit]] = True
    return np.flatnonzero(is_kept)


def choose(
    truth: GroundTruth,
    image: np.ndarray,
    category: np.ndarray,
    score: np.ndarray,
    max_dets: int,
) -> np.ndarray:
    """Return which detections LVIS judges, in their old order.

    The best ``max_dets`` of each image, whatever their class, and of those the ones
    whose class is annotated in the image or known to be absent.

    Args:
        truth: The annotations.
        image: int (n,).
        category: int (n,).
        score: (n,).
        max_dets: Of each image; negative for no limit.

    Returns:
        Sorted indices, int64.
    """
    kept = best_of_each(image, score, max_dets)
    return kept[truth.is_judged(truth.pair(image[kept], category[kept]))]


def choose_fixed(
    truth: GroundTruth,
    image: np.ndarray,
    category: np.ndarray,
    score: np.ndarray,
    max_dets_per_class: int,
) -> np.ndarray:
    """Return which detections Fixed AP judges, in their old order.

    The best of each class over the data set, with no limit for an image (Dave et al.,
    "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details",
    section 4). Of equal scores those of the image with the lower id are kept.

    Args:
        truth: The annotations.
        image: int (n,).
        category: int (n,).
        score: (n,).
        max_dets_per_class: Over all images.

    Returns:
        Sorted indices, int64.
    """
    by_image = np.argsort(image, kind="stable")
    kept = best_of_each(category[by_image], score[by_image], max_dets_per_class)
    kept = np.sort(by_image[kept])
    return kept[truth.is_judged(truth.pair(image[kept], category[kept]))]

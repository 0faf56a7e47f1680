"""Detections as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .ground_truth import GroundTruth
from .masks import PackedMasks


@dataclass
class Detections:
    """Detections of many images, in the order in which they were made.

    Among equal scores that order decides, as in lvis-api. Images and classes are
    indices into the arrays of :class:`~.ground_truth.GroundTruth`.

    Attributes:
        image_index: int32 (n,).
        class_index: int32 (n,).
        scores: float32 or float64 (n,), in the precision they came in.
        boxes: float64 (n, 4): x, y, width, height in pixels.
        masks: n masks or None. Masks of detections that are not judged may be left out.
        areas: float64 (n,) in square pixels, for the area ranges; None for the areas of
            the boxes. lvis-api uses the box's area wherever results have boxes, also
            when it evaluates masks.
    """

    image_index: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: PackedMasks | None = None
    areas: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_index)

    def take(self, rows: np.ndarray) -> Detections:
        """Return some of the detections; their masks share this one's buffer."""
        return Detections(
            self.image_index[rows],
            self.class_index[rows],
            self.scores[rows],
            self.boxes[rows],
            self.masks.take(rows) if self.masks is not None else None,
            self.areas[rows] if self.areas is not None else None,
        )

    def subset(self, truth: GroundTruth, subset: GroundTruth) -> Detections:
        """Return the detections in some of the images.

        ``subset`` is what :meth:`.GroundTruth.subset` made of ``truth``, to which the
        image indices refer; those returned refer to the subset.
        """
        new_index = np.full(truth.num_images, -1, np.int32)
        positions = np.searchsorted(truth.image_ids, subset.image_ids)
        new_index[positions] = np.arange(len(positions))
        chosen = self.take(np.flatnonzero(new_index[self.image_index] >= 0))
        return replace(chosen, image_index=new_index[chosen.image_index])

    @classmethod
    def concatenate(cls, pieces: list[Detections]) -> Detections:
        """Return the detections of all pieces, of which there is at least one."""
        columns = ((p.image_index, p.class_index, p.scores, p.boxes) for p in pieces)
        masks, areas = zip(*((piece.masks, piece.areas) for piece in pieces))
        return cls(
            *map(np.concatenate, zip(*columns)),
            None if masks[0] is None else PackedMasks.concatenate([*masks]),
            None if areas[0] is None else np.concatenate(areas),
        )

    @classmethod
    def empty(cls) -> Detections:
        """Return no detections."""
        index = np.zeros(0, np.int32)
        masks = PackedMasks.pack([])
        return cls(index, index, np.zeros(0), np.zeros((0, 4)), masks)

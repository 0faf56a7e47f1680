"""Loading from the shards the detections that a metric may judge, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..core.detections import Detections
from ..core.ground_truth import GroundTruth
from ..core.selection import select_judged, top_per_group
from .disk import ShardReader

_MAX_DETS_HELD = 2_000_000  # before those that cannot count are dropped


class DetectionLoader:
    """Loads detections of some images.

    One shard, and what was selected from the others, is in memory at a time.

    Args:
        reader: Of the shards, whose images are those of ``truth``.
        truth: The annotations of all images.
        image_ids: Images to evaluate; None for all.

    Attributes:
        truth: The annotations of those images. The image indices of what is loaded
            refer to these.

    Raises:
        ValueError: If an id is not in the annotation file.
    """

    def __init__(
        self,
        reader: ShardReader,
        truth: GroundTruth,
        image_ids: Iterable[int] | None = None,
    ) -> None:
        self._reader = reader
        self._full_truth = truth
        self.truth = truth if image_ids is None else truth.subset(image_ids)

    def judged(self, iou_type: str, max_dets: int) -> Detections:
        """Return the detections that AP judges.

        Args:
            iou_type: ``'bbox'``, or ``'segm'`` for mask scores and masks.
            max_dets: Limit for each image.
        """

        def select(dets: Detections) -> np.ndarray:
            columns = dets.image_index, dets.class_index, dets.scores
            return select_judged(self.truth, *columns, max_dets)

        return self._load(iou_type, select)

    def top_per_image(self, limit: int) -> Detections:
        """Return the best boxes of each image, whatever their class."""
        return self._load(
            "bbox", lambda dets: top_per_group(dets.image_index, dets.scores, limit)
        )

    def top_per_class(self, iou_type: str, limit: int) -> Detections:
        """Return at least the best detections of each class, as Fixed AP needs them.

        Args:
            iou_type: As in :meth:`judged`.
            limit: How many of each class count.
        """

        def prune(dets: Detections) -> Detections:
            # In the order of the images, which decides between equal scores.
            dets = dets.take(np.argsort(dets.image_index, kind="stable"))
            return dets.take(top_per_group(dets.class_index, dets.scores, limit))

        return self._load(iou_type, lambda dets: np.arange(len(dets)), prune)

    def _load(
        self,
        iou_type: str,
        select: Callable[[Detections], np.ndarray],
        prune: Callable[[Detections], Detections] | None = None,
    ) -> Detections:
        held: list[Detections] = []
        max_held = _MAX_DETS_HELD
        for dets in self._reader.detections(iou_type):
            dets = dets.subset(self._full_truth, self.truth)
            held.append(_compact(dets.take(select(dets))))
            if prune is not None and sum(map(len, held)) > max_held:
                held = [_compact(prune(Detections.concatenate(held)))]
                max_held = len(held[0]) + _MAX_DETS_HELD
        return Detections.concatenate(held) if held else Detections.empty()


def _compact(dets: Detections) -> Detections:
    """Free the bytes of masks that were dropped."""
    if dets.masks is not None:
        dets.masks = dets.masks.compact()
    return dets

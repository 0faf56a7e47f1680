"""Collecting from all parts the detections that a metric may judge, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from .detections import Detections, best_of_each, choose
from .ground_truth import GroundTruth
from .parts import PartReader

_PRUNE = 2_000_000  # detections held before those that cannot count are dropped


class Gatherer:
    """Gathers detections of some images.

    What is held at a time is one part, and what is gathered.

    Args:
        reader: Of the parts, whose images are those of `truth`.
        truth: The annotations of all images.
        image_ids: Which images to evaluate; None for all.

    Attributes:
        truth: The annotations of those images. The images of what is gathered are
            indices into these.

    Raises:
        ValueError: If an id is not in the annotation file.
    """

    def __init__(
        self,
        reader: PartReader,
        truth: GroundTruth,
        image_ids: Iterable[int] | None = None,
    ) -> None:
        self._reader = reader
        self._all = truth
        self.truth = truth if image_ids is None else truth.only(image_ids)

    def judged(self, metric: str, max_dets: int) -> Detections:
        """Return the detections that AP judges.

        Args:
            metric: ``'bbox'`` or ``'segm'``; the latter with masks.
            max_dets: Of each image.
        """

        def kept(found: Detections) -> np.ndarray:
            columns = found.image, found.category, found.score
            return choose(self.truth, *columns, max_dets)

        return self._gather(metric, kept)

    def best_of_images(self, limit: int) -> Detections:
        """Return the best boxes of each image, whatever their class."""
        return self._gather(
            "bbox", lambda found: best_of_each(found.image, found.score, limit)
        )

    def best_of_classes(self, metric: str, limit: int) -> Detections:
        """Return at least the best of each class, for Fixed AP to choose from.

        Args:
            metric: As in :meth:`judged`.
            limit: How many of each class count.
        """

        def pruned(found: Detections) -> Detections:
            # In the order of the images, which decides between equal scores.
            found = found.take(np.argsort(found.image, kind="stable"))
            found = found.take(best_of_each(found.category, found.score, limit))
            return _without_waste(found)

        return self._gather(metric, lambda found: np.arange(len(found)), pruned)

    def _gather(
        self,
        metric: str,
        kept: Callable[[Detections], np.ndarray],
        pruned: Callable[[Detections], Detections] | None = None,
    ) -> Detections:
        held: list[Detections] = []
        prune_at = _PRUNE
        for found in self._reader.detections(by_mask_score=metric == "segm"):
            if metric != "segm":
                found.masks = None
            found = found.within(self._all, self.truth)
            held.append(_without_waste(found.take(kept(found))))
            if pruned is not None and sum(map(len, held)) > prune_at:
                held = [pruned(Detections.concatenate(held))]
                prune_at = len(held[0]) + _PRUNE
        return Detections.concatenate(held) if held else Detections.empty()


def _without_waste(found: Detections) -> Detections:
    """Let go of the bytes of masks that were dropped."""
    if found.masks is not None:
        found.masks = found.masks.compact()
    return found

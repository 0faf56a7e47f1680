"""AP, AR and Fixed AP on LVIS, from arrays.

The rules are those of lvis-api, whose results are reproduced down to every entry of its
precision array: https://github.com/lvis-dataset/lvis-api. The order of the steps
differs: what the federated rules drop is dropped before any IoU is computed, and only
(image, class) pairs that have both annotations and detections are visited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .accumulate import RankedMatches, accumulate, valid_mean
from .detections import Detections
from .ground_truth import GroundTruth
from .matching import match
from .params import AREA_NAMES, FREQUENCIES, check_iou_thrs, outside_area_ranges
from .selection import select_judged, select_judged_fixed


@dataclass
class LVISResult:
    """The result of an evaluation.

    T thresholds, K classes, 4 area ranges (:data:`.params.AREA_NAMES`).

    Attributes:
        truth: The annotations.
        iou_thrs: float64 (T,).
        max_dets: Limit of detections for each image, negative for none.
        is_fixed: Whether this is Fixed AP.
        precision: float64 (T, 101, K, 4): at recalls 0, 0.01, ..., 1; -1 where nothing
            is annotated.
        recall: float64 (T, K, 4).
        ranked: The detections behind it.
    """

    truth: GroundTruth
    iou_thrs: np.ndarray
    max_dets: int
    is_fixed: bool
    precision: np.ndarray
    recall: np.ndarray
    ranked: RankedMatches

    def summary(self) -> dict[str, float]:
        """Return lvis-api's figures under its names, as fractions of 1.

        Those of Fixed AP begin with ``Fixed``: ``FixedAP``, ``FixedAPr``. A figure
        that cannot be computed, such as AP50 without a threshold of 0.5, is -1.
        """
        figures = {"AP": valid_mean(self.precision[..., 0])}
        for percent in (50, 75):
            at_thr = np.isclose(self.iou_thrs, percent / 100, rtol=0, atol=1e-9)
            figures[f"AP{percent}"] = valid_mean(self.precision[at_thr, ..., 0])
        for index, area in enumerate(AREA_NAMES[1:], start=1):
            figures[f"AP{area[0]}"] = valid_mean(self.precision[..., index])
        for index, name in enumerate(FREQUENCIES):
            group = self.truth.frequency == index
            figures[f"AP{name}"] = valid_mean(self.precision[:, :, group, 0])
        if self.is_fixed:
            return {f"Fixed{name}": value for name, value in figures.items()}
        for index, area in enumerate(AREA_NAMES):
            letter = area[0] if index else ""
            figures[f"AR{letter}@{self.max_dets}"] = valid_mean(self.recall[..., index])
        return figures

    def class_ap(self) -> np.ndarray:
        """Return AP of each class, float64 (K,); NaN where nothing is annotated."""
        ap = self.precision[..., 0].mean(axis=(0, 1))
        return np.where(self.ranked.num_annotations[:, 0] > 0, ap, np.nan)


def evaluate(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    iou_thrs: float | Sequence[float] | None = None,
    max_dets: int = 300,
    max_dets_per_class: int | None = None,
    num_workers: int | None = None,
) -> LVISResult:
    """Evaluate detections.

    Args:
        truth: The annotations.
        detections: In any order; it decides only between equal scores.
        iou_type: ``'bbox'`` or ``'segm'``.
        iou_thrs: IoU thresholds; LVIS's 0.5, 0.55, ..., 0.95 if None.
        max_dets: Limit of detections for each image; negative for none.
        max_dets_per_class: If given, compute Fixed AP: this limit for each class over
            the data set, and none for an image.
        num_workers: Processes; None for one per core if the work takes long enough.

    Raises:
        ValueError: If an argument has an unexpected value, or masks are missing.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type={iou_type!r}: expected 'bbox' or 'segm'")
    thresholds = check_iou_thrs(iou_thrs)
    with_masks = iou_type == "segm"
    if with_masks and (truth.masks is None or detections.masks is None):
        which = "annotations" if truth.masks is None else "detections"
        raise ValueError(
            f"iou_type='segm': the {which} have no masks; load them with masks, or "
            "evaluate 'bbox'"
        )
    is_fixed = max_dets_per_class is not None
    if is_fixed:
        judged = select_judged_fixed(truth, detections, max_dets_per_class)
    else:
        judged = select_judged(truth, detections, max_dets)
    ranked = _match_and_rank(
        truth, detections.take(judged), thresholds, with_masks, num_workers
    )
    precision, recall = accumulate(ranked)
    limit = -1 if is_fixed else max_dets
    return LVISResult(truth, thresholds, limit, is_fixed, precision, recall, ranked)


def _match_and_rank(
    truth: GroundTruth,
    detections: Detections,
    thresholds: np.ndarray,
    with_masks: bool,
    num_workers: int | None,
) -> RankedMatches:
    """Match judged detections, and sort them by class and falling score."""
    areas = detections.areas
    if areas is None:
        areas = detections.boxes[:, 2] * detections.boxes[:, 3]
    pairs = truth.pairs(detections.image_index, detections.class_index)
    order = np.lexsort((-detections.scores, pairs))
    order = order[areas[order] > 0]  # lvis-api drops the others
    pairs, areas, detections = pairs[order], areas[order], detections.take(order)
    truth_pairs = truth.pairs(truth.image_index, truth.class_index)
    matches = match(
        truth, detections, pairs, truth_pairs, thresholds, with_masks, num_workers
    )
    not_exhaustive = truth.is_not_exhaustive(pairs)[:, None]
    is_negative = ~(outside_area_ranges(areas) | not_exhaustive)

    # Detections are sorted by image here, and the sort is stable: equal scores of a
    # class stay in the order of image ids, which is lvis-api's.
    class_index = detections.class_index
    by_class = np.lexsort((-detections.scores, class_index))
    new_row = np.empty_like(by_class)
    new_row[by_class] = np.arange(len(by_class))
    rows = new_row[matches.rows]
    by_row = np.argsort(rows)
    edges = np.arange(truth.num_classes + 1)
    return RankedMatches(
        class_start=np.searchsorted(class_index[by_class], edges),
        image_index=detections.image_index[by_class],
        is_negative=is_negative[by_class],
        rows=rows[by_row],
        matched=matches.matched[by_row],
        true_positive=matches.true_positive[by_row],
        num_annotations=truth.num_annotations(),
    )

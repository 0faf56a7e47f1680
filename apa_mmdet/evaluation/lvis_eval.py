"""AP, AR and Fixed AP on LVIS, from arrays.

The rules are those of lvis-api, whose results, down to every entry of its precision
array, are reproduced: https://github.com/lvis-dataset/lvis-api. The order of the steps
is not: what the federated rules discard is dropped before any IoU is computed, and
only classes that an image shows or detects are visited there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .detections import Detections, choose, choose_fixed
from .ground_truth import FREQUENCIES, GroundTruth
from .matching import match
from .precision import Ranking, precision_recall

# The area ranges of LVIS, in square pixels; both ends belong to them.
AREAS = ("all", "small", "medium", "large")
_AREA_RANGES = np.array(
    [[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]], dtype=np.float64
)
IOU_THRS = np.linspace(0.5, 0.95, 10)


@dataclass
class LVISResult:
    """What an evaluation found.

    T thresholds, K classes, 4 area ranges (:data:`AREAS`).

    Attributes:
        truth: The annotations evaluated against.
        iou_thrs: float64 (T,).
        max_dets: Detections judged of each image, negative for no limit.
        is_fixed: Whether this is Fixed AP.
        precision: float64 (T, 101, K, 4): at recalls 0, 0.01, ..., 1; -1 where nothing
            is annotated.
        recall: float64 (T, K, 4).
        ranking: The detections behind it.
    """

    truth: GroundTruth
    iou_thrs: np.ndarray
    max_dets: int
    is_fixed: bool
    precision: np.ndarray
    recall: np.ndarray
    ranking: Ranking

    def summary(self) -> dict[str, float]:
        """Return lvis-api's figures under its names, as fractions of 1.

        Those of Fixed AP begin with ``Fixed``: ``FixedAP``, ``FixedAPr``. A figure
        with nothing to measure, such as AP50 without a threshold of 0.5, is -1.
        """
        figures = {"AP": mean(self.precision[..., 0])}
        for percent in (50, 75):
            is_it = np.isclose(self.iou_thrs, percent / 100, rtol=0, atol=1e-9)
            figures[f"AP{percent}"] = mean(self.precision[is_it, ..., 0])
        for index, area in enumerate(AREAS[1:], start=1):
            figures[f"AP{area[0]}"] = mean(self.precision[..., index])
        for index, name in enumerate(FREQUENCIES):
            group = self.truth.frequency == index
            figures[f"AP{name}"] = mean(self.precision[:, :, group, 0])
        if self.is_fixed:
            return {f"Fixed{name}": value for name, value in figures.items()}
        for index, area in enumerate(AREAS):
            letter = area[0] if index else ""
            figures[f"AR{letter}@{self.max_dets}"] = mean(self.recall[..., index])
        return figures

    def class_ap(self) -> np.ndarray:
        """Return AP of each class, float64 (K,); NaN where nothing is annotated."""
        ap = self.precision[..., 0].mean(axis=(0, 1))
        return np.where(self.ranking.num_truth[:, 0] > 0, ap, np.nan)


def mean(values: np.ndarray) -> float:
    """Return the mean of what is above -1, -1 if nothing is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def check_iou_thrs(iou_thrs: float | Sequence[float] | None) -> np.ndarray:
    """Return IoU thresholds as an array, LVIS's own for None.

    Raises:
        ValueError: If they are not between 0 and 1.
    """
    if iou_thrs is None:
        return IOU_THRS
    given = np.atleast_1d(np.asarray(iou_thrs, dtype=np.float64))
    if given.ndim != 1 or not given.size or not ((given > 0) & (given <= 1)).all():
        raise ValueError(
            f"iou_thrs={iou_thrs!r}: expected one or more numbers above 0 and at most "
            "1, such as [0.5, 0.75]"
        )
    return given


def evaluate(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    iou_thrs: float | Sequence[float] | None = None,
    max_dets: int = 300,
    max_dets_per_class: int | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> LVISResult:
    """Evaluate detections.

    Args:
        truth: The annotations.
        detections: In any order; see there what the order decides.
        iou_type: ``'bbox'`` or ``'segm'``.
        iou_thrs: IoU thresholds; LVIS's 0.5, 0.55, ..., 0.95 if None.
        max_dets: Detections judged of each image; negative for no limit.
        max_dets_per_class: If given, Fixed AP: this many of each class over the data
            set, and no limit for an image.
        num_workers: Processes to match with; None for as many as there are cores, if
            it takes more than seconds.
        progress: Whether to show a bar if it does.

    Returns:
        The result.

    Raises:
        ValueError: If an argument is not one of these, or masks are missing.
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
    given = truth, detections.image, detections.category, detections.score
    is_fixed = max_dets_per_class is not None
    if is_fixed:
        chosen = choose_fixed(*given, max_dets_per_class)
    else:
        chosen = choose(*given, max_dets)
    ranking = _rank(
        truth, detections, chosen, thresholds, with_masks, num_workers, progress
    )
    precision, recall = precision_recall(ranking)
    return LVISResult(
        truth,
        thresholds,
        -1 if is_fixed else max_dets,
        is_fixed,
        precision,
        recall,
        ranking,
    )


def _rank(
    truth: GroundTruth,
    detections: Detections,
    chosen: np.ndarray,
    thresholds: np.ndarray,
    with_masks: bool,
    num_workers: int | None,
    progress: bool,
) -> Ranking:
    """Match the chosen detections and put them in the order of their class's curve."""
    detections = detections.take(chosen)
    area = detections.area
    if area is None:
        area = detections.box[:, 2] * detections.box[:, 3]
    pair = truth.pair(detections.image, detections.category)
    order = np.lexsort((-detections.score, pair))
    order = order[area[order] > 0]  # lvis-api does not see the others
    pair, area, detections = pair[order], area[order], detections.take(order)
    score, category = detections.score, detections.category

    ignored = truth.ignore[:, None] | outside_areas(truth.area)
    matches = match(
        truth,
        detections,
        pair,
        truth.pair(truth.image, truth.category),
        ignored,
        thresholds,
        with_masks,
        num_workers,
        progress,
    )
    is_false = ~(outside_areas(area) | truth.is_not_exhaustive(pair)[:, None])

    # Images are in order here, and the sort is stable: equal scores of a class stay in
    # the order of image ids, which is lvis-api's.
    by_class = np.lexsort((-score, category))
    place = np.empty(len(by_class), np.int64)
    place[by_class] = np.arange(len(by_class))
    row = place[matches.row]
    by_row = np.argsort(row)
    return Ranking(
        start=np.searchsorted(category[by_class], np.arange(truth.num_classes + 1)),
        image=detections.image[by_class],
        is_false=is_false[by_class],
        row=row[by_row],
        matched=matches.matched[by_row],
        found=matches.found[by_row],
        num_truth=count_areas(truth, ignored),
    )


def outside_areas(area: np.ndarray) -> np.ndarray:
    """Say which areas (n,) lie outside each of LVIS's ranges, bool (n, 4)."""
    low, high = _AREA_RANGES.T
    return (area[:, None] < low) | (area[:, None] > high)


def count_areas(truth: GroundTruth, ignored: np.ndarray) -> np.ndarray:
    """Return how many annotations of each class count, (K, 4)."""
    return np.stack(
        [
            np.bincount(truth.category[~column], minlength=truth.num_classes)
            for column in ignored.T
        ],
        axis=1,
    )

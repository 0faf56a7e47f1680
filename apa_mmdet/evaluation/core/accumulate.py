"""Accumulating matches to precision and recall."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .params import EPS, RECALL_THRS


class RankedMatches(NamedTuple):
    """All judged detections by class and falling score, and what they matched.

    n detections, of which m can match; K classes, T thresholds, A area ranges.

    Attributes:
        class_start: int64 (K + 1,): where the detections of each class begin.
        image_index: int32 (n,).
        is_negative: bool (n, A): whether the detection is a false positive if it is
            not matched.
        rows: int64 (m,), sorted: indices of those m.
        matched: bool (m, T, A).
        true_positive: bool (m, T, A): matched an annotation that counts.
        num_annotations: int64 (K, A): annotations that count.
    """

    class_start: np.ndarray
    image_index: np.ndarray
    is_negative: np.ndarray
    rows: np.ndarray
    matched: np.ndarray
    true_positive: np.ndarray
    num_annotations: np.ndarray


def accumulate(ranked: RankedMatches) -> tuple[np.ndarray, np.ndarray]:
    """Return precision at 101 recalls, and the highest recall.

    Precision at a recall is the highest precision at that or any higher recall. It is
    attained at a true positive, so only detections that can match are visited; false
    positives among the others are counted.

    Returns:
        Precision, float64 (T, 101, K, A), and recall, float64 (T, K, A); -1 where no
        annotation counts. Equal to lvis-api's ``eval['precision']`` and
        ``eval['recall']``.
    """
    num_areas = ranked.num_annotations.shape[1]
    num_thrs = ranked.true_positive.shape[1]
    is_annotated = ranked.num_annotations > 0
    nothing = np.where(is_annotated, 0.0, -1.0)
    recall = np.tile(nothing, (num_thrs, 1, 1))
    precision = np.tile(nothing, (num_thrs, len(RECALL_THRS), 1, 1))
    edges = np.searchsorted(ranked.rows, ranked.class_start)
    for index in np.flatnonzero(np.diff(edges) > 0).tolist():
        span = slice(edges[index], edges[index + 1])
        tp, fp = _cumulative_counts(ranked, index, span)
        curve, highest = (
            array.reshape(num_thrs, num_areas, *array.shape[1:])
            for array in _precision_at_recalls(tp, fp, ranked.num_annotations[index])
        )
        areas = is_annotated[index]
        precision[:, :, index, areas] = curve[:, areas].transpose(0, 2, 1)
        recall[:, index, areas] = highest[:, areas]
    return precision, recall


def valid_mean(values: np.ndarray) -> float:
    """Return the mean of the values above -1, -1 if there are none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _cumulative_counts(
    ranked: RankedMatches, index: int, span: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Return true and false positives up to each matchable row, int64 (rows, T, A)."""
    begin, end = ranked.class_start[index : index + 2]
    is_negative = ranked.is_negative[begin:end]
    rows = ranked.rows[span] - begin
    # Count all as unmatched, then subtract those that are matched.
    unmatched = np.cumsum(is_negative, axis=0)[rows][:, None]
    matched = np.cumsum(is_negative[rows][:, None] & ranked.matched[span], axis=0)
    return np.cumsum(ranked.true_positive[span], axis=0), unmatched - matched


def _precision_at_recalls(
    tp: np.ndarray, fp: np.ndarray, num_annotations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision at the recall thresholds (T * A, 101) and the highest recall.

    ``tp`` and ``fp``, int64 (rows, T, A), are the true and false positives so far.
    """
    num_rows, num_thrs, num_areas = tp.shape
    tp, fp = tp.reshape(num_rows, -1), fp.reshape(num_rows, -1)
    precision = tp / (fp + tp + EPS)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]

    # The rows of true positives, one column after the other.
    row = np.nonzero((np.diff(tp, axis=0, prepend=0) > 0).T)[1]
    total = tp[-1]
    first = np.cumsum(total) - total
    # True positives needed for each recall; at recall 0 the first one is read.
    needed = np.ones((num_areas, len(RECALL_THRS)), np.int64)
    for area in np.flatnonzero(num_annotations).tolist():
        recalls = np.arange(num_annotations[area] + 1) / num_annotations[area]
        needed[area] = np.searchsorted(recalls, RECALL_THRS, side="left").clip(1)
    needed = np.tile(needed, (num_thrs, 1))
    if not len(row):  # matched, but only annotations that do not count
        return np.zeros(needed.shape), np.zeros(len(total))
    is_reached = needed <= total[:, None]
    entry = np.where(is_reached, first[:, None] + needed - 1, 0)
    columns = np.arange(len(total))[:, None]
    curve = np.where(is_reached, best[row[entry], columns], 0)
    return curve, total / np.maximum(np.tile(num_annotations, num_thrs), 1)

"""From matches to precision and recall."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# As in lvis-api: recalls at which precision is read, and what keeps 0/0 at 0.
RECALL_THRS = np.linspace(0.0, 1.0, 101)
EPS = np.spacing(1)


class Ranking(NamedTuple):
    """All judged detections by class and falling score, and what they found.

    n detections, of which m may have matched; K classes, T thresholds, A area ranges.

    Attributes:
        start: int64 (K + 1,): where the detections of each class begin.
        image: int32 (n,).
        is_false: bool (n, A): whether the detection, unmatched, counts as false.
        row: int64 (m,): index of those m, sorted.
        matched: bool (m, T, A).
        found: bool (m, T, A): matched an annotation that counts.
        num_truth: int64 (K, A): annotations that count.
    """

    start: np.ndarray
    image: np.ndarray
    is_false: np.ndarray
    row: np.ndarray
    matched: np.ndarray
    found: np.ndarray
    num_truth: np.ndarray


def precision_recall(ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """Return precision at 101 recalls, and the highest recall.

    Precision at a recall is the highest precision at that or any higher recall. Only
    detections that found something can be where it is reached, so only those are
    visited; false ones are counted.

    Args:
        ranking: The detections.

    Returns:
        Precision float64 (T, 101, K, A) and recall (T, K, A); -1 where no annotation
        counts. Equal to lvis-api's ``eval['precision']`` and ``eval['recall']``.
    """
    num_classes, num_areas = ranking.num_truth.shape
    num_thrs = ranking.found.shape[1]
    precision = np.full((num_thrs, len(RECALL_THRS), num_classes, num_areas), -1.0)
    recall = np.full((num_thrs, num_classes, num_areas), -1.0)
    has_truth = ranking.num_truth > 0
    precision[:, :, has_truth] = 0
    recall[:, has_truth] = 0
    rows = np.searchsorted(ranking.row, ranking.start)
    for index in np.flatnonzero(np.diff(rows) > 0).tolist():
        part = slice(rows[index], rows[index + 1])
        true, false = _counts(ranking, index, part)
        columns = _read_off(true, false, ranking.num_truth[index])
        read, highest = (
            array.reshape(num_thrs, num_areas, *array.shape[1:]) for array in columns
        )
        counts = has_truth[index]
        precision[:, :, index, counts] = read[:, counts].transpose(0, 2, 1)
        recall[:, index, counts] = highest[:, counts]
    return precision, recall


def _counts(ranking: Ranking, index: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return true and false detections so far at each matched row of a class.

    Returns:
        int64 (rows, T, A) both.
    """
    begin, end = ranking.start[index : index + 2]
    false = np.cumsum(ranking.is_false[begin:end], axis=0)
    row = ranking.row[part] - begin
    # All that are not matched; what is matched here is not false here.
    instead = ranking.is_false[begin:end][row][:, None] & ranking.matched[part]
    false = false[row][:, None] - np.cumsum(instead, axis=0)
    return np.cumsum(ranking.found[part], axis=0), false


def _read_off(
    true: np.ndarray, false: np.ndarray, num_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision at the recalls and the highest recall, for each column.

    Args:
        true: int64 (rows, T, A): true detections so far.
        false: The same for false ones.
        num_truth: int64 (A,).

    Returns:
        (T * A, 101) and (T * A,).
    """
    num_rows, num_thrs, num_areas = true.shape
    true, false = true.reshape(num_rows, -1), false.reshape(num_rows, -1)
    value = true / (false + true + EPS)
    best = np.maximum.accumulate(value[::-1], axis=0)[::-1]

    is_found = np.diff(true, axis=0, prepend=0) > 0
    column, row = np.nonzero(is_found.T)
    total = true[-1]
    first = np.cumsum(total) - total
    # How many must be found for each recall; at recall 0 the best of all is read.
    needed = np.ones((num_areas, len(RECALL_THRS)), np.int64)
    for area in np.flatnonzero(num_truth).tolist():
        recalls = np.arange(num_truth[area] + 1) / num_truth[area]
        needed[area] = np.searchsorted(recalls, RECALL_THRS, side="left").clip(1)
    needed = np.tile(needed, (num_thrs, 1))
    is_reached = needed <= total[:, None]
    entry = np.where(is_reached, first[:, None] + needed - 1, 0)
    if not len(row):  # matched, but never one that counts
        return np.zeros(needed.shape), np.zeros(len(total))
    columns = np.arange(len(total))[:, None]
    read = np.where(is_reached, best[row[entry], columns], 0)
    return read, total / np.maximum(np.tile(num_truth, num_thrs), 1)

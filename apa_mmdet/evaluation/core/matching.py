"""Matching detections to annotations: lvis-api's greedy rule, one rank at a time.

lvis-api goes through the detections of an (image, class) pair one by one, anew for each
IoU threshold and area range. Here the k-th detections of all pairs are matched
together, at all thresholds and ranges: detections of different pairs do not compete for
an annotation.

faster-coco-eval's compiled matcher is not used: it takes one object for each detection
and a list of IoUs for each image and class, which is what costs memory. IoUs come from
pycocotools.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth
from .masks import mask_api
from .workers import choose_num_workers, map_chunks, progress_bar

# lvis-api uses this IoU where a threshold is higher.
_MAX_IOU_THR = 1 - 1e-10
_IOUS_AT_ONCE = 1_000_000
# Rough times with pycocotools 2.0.11: one call with its overhead, one mask in it.
_SECONDS_PER_CALL, _SECONDS_PER_MASK = 12e-6, 10e-6


class Matches(NamedTuple):
    """What was matched, at T thresholds and A area ranges.

    Attributes:
        rows: int64 (m,), sorted: the detections that overlap an annotation enough for
            the lowest threshold. No other can match.
        matched: bool (m, T, A): matched an annotation.
        true_positive: bool (m, T, A): matched an annotation that counts.
    """

    rows: np.ndarray
    matched: np.ndarray
    true_positive: np.ndarray


class _Task(NamedTuple):
    """What the matching of every chunk needs."""

    truth: GroundTruth
    detections: Detections
    iou_thrs: np.ndarray
    ignored: np.ndarray  # bool (G, A)
    with_masks: bool


def match(
    truth: GroundTruth,
    detections: Detections,
    detection_group: np.ndarray,
    truth_group: np.ndarray,
    iou_thrs: np.ndarray,
    with_masks: bool,
    num_workers: int | None = None,
) -> Matches:
    """Match detections to annotations of the same group.

    Args:
        truth: The annotations.
        detections: Sorted by group, then by falling score.
        detection_group: int64 (n,): pair of each detection, or its image if classes do
            not matter.
        truth_group: int64 (G,), sorted: the same for each annotation.
        iou_thrs: float64 (T,).
        with_masks: Whether to use the IoU of masks instead of boxes.
        num_workers: Processes; None for one per core if the work takes long enough.
    """
    groups = np.intersect1d(detection_group, truth_group)
    bounds = group_bounds(groups, detection_group, truth_group)
    num_dets, num_truths = (bounds[:, 1::2] - bounds[:, ::2]).T
    seconds = len(bounds) * _SECONDS_PER_CALL
    if with_masks:
        seconds += (num_dets + num_truths).sum() * _SECONDS_PER_MASK
    # Chunks of whole groups, with about as many IoUs as are held at a time.
    ious = np.cumsum(num_dets * num_truths + 50)
    size = np.clip(ious.max(initial=0) // 16, 10_000, _IOUS_AT_ONCE)
    chunks = np.split(bounds, np.flatnonzero(np.diff((ious - 1) // size)) + 1)
    workers = choose_num_workers(num_workers, seconds, len(chunks))
    task = _Task(truth, detections, iou_thrs, truth.ignored(), with_masks)
    pieces = []
    with progress_bar("matching", "detections", total=int(num_dets.sum())) as bar:
        for chunk, piece in zip(
            chunks, map_chunks(_match_chunk, task, chunks, workers)
        ):
            pieces.append(piece)
            bar.update(int((chunk[:, 1] - chunk[:, 0]).sum()))
    return Matches(*(np.concatenate(arrays) for arrays in zip(*pieces)))


def group_bounds(
    groups: np.ndarray, detection_group: np.ndarray, truth_group: np.ndarray
) -> np.ndarray:
    """Return where each group lies among sorted detections and annotations, (P, 4).

    The columns are its first detection and its last + 1, then those of annotations.
    """
    return np.stack(
        [
            np.searchsorted(each, groups, side=side)
            for each in (detection_group, truth_group)
            for side in ("left", "right")
        ],
        axis=1,
    )


def _match_chunk(task: _Task, bounds: np.ndarray) -> Matches:
    """Match the groups with these bounds."""
    num_dets = bounds[:, 1] - bounds[:, 0]
    size = num_dets * (bounds[:, 3] - bounds[:, 2])
    iou = np.concatenate(
        [np.zeros(0), *(_group_ious(task, *group) for group in bounds.tolist())]
    )
    # Only what overlaps enough for the lowest threshold can match.
    near = np.flatnonzero(iou >= min(task.iou_thrs.min(), _MAX_IOU_THR))
    group = np.searchsorted(np.cumsum(size), near, side="right")
    within = near - (np.cumsum(size) - size)[group]
    annotation, detection = np.divmod(within, num_dets[group])
    annotation += bounds[group, 2]
    detection += bounds[group, 0]
    return _match_by_rank(group, detection, annotation, iou[near], task)


def _group_ious(task: _Task, d0: int, d1: int, g0: int, g1: int) -> np.ndarray:
    """Return the IoUs of one group, (annotations x detections,)."""
    if task.with_masks:
        image = task.truth.image_index[g0]
        size = int(task.truth.heights[image]), int(task.truth.widths[image])
        dets = task.detections.masks.rles(d0, d1, *size)
        gts = task.truth.masks.rles(g0, g1, *size)
    else:
        dets, gts = task.detections.boxes[d0:d1], task.truth.boxes[g0:g1]
    # LVIS has no crowd annotations.
    return mask_api().iou(dets, gts, [0] * (g1 - g0)).ravel(order="F")


def _match_by_rank(
    group: np.ndarray,
    detection: np.ndarray,
    annotation: np.ndarray,
    iou: np.ndarray,
    task: _Task,
) -> Matches:
    """Match candidates: one entry for each detection that overlaps an annotation."""
    # Best first: lvis-api takes the highest IoU, and of equal ones the last.
    order = np.lexsort((-annotation, -iou, detection))
    group, detection = group[order], detection[order]
    annotation, iou = annotation[order], iou[order]

    rows, first = np.unique(detection, return_index=True)
    # A detection without candidates takes nothing from those after it, so only the
    # others are ranked.
    rank = np.arange(len(rows)) - np.searchsorted(group[first], group[first])
    counts = np.diff(np.append(first, len(detection)))
    entry_rank = np.repeat(rank, counts)
    by_rank = np.argsort(entry_rank, kind="stable")
    row_by_rank = np.argsort(rank, kind="stable")
    annotation, iou = annotation[by_rank], iou[by_rank]
    num_rounds = int(rank.max()) + 1 if len(rank) else 0
    entry_edges = np.searchsorted(entry_rank[by_rank], np.arange(num_rounds + 1))
    row_edges = np.searchsorted(rank[row_by_rank], np.arange(num_rounds + 1))

    shape = len(task.iou_thrs), task.ignored.shape[1]
    lowest = annotation.min() if len(annotation) else 0
    annotation = annotation - lowest
    ignored = task.ignored[lowest : lowest + annotation.max(initial=0) + 1]
    is_taken = np.zeros((len(ignored), *shape), bool)
    matched = np.zeros((len(rows), *shape), bool)
    true_positive = np.zeros((len(rows), *shape), bool)
    thresholds = np.minimum(task.iou_thrs, _MAX_IOU_THR)
    for k in range(num_rounds):
        entries = slice(entry_edges[k], entry_edges[k + 1])
        current = row_by_rank[row_edges[k] : row_edges[k + 1]]
        starts = np.cumsum(counts[current]) - counts[current]
        candidates = annotation[entries]
        is_free = iou[entries, None] >= thresholds
        is_free = is_free[:, :, None] & ~is_taken[candidates]
        best = _first_choice(is_free, ignored[candidates], starts)
        which, threshold, area = np.nonzero(best < _NONE)
        choice = candidates[best[which, threshold, area] & (_IGNORED - 1)]
        is_taken[choice, threshold, area] = True
        matched[current] = best < _NONE
        true_positive[current] = best < _IGNORED
    return Matches(rows, matched, true_positive)


_IGNORED, _NONE = 1 << 29, 1 << 30


def _first_choice(
    is_free: np.ndarray, ignored: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Return each detection's first free entry, int32 (detections, T, A).

    Entries that count go before ignored ones, to whose index ``_IGNORED`` is added. The
    value is at least ``_NONE`` if no entry is free.

    Args:
        is_free: bool (entries, T, A).
        ignored: bool (entries, A): whether the entry's annotation does not count.
        starts: Where each detection's entries begin.
    """
    index = np.arange(len(is_free), dtype=np.int32)[:, None]
    cost = np.where(ignored, index + np.int32(_IGNORED), index)[:, None, :]
    cost = np.where(is_free, cost, np.int32(_NONE))
    return np.minimum.reduceat(cost, starts, axis=0)

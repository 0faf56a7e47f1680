"""Which detection finds which annotation: lvis-api's greedy matching, by rank.

A pair is one class in one image. lvis-api goes through the detections of a pair one
after another, at each IoU threshold and area range anew. Here the k-th detections of
all pairs are matched together, at all thresholds and ranges: detections of different
pairs cannot compete for an annotation.

faster-coco-eval's compiled matcher is not used: it takes one object for each detection
and a list of IoUs for each image and class, which are what costs memory. IoU comes from
pycocotools.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_utils
from tqdm import tqdm

from .detections import Detections
from .ground_truth import GroundTruth
from .processes import count_workers, spread

# lvis-api matches at this IoU where a threshold is higher.
_HIGHEST = 1 - 1e-10
_CHUNK = 1_000_000  # IoUs held at a time
# Rough, of pycocotools 2.0.11: an IoU call with what is around it, and a mask in it.
_SECONDS_PER_CALL, _SECONDS_PER_MASK = 12e-6, 10e-6


class Matches(NamedTuple):
    """What was found, for T thresholds and A area ranges.

    Attributes:
        row: int64 (m,): the detections that overlap an annotation enough for the lowest
            threshold, sorted. No other can match.
        matched: bool (m, T, A): matched an annotation.
        found: bool (m, T, A): matched an annotation that counts.
    """

    row: np.ndarray
    matched: np.ndarray
    found: np.ndarray


class _Task(NamedTuple):
    """What all pairs need."""

    truth: GroundTruth
    detections: Detections
    bounds: np.ndarray  # int64 (P, 4): first and last detection and annotation + 1
    iou_thrs: np.ndarray
    ignored: np.ndarray  # bool (G, A)
    with_masks: bool


def match(
    truth: GroundTruth,
    detections: Detections,
    detection_group: np.ndarray,
    truth_group: np.ndarray,
    ignored: np.ndarray,
    iou_thrs: np.ndarray,
    with_masks: bool,
    num_workers: int | None = None,
    progress: bool = True,
) -> Matches:
    """Match detections with annotations of the same group.

    Args:
        truth: The annotations.
        detections: Sorted by group, then falling score.
        detection_group: int64 (n,): pair of each detection, or image if classes do not
            matter.
        truth_group: int64 (G,), sorted: the same of each annotation.
        ignored: bool (G, A): annotations that do not count in an area range.
        iou_thrs: float64 (T,).
        with_masks: IoU of masks, not of boxes.
        num_workers: Processes; None for one for each core, if the work is worth it.
        progress: Whether to show a bar if it takes longer than seconds.

    Returns:
        The matches.
    """
    bounds = _pair_bounds(detection_group, truth_group)
    task = _Task(truth, detections, bounds, iou_thrs, ignored, with_masks)
    chunks = _chunks(bounds)
    sizes = bounds[:, 1::2] - bounds[:, ::2]
    seconds = len(bounds) * _SECONDS_PER_CALL
    if with_masks:
        seconds += sizes.sum() * _SECONDS_PER_MASK
    workers = count_workers(num_workers, seconds, len(chunks))
    bar = tqdm(
        total=int(sizes[:, 0].sum()),
        desc="matching",
        unit=" detections",
        unit_scale=True,
        delay=2,
        leave=False,
        disable=None if progress else True,  # None: on a terminal only
    )
    parts = []
    with bar:
        for (begin, end), part in zip(
            chunks, spread(_match_chunk, task, chunks, workers)
        ):
            parts.append(part)
            bar.update(int(sizes[begin:end, 0].sum()))
    if not parts:
        nothing = np.zeros((0, len(iou_thrs), ignored.shape[1]), bool)
        return Matches(np.zeros(0, np.int64), nothing, nothing)
    return Matches(*(np.concatenate(arrays) for arrays in zip(*parts)))


def _pair_bounds(detection_group: np.ndarray, truth_group: np.ndarray) -> np.ndarray:
    """Return where the groups with both detections and annotations lie, (P, 4)."""
    group = np.intersect1d(detection_group, truth_group)
    return np.stack(
        [
            np.searchsorted(those, group, side=side)
            for those in (detection_group, truth_group)
            for side in ("left", "right")
        ],
        axis=1,
    )


def _chunks(bounds: np.ndarray) -> list[tuple[int, int]]:
    """Cut the pairs into ranges of about as many IoUs as may be held at a time."""
    if not len(bounds):
        return []
    ious = np.cumsum((bounds[:, 1] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 2]) + 50)
    number = (ious - 1) // min(_CHUNK, max(ious[-1] // 16, 10_000))
    cuts = np.flatnonzero(np.diff(number)) + 1
    edges = [0, *cuts.tolist(), len(bounds)]
    return list(zip(edges[:-1], edges[1:]))


def _match_chunk(task: _Task, chunk: tuple[int, int]) -> Matches:
    """Match the pairs from the first up to the second number of `chunk`."""
    bounds = task.bounds[slice(*chunk)]
    num_detections = bounds[:, 1] - bounds[:, 0]
    size = num_detections * (bounds[:, 3] - bounds[:, 2])
    lowest = min(task.iou_thrs.min(), _HIGHEST)
    iou = np.concatenate(
        [_pair_ious(task, *pair) for pair in bounds.tolist()] or [np.zeros(0)]
    )
    # What overlaps too little for any threshold matches nothing.
    near = np.flatnonzero(iou >= lowest)
    iou = iou[near]
    pair = np.searchsorted(np.cumsum(size), near, side="right")
    within = near - (np.cumsum(size) - size)[pair]
    annotation, detection = np.divmod(within, num_detections[pair])
    annotation += bounds[pair, 2]
    detection += bounds[pair, 0]
    return _match_by_rank(pair, detection, annotation, iou, task)


def _pair_ious(task: _Task, d0: int, d1: int, g0: int, g1: int) -> np.ndarray:
    """Return the IoUs of one group, (annotations x detections,)."""
    if task.with_masks:
        image = task.truth.image[g0]
        size = int(task.truth.height[image]), int(task.truth.width[image])
        found = task.detections.masks.rles(d0, d1, *size)
        wanted = task.truth.masks.rles(g0, g1, *size)
    else:
        found, wanted = task.detections.box[d0:d1], task.truth.box[g0:g1]
    # LVIS knows no crowds.
    return mask_utils.iou(found, wanted, [0] * (g1 - g0)).ravel(order="F")


def _match_by_rank(
    pair: np.ndarray,
    detection: np.ndarray,
    annotation: np.ndarray,
    iou: np.ndarray,
    task: _Task,
) -> Matches:
    """Match candidates: one entry for each detection that overlaps an annotation."""
    # Best first: lvis-api takes the highest IoU, and of equal ones the last.
    order = np.lexsort((-annotation, -iou, detection))
    pair, detection = pair[order], detection[order]
    annotation, iou = annotation[order], iou[order]

    row, first = np.unique(detection, return_index=True)
    # A detection without candidates takes nothing away from those after it, so ranks
    # count only the others.
    rank = np.arange(len(row)) - np.searchsorted(pair[first], pair[first])
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
    matched = np.zeros((len(row), *shape), bool)
    found = np.zeros((len(row), *shape), bool)
    thresholds = np.minimum(task.iou_thrs, _HIGHEST)
    for k in range(num_rounds):
        entries = slice(entry_edges[k], entry_edges[k + 1])
        rows = row_by_rank[row_edges[k] : row_edges[k + 1]]
        starts = np.cumsum(counts[rows]) - counts[rows]
        wanted = annotation[entries]
        is_free = iou[entries, None] >= thresholds
        is_free = is_free[:, :, None] & ~is_taken[wanted]
        best = _first_choice(is_free, ignored[wanted], starts)
        which, threshold, area = np.nonzero(best < _NONE)
        choice = wanted[best[which, threshold, area] & (_IGNORED - 1)]
        is_taken[choice, threshold, area] = True
        matched[rows] = best < _NONE
        found[rows] = best < _IGNORED
    return Matches(row, matched, found)


_IGNORED, _NONE = 1 << 29, 1 << 30


def _first_choice(
    is_free: np.ndarray, ignored: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Return the first free entry of each detection, those that count before others.

    Args:
        is_free: bool (entries, T, A).
        ignored: bool (entries, A): whether the entry's annotation does not count.
        starts: Where each detection's entries begin.

    Returns:
        int32 (detections, T, A): index of the entry, plus ``_IGNORED`` if it does not
        count; ``_NONE`` or more if none is free.
    """
    place = np.arange(len(is_free), dtype=np.int32)[:, None]
    cost = np.where(ignored, place + np.int32(_IGNORED), place)[:, None, :]
    cost = np.where(is_free, cost, np.int32(_NONE))
    return np.minimum.reduceat(cost, starts, axis=0)

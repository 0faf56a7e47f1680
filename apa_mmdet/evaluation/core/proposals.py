"""Recall of proposals, whatever their class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .accumulate import valid_mean
from .detections import Detections
from .ground_truth import GroundTruth
from .masks import mask_api
from .matching import group_bounds, match
from .params import AREA_NAMES
from .selection import top_per_group


def proposal_recall(
    truth: GroundTruth,
    detections: Detections,
    proposal_nums: Sequence[int],
    iou_thrs: np.ndarray,
    num_workers: int | None = None,
) -> dict[str, float]:
    """Return the recall of the best proposals of each image, ignoring classes.

    Each annotation of an image is matched by a proposal of any class, by the rule by
    which lvis-api matches those of one class. The federated rules do not apply: they
    concern false positives, on which recall does not depend.

    Args:
        truth: The annotations.
        detections: The proposals.
        proposal_nums: Limits of proposals for each image.
        iou_thrs: float64 (T,); recall is the mean over them.
        num_workers: As in :func:`~.evaluate.evaluate`.

    Returns:
        ``AR@n``, ``ARs@n``, ``ARm@n`` and ``ARl@n`` for each n; -1 where nothing is
        annotated.
    """
    proposals, rank = _top_proposals(detections, max(proposal_nums))
    matches = match(
        truth,
        proposals,
        proposals.image_index,
        truth.image_index,
        iou_thrs,
        with_masks=False,
        num_workers=num_workers,
    )
    # What a proposal matches does not depend on those with lower scores.
    rank = rank[matches.rows]
    total = truth.num_annotations().sum(axis=0)
    figures = {}
    for number in proposal_nums:
        matched = matches.true_positive[rank < number].sum(axis=0)
        recall = np.where(total > 0, matched / np.maximum(total, 1), -1)
        for index, area in enumerate(AREA_NAMES):
            letter = area[0] if index else ""
            figures[f"AR{letter}@{number}"] = valid_mean(recall[:, index])
    return figures


def proposal_recall_fast(
    truth: GroundTruth,
    detections: Detections,
    proposal_nums: Sequence[int],
    iou_thrs: np.ndarray,
) -> dict[str, float]:
    """Return the recall that mmdet calls ``proposal_fast``: ``AR@n`` for each n.

    In each image the annotation and the proposal with the highest IoU are paired, then
    the best pair of the remaining ones, and so on, whatever the scores. An annotation
    is recalled if the IoU of its pair reaches the threshold. The arguments are those of
    :func:`proposal_recall`.
    """
    proposals, rank = _top_proposals(detections, max(proposal_nums))
    images = np.unique(truth.image_index)
    bounds = group_bounds(images, proposals.image_index, truth.image_index)
    best = np.zeros((len(proposal_nums), len(truth.boxes)))
    for d0, d1, g0, g1 in bounds.tolist():
        boxes = proposals.boxes[d0:d1], truth.boxes[g0:g1]
        ious = np.reshape(mask_api().iou(*boxes, [0] * (g1 - g0)), (d1 - d0, g1 - g0))
        for paired, number in zip(best, proposal_nums):
            paired[g0:g1] = _pair_ious(ious[rank[d0:d1] < number].T.copy())
    if not len(images):
        return {f"AR@{number}": -1.0 for number in proposal_nums}
    recall = (best[..., None] >= iou_thrs).mean(axis=1).mean(axis=1)
    return {f"AR@{n}": value for n, value in zip(proposal_nums, recall.tolist())}


def _top_proposals(detections: Detections, limit: int) -> tuple[Detections, np.ndarray]:
    """Return the best proposals of each image, by image and score, and their ranks."""
    kept = top_per_group(detections.image_index, detections.scores, limit)
    order = np.lexsort((-detections.scores[kept], detections.image_index[kept]))
    proposals = replace(detections.take(kept[order]), masks=None)
    image_index = proposals.image_index
    return proposals, np.arange(len(kept)) - np.searchsorted(image_index, image_index)


def _pair_ious(ious: np.ndarray) -> np.ndarray:
    """Return the IoU of each annotation's pair (G,); overwrites ``ious`` (G, n)."""
    paired = np.zeros(len(ious))
    for _ in range(min(ious.shape)):
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        paired[row] = ious[row, column]
        ious[row] = -1
        ious[:, column] = -1
    return paired

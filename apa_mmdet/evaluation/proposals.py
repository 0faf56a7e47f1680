"""Recall of proposals, whatever their class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pycocotools import mask as mask_utils

from .detections import Detections, best_of_each
from .ground_truth import GroundTruth
from .lvis_eval import AREAS, count_areas, mean, outside_areas
from .matching import match


def proposal_recall(
    truth: GroundTruth,
    detections: Detections,
    proposal_nums: Sequence[int],
    iou_thrs: np.ndarray,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Return the recall of the best proposals of each image, classes ignored.

    Every annotation of the image is to be found, by a proposal of any class, matched as
    lvis-api matches those of one class. The federated rules concern false detections,
    which recall does not know.

    Args:
        truth: The annotations.
        detections: The proposals.
        proposal_nums: How many of each image to look at.
        iou_thrs: float64 (T,); recall is the mean over them.
        num_workers: As in :func:`~.lvis_eval.evaluate`.
        progress: As there.

    Returns:
        ``AR@n``, ``ARs@n``, ``ARm@n`` and ``ARl@n`` for each n; -1 where nothing is
        annotated.
    """
    found, rank = _best_proposals(detections, max(proposal_nums))
    ignored = truth.ignore[:, None] | outside_areas(truth.area)
    matches = match(
        truth,
        found,
        found.image,
        truth.image,
        ignored,
        iou_thrs,
        with_masks=False,
        num_workers=num_workers,
        progress=progress,
    )
    # What a proposal finds does not depend on those with lower scores.
    rank = rank[matches.row]
    num_truth = count_areas(truth, ignored).sum(axis=0)
    figures = {}
    for number in proposal_nums:
        true = matches.found[rank < number].sum(axis=0)
        recall = np.where(num_truth > 0, true / np.maximum(num_truth, 1), -1)
        for index, area in enumerate(AREAS):
            letter = area[0] if index else ""
            figures[f"AR{letter}@{number}"] = mean(recall[:, index])
    return figures


def proposal_recall_fast(
    truth: GroundTruth,
    detections: Detections,
    proposal_nums: Sequence[int],
    iou_thrs: np.ndarray,
) -> dict[str, float]:
    """Return the recall that mmdet calls ``proposal_fast``.

    In each image the annotation and the proposal that overlap most are paired, then
    those of the others, and so on, whatever the scores; an annotation is found if its
    IoU reaches the threshold.

    Args:
        truth: The annotations.
        detections: The proposals.
        proposal_nums: How many of each image to look at.
        iou_thrs: float64 (T,); recall is the mean over them.

    Returns:
        ``AR@n`` for each n; -1 where nothing is annotated.
    """
    found, rank = _best_proposals(detections, max(proposal_nums))
    bounds = np.stack(
        [
            np.searchsorted(those, np.arange(truth.num_images), side=side)
            for those in (found.image, truth.image)
            for side in ("left", "right")
        ],
        axis=1,
    )
    best = {number: [np.zeros(0)] for number in proposal_nums}
    for d0, d1, g0, g1 in bounds[bounds[:, 3] > bounds[:, 2]].tolist():
        if d0 == d1:
            ious = np.zeros((0, g1 - g0))
        else:
            boxes = found.box[d0:d1], truth.box[g0:g1]
            ious = mask_utils.iou(*boxes, [0] * (g1 - g0))
        for number in proposal_nums:
            best[number].append(_pair_best(ious[rank[d0:d1] < number].T.copy()))
    figures = {}
    for number, parts in best.items():
        iou = np.concatenate(parts)
        recall = (iou[:, None] >= iou_thrs).mean(axis=0) if len(iou) else iou
        figures[f"AR@{number}"] = float(recall.mean()) if len(iou) else -1.0
    return figures


def _best_proposals(
    detections: Detections, limit: int
) -> tuple[Detections, np.ndarray]:
    """Return the best proposals of each image, by image and score, and their ranks."""
    kept = best_of_each(detections.image, detections.score, limit)
    image, score = detections.image[kept], detections.score[kept]
    found = detections.take(kept[np.lexsort((-score, image))])
    found = replace(found, masks=None)
    rank = np.arange(len(found)) - np.searchsorted(found.image, found.image)
    return found, rank


def _pair_best(ious: np.ndarray) -> np.ndarray:
    """Return the IoU that each annotation is left with; ``ious`` (G, n) is used up."""
    left = np.zeros(len(ious))
    for _ in range(min(ious.shape)):
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        left[row] = ious[row, column]
        ious[row] = -1
        ious[:, column] = -1
    return left

"""Which detections are judged: limits on their number, and the federated rules."""

from __future__ import annotations

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth


def top_per_group(group: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Return the detections with the highest scores of each group.

    Of equal scores the earlier detections are kept.

    Args:
        group: int (n,), at least 0.
        scores: (n,).
        limit: Detections to keep of each group; negative for all.

    Returns:
        Sorted indices, int64.
    """
    size = np.bincount(group)
    is_crowded = size > limit
    if limit < 0 or not is_crowded.any():
        return np.arange(len(group))
    # Only the groups that lose detections are sorted.
    crowd = np.flatnonzero(is_crowded[group])
    crowd = crowd[np.lexsort((-scores[crowd], group[crowd]))]
    size = np.where(is_crowded, size, 0)
    rank = np.arange(len(crowd)) - (np.cumsum(size) - size)[group[crowd]]
    is_kept = ~is_crowded[group]
    is_kept[crowd[rank < limit]] = True
    return np.flatnonzero(is_kept)


def select_judged(truth: GroundTruth, dets: Detections, max_dets: int) -> np.ndarray:
    """Return the detections that AP judges: sorted indices, int64.

    The best ``max_dets`` of each image (all if negative), whatever their class, and of
    those the ones in judged pairs.
    """
    return _in_judged_pairs(
        truth, dets, top_per_group(dets.image_index, dets.scores, max_dets)
    )


def select_judged_fixed(
    truth: GroundTruth, dets: Detections, max_dets_per_class: int
) -> np.ndarray:
    """Return the detections that Fixed AP judges: sorted indices, int64.

    The best of each class over the whole data set, without a limit for an image (Dave
    et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details",
    section 4), and of those the ones in judged pairs.
    """
    return _in_judged_pairs(truth, dets, top_per_class(dets, max_dets_per_class))


def top_per_class(dets: Detections, limit: int) -> np.ndarray:
    """Return the best detections of each class: sorted indices, int64.

    Of equal scores those of the image with the lower id are kept.
    """
    by_image = np.argsort(dets.image_index, kind="stable")
    kept = top_per_group(dets.class_index[by_image], dets.scores[by_image], limit)
    return np.sort(by_image[kept])


def _in_judged_pairs(
    truth: GroundTruth, dets: Detections, rows: np.ndarray
) -> np.ndarray:
    pairs = truth.pairs(dets.image_index[rows], dets.class_index[rows])
    return rows[truth.is_judged(pairs)]

"""Which detections are judged: limits on their number, and the federated rules."""

from __future__ import annotations

import numpy as np

from .ground_truth import GroundTruth


def top_per_group(group: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Return the detections with the highest scores of each group, in their old order.

    Of equal scores the earlier detections are kept.

    Args:
        group: int (n,), at least 0.
        scores: (n,).
        limit: Detections to keep of each group; negative for all.

    Returns:
        Sorted indices, int64.
    """
    if limit < 0 or not len(group):
        return np.arange(len(group))
    size = np.bincount(group)
    is_crowded = size > limit
    if not is_crowded.any():
        return np.arange(len(group))
    # Only the groups that lose detections are sorted.
    crowd = np.flatnonzero(is_crowded[group])
    crowd = crowd[np.lexsort((-scores[crowd], group[crowd]))]
    size = np.where(is_crowded, size, 0)
    rank = np.arange(len(crowd)) - (np.cumsum(size) - size)[group[crowd]]
    is_kept = ~is_crowded[group]
    is_kept[crowd[rank < limit]] = True
    return np.flatnonzero(is_kept)


def select_judged(
    truth: GroundTruth,
    image_index: np.ndarray,
    class_index: np.ndarray,
    scores: np.ndarray,
    max_dets: int,
) -> np.ndarray:
    """Return the detections that AP judges, in their old order.

    The best ``max_dets`` of each image, whatever their class, and of those the ones in
    judged pairs.

    Args:
        truth: The annotations.
        image_index: int (n,).
        class_index: int (n,).
        scores: (n,).
        max_dets: Limit for each image; negative for none.

    Returns:
        Sorted indices, int64.
    """
    kept = top_per_group(image_index, scores, max_dets)
    return kept[truth.is_judged(truth.pairs(image_index[kept], class_index[kept]))]


def select_judged_fixed(
    truth: GroundTruth,
    image_index: np.ndarray,
    class_index: np.ndarray,
    scores: np.ndarray,
    max_dets_per_class: int,
) -> np.ndarray:
    """Return the detections that Fixed AP judges, in their old order.

    The best of each class over the whole data set, without a limit for an image (Dave
    et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details",
    section 4). Of equal scores those of the image with the lower id are kept.

    Args:
        truth: The annotations.
        image_index: int (n,).
        class_index: int (n,).
        scores: (n,).
        max_dets_per_class: Limit for each class, over all images.

    Returns:
        Sorted indices, int64.
    """
    by_image = np.argsort(image_index, kind="stable")
    kept = top_per_group(class_index[by_image], scores[by_image], max_dets_per_class)
    kept = np.sort(by_image[kept])
    return kept[truth.is_judged(truth.pairs(image_index[kept], class_index[kept]))]

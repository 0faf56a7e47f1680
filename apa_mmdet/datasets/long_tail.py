"""Drawing a long tail from a data set for classification. Imports only numpy.

The rules say how many images class ``c`` of ``C`` keeps, in the order of the labels:
label 0 is the most frequent. :func:`draw` then chooses the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def exponential_counts(num_classes: int, max_count: int, ratio: float) -> np.ndarray:
    """Return counts that fall exponentially, ``max_count * ratio ** (-c / (C - 1))``.

    CIFAR100-LT is the rule with 100 classes, ``max_count=500`` and ratios 10 to 200
    (Cui et al., CVPR 2019; Cao et al., NeurIPS 2019). Counts are rounded down, and at
    least 1.

    Args:
        num_classes: C.
        max_count: Images of class 0.
        ratio: Of the images of class 0 to those of the last class, at least 1.

    Returns:
        int64 (C,).

    Raises:
        ValueError: If an argument is out of range.
    """
    _check(num_classes, "num_classes", 1)
    _check(max_count, "max_count", 1)
    _check(ratio, "ratio", 1)
    share = np.arange(num_classes) / max(num_classes - 1, 1)
    return _rounded_down(max_count * ratio**-share)


def pareto_counts(
    num_classes: int, max_count: int, min_count: int = 5, alpha: float = 6.0
) -> np.ndarray:
    """Return counts that follow the quantiles of a Pareto distribution.

    With ``q(c) = ((c + 1/2) / C) ** (-1 / alpha)``, the value that a share of about
    ``c / C`` of the distribution exceeds, the counts are ``q`` scaled linearly so that
    the first class has ``max_count`` and the last ``min_count``, rounded down.

    ImageNet-LT is a Pareto draw with ``alpha=6``, 1,280 to 5 images (Liu et al., CVPR
    2019), of which only the resulting list was published. This is a reconstruction: its
    counts resemble those of the list without being equal. To reproduce published
    figures, read the list.

    Args:
        num_classes: C.
        max_count: Images of class 0.
        min_count: Images of the last class.
        alpha: Shape of the distribution, above 0; the smaller, the fewer classes are
            frequent.

    Returns:
        int64 (C,).

    Raises:
        ValueError: If an argument is out of range.
    """
    _check(num_classes, "num_classes", 1)
    _check(min_count, "min_count", 1)
    _check(max_count, "max_count", min_count)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha!r}, expected a finite number > 0")
    quantile = ((np.arange(num_classes) + 0.5) / num_classes) ** (-1 / alpha)
    height = (quantile - quantile[-1]) / max(quantile[0] - quantile[-1], 1e-12)
    height[0] = 1
    return _rounded_down(min_count + (max_count - min_count) * height)


def draw(
    labels: Sequence[int],
    counts: Sequence[int],
    seed: int,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Return which images to keep, class by class in the order of the labels.

    Within a class they are in the order of the data set. Which ones, the seed decides
    for each class by itself, so that of two draws with the same seed the one with fewer
    images of a class keeps a part of the other's. Published code differs in how it
    chooses the images, and so do its draws; the counts do not.

    Args:
        labels: Of all images.
        counts: How many of each class to keep.
        seed: Of the draw, at least 0.
        class_names: For messages.

    Returns:
        Indices of the images, int64.

    Raises:
        ValueError: If a label has no count, or a class fewer images than its count.
    """
    labels = np.asarray(labels)
    _check(seed, "seed", 0)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(counts):
        raise ValueError(
            f"labels are {labels.min()} to {labels.max()}, but there are counts for "
            f"{len(counts)} classes, labels 0 to {len(counts) - 1}"
        )
    by_class = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[by_class], np.arange(len(counts) + 1))
    available = np.diff(edges)
    short = np.flatnonzero(available < counts)
    if len(short):
        label = int(short[0])
        name = f" ({class_names[label]!r})" if class_names else ""
        feasible = (max(counts) * available / np.maximum(counts, 1)).min()
        raise ValueError(
            f"label {label}{name} has {available[label]:,} images, but the long tail "
            f"takes {counts[label]:,}; lower max_count from {max(counts):,} to "
            f"{math.floor(feasible):,}, or sort the classes by frequency"
        )
    kept = []
    for label, count in enumerate(counts):
        images = by_class[edges[label] : edges[label + 1]]
        drawn = np.random.default_rng([seed, label]).permutation(len(images))[:count]
        kept.append(images[np.sort(drawn)])
    return np.concatenate(kept) if kept else np.zeros(0, np.int64)


def _rounded_down(counts: np.ndarray) -> np.ndarray:
    # 500 * 100 ** -1 must not become 4 because of the last bit.
    return np.maximum(np.floor(counts + 1e-6), 1).astype(np.int64)


def _check(value: float, name: str, low: float) -> None:
    whole = name != "ratio"
    kinds = (int, np.integer) if whole else (int, float, np.number)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not low <= value < math.inf:
        kind = "an integer" if whole else "a finite number"
        raise ValueError(f"{name}={value!r}, expected {kind} >= {low}")

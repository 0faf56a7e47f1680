"""Class frequencies of any mmdet data set, with or without wrappers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .labels import check_labels, class_names, leaves


def class_frequency(dataset: Dataset, check: bool = True) -> Tensor:
    """Return the share of annotated images that show each class.

    The annotations that the data set has in memory are read once; of its files only
    the categories are, to check that labels mean what ``metainfo['classes']`` says.
    Wrappers that repeat or oversample images do not change the result.

    Args:
        dataset: An mmdet data set, or any nesting of ConcatDataset, RepeatDataset,
            ClassBalancedDataset and other wrappers around such data sets.
        check: Whether to check labels; False if that has been done.

    Returns:
        float32 tensor (C,): images with the class / images with any annotation.

    Raises:
        TypeError: As :func:`image_counts`.
        ValueError: As :func:`image_counts`.
    """
    counts, num_annotated = image_counts(dataset, check)
    return counts.to(torch.float32) / num_annotated


def image_counts(dataset: Dataset, check: bool = True) -> tuple[Tensor, int]:
    """Return how many images show each class, and how many are annotated.

    Args:
        dataset: As in :func:`class_frequency`.
        check: As in :func:`class_frequency`.

    Returns:
        int64 tensor (C,), and the number of images with any annotation.

    Raises:
        TypeError: If a data set has no ``get_cat_ids`` or no ``metainfo['classes']``.
        ValueError: If labels do not mean what ``metainfo['classes']`` says
            (:func:`~.labels.check_labels`), or nothing is annotated.
    """
    for leaf in leaves(dataset):
        names = class_names(getattr(leaf, "metainfo", {}))
        if names is None or not hasattr(leaf, "get_cat_ids"):
            raise TypeError(
                f"cannot read class frequencies from {type(leaf).__name__}: expected "
                f"an mmdet data set with metainfo['classes'] and get_cat_ids(idx)"
            )
    class_names([leaf.metainfo for leaf in leaves(dataset)])  # all have the same
    if check:
        check_labels(dataset)
    counts, num_annotated = torch.zeros(len(names), dtype=torch.int64), 0
    for leaf in leaves(dataset):
        for index in range(len(leaf)):
            shown = sorted(set(leaf.get_cat_ids(index)))
            if shown and not 0 <= shown[0] <= shown[-1] < len(names):
                raise ValueError(
                    f"image {index + 1} of {type(leaf).__name__} has labels "
                    f"{shown[0]} to {shown[-1]}, but metainfo['classes'] has "
                    f"{len(names)} names, labels 0 to {len(names) - 1}; name every "
                    "class that the data set labels, in the order of the labels"
                )
            counts[shown] += 1
            num_annotated += bool(shown)
    if not num_annotated:
        raise ValueError(
            "no image of the training data set has an annotation; check ann_file and "
            "metainfo['classes']"
        )
    return counts, num_annotated

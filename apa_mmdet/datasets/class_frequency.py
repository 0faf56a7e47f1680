"""Class frequencies of any mmdet data set, with or without wrappers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset


def _leaves(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the data sets inside any nesting of wrappers."""
    if hasattr(dataset, "datasets"):  # ConcatDataset
        for inner in dataset.datasets:
            yield from _leaves(inner)
    elif hasattr(dataset, "dataset"):  # ClassBalanced, Repeat, MultiImageMix, ...
        yield from _leaves(dataset.dataset)
    else:
        yield dataset


def class_frequency(dataset: Dataset) -> Tensor:
    """Return the share of annotated images that show each class.

    The annotations that the data set has in memory are read once; no file is opened.
    Wrappers that repeat or oversample images do not change the result.

    Args:
        dataset: An mmdet data set, or any nesting of ConcatDataset, RepeatDataset,
            ClassBalancedDataset and other wrappers around such data sets.

    Returns:
        float32 tensor (C,): images with the class / images with any annotation.

    Raises:
        TypeError: If a data set has no ``get_cat_ids`` or no ``metainfo['classes']``.
        ValueError: If the data sets have different classes, or nothing is annotated.
    """
    classes, counts, num_annotated = None, None, 0
    for leaf in _leaves(dataset):
        names = getattr(leaf, "metainfo", {}).get("classes")
        if names is None or not hasattr(leaf, "get_cat_ids"):
            raise TypeError(
                f"cannot read class frequencies from {type(leaf).__name__}: expected "
                f"an mmdet data set with metainfo['classes'] and get_cat_ids(idx)"
            )
        if classes is None:
            classes = tuple(names)
            counts = torch.zeros(len(classes), dtype=torch.int64)
        elif classes != tuple(names):
            raise ValueError(
                f"the concatenated data sets have different classes ({len(classes)} "
                f"and {len(names)} names); give them the same metainfo"
            )
        if hasattr(leaf, "full_init"):
            leaf.full_init()
        for index in range(len(leaf)):
            shown = sorted(set(leaf.get_cat_ids(index)))
            counts[shown] += 1
            num_annotated += bool(shown)
    if not num_annotated:
        raise ValueError(
            "no image of the training data set has an annotation; check ann_file and "
            "metainfo['classes']"
        )
    return counts.to(torch.float32) / num_annotated

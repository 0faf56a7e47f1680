"""Where the boxes of each class are, in any mmdet data set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from .labels import leaves


class BoxPositions(NamedTuple):
    """The boxes of a data set that training uses, n in all, of C classes.

    Attributes:
        labels: int64 (n,).
        centers: float32 (n, 2): x and y as shares of the image's width and height.
        image_counts: int64 (C,): images that show each class.
        num_images: Images with any box.
    """

    labels: np.ndarray
    centers: np.ndarray
    image_counts: np.ndarray
    num_images: int

    @property
    def box_counts(self) -> np.ndarray:
        """Boxes of each class, int64 (C,)."""
        return np.bincount(self.labels, minlength=len(self.image_counts))


def box_positions(dataset: Dataset) -> BoxPositions:
    """Return the positions of all boxes, except those that training ignores.

    The annotations that the data set has in memory are read once; no file is opened.
    Wrappers that repeat or oversample images do not change the result.

    Args:
        dataset: An mmdet data set, or any nesting of ConcatDataset, RepeatDataset,
            ClassBalancedDataset and other wrappers around such data sets.

    Raises:
        TypeError: If a data set does not give boxes as mmdet's do.
        ValueError: If a label is outside ``metainfo['classes']``, or there are no
            boxes.
    """
    labels, centers, images, counts = [], [], 0, None
    for leaf in leaves(dataset):
        classes = getattr(leaf, "metainfo", {}).get("classes")
        if classes is None or not hasattr(leaf, "get_data_info"):
            raise TypeError(
                f"cannot read box positions from {type(leaf).__name__}: expected an "
                f"mmdet data set with metainfo['classes'] and get_data_info(idx)"
            )
        if counts is None:
            counts = np.zeros(len(classes), np.int64)
        if hasattr(leaf, "full_init"):
            leaf.full_init()
        for index in range(len(leaf)):
            shown, where = _read(leaf, index)
            if len(shown) and not 0 <= shown.min() <= shown.max() < len(counts):
                raise ValueError(
                    f"image {index + 1} of {type(leaf).__name__} has labels from "
                    f"{shown.min()} to {shown.max()}, expected 0 to {len(counts) - 1}: "
                    f"metainfo['classes'] must list every class of every data set"
                )
            labels.append(shown)
            centers.append(where)
            counts[np.unique(shown)] += 1
            images += bool(len(shown))
    if not images:
        raise ValueError(
            "the training data set has no boxes; check ann_file and metainfo['classes']"
        )
    return BoxPositions(np.concatenate(labels), np.concatenate(centers), counts, images)


def _read(dataset: Dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (n,) and centres (n, 2) of an image's boxes."""
    info = dataset.get_data_info(index)
    try:
        size = [info["width"], info["height"]]
        boxes = [
            (box["bbox_label"], *box["bbox"])
            for box in info["instances"]
            if not box.get("ignore_flag")
        ]
    except KeyError as error:
        raise TypeError(
            f"cannot read box positions from {type(dataset).__name__}: image "
            f"{index + 1} has no {error}; expected width, height and instances with "
            f"bbox and bbox_label"
        ) from None
    table = np.array(boxes, np.float64).reshape(-1, 5)
    centers = (table[:, 1:3] + table[:, 3:5]) / (2 * np.array(size))
    return table[:, 0].astype(np.int64), centers.astype(np.float32)

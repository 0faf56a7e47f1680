"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor


def digits(train_share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images, held-out images, and which digits both are.

    Images have shape (N, 1, 8, 8) and values from -1 to 1. The split is always the
    same, and each digit has its share in both parts.
    """
    data = load_digits()
    split = train_test_split(
        data.images / 8 - 1,
        data.target,
        train_size=train_share,
        random_state=0,
        stratify=data.target,
    )
    images, held_out, labels, held_out_labels = map(torch.from_numpy, split)
    return images[:, None].float(), held_out[:, None].float(), labels, held_out_labels

"""The classes of mini-LVIS, and which of them each image shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from .scenes import SHAPES, SKINS

CLASSES: tuple[str, ...] = tuple(
    f"{skin}_{shape}" for shape in SHAPES for skin in SKINS
)

# How many classes are frequent and common (the rest are rare), and the share of the
# training images that shows the first and the last of them.
_NUM_FREQUENT, _FREQUENT_SHARE = 10, (0.27, 0.19)
_NUM_COMMON, _COMMON_SHARE = 15, (0.10, 0.022)
_RARE_IMAGES = (9, 3)
_MAX_CLASSES = 5  # in one image


def image_quotas(num_train: int, num_val: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many training and validation images show each class, (K,) each.

    The number of rare images does not grow with the set. In the validation set rare
    and common classes appear more often than in proportion, so that their AP is
    meaningful.
    """
    num_rare = len(CLASSES) - _NUM_FREQUENT - _NUM_COMMON
    common = np.geomspace(*_COMMON_SHARE, _NUM_COMMON) * num_train
    by_rank = np.concatenate(
        [
            np.geomspace(*_FREQUENT_SHARE, _NUM_FREQUENT) * num_train,
            common.clip(11, 100),
            np.geomspace(*_RARE_IMAGES, num_rare),
        ]
    )
    # Ranks cycle through the shapes, with the next skin each time: the frequent classes
    # then have every shape at least once and every skin twice.
    shape, skin = np.divmod(np.arange(len(CLASSES)), len(SKINS))
    rank = (skin - shape) * 2 % len(SKINS) * len(SHAPES) + shape
    train = by_rank[rank]
    val = np.maximum(train / num_train * num_val, np.clip(num_val // 25, 4, 30))
    return train.round().astype(int), val.round().astype(int)


def assign_classes(
    quotas: np.ndarray, num_images: int, rng: np.random.Generator
) -> list[list[int]]:
    """Distribute the classes over the images.

    Args:
        quotas: int (K,): how many images show each class.
        num_images: Number of images.
        rng: Source of everything random.

    Returns:
        For each image the category ids that it shows, at least one.
    """
    shown: list[list[int]] = [[] for _ in range(num_images)]
    for index in np.argsort(-quotas, kind="stable"):
        room = np.array([_MAX_CLASSES - len(ids) for ids in shown], dtype=float)
        chosen = rng.choice(
            num_images, quotas[index], replace=False, p=room / room.sum()
        )
        for image in chosen:
            shown[image].append(int(index) + 1)
    for ids in shown:
        if not ids:
            ids.append(max(shown, key=len).pop())
    return shown


def describe_classes(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the ``categories`` of LVIS, with counts of the training annotations."""
    instances = Counter(ann["category_id"] for ann in annotations)
    pairs = {(ann["category_id"], ann["image_id"]) for ann in annotations}
    images = Counter(category for category, _ in pairs)
    return [
        dict(
            id=index,
            name=name,
            synset=f"{name}.n.01",
            synonyms=[name],
            **{"def": f"a drawing of a {name.replace('_', ' ')}"},
            image_count=images[index],
            instance_count=instances[index],
            frequency="r" if images[index] <= 10 else "fc"[images[index] <= 100],
        )
        for index, name in enumerate(CLASSES, start=1)
    ]

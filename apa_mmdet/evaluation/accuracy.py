"""Top-1 accuracy over groups of classes, with a bootstrap over the test images.

The groups follow the number of *training* images of a class, as in the literature on
long-tailed classification (Liu et al., CVPR 2019): many above 100, few below 20, medium
between. Accuracy is the share of the group's test images that are classified correctly;
on a balanced test set that is also the mean over its classes.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .core.bootstrap import Resamples, image_weights

FIGURES = ("all", "many", "medium", "few")
MANY, FEW = 100, 20
_NUMBERS_AT_ONCE = 4_000_000  # in one array of a block of resamples


class Predictions(NamedTuple):
    """What a classifier said about the test images.

    Attributes:
        labels: int64 (N,), from 0.
        predicted: int64 (N,), the classes with the highest scores.
        class_counts: int64 (C,), training images of each class.
    """

    labels: np.ndarray
    predicted: np.ndarray
    class_counts: np.ndarray


def make_predictions(labels, predicted, class_counts, source: str) -> Predictions:
    """Return predictions after checking them.

    Args:
        labels: Integers (N,).
        predicted: Integers (N,).
        class_counts: Integers (C,).
        source: Where they come from, for messages.

    Raises:
        ValueError: If they are not what :class:`Predictions` says.
    """
    named = dict(labels=labels, predicted=predicted, class_counts=class_counts)
    arrays = {}
    for name, values in named.items():
        array = arrays[name] = np.asarray(values)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
            raise ValueError(
                f"{source}: {name} is {array.dtype} of shape {array.shape}, expected a "
                f"list of integers"
            )
    num_classes, num_images = len(arrays["class_counts"]), len(arrays["labels"])
    if len(arrays["predicted"]) != num_images:
        raise ValueError(
            f"{source}: {num_images:,} labels and {len(arrays['predicted']):,} "
            f"predictions, expected as many of both"
        )
    for name in ("labels", "predicted"):
        low, high = arrays[name].min(), arrays[name].max()
        if not 0 <= low <= high < num_classes:
            raise ValueError(
                f"{source}: {name} are {low} to {high}, but the training data has "
                f"{num_classes} classes, labels 0 to {num_classes - 1}; test on data "
                f"with the classes of the training"
            )
    return Predictions(*(arrays[name].astype(np.int64) for name in Predictions._fields))


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Write predictions as JSON."""
    content = {name: a.tolist() for name, a in predictions._asdict().items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content), encoding="utf-8")


def read_predictions(path: str | Path) -> Predictions:
    """Return the predictions in a JSON file, which may be compressed (``.gz``).

    Raises:
        ValueError: If it does not contain any.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = json.load(file)
        fields = [content[name] for name in Predictions._fields]
    except (EOFError, KeyError, TypeError, ValueError, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: not predictions of a classifier ({error!r:.60}); expected JSON "
            f"with labels, predicted and class_counts, as LongTailAccuracy writes it"
        ) from None
    return make_predictions(*fields, str(path))


def top1_accuracy(
    predictions: Predictions, num_resamples: int = 1000, seed: int = 0
) -> Resamples:
    """Return the accuracies named by :data:`FIGURES`, and those of resamples.

    A resample draws as many test images as there are, with replacement. The same seed
    draws the same images for every result on them. A group without test images has no
    accuracy (NaN).

    Args:
        predictions: What to evaluate.
        num_resamples: How many times the images are drawn; 0 for none.
        seed: Of the resamples.
    """
    labels, predicted, counts = predictions
    of_image = counts[labels]
    everything = np.ones(len(labels), bool)
    is_many, is_few = of_image > MANY, of_image < FEW
    groups = np.stack([everything, is_many, ~is_many & ~is_few, is_few], axis=1)
    correct = groups & (labels == predicted)[:, None]
    columns = np.concatenate([correct, groups], axis=1).astype(np.float64)

    def accuracies(seeds: list[np.random.SeedSequence | None]) -> np.ndarray:
        weights = np.stack([image_weights(len(labels), each) for each in seeds])
        right, drawn = np.split(weights @ columns, 2, axis=1)
        return np.where(drawn > 0, right / np.maximum(drawn, 1), np.nan)

    seeds = np.random.SeedSequence(seed).spawn(num_resamples)
    size = max(_NUMBERS_AT_ONCE // len(labels), 1)
    blocks = [seeds[begin : begin + size] for begin in range(0, num_resamples, size)]
    resampled = [np.zeros((0, len(FIGURES))), *map(accuracies, blocks)]
    return Resamples(
        figures=accuracies([None])[0],
        resampled=np.concatenate(resampled),
        conditions=dict(labels=labels, class_counts=counts),
        seed=seed,
        names=FIGURES,
    )


def intervals(
    resamples: Resamples, confidence_level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each figure that is defined.

    It says what other test images of the same kind would give, not what another
    training would.
    """
    tail = 100 * (1 - confidence_level) / 2
    found = {}
    for index, name in enumerate(resamples.names):
        column = resamples.resampled[:, index]
        column = column[np.isfinite(column)]
        if np.isfinite(resamples.figures[index]) and len(column):
            low, high = np.percentile(column, [tail, 100 - tail]).tolist()
            found[name] = low, high
    return found

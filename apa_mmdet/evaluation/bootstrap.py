"""Whether one result is better than another, or luck: a bootstrap over images.

The images are drawn with replacement, as many as there are, and both results are
evaluated on the same draw; see Efron and Tibshirani, "An Introduction to the
Bootstrap", chapter 13 (percentile interval). An image that is drawn twice counts
twice, so nothing is matched anew: each detection is weighted by how often its image
was drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .ground_truth import FREQUENCIES
from .lvis_eval import LVISResult, outside_areas
from .precision import EPS, RECALL_THRS
from .processes import count_workers, spread

GROUPS = ("AP", "AP50", "AP75", *(f"AP{letter}" for letter in FREQUENCIES))
_BLOCK = 4_000_000  # numbers in one array of a block of draws


class Difference(NamedTuple):
    """How much one result exceeds another in one figure, as fractions of 1.

    Attributes:
        first: The figure of the first result.
        second: That of the second.
        low: Lower end of the interval of ``second - first``.
        high: Its upper end.
        share_above: Share of the draws in which the second is better.
    """

    first: float
    second: float
    low: float
    high: float
    share_above: float

    @property
    def value(self) -> float:
        """``second - first``."""
        return self.second - self.first


def compare(
    first: LVISResult,
    second: LVISResult,
    num_draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, Difference]:
    """Return the difference of two results on the same images, with intervals.

    The interval says what other images of the same kind would give. It does not know
    how much training again would change. A class that a draw does not show is left out
    of it, as AP leaves out classes without annotations; intervals of APr, whose
    classes are annotated in few images, are therefore rough.

    Args:
        first: What to compare with.
        second: What to compare.
        num_draws: How often the images are drawn.
        confidence: Of the interval, between 0 and 1.
        seed: Of the draws.
        num_workers: Processes; None for as many as there are cores.
        progress: Whether to show a bar if it takes longer than seconds.

    Returns:
        For AP, AP50, AP75, APr, APc and APf, where something is annotated.

    Raises:
        ValueError: If the results are not of the same images, classes and thresholds,
            or a number makes no sense.
    """
    _check(first, second, num_draws, confidence)
    both = first, second
    # A seed for each draw: both results see the same images.
    seeds = np.random.SeedSequence(seed).spawn(num_draws)
    plain = [_group_means(result, _draw(result, [None])) for result in both]
    resampled = [
        _group_means(result, _sample(result, seeds, num_workers, progress))
        for result in both
    ]
    tail = 100 * (1 - confidence) / 2
    differences = {}
    for index, name in enumerate(GROUPS):
        values = resampled[1][:, index] - resampled[0][:, index]
        values = values[np.isfinite(values)]
        before, after = (float(each[0, index]) for each in plain)
        if np.isfinite([before, after]).all() and len(values):
            low, high = np.percentile(values, [tail, 100 - tail])
            above = float((values > 0).mean() + (values == 0).mean() / 2)
            differences[name] = Difference(
                before, after, float(low), float(high), above
            )
    return differences


def _check(
    first: LVISResult, second: LVISResult, num_draws: int, confidence: float
) -> None:
    for name in ("image_ids", "class_ids"):
        if not np.array_equal(getattr(first.truth, name), getattr(second.truth, name)):
            raise ValueError(
                f"the results were evaluated on different {name}; evaluate both "
                "against the same annotation file and images"
            )
    if not np.array_equal(first.iou_thrs, second.iou_thrs):
        raise ValueError("the results were evaluated at different iou_thrs")
    if num_draws < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_draws={num_draws!r}, confidence={confidence!r}: expected at least 1, "
            "and a number between 0 and 1"
        )


def _group_means(result: LVISResult, class_ap: np.ndarray) -> np.ndarray:
    """Return the figures of each draw, (draws, groups); NaN where there is none.

    Args:
        result: Where the classes' groups are found.
        class_ap: (draws, K, 3) AP, AP50 and AP75 of each class, NaN if not drawn.
    """
    columns = [class_ap[..., 0], class_ap[..., 1], class_ap[..., 2]]
    for index in range(len(FREQUENCIES)):
        columns.append(class_ap[:, result.truth.frequency == index, 0])
    means = []
    for values in columns:
        number = np.isfinite(values).sum(axis=1)
        total = np.nansum(values, axis=1)
        means.append(np.where(number > 0, total / np.maximum(number, 1), np.nan))
    return np.stack(means, axis=1)


def _sample(
    result: LVISResult,
    seeds: list[np.random.SeedSequence],
    num_workers: int | None,
    progress: bool,
) -> np.ndarray:
    """Return the classes' AP in each draw, (draws, K, 3)."""
    ranking, num_draws = result.ranking, len(seeds)
    per_class = np.diff(ranking.start)
    rows = np.diff(np.searchsorted(ranking.row, ranking.start))
    widest = max(
        per_class.max(initial=1),
        rows.max(initial=1) * len(result.iou_thrs) // 2,
        result.truth.num_images,
    )
    block = int(np.clip(_BLOCK // widest, 1, 100))
    parts = [seeds[at : at + block] for at in range(0, num_draws, block)]
    seconds = 4e-9 * num_draws * (per_class.sum() + 20 * rows.sum() + 1e5)
    workers = count_workers(num_workers, seconds, len(parts))
    bar = tqdm(
        total=num_draws,
        desc="drawing images",
        delay=2,
        leave=False,
        disable=None if progress else True,
    )
    drawn = []
    with bar:
        for part in spread(_draw, result, parts, workers):
            drawn.append(part)
            bar.update(len(part))
    return np.concatenate(drawn)


def _draw(result: LVISResult, seeds: list[np.random.SeedSequence | None]) -> np.ndarray:
    """Return the classes' AP in each draw, (draws, K, 3); None is all images once."""
    truth, ranking = result.truth, result.ranking
    weight = np.stack([_weights(truth.num_images, seed) for seed in seeds])
    counts = ~(truth.ignore | outside_areas(truth.area)[:, 0])
    by_class = np.argsort(truth.category[counts], kind="stable")
    truth_image = truth.image[counts][by_class]
    truth_start = np.searchsorted(
        truth.category[counts][by_class], np.arange(truth.num_classes + 1)
    )
    rows = np.searchsorted(ranking.row, ranking.start)
    ap = np.full((len(weight), truth.num_classes, 3), np.nan)
    columns = [np.isclose(result.iou_thrs, value) for value in (0.5, 0.75)]
    for index in np.flatnonzero(np.diff(truth_start)).tolist():
        total = weight[:, truth_image[truth_start[index] : truth_start[index + 1]]]
        total = total.sum(axis=1)
        part = slice(rows[index], rows[index + 1])
        at_thrs = _class_ap(result, weight, total, index, part)
        is_drawn = total > 0
        ap[is_drawn, index, 0] = at_thrs[is_drawn].mean(axis=1)
        for place, column in enumerate(columns, start=1):
            if column.any():
                ap[is_drawn, index, place] = at_thrs[is_drawn][:, column].mean(axis=1)
    return ap


def _weights(num_images: int, seed: np.random.SeedSequence | None) -> np.ndarray:
    """Return how often each image is drawn, int32 (N,)."""
    if seed is None:
        return np.ones(num_images, np.int32)
    drawn = np.random.default_rng(seed).integers(0, num_images, num_images)
    return np.bincount(drawn, minlength=num_images).astype(np.int32)


def _class_ap(
    result: LVISResult, weight: np.ndarray, total: np.ndarray, index: int, part: slice
) -> np.ndarray:
    """Return a class's AP in each draw at each threshold, (draws, T).

    Args:
        result: With the ranked detections.
        weight: int32 (draws, N): how often each image was drawn.
        total: (draws,): how many annotations are to be found.
        index: Of the class.
        part: Its rows among those that matched.
    """
    ranking = result.ranking
    ranking = result.ranking
    at_thrs = np.zeros((len(weight), len(result.iou_thrs)))
    threshold, place = np.nonzero(ranking.matched[part, :, 0].T)
    if not len(place):
        return at_thrs
    # From here an entry is a detection that matched at a threshold; those of each
    # threshold follow one another by falling score.
    first = np.searchsorted(threshold, np.arange(len(result.iou_thrs) + 1))
    begin, end = ranking.start[index : index + 2]
    image, is_false = ranking.image[begin:end], ranking.is_false[begin:end, 0]
    row = ranking.row[part][place] - begin
    drawn = weight[:, image[row]]
    false = np.cumsum(weight[:, image] * is_false, axis=1, dtype=np.int32)[:, row]
    false -= _running_sum(drawn * is_false[row], first, threshold)
    found = drawn * ranking.found[part, :, 0][place, threshold]
    true = _running_sum(found, first, threshold)
    value = np.where(found > 0, true / (false + true + EPS), 0)
    # The best from each entry to the last of its threshold: thresholds are kept apart
    # by adding more to those that come first, which are reached last.
    apart = 2.0 * (len(at_thrs[0]) - threshold)
    best = np.maximum.accumulate((value + apart)[:, ::-1], axis=1)[:, ::-1] - apart
    # Precision at a recall is read where that recall is first reached: an entry counts
    # as often as there are recalls between the entry before and itself.
    recall = true / np.maximum(total, 1)[:, None]
    reached = np.searchsorted(RECALL_THRS, recall.ravel(), side="right")
    reached = np.where(true > 0, reached.reshape(recall.shape), 0)
    before = np.concatenate([np.zeros_like(reached[:, :1]), reached[:, :-1]], axis=1)
    is_there = np.diff(first) > 0
    before[:, first[:-1][is_there]] = 0
    at_thrs[:, is_there] = np.add.reduceat(
        best * (reached - before), first[:-1][is_there], axis=1
    ) / len(RECALL_THRS)
    return at_thrs


def _running_sum(
    values: np.ndarray, first: np.ndarray, threshold: np.ndarray
) -> np.ndarray:
    """Return sums of entries so far, (draws, entries), from 0 at each threshold."""
    sums = np.cumsum(values, axis=1, dtype=np.int32)
    begin = first[threshold]
    return sums - np.where(begin > 0, sums[:, begin - 1], 0)

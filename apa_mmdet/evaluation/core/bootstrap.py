"""Whether one result is better than another or just luckier: a bootstrap over images.

A resample draws as many images as there are, with replacement, and both results are
evaluated on it; see Efron and Tibshirani, "An Introduction to the Bootstrap", chapter
13 (percentile interval). An image that is drawn twice counts twice, so nothing needs to
be matched again: each detection is weighted by how often its image was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .evaluate import LVISResult
from .params import EPS, FREQUENCIES, RECALL_THRS
from .workers import choose_num_workers, map_chunks, progress_bar

FIGURES = ("AP", "AP50", "AP75", *(f"AP{letter}" for letter in FREQUENCIES))
_NUMBERS_AT_ONCE = 4_000_000  # in one array of a block of resamples


class Difference(NamedTuple):
    """By how much the second result exceeds the first in one figure, fractions of 1.

    Attributes:
        first: The figure of the first result; of several runs, their mean.
        second: The figure of the second result.
        low: Lower end of the interval of ``second - first``.
        high: Upper end.
        share_above: Share of the resamples in which the second is better.
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

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


class Resamples(NamedTuple):
    """The figures of a result, fractions of 1.

    Attributes:
        figures: float64 (F,): on the images themselves; NaN where undefined.
        resampled: float64 (num_resamples, F): on each resample of them.
        conditions: What must be equal for two results to be comparable, by name.
        seed: Of the resamples.
        names: Of the figures.
    """

    figures: np.ndarray
    resampled: np.ndarray
    conditions: Mapping[str, np.ndarray]
    seed: int
    names: Sequence[str] = FIGURES


def resample(
    result: LVISResult,
    num_resamples: int = 1000,
    seed: int = 0,
    num_workers: int | None = None,
) -> Resamples:
    """Return the figures of a result on resamples of its images.

    The same seed draws the same images for every result on them.

    Args:
        result: What to resample.
        num_resamples: How many times the images are drawn.
        seed: Of the resamples.
        num_workers: Processes; None for one per core if the work takes long enough.

    Raises:
        ValueError: If ``num_resamples`` is less than 1.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples!r}: expected at least 1")
    seeds = np.random.SeedSequence(seed).spawn(num_resamples)
    plain = _figures(result, _resample(result, [None]))[0]
    resampled = _figures(result, _resample_all(result, seeds, num_workers))
    return Resamples(plain, resampled, _conditions(result), seed)


def compare(
    first: LVISResult,
    second: LVISResult,
    num_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
    num_workers: int | None = None,
) -> dict[str, Difference]:
    """Return the differences of two results on the same images, with intervals.

    The interval says what other images of the same kind would give, not how much
    another training run would change; for that see :func:`compare_runs`. A class that
    a resample does not show is left out of it, as AP leaves out classes without
    annotations. The intervals of APr are therefore rough: rare classes are annotated in
    few images.

    Args:
        first: The baseline.
        second: What is compared with it.
        num_resamples: How many times the images are drawn.
        confidence_level: Of the interval, between 0 and 1.
        seed: Of the resamples.
        num_workers: Processes; None for one per core if the work takes long enough.

    Returns:
        For AP, AP50, AP75, APr, APc and APf, where something is annotated.

    Raises:
        ValueError: If the results have different images, classes or thresholds, or a
            number is out of range.
    """
    _check_comparable(_conditions(first), _conditions(second))
    _check_confidence(confidence_level)
    runs = [resample(r, num_resamples, seed, num_workers) for r in (first, second)]
    return compare_runs(runs[:1], runs[1:], confidence_level)


def compare_runs(
    first: Sequence[Resamples],
    second: Sequence[Resamples],
    confidence_level: float = 0.95,
    draw_runs: bool = False,
) -> dict[str, Difference]:
    """Return the differences of two methods of several runs each, with intervals.

    On each resample of the images, which all runs share, the difference is the mean
    over the pairs of runs. With ``draw_runs`` the pairs are drawn with replacement as
    well, so that the interval also covers how much runs differ from one another. Three
    runs say little about that; such an interval is still too narrow rather than too
    wide.

    Args:
        first: The runs of the baseline.
        second: As many runs, paired with the first, such as those with the same seed.
        confidence_level: Of the interval, between 0 and 1.
        draw_runs: Whether to draw the runs as well as the images.

    Returns:
        By the names of the figures, where they are defined.

    Raises:
        ValueError: If the numbers of runs differ or are 0, or two runs were evaluated
            or resampled differently.
    """
    if not first or len(first) != len(second):
        raise ValueError(
            f"{len(first)} and {len(second)} runs: expected as many of both, at least "
            "one"
        )
    for run in (*first, *second):
        _check_comparable(first[0].conditions, run.conditions)
        if (run.seed, len(run.resampled)) != (first[0].seed, len(first[0].resampled)):
            raise ValueError("the runs were resampled with another seed or number")
    _check_confidence(confidence_level)
    values = np.stack([b.resampled - a.resampled for a, b in zip(first, second)])
    if draw_runs:
        number, size = values.shape[:2]
        rng = np.random.default_rng(first[0].seed)
        drawn = rng.integers(0, number, (number, size))
        values = values[drawn, np.arange(size)]
    pooled = values.mean(axis=0)
    before, after = (
        np.mean([run.figures for run in runs], axis=0).tolist()
        for runs in (first, second)
    )
    tail = 100 * (1 - confidence_level) / 2
    differences = {}
    for index, name in enumerate(first[0].names):
        column = pooled[np.isfinite(pooled[:, index]), index]
        plain = before[index], after[index]
        if np.isfinite(plain).all() and len(column):
            low, high = np.percentile(column, [tail, 100 - tail]).tolist()
            above = float((column > 0).mean() + (column == 0).mean() / 2)
            differences[name] = Difference(*plain, low, high, above)
    return differences


def _conditions(result: LVISResult) -> dict[str, np.ndarray]:
    truth = result.truth
    ids = dict(image_ids=truth.image_ids, class_ids=truth.class_ids)
    return dict(**ids, iou_thrs=result.iou_thrs)


def _check_comparable(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> None:
    if first.keys() != second.keys():
        raise ValueError(
            "the results were evaluated by different metrics; evaluate both by the same"
        )
    for name in first:
        if not np.array_equal(first[name], second[name]):
            raise ValueError(
                f"the results were evaluated with different {name}; evaluate both in "
                f"the same way on the same images"
            )


def _check_confidence(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(
            f"confidence_level={level!r}: expected a number between 0 and 1"
        )


def _figures(result: LVISResult, class_ap: np.ndarray) -> np.ndarray:
    """Return the figures of each resample, (resamples, figures); NaN if undefined.

    ``class_ap`` (resamples, K, 3) is AP, AP50 and AP75 of each class, NaN if not drawn.
    """
    groups = [result.truth.frequency == index for index in range(len(FREQUENCIES))]
    columns = [*np.moveaxis(class_ap, 2, 0), *(class_ap[:, g, 0] for g in groups)]
    number = np.stack([np.isfinite(values).sum(axis=1) for values in columns], axis=1)
    total = np.stack([np.nansum(values, axis=1) for values in columns], axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _resample_all(
    result: LVISResult, seeds: list[np.random.SeedSequence], num_workers: int | None
) -> np.ndarray:
    """Return the classes' AP in each resample, (resamples, K, 3), block by block."""
    ranked, num_resamples = result.ranked, len(seeds)
    per_class = np.diff(ranked.class_start)
    matchable = np.diff(np.searchsorted(ranked.rows, ranked.class_start))
    widest = max(
        per_class.max(initial=1),
        matchable.max(initial=1) * len(result.iou_thrs) // 2,
        result.truth.num_images,
    )
    size = int(np.clip(_NUMBERS_AT_ONCE // widest, 1, 100))
    blocks = [seeds[begin : begin + size] for begin in range(0, num_resamples, size)]
    seconds = 4e-9 * num_resamples * (per_class.sum() + 20 * matchable.sum() + 1e5)
    workers = choose_num_workers(num_workers, seconds, len(blocks))
    pieces = []
    with progress_bar("bootstrap", "resamples", total=num_resamples) as bar:
        for piece in map_chunks(_resample, result, blocks, workers):
            pieces.append(piece)
            bar.update(len(piece))
    return np.concatenate(pieces)


def _resample(
    result: LVISResult, seeds: list[np.random.SeedSequence | None]
) -> np.ndarray:
    """Return the classes' AP for each seed, (seeds, K, 3); None is every image once."""
    truth, thrs = result.truth, result.iou_thrs
    weights = np.stack([image_weights(truth.num_images, seed) for seed in seeds])
    counts = ~truth.ignored()[:, 0]
    image_index, class_index = truth.image_index[counts], truth.class_index[counts]
    by_class = np.argsort(class_index, kind="stable")
    edges = np.searchsorted(class_index[by_class], np.arange(truth.num_classes + 1))
    ap = np.full((len(weights), truth.num_classes, 3), np.nan)
    columns = [thrs > 0, np.isclose(thrs, 0.5), np.isclose(thrs, 0.75)]
    for index in np.flatnonzero(np.diff(edges)).tolist():
        images = image_index[by_class[edges[index] : edges[index + 1]]]
        num_annotations = weights[:, images].sum(axis=1)
        at_thrs = _class_ap(result, weights, num_annotations, index)
        is_drawn = num_annotations > 0
        for place, column in enumerate(columns):
            if column.any():
                drawn = at_thrs[np.ix_(is_drawn, column)]
                ap[is_drawn, index, place] = drawn.mean(axis=1)
    return ap


def image_weights(num_images: int, seed: np.random.SeedSequence | None) -> np.ndarray:
    """Return how many times each image is drawn, int32 (N,).

    Args:
        num_images: N, also the number of draws.
        seed: Of this resample; if None, every image is drawn once.
    """
    if seed is None:
        return np.ones(num_images, np.int32)
    drawn = np.random.default_rng(seed).integers(0, num_images, num_images)
    return np.bincount(drawn, minlength=num_images).astype(np.int32)


def _class_ap(
    result: LVISResult, weights: np.ndarray, num_annotations: np.ndarray, index: int
) -> np.ndarray:
    """Return a class's AP in each resample at each threshold, (resamples, T).

    ``weights`` (resamples, N) says how many times each image was drawn,
    ``num_annotations`` (resamples,) how many of the class the images drawn have.
    """
    ranked = result.ranked
    begin, end = ranked.class_start[index : index + 2]
    span = slice(*np.searchsorted(ranked.rows, (begin, end)))
    at_thrs = np.zeros((len(weights), len(result.iou_thrs)))
    threshold, place = np.nonzero(ranked.matched[span, :, 0].T)
    if not len(place):
        return at_thrs
    # From here an entry is a detection that matched at a threshold; those of each
    # threshold follow one another by falling score.
    first = np.searchsorted(threshold, np.arange(len(result.iou_thrs) + 1))
    image_index = ranked.image_index[begin:end]
    is_negative = ranked.is_negative[begin:end, 0]
    rows = ranked.rows[span][place] - begin
    drawn = weights[:, image_index[rows]]
    # False positives: count all as unmatched, then subtract those that are matched.
    negatives = np.cumsum(weights[:, image_index] * is_negative, axis=1, dtype=np.int32)
    fp = negatives[:, rows] - _running_sum(drawn * is_negative[rows], first, threshold)
    true_positive = drawn * ranked.true_positive[span, :, 0][place, threshold]
    tp = _running_sum(true_positive, first, threshold)
    precision = np.where(true_positive > 0, tp / (fp + tp + EPS), 0)
    # The best from each entry to the last of its threshold. Adding more to the
    # thresholds that are reached last keeps the thresholds apart.
    offset = 2.0 * (len(at_thrs[0]) - threshold)
    best = np.maximum.accumulate((precision + offset)[:, ::-1], axis=1)
    best = best[:, ::-1] - offset
    # Precision at a recall is read at the first entry that reaches it: an entry counts
    # once for each recall threshold between the entry before and itself.
    recall = tp / np.maximum(num_annotations, 1)[:, None]
    reached = np.searchsorted(RECALL_THRS, recall.ravel(), side="right")
    reached = np.where(tp > 0, reached.reshape(recall.shape), 0)
    before = np.concatenate([np.zeros_like(reached[:, :1]), reached[:, :-1]], axis=1)
    has_entries = np.diff(first) > 0
    before[:, first[:-1][has_entries]] = 0
    at_thrs[:, has_entries] = np.add.reduceat(
        best * (reached - before), first[:-1][has_entries], axis=1
    ) / len(RECALL_THRS)
    return at_thrs


def _running_sum(
    values: np.ndarray, first: np.ndarray, threshold: np.ndarray
) -> np.ndarray:
    """Return cumulative sums of entries that start anew at each threshold."""
    sums = np.cumsum(values, axis=1, dtype=np.int32)
    begin = first[threshold]
    return sums - np.where(begin > 0, sums[:, begin - 1], 0)

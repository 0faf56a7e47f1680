"""What the predictions of an ablation say: figures, differences and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import combinations, groupby
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple, Union

import numpy as np

from ...evaluation import evaluate, load_ground_truth, read_results
from ...evaluation.accuracy import FIGURES as ACCURACIES
from ...evaluation.accuracy import read_predictions, top1_accuracy
from ...evaluation.core.bootstrap import (
    Difference,
    Resamples,
    compare_runs,
    resample,
)
from ...evaluation.metric import LVISFastMetric
from .run import is_accuracy

_SHOWN = ("AP", "APr", "APc", "APf", *ACCURACIES)
_TITLES = dict(segm="mask", bbox="box")
# By variation, seed and kind of figure, such as "bbox ", "segm Fixed" or "top1 ".
Measured = Mapping[str, Mapping[int, Mapping[str, Resamples]]]


class AccuracyEvaluation:
    """Evaluates the predictions of image classifiers, as ``LongTailAccuracy`` does."""

    def measure(
        self, predictions: Mapping[str, Path], num_resamples: int
    ) -> dict[str, Resamples]:
        """Return the accuracies of files of predictions, with resamples.

        Raises:
            ValueError: If a file has no predictions.
        """
        return {
            f"{kind} ": top1_accuracy(read_predictions(path), num_resamples)
            for kind, path in predictions.items()
        }


class LVISEvaluation:
    """Evaluates results files as an evaluator of a config would.

    Args:
        evaluator: The config of an ``LVISFastMetric``.

    Raises:
        ValueError: If an argument of the metric or its annotation file is unusable, or
            it evaluates only proposals, or the images that were predicted.
    """

    def __init__(self, evaluator: Mapping[str, object]) -> None:
        settings = {k: v for k, v in evaluator.items() if k not in ("type", "_scope_")}
        try:
            self._metric = LVISFastMetric(**settings)
        except (KeyError, TypeError) as error:
            raise ValueError(f"test_evaluator: {error.args[0]}") from None
        if not {"bbox", "segm"} & {*self._metric.metrics}:
            raise ValueError(
                f"test_evaluator.metric={self._metric.metrics}: expected bbox or segm"
            )
        if self._metric.img_ids == "predicted":
            raise ValueError(
                "test_evaluator.img_ids='predicted': results files do not tell these; "
                "give the ids"
            )
        self._truth = load_ground_truth(
            settings["ann_file"], "segm" in self._metric.metrics
        )

    def measure(
        self, predictions: Mapping[str, Path], num_resamples: int
    ) -> dict[str, Resamples]:
        """Return the figures of results files, by metric, with resamples.

        Raises:
            ValueError: If a file cannot be evaluated.
        """
        settings, ids, measured = self._metric.figures, self._metric.img_ids, {}
        subset = self._truth if ids is None else self._truth.subset(ids)
        limits = {"": dict(max_dets=settings.max_dets)}
        if settings.fixed_ap:
            limits["Fixed"] = dict(max_dets_per_class=settings.max_dets_per_class)
        for kind, path in predictions.items():
            dets = read_results(path, self._truth, kind == "segm")
            dets = dets.subset(self._truth, subset)
            for name, limit in limits.items():
                result = evaluate(subset, dets, kind, settings.iou_thrs, **limit)
                measured[f"{kind} {name}"] = resample(result, num_resamples)
        return measured


Evaluation = Union[AccuracyEvaluation, LVISEvaluation]


def make_evaluation(evaluator: Mapping[str, object]) -> Evaluation:
    """Return what evaluates the predictions that an evaluator's config keeps.

    Raises:
        ValueError: As :class:`LVISEvaluation`.
    """
    if is_accuracy(evaluator):
        return AccuracyEvaluation()
    return LVISEvaluation(evaluator)


class Comparison(NamedTuple):
    """By how much a variation exceeds another in one figure.

    Attributes:
        images: With the interval over images, the seeds pooled.
        seeds: With the interval over images and seeds.
    """

    images: Difference
    seeds: Difference

    @property
    def is_clear(self) -> bool:
        """Whether neither interval contains 0 and the difference is not shown as 0."""
        is_shown = f"{100 * abs(self.images.value):.1f}" != "0.0"
        return is_shown and self.images.excludes_zero and self.seeds.excludes_zero


# By variation, seed and name, in per cent.
Figures = Mapping[str, Mapping[int, Mapping[str, float]]]
# By name of the figure and pair of variations.
Comparisons = Mapping[str, Mapping[tuple[str, str], Comparison]]


def figures(measured: Measured) -> Figures:
    """Return the figures of each variation and seed in per cent, such as 'bbox AP'."""
    return {
        variation: {
            seed: {
                f"{kind}{name}": 100 * value.item()
                for kind, run in kinds.items()
                for name, value in zip(run.names, run.figures)
                if name in _SHOWN and np.isfinite(value)
            }
            for seed, kinds in seeds.items()
        }
        for variation, seeds in measured.items()
    }


def compare_variations(measured: Measured) -> Comparisons:
    """Return the differences of any two variations, over the seeds that both have."""
    compared: dict[str, dict[tuple[str, str], Comparison]] = {}
    for first, second in combinations(measured, 2):
        seeds = [seed for seed in measured[first] if seed in measured[second]]
        if not seeds:
            continue
        for kind in measured[first][seeds[0]]:
            pair = [
                [measured[v][seed][kind] for seed in seeds] for v in (first, second)
            ]
            over_images = compare_runs(*pair)
            over_seeds = compare_runs(*pair, draw_runs=True)
            for name in _SHOWN:
                if name in over_images:
                    both = Comparison(over_images[name], over_seeds[name])
                    compared.setdefault(f"{kind}{name}", {})[first, second] = both
    return compared


def best_variations(compared: Comparisons) -> dict[str, str]:
    """Return, by figure, the variation that is clearly better than every other."""
    best = {}
    for figure, pairs in compared.items():
        wins = Counter(
            second if each.images.value > 0 else first
            for (first, second), each in pairs.items()
            if each.is_clear
        )
        num_others = len({name for pair in pairs for name in pair}) - 1
        for name, number in wins.items():
            if number == num_others:
                best[figure] = name
    return best


def make_tables(
    runs: Figures, compared: Comparisons, mark: Callable[[str], str]
) -> list[list[list[str]]]:
    """Return, for each kind of figure, such as Fixed AP of boxes, all and differences.

    A row is a variation, with mean and standard deviation over its seeds, or a pair of
    variations, with the difference and its interval over images.

    Args:
        runs: What :func:`figures` returns.
        compared: What :func:`compare_variations` returns.
        mark: Makes a cell stand out: a clear difference, or the best variation.
    """
    names = list(next(iter(next(iter(runs.values())).values())))
    best, tables = best_variations(compared), []
    for kind, group in groupby(names, key=_kind):
        group = list(group)
        columns = [name.partition(" ")[2] for name in group]
        metric = kind.partition(" ")[0]
        rows = [[_TITLES.get(metric, metric), "seeds", *columns]]
        for variation, seeds in runs.items():
            row = [variation, str(len(seeds))]
            for name in group:
                cell = _spread([run[name] for run in seeds.values()])
                row.append(mark(cell) if best.get(name) == variation else cell)
            rows.append(row)
        tables.append(rows)
        pairs = compared.get(group[0], ())
        rows = [["difference", *columns]]
        for first, second in pairs:
            row = [f"{second} - {first}"]
            for name in group:
                each = compared[name][first, second]
                cell = _interval(each.images)
                row.append(mark(cell) if each.is_clear else cell)
            rows.append(row)
        tables += [rows] if pairs else []
    return tables


def as_json(compared: Comparisons) -> list[dict]:
    """Return the differences in per cent, at full precision, one dict for each."""
    return [
        dict(
            figure=figure,
            first=first,
            second=second,
            difference=100 * each.images.value,
            over_images=[100 * each.images.low, 100 * each.images.high],
            over_images_and_seeds=[100 * each.seeds.low, 100 * each.seeds.high],
        )
        for figure, pairs in compared.items()
        for (first, second), each in pairs.items()
    ]


def _kind(figure: str) -> str:
    """Return what precedes the name of a figure: "bbox Fixed" of "bbox FixedAPr"."""
    return next(figure[: -len(name)] for name in _SHOWN if figure.endswith(name))


def _spread(values: list[float]) -> str:
    """Return ``mean ± standard deviation``, or the only value."""
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def _interval(each: Difference) -> str:
    """Return ``difference (low .. high)``."""
    return "{:+.1f} ({:+.1f} .. {:+.1f})".format(
        *(100 * number for number in (each.value, each.low, each.high))
    )

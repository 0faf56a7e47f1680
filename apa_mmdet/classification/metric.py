"""The metric of long-tailed classification for MMPretrain's configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS

from ..evaluation.accuracy import (
    intervals,
    make_predictions,
    top1_accuracy,
    write_predictions,
)


@METRICS.register_module()
class LongTailAccuracy(BaseMetric):
    """Top-1 accuracy over all, many-, medium- and few-shot classes, in per cent.

    The groups follow the training images of a class: many above 100, few below 20.
    Accuracy is the share of a group's test images that are classified correctly, and
    ``all`` is MMPretrain's ``accuracy/top1``. The 95 % intervals are percentiles of a
    bootstrap over the test images. Groups without test images are left out.

    The class counts come from the training data, by ``dict(type='ClassFrequencyHook')``
    in ``custom_hooks``: read in training, and kept in checkpoints by
    :class:`.LongTailClsHead`.

    Args:
        class_counts: Training images of each class, if the hook cannot give them.
        num_resamples: Of the bootstrap; 0 for no intervals.
        outfile_prefix: Where to write labels, predictions and class counts, as
            ``<outfile_prefix>.top1.json``; None to write nothing.
        collect_device: As in ``BaseMetric``.
        prefix: Of the names of the results; ``'accuracy'`` if None.

    Raises:
        RuntimeError: If class counts are missing: before the run with one of this
            package's hooks or tools, else with the first batch.
        ValueError: If a label has no class count.
    """

    default_prefix = "accuracy"

    def __init__(
        self,
        class_counts: Sequence[int] | None = None,
        num_resamples: int = 1000,
        outfile_prefix: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not isinstance(num_resamples, int) or num_resamples < 0:
            raise ValueError(
                f"num_resamples={num_resamples!r}, expected an integer >= 0"
            )
        self.num_resamples = num_resamples
        self.outfile_prefix = outfile_prefix
        self._is_given = class_counts is not None
        self._class_counts = class_counts

    def set_class_counts(self, counts: np.ndarray) -> None:
        """Set the training images of each class, unless the config gives them."""
        if not self._is_given:
            self._class_counts = counts

    def require_class_counts(self) -> None:
        """Raise a RuntimeError if class counts are missing."""
        if self._class_counts is None:
            raise RuntimeError(
                "LongTailAccuracy has no class counts of the training data, by which "
                "it groups classes: the checkpoint has none, or custom_hooks lacks "
                "dict(type='ClassFrequencyHook'); add it, test with tools/test.py "
                "--read-counts, or set class_counts"
            )

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep label and prediction of each sample of a batch."""
        self.require_class_counts()
        for sample in data_samples:
            labels = sample["gt_label"], sample["pred_label"]
            self.results.append(tuple(int(torch.as_tensor(v).item()) for v in labels))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Return the figures; the intervals as ``<name>_low`` and ``<name>_high``."""
        labels, predicted = np.array(results, np.int64).reshape(-1, 2).T
        source = type(self).__name__
        predictions = make_predictions(labels, predicted, self._class_counts, source)
        if self.outfile_prefix is not None:
            write_predictions(f"{self.outfile_prefix}.top1.json", predictions)
        found = top1_accuracy(predictions, self.num_resamples)
        limits = intervals(found)
        figures: dict[str, float] = {}
        for name, value in zip(found.names, found.figures):
            if np.isfinite(value):
                figures[name] = 100 * float(value)
                for end, limit in zip(("low", "high"), limits.get(name, ())):
                    figures[f"{name}_{end}"] = 100 * limit
        return figures

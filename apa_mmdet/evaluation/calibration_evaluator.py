"""Evaluating several calibrations of one model on one pass over the images."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import EVALUATOR
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement

from ..models.calibration.names import build_calibrations
from ..models.calibration.roi_head import FIELD
from .report import summary_table


@EVALUATOR.register_module()
class CalibrationEvaluator(Evaluator):
    """Metrics of each calibration that ``test_cfg.rcnn.calibration`` lists.

    Each calibration has its own copy of the metrics. Names of results begin with the
    calibration's name, as in ``FRACAL/lvis/bbox_AP``; results files get it as
    well, as in ``<outfile_prefix>.FRACAL.bbox.json``. A table with a row for each
    calibration is logged.

    Args:
        metrics: Config of one or several metrics.
        calibrations: As in ``test_cfg.rcnn.calibration``, at least two.

    Raises:
        ValueError: If a calibration is unknown or there are fewer than two.
    """

    def __init__(
        self,
        metrics: Mapping | Sequence[Mapping],
        calibrations: Sequence[Mapping | str],
    ) -> None:
        configs = [metrics] if isinstance(metrics, Mapping) else metrics
        self._names = [*build_calibrations(calibrations)]
        if len(self._names) < 2:
            raise ValueError(
                f"CalibrationEvaluator: calibrations={calibrations!r}, expected two or "
                f"more; with one, give its metrics as the evaluator"
            )
        super().__init__([_rename(c, name) for name in self._names for c in configs])
        self._number = len(configs)

    def _metrics_by_name(self) -> dict[str, list]:
        starts = range(0, len(self._names) * self._number, self._number)
        return {
            name: self.metrics[start : start + self._number]
            for name, start in zip(self._names, starts)
        }

    def process(
        self, data_samples: Sequence[BaseDataElement], data_batch: Any | None = None
    ) -> None:
        """Give the predictions of a batch to the metrics of their calibration.

        Raises:
            ValueError: If the model predicted by other calibrations.
        """
        samples = [sample.to_dict() for sample in data_samples]
        for name, metrics in self._metrics_by_name().items():
            chosen = [self._choose(sample, name) for sample in samples]
            for metric in metrics:
                metric.process(data_batch, chosen)

    def _choose(self, sample: dict, name: str) -> dict:
        predictions = sample.get(FIELD, {})
        if [*predictions] != self._names:
            raise ValueError(
                f"CalibrationEvaluator expects predictions by the calibrations "
                f"{', '.join(self._names)}, and the model made some by "
                f"{', '.join(predictions) or 'one at most'}; give the same list to "
                f"model.test_cfg.rcnn.calibration"
            )
        return {**sample, "pred_instances": predictions[name].to_dict()}

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the results of all calibrations, and log them side by side."""
        results: dict[str, dict[str, float]] = {}
        for name, metrics in self._metrics_by_name().items():
            MMLogger.get_current_instance().info(f"calibration: {name}")
            results[name] = Evaluator(metrics).evaluate(size)
        _log(results)
        return {
            f"{name}/{figure}": value
            for name, figures in results.items()
            for figure, value in figures.items()
        }


def _rename(config: Mapping, name: str) -> dict:
    """Return a metric's config with the calibration's name in its files."""
    config = copy.deepcopy(dict(config))
    prefix = config.get("outfile_prefix")
    if prefix is not None:
        name = re.sub(r"[^-.=,\w]", "-", name)
        config["outfile_prefix"] = f"{prefix}.{name}"
    elif config.get("classwise"):
        raise ValueError(
            "CalibrationEvaluator: a metric with classwise=True needs outfile_prefix, "
            "such as work_dirs/results; otherwise all calibrations would write AP of "
            "each class to one file"
        )
    return config


def _log(results: dict[str, dict[str, float]]) -> None:
    """Log a table for each kind of figure: of boxes, of masks, Fixed AP of either."""
    groups: dict[str, dict[str, str]] = {}
    for figure in next(iter(results.values())):
        start, _, item = figure.rpartition("_")
        if item != "precision":  # of one class
            kind = f"{start} Fixed AP" if item.startswith("Fixed") else start
            groups.setdefault(kind, {})[item] = figure
    for kind, figures in groups.items():
        rows = {
            name: {item: values[figure] for item, figure in figures.items()}
            for name, values in results.items()
        }
        table = summary_table(rows)
        MMLogger.get_current_instance().info(f"{kind}, in per cent\n{table}")

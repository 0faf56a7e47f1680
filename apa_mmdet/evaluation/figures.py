"""The figures that the metric computes from predictions on disk."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Sequence

import numpy as np
from mmengine.logging import MMLogger

from .core.evaluate import LVISResult, evaluate
from .core.ground_truth import GroundTruth
from .core.params import check_iou_thrs
from .core.proposals import proposal_recall, proposal_recall_fast
from .core.selection import select_judged, top_per_class, top_per_group
from .report import class_table, summary_table, write_class_csv
from .store.disk import ShardReader

_METRICS = ("bbox", "segm", "proposal", "proposal_fast")
_AP_ITEMS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class FigureComputer:
    """Computes and logs the figures of :class:`~.metric.LVISFastMetric`.

    Its arguments are the metric's.

    Raises:
        KeyError: If a metric is unknown.
        ValueError: If another argument is unusable.
    """

    def __init__(
        self,
        metric: str | Sequence[str],
        classwise: bool,
        proposal_nums: Sequence[int],
        iou_thrs: float | Sequence[float] | None,
        metric_items: Sequence[str] | None,
        outfile_prefix: str | None,
        max_dets: int,
        fixed_ap: bool,
        max_dets_per_class: int,
        num_workers: int | None,
    ) -> None:
        self.metrics = [metric] if isinstance(metric, str) else list(metric)
        self.classwise = classwise
        self.proposal_nums = [int(number) for number in proposal_nums]
        self.iou_thrs = check_iou_thrs(iou_thrs)
        self.metric_items = metric_items
        self.outfile_prefix = outfile_prefix
        self.max_dets = max_dets
        self.fixed_ap = fixed_ap
        self.max_dets_per_class = max_dets_per_class
        self.num_workers = num_workers
        self._check_arguments()

    def _check_arguments(self) -> None:
        for metric in self.metrics:
            if metric not in _METRICS:
                raise KeyError(f"metric={metric!r}: expected {', '.join(_METRICS)}")
        for name in ("max_dets", "max_dets_per_class", "proposal_nums"):
            value = getattr(self, name)
            if not np.size(value) or np.min(value) < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        known = {*_AP_ITEMS, *(f"Fixed{item}" for item in _AP_ITEMS)}
        for number in {self.max_dets, *self.proposal_nums}:
            known |= {f"AR{letter}@{number}" for letter in ("", "s", "m", "l")}
        unknown = [item for item in self.metric_items or () if item not in known]
        if unknown:
            raise ValueError(
                f"metric_items has {unknown}; expected some of {sorted(known)}"
            )

    def compute(self, reader: ShardReader, truth: GroundTruth) -> dict[str, float]:
        """Return the figures by name.

        Args:
            reader: Reads the predictions.
            truth: The annotations of the images to evaluate.
        """
        figures: dict[str, float] = {}
        for metric in self.metrics:
            MMLogger.get_current_instance().info(f"Evaluating {metric}...")
            if metric.startswith("proposal"):
                figures |= self._proposal_recall(metric, reader, truth)
            else:
                figures |= self._average_precision(metric, reader, truth)
        return figures

    def _average_precision(
        self, metric: str, reader: ShardReader, truth: GroundTruth
    ) -> dict[str, float]:
        options = dict(
            iou_type=metric, iou_thrs=self.iou_thrs, num_workers=self.num_workers
        )
        limit, class_limit = self.max_dets, self.max_dets_per_class
        dets = reader.select(metric, truth, lambda d: select_judged(truth, d, limit))
        result = evaluate(truth, dets, max_dets=limit, **options)
        del dets  # free it before Fixed AP loads more
        summary = result.summary()
        figures = self._pick(f"{metric}_", summary, _AP_ITEMS)
        if self.classwise:
            self._report_classes(metric, result)
            start = f"{metric}_" if {"bbox", "segm"} <= {*self.metrics} else ""
            class_ap = zip(truth.class_names, result.class_ap().tolist())
            figures |= {f"{start}{name}_precision": ap for name, ap in class_ap}
        _log_table("in per cent", metric, summary)
        if self.fixed_ap:
            dets = reader.select(metric, truth, lambda d: top_per_class(d, class_limit))
            result = evaluate(truth, dets, max_dets_per_class=class_limit, **options)
            summary = result.summary()
            figures |= self._pick(f"{metric}_", summary, summary)
            limits = f"no limit for an image, {class_limit:,} detections of each class"
            _log_table(f"Fixed AP ({limits}), in per cent", metric, summary)
        return figures

    def _proposal_recall(
        self, metric: str, reader: ShardReader, truth: GroundTruth
    ) -> dict[str, float]:
        limit = max(self.proposal_nums)
        dets = reader.select(
            "bbox", truth, lambda d: top_per_group(d.image_index, d.scores, limit)
        )
        inputs = truth, dets, self.proposal_nums, self.iou_thrs
        if metric == "proposal":
            recalls = proposal_recall(*inputs, num_workers=self.num_workers)
        else:
            recalls = proposal_recall_fast(*inputs)
        _log_table("in per cent", metric, recalls)
        return self._pick("", recalls, recalls)

    def _pick(
        self, start: str, figures: dict[str, float], default: Iterable[str]
    ) -> dict[str, float]:
        """Return the figures that were asked for, their names with a new start."""
        items = default if self.metric_items is None else self.metric_items
        return {f"{start}{n}": v for n, v in figures.items() if n in items}

    def _report_classes(self, metric: str, result: LVISResult) -> None:
        logger = MMLogger.get_current_instance()
        logger.info(f"{metric} AP of each class, in per cent\n{class_table(result)}")
        log_file = getattr(logger, "log_file", None)
        if self.outfile_prefix is not None:
            path = f"{self.outfile_prefix}.{metric}.classwise.csv"
        elif log_file:
            path = osp.join(osp.dirname(log_file), f"{metric}.classwise.csv")
        else:
            logger.info("to have these as CSV, set outfile_prefix")
            return
        write_class_csv(path, {metric: result})
        logger.info(f"AP of each class written: {path}")


def _log_table(title: str, metric: str, figures: dict[str, float]) -> None:
    table = summary_table({metric: figures})
    MMLogger.get_current_instance().info(f"{title}\n{table}")

"""The LVIS metric for MMDetection's configs."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger

from .core.evaluate import LVISResult, evaluate
from .core.ground_truth import GroundTruth
from .core.params import check_iou_thrs
from .core.proposals import proposal_recall, proposal_recall_fast
from .core.selection import select_judged, top_per_class, top_per_group
from .files.annotations import load_ground_truth
from .files.results import write_results
from .report import class_table, summary_table, write_class_csv
from .store.disk import ShardReader, ShardWriter
from .store.packing import PredictionPacker
from .store.ranks import RankCoordinator

_METRICS = ("bbox", "segm", "proposal", "proposal_fast")
_AP_ITEMS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@METRICS.register_module()
class LVISFastMetric(BaseMetric):
    """A replacement for mmdet's ``LVISMetric`` with its arguments and result names.

    The figures are lvis-api's, at full precision. Predictions are kept on disk as
    arrays; those that LVIS does not judge are kept only if an option needs them. With
    several processes each writes its own shards, and the first reads them all.

    Unlike in ``LVISMetric``, ``iou_thrs`` and ``proposal_nums`` have an effect, and
    ``'proposal'`` and ``'proposal_fast'`` ignore classes.

    Args:
        ann_file: The LVIS annotation file.
        metric: One or several of ``'bbox'``, ``'segm'``, ``'proposal'`` (recall of the
            best proposals of each image, whatever their class) and
            ``'proposal_fast'`` (mmdet's variant of it).
        classwise: Whether to log AP of each class, add it to the results as
            ``<name>_precision`` (``bbox_<name>_precision`` if both boxes and masks are
            evaluated) and write it as CSV: to ``<outfile_prefix>.bbox.classwise.csv``,
            or next to the log file.
        proposal_nums: Limits of proposals for each image.
        iou_thrs: IoU thresholds; 0.5, 0.55, ..., 0.95 if None.
        metric_items: Figures to return, such as ``['AP', 'APr', 'AR@300']``; None for
            all AP and, of proposals, all AR.
        format_only: Whether to only write the results files, to be evaluated by
            ``tools/analysis_tools/eval_lvis.py`` or a test server.
        outfile_prefix: Where to write results files in LVIS's format:
            ``<outfile_prefix>.bbox.json`` and, if ``metric`` includes ``'segm'``,
            ``.segm.json``. None to write none.
        collect_device: As in ``BaseMetric``; unused, predictions go through the disk.
        prefix: Of the names of the results; ``'lvis'`` if None.
        file_client_args: Refused, as by ``LVISMetric``: it is now ``backend_args``.
        backend_args: How to read ``ann_file``, see :mod:`mmengine.fileio`.
        max_dets: Limit of detections for each image.
        img_ids: Images to evaluate: ids, ``'predicted'`` for those that were predicted,
            or None for all of the annotation file.
        fixed_ap: Whether to add Fixed AP (``bbox_FixedAP``, ``bbox_FixedAPr``, ...; see
            :func:`~.core.selection.select_judged_fixed`). It is only informative if the
            model returns more than 300 detections of an image (``test_cfg``).
        max_dets_per_class: Limit of detections for each class in Fixed AP.
        collect_dir: Where to keep predictions until they are evaluated; a temporary
            folder if None. Processes on several machines need one that all of them see.
        timeout: Seconds to wait for another process; a process that dies is noticed at
            once.
        num_workers: Processes to evaluate with; None for one per core.

    Raises:
        KeyError: If ``metric`` is not one of those.
        ValueError: If an argument or the annotation file is unusable, or later a
            prediction.
        RuntimeError: If later another process dies.
    """

    default_prefix = "lvis"

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = "bbox",
        classwise: bool = False,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        file_client_args: dict | None = None,
        backend_args: dict | None = None,
        max_dets: int = 300,
        img_ids: Sequence[int] | str | None = None,
        fixed_ap: bool = False,
        max_dets_per_class: int = 10_000,
        collect_dir: str | None = None,
        timeout: float = 3600,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.metrics = [metric] if isinstance(metric, str) else list(metric)
        self.classwise = classwise
        self.proposal_nums = [int(number) for number in proposal_nums]
        self.iou_thrs = check_iou_thrs(iou_thrs)
        self.metric_items = metric_items
        self.format_only = format_only
        self.outfile_prefix = outfile_prefix
        self.max_dets = max_dets
        self.img_ids = img_ids
        self.fixed_ap = fixed_ap
        self.max_dets_per_class = max_dets_per_class
        self.num_workers = num_workers
        if file_client_args is not None:
            raise RuntimeError("file_client_args is deprecated; use backend_args")
        if ann_file is None:
            raise ValueError(
                "ann_file=None: LVIS evaluation needs the annotation file, which says "
                "which classes an image is known not to show and how frequent a class "
                "is; set val_evaluator.ann_file to .../lvis_v1_val.json"
            )
        self._check_arguments()
        self._ranks = RankCoordinator(collect_dir, timeout)
        self._writer: ShardWriter | None = None
        has_segm = "segm" in self.metrics
        # Only the first process computes.
        with_masks = has_segm and not format_only and is_main_process()
        with get_local_path(ann_file, backend_args=backend_args) as path:
            self._truth = load_ground_truth(path, with_masks)
        if img_ids is not None and not isinstance(img_ids, str):
            self._truth.subset(img_ids)  # an unknown id raises before predicting
        writes_files = outfile_prefix is not None
        has_proposals = any(name.startswith("proposal") for name in self.metrics)
        self._packer = PredictionPacker(
            self._truth,
            max_dets,
            keep_all=writes_files or fixed_ap or has_proposals,
            with_masks=has_segm,
            all_masks=writes_files,
        )

    def _check_arguments(self) -> None:
        for metric in self.metrics:
            if metric not in _METRICS:
                raise KeyError(f"metric={metric!r}: expected {', '.join(_METRICS)}")
        if self.format_only and self.outfile_prefix is None:
            raise ValueError(
                "format_only=True needs outfile_prefix, where to write the results, "
                "such as work_dirs/results"
            )
        for name in ("max_dets", "max_dets_per_class", "proposal_nums"):
            value = getattr(self, name)
            if not np.size(value) or np.min(value) < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if isinstance(self.img_ids, str) and self.img_ids != "predicted":
            raise ValueError(
                f"img_ids={self.img_ids!r}: expected a list of image ids, 'predicted' "
                "or None"
            )
        known = {*_AP_ITEMS, *(f"Fixed{item}" for item in _AP_ITEMS)}
        for number in {self.max_dets, *self.proposal_nums}:
            known |= {f"AR{letter}@{number}" for letter in ("", "s", "m", "l")}
        unknown = [item for item in self.metric_items or () if item not in known]
        if unknown:
            raise ValueError(
                f"metric_items has {unknown}; expected some of {sorted(known)}"
            )

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of a batch.

        Args:
            data_batch: Not used.
            data_samples: With ``img_id`` and ``pred_instances``: ``bboxes`` (n, 4),
                corners in pixels of the original image; ``scores`` and ``labels``
                (n,); if masks are evaluated ``masks``, bitmaps (n, height, width) or a
                list of RLEs; and, if the model predicts them, ``mask_scores`` (n,).
        """
        self._open()
        for sample in data_samples:
            self._writer.add(self._packer.pack(sample))

    def _open(self) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self._ranks.make_folder())

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the results of all processes' predictions, the same in each process.

        ``size`` is the number of images in the data set. Samplers repeat some images so
        that all processes get equally many; those count once.
        """
        self._open()
        self._writer.flush()
        writer, self._writer = self._writer, None

        def compute(folders: list[str], num_images: int) -> dict[str, float]:
            return self.compute_metrics(folders, max(num_images - size, 0))

        results = self._ranks.run_on_first(writer.num_images, compute)
        if self.prefix:
            results = {f"{self.prefix}/{name}": v for name, v in results.items()}
        return results

    def compute_metrics(
        self, results: list[str], max_repeats: int = 0
    ) -> dict[str, float]:
        """Return the results, without the prefix, of what all processes wrote.

        Args:
            results: Their folders.
            max_repeats: How many repeated predictions of an image to drop.
        """
        logger = MMLogger.get_current_instance()
        truth = self._truth
        reader = ShardReader(results, truth)
        times = reader.times_predicted()
        if (times - 1).clip(0).sum() > max_repeats:
            repeated = truth.image_ids[times > 1]
            raise ValueError(
                f"{len(repeated)} images were predicted more than once, the first: "
                f"{repeated[:3].tolist()}; the data set must contain each image once"
            )
        if self.outfile_prefix is not None:
            for kind in ("bbox", "segm") if "segm" in self.metrics else ("bbox",):
                path = f"{self.outfile_prefix}.{kind}.json"
                write_results(path, truth, reader.detections(kind))
                logger.info(f"results written: {path}")
        if self.format_only:
            return {}
        subset = self._images_to_evaluate(times > 0)
        figures: dict[str, float] = {}
        for metric in self.metrics:
            logger.info(f"Evaluating {metric}...")
            if metric.startswith("proposal"):
                figures |= self._proposal_recall(metric, reader, subset)
            else:
                figures |= self._average_precision(metric, reader, subset)
        return figures

    def _images_to_evaluate(self, is_predicted: np.ndarray) -> GroundTruth:
        """Return the annotations of the images that ``img_ids`` chooses."""
        truth, ids = self._truth, self.img_ids
        if ids is not None:
            is_given = not isinstance(ids, str)
            return truth.subset(ids if is_given else truth.image_ids[is_predicted])
        if not is_predicted.all():
            MMLogger.get_current_instance().warning(
                f"{is_predicted.sum():,} of the annotation file's "
                f"{len(is_predicted):,} images were predicted; in the others "
                "everything counts as missed. To evaluate only the predicted images "
                "set val_evaluator.img_ids='predicted' (test_evaluator for testing)"
            )
        return truth

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

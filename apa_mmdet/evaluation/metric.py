"""The LVIS metric for MMDetection's configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger

from ..datasets.labels import class_names
from .core.classes import select_classes
from .core.ground_truth import GroundTruth
from .figures import FigureComputer
from .files.annotations import load_ground_truth
from .files.results import write_results
from .store.disk import ShardReader, ShardWriter
from .store.packing import PredictionPacker
from .store.ranks import RankCoordinator


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
            ``tools/analysis_tools/eval_lvis.py`` or a test server. ``ann_file`` may
            then be the image file of a test set, which has no annotations.
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
        self.format_only = format_only
        self.outfile_prefix = outfile_prefix
        self.img_ids = img_ids
        self.figures = FigureComputer(
            metric=metric,
            classwise=classwise,
            proposal_nums=proposal_nums,
            iou_thrs=iou_thrs,
            metric_items=metric_items,
            outfile_prefix=outfile_prefix,
            max_dets=max_dets,
            fixed_ap=fixed_ap,
            max_dets_per_class=max_dets_per_class,
            num_workers=num_workers,
        )
        self.metrics = self.figures.metrics
        if file_client_args is not None:
            raise RuntimeError("file_client_args is deprecated; use backend_args")
        if ann_file is None:
            raise ValueError(
                "ann_file=None: LVIS evaluation needs the annotation file, which says "
                "which classes an image is known not to show and how frequent a class "
                "is; set val_evaluator.ann_file to .../lvis_v1_val.json"
            )
        if format_only and outfile_prefix is None:
            raise ValueError(
                "format_only=True needs outfile_prefix, where to write the results, "
                "such as work_dirs/results"
            )
        if isinstance(img_ids, str) and img_ids != "predicted":
            raise ValueError(
                f"img_ids={img_ids!r}: expected a list of image ids, 'predicted' or "
                "None"
            )
        self._ranks = RankCoordinator(collect_dir, timeout)
        self._writer: ShardWriter | None = None
        # Only the first process computes.
        with_masks = "segm" in self.metrics and not format_only and is_main_process()
        self._ann_file = ann_file
        with get_local_path(ann_file, backend_args=backend_args) as path:
            self._whole_truth = load_ground_truth(
                path, with_masks, is_annotated=not format_only
            )
        if img_ids is not None and not isinstance(img_ids, str):
            self._whole_truth.subset(img_ids)  # an unknown id raises before predicting
        self._use(self._whole_truth)

    def _use(self, truth: GroundTruth) -> None:
        """Evaluate with these annotations."""
        self._truth = truth
        writes_files = self.outfile_prefix is not None
        has_proposals = any(name.startswith("proposal") for name in self.metrics)
        self._packer = PredictionPacker(
            truth,
            self.figures.max_dets,
            keep_all=writes_files or self.figures.fixed_ap or has_proposals,
            with_masks="segm" in self.metrics,
            all_masks=writes_files,
        )

    @property
    def dataset_meta(self) -> dict | None:
        """The data set's ``metainfo``; its ``classes`` name the labels.

        MMEngine sets it when it builds the loop, before the model predicts anything.
        Labels are then those classes, found in the annotation file by name; only they
        are evaluated. Without it, labels follow the order of the annotation file.

        Raises:
            ValueError: If a class is not in the annotation file, or not only once.
        """
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict | None) -> None:
        self._dataset_meta = dataset_meta
        whole, names = self._whole_truth, class_names(dataset_meta)
        if names is None:
            self._use(whole)
            return
        self._use(select_classes(whole, names, self._ann_file))
        logger = MMLogger.get_current_instance()
        if self._truth.num_classes < whole.num_classes:
            logger.info(
                f"{self._ann_file}: {self._truth.num_classes:,} of "
                f"{whole.num_classes:,} categories are evaluated, those in the data "
                "set's metainfo['classes']"
            )
        evaluated = self._truth.names_of_labels
        if [name for name in whole.names_of_labels if name in evaluated] != evaluated:
            logger.warning(
                f"{self._ann_file}: its categories are in another order than the data "
                "set's metainfo['classes']. Labels are evaluated by name: label 0 is "
                f"{names[0]!r}. MMDetection numbers them in the order of the file, so "
                "if the model was trained on a file in this one's order, put "
                "metainfo['classes'] in that order too"
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
                MMLogger.get_current_instance().info(
                    f"results of {(times > 0).sum():,} of {len(times):,} images "
                    f"written: {path}"
                )
        self._report_images_without_detections(reader, times > 0)
        if self.format_only:
            return {}
        return self.figures.compute(reader, self._images_to_evaluate(times > 0))

    def _report_images_without_detections(
        self, reader: ShardReader, is_predicted: np.ndarray
    ) -> None:
        total, empty = is_predicted.sum(), reader.num_without_detections()
        logger = MMLogger.get_current_instance()
        if 0 < empty == total:
            logger.warning(
                f"none of the {total:,} predicted images has a detection with a finite "
                "score. If the loss became nan, the weights did too; otherwise lower "
                "score_thr in model.test_cfg"
            )
        elif empty:
            logger.info(
                f"{empty:,} of the {total:,} predicted images have no detection with a "
                "finite score"
            )

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

"""Calibrations in a run: filling class statistics, and trying several calibrations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from ..datasets.box_positions import box_positions
from ..models.calibration import check_statistics, fractal_dimension
from ..models.calibration.names import build_calibrations
from ..models.calibration.statistics import HOW_TO_GET_COUNTS
from .checkpoint import read_checkpoint
from .setup_check_hook import unwrapped_model


class StatisticsFiller:
    """Fills the class statistics of a runner's calibrated RoI heads.

    Every rank computes the same numbers from its own copy of the data set.
    """

    def __init__(self) -> None:
        self._values: tuple | None = None

    def fill(self, runner: Runner, dataset: Dataset) -> None:
        """Fill in from a training data set, read only if a RoI head is calibrated.

        Raises:
            ValueError: If the data set's classes do not match the box head's
                ``num_classes``, or a class has no boxes.
        """
        heads = calibrated_heads(runner)
        if not heads:
            return
        boxes = box_positions(dataset)
        counts = boxes.image_counts
        dimension = fractal_dimension(boxes.labels, boxes.centers, len(counts))
        self._values = (
            torch.from_numpy(counts),
            torch.from_numpy(boxes.box_counts),
            boxes.num_images,
            torch.from_numpy(dimension),
        )
        self.restore(runner)
        runner.logger.info(
            f"class counts and box positions read from the training data: "
            f"{len(boxes.labels):,} boxes in {boxes.num_images:,} images, "
            f"{counts.min():,} to {counts.max():,} images per class, fractal dimension "
            f"{dimension.min():.2f} to {dimension.max():.2f}"
        )

    def restore(self, runner: Runner) -> None:
        """Fill in again what a checkpoint may have replaced."""
        if self._values is not None:
            for head in calibrated_heads(runner):
                head.class_statistics.set(*self._values)
                check_statistics(head)


def fill_for_testing(runner: Runner) -> None:
    """Fill in from the training data that the runner's config names.

    Raises:
        FileNotFoundError: If a file of the training data does not exist.
        ValueError: If the config names no training data.
    """
    if calibrated_heads(runner):
        StatisticsFiller().fill(runner, training_data(runner))


def training_data(runner: Runner) -> Dataset:
    """Return the training data set that a runner's config names, for use in testing.

    Raises:
        FileNotFoundError: If a file of the training data does not exist.
        ValueError: If the config names no training data.
    """
    loader = runner.cfg.get("train_dataloader")
    if not loader:
        raise ValueError(
            "class counts are read from train_dataloader.dataset, and the config has "
            "none; test with the config of the training"
        )
    try:
        return DATASETS.build(loader.dataset)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"train_dataloader.dataset, from which class counts are read, cannot be "
            f"built: {error}; point elsewhere with --cfg-options data_root=/path/to/it"
        ) from None


def check_calibrations(runner: Runner) -> None:
    """Check that calibrated RoI heads have what they need.

    Raises:
        RuntimeError: If the counts are missing.
        ValueError: If a class has no training boxes and the calibration needs some.
    """
    for head in calibrated_heads(runner):
        check_statistics(head)


def calibrated_heads(runner: Runner) -> list[nn.Module]:
    """Return the RoI heads of a runner's model that calibrate scores."""
    modules = unwrapped_model(runner).modules()
    return [module for module in modules if hasattr(module, "calibrations")]


def try_calibrations(cfg: Config, calibrations: Sequence[str]) -> None:
    """Change a config to test with one or several calibrations, in place.

    Every LVISFastMetric adds Fixed AP, which limits the detections per image only by
    the model's ``test_cfg.rcnn.max_per_img``; a warning is printed if that is not above
    the limit of AP.

    Args:
        cfg: The config.
        calibrations: See
            :func:`~apa_mmdet.models.calibration.names.build_calibrations`.

    Raises:
        ValueError: If a calibration is unknown, or the model is not a two-stage
            detector.
    """
    build_calibrations(calibrations)
    rcnn = (cfg.model.get("test_cfg") or {}).get("rcnn")
    if rcnn is None:
        raise ValueError(
            f"--calibration {' '.join(calibrations)}: the config's model has no "
            f"test_cfg.rcnn, expected a two-stage detector such as MaskRCNN; of a "
            f"classifier set one with --cfg-options model.head.calibration=..."
        )
    rcnn.calibration = list(calibrations)
    metrics = cfg.test_evaluator
    if "metrics" in metrics:  # an evaluator instead of metrics
        metrics = metrics.metrics
    metrics = [metrics] if isinstance(metrics, dict) else list(metrics)
    for metric in metrics:
        if str(metric.type).rpartition(".")[2] != "LVISFastMetric":
            continue
        metric.fixed_ap = True
        if 0 < rcnn.max_per_img <= metric.get("max_dets", 300):
            print(
                f"warning: the model returns at most {rcnn.max_per_img} detections of "
                f"an image, so Fixed AP is limited like AP; to lift that, add "
                f"--cfg-options model.test_cfg.rcnn.max_per_img=1000"
            )
        if metric.get("metric_items"):
            fixed = [f"Fixed{item}" for item in metric.metric_items if "AP" in item]
            metric.metric_items = [*metric.metric_items, *fixed]
    if len(calibrations) > 1:
        cfg.test_evaluator = dict(
            type="CalibrationEvaluator",
            metrics=metrics,
            calibrations=list(calibrations),
        )


def provide_class_counts(cfg: Config, checkpoint: str, in_test: bool) -> None:
    """Make sure that the class counts a config's calibration needs are available.

    The config's ClassFrequencyHook, added if there is none, checks the counts before
    the first image. A local checkpoint is also checked now.

    Args:
        cfg: The config, changed in place.
        checkpoint: Path or URL of the checkpoint.
        in_test: Whether the hook reads the counts from the training data, even if its
            config does not say ``read_in_test=True``; for an image classifier, also
            those that its metrics need.

    Raises:
        ValueError: If the checkpoint has no counts, or ``in_test`` has no effect.
    """
    rcnn = (cfg.model.get("test_cfg") or {}).get("rcnn") or {}
    calibration = rcnn.get("calibration")
    hooks = list(cfg.get("custom_hooks") or [])
    if in_test and "head" in cfg.model:
        for hook in hooks:
            if _is_frequency_hook(hook):
                hook["read_in_test"] = True
                return
    if calibration is None or not any(build_calibrations(calibration).values()):
        if in_test:
            raise ValueError(
                "--read-counts: nothing needs class counts; choose a calibration, such "
                "as --calibration FRACAL"
            )
        return
    for hook in hooks:
        if _is_frequency_hook(hook):
            break
    else:
        hook = dict(type="ClassFrequencyHook")
        hooks.append(hook)
    in_test = hook["read_in_test"] = in_test or hook.get("read_in_test", False)
    cfg.custom_hooks = hooks
    if not in_test and "://" not in checkpoint and not _has_counts(checkpoint):
        raise ValueError(
            f"checkpoint {checkpoint} has no class counts of its training data, which "
            f"test_cfg.rcnn.calibration needs: {HOW_TO_GET_COUNTS}"
        )


def _is_frequency_hook(hook: dict) -> bool:
    return str(hook.get("type")).rpartition(".")[2] == "ClassFrequencyHook"


def _has_counts(path: str) -> bool:
    checkpoint = read_checkpoint(path, weights_only=None)
    weights = checkpoint.get("state_dict", checkpoint)
    return any(
        key.endswith("class_statistics.num_images") and bool(value.any())
        for key, value in weights.items()
    )

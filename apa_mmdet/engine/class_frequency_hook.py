"""The hook that reads class frequencies and box positions of the training data."""

from __future__ import annotations

import torch
from mmdet.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from ..datasets.class_frequency import image_counts
from ..models.losses import APALoss
from .calibration import (
    StatisticsFiller,
    check_calibrations,
    fill_for_testing,
    training_data,
)
from .setup_check_hook import SetupCheckHook, counting_metrics, unwrapped_model


@HOOKS.register_module()
class ClassFrequencyHook(SetupCheckHook):
    """Fill in what a model and its metrics need to know about the training data.

    - ``class_frequency`` of every APALoss;
    - the class statistics of RoI heads that calibrate their scores
      (``test_cfg.rcnn.calibration``);
    - ``class_counts`` of image classification heads, and those of metrics that group
      classes by them.

    The data set is read once, before the weights are initialised. A checkpoint loaded
    afterwards may come from other data: what was read from the training data is then
    restored, and the difference is logged. Every rank computes the same numbers from
    its own copy of the data set. Testing needs no training data, because the checkpoint
    contains the buffers, which is checked before testing. First of all, the set-up is
    checked as by :class:`.SetupCheckHook`.

    Args:
        read_in_test: Whether to read what calibrations and metrics need from the
            config's training data before testing, too, for checkpoints that lack it.

    Raises:
        ValueError: If the data set's classes do not match ``num_classes`` of the loss
            or the head, a calibration needs boxes of a class that has none, or the
            set-up is refused.
        RuntimeError: If what is needed is missing before testing.
    """

    def __init__(self, read_in_test: bool = False) -> None:
        self.read_in_test = read_in_test
        self._counts: Tensor | None = None
        self._frequency: Tensor | None = None
        self._statistics = StatisticsFiller()

    def before_run(self, runner: Runner) -> None:
        """Check the set-up, and read the frequencies if this run trains."""
        super().before_run(runner)
        loop = runner._train_loop
        if not isinstance(loop, BaseLoop):
            return
        dataset = loop.dataloader.dataset
        self._statistics.fill(runner, dataset)
        heads = _counting_heads(runner)
        if not _losses(runner) and not heads and not counting_metrics(runner):
            return
        self._counts, num_annotated = image_counts(dataset, check=False)
        self._frequency = self._counts.to(torch.float32) / num_annotated
        for loss in _losses(runner):
            loss.set_class_frequency(self._frequency)
        for head in heads:
            head.set_class_counts(self._counts)
        low, high = self._frequency.min(), self._frequency.max()
        runner.logger.info(
            f"class frequencies read from the training data: {len(self._frequency)} "
            f"classes, {low:.2g} to {high:.2g} of the images"
        )

    def before_train(self, runner: Runner) -> None:
        """Restore what a checkpoint may have replaced, and give metrics the counts."""
        self._statistics.restore(runner)
        if self._frequency is None:
            return
        for loss in _losses(runner):
            loaded = loss.class_frequency.cpu().to(self._frequency.dtype)
            if loaded.any() and not torch.allclose(loaded, self._frequency):
                largest = (loaded - self._frequency).abs().max()
                runner.logger.warning(
                    f"the checkpoint's class frequencies differ from those of the "
                    f"training data by up to {largest:.2g}; the latter are used"
                )
            loss.set_class_frequency(self._frequency)
        for head in _counting_heads(runner):
            loaded = head.class_counts.cpu()
            if loaded.any() and not torch.equal(loaded, self._counts):
                runner.logger.warning(
                    f"the checkpoint's class counts, {loaded.sum():,} images, differ "
                    f"from those of the training data, {self._counts.sum():,} images; "
                    f"the latter are used"
                )
            head.set_class_counts(self._counts)
        for metric in counting_metrics(runner):
            metric.set_class_counts(self._counts.numpy())
        super().before_train(runner)

    def before_test(self, runner: Runner) -> None:
        """Check that calibrations and metrics have what they need."""
        if self.read_in_test:
            fill_for_testing(runner)
            heads = _counting_heads(runner)
            if heads or counting_metrics(runner):
                self._counts, _ = image_counts(training_data(runner))
            for head in heads:
                head.set_class_counts(self._counts)
        self._provide(runner)
        super().before_test(runner)

    def before_val(self, runner: Runner) -> None:
        """Check that calibrations and metrics have what they need."""
        self._provide(runner)

    def _provide(self, runner: Runner) -> None:
        check_calibrations(runner)
        counts = self._counts
        for head in _counting_heads(runner):
            head.check_class_counts()
            if counts is None and head.class_counts.any():
                counts = head.class_counts.cpu()
        if counts is not None:
            for metric in counting_metrics(runner):
                metric.set_class_counts(counts.numpy())


def _losses(runner: Runner) -> list[APALoss]:
    modules = unwrapped_model(runner).modules()
    return [module for module in modules if isinstance(module, APALoss)]


def _counting_heads(runner: Runner) -> list[nn.Module]:
    """Return the heads that keep the class counts of the training data."""
    modules = unwrapped_model(runner).modules()
    return [module for module in modules if hasattr(module, "set_class_counts")]

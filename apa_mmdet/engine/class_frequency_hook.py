"""The hook that reads class frequencies and box positions of the training data."""

from __future__ import annotations

import torch
from mmdet.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ..datasets.class_frequency import class_frequency
from ..models.losses import APALoss
from .calibration import StatisticsFiller, check_calibrations, fill_for_testing
from .setup_check_hook import SetupCheckHook, unwrapped_model


@HOOKS.register_module()
class ClassFrequencyHook(SetupCheckHook):
    """Fill ``class_frequency`` of every APALoss from the training data set.

    The data set is read once, before the weights are initialised. A checkpoint loaded
    afterwards may come from other data: the frequencies of the training data are then
    restored, and the difference is logged. Every rank computes the same numbers from
    its own copy of the data set. Testing needs no training data, because the checkpoint
    contains the buffer.

    It likewise fills the class statistics of RoI heads that calibrate their scores
    (``test_cfg.rcnn.calibration``), and checks before testing that they are there.
    Before all that it checks the set-up as :class:`.SetupCheckHook` does.

    Args:
        read_in_test: Whether to read these statistics before testing, too, from the
            training data that the config names; for checkpoints without them.

    Raises:
        ValueError: If the data set's classes do not match ``num_classes`` of the loss
            or the box head, a calibration needs boxes of a class that has none, or the
            set-up is refused.
        RuntimeError: If the statistics are missing before testing.
    """

    def __init__(self, read_in_test: bool = False) -> None:
        self.read_in_test = read_in_test
        self._frequency: torch.Tensor | None = None
        self._statistics = StatisticsFiller()

    def before_run(self, runner: Runner) -> None:
        """Check the set-up, and read the frequencies if this run trains."""
        super().before_run(runner)
        loop, losses = runner._train_loop, _losses(runner)
        if not isinstance(loop, BaseLoop):
            return
        self._statistics.fill(runner, loop.dataloader.dataset)
        if not losses:
            return
        self._frequency = class_frequency(loop.dataloader.dataset)
        for loss in losses:
            loss.set_class_frequency(self._frequency)
        low, high = self._frequency.min(), self._frequency.max()
        runner.logger.info(
            f"class frequencies read from the training data: {len(self._frequency)} "
            f"classes, {low:.2g} to {high:.2g} of the images"
        )

    def before_train(self, runner: Runner) -> None:
        """Restore what was read if a checkpoint has replaced it."""
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

    def before_test(self, runner: Runner) -> None:
        """Check that calibrations have what they need."""
        if self.read_in_test:
            fill_for_testing(runner)
        check_calibrations(runner)

    def before_val(self, runner: Runner) -> None:
        """Check that calibrations have what they need."""
        check_calibrations(runner)


def _losses(runner: Runner) -> list[APALoss]:
    modules = unwrapped_model(runner).modules()
    return [module for module in modules if isinstance(module, APALoss)]

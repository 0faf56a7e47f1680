"""The hook that gives APALoss the class frequencies of the training data."""

from __future__ import annotations

import torch
from mmdet.registry import HOOKS
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from ..datasets.class_frequency import class_frequency
from ..models.losses import APALoss
from .setup_check_hook import SetupCheckHook


@HOOKS.register_module()
class ClassFrequencyHook(SetupCheckHook):
    """Fill ``class_frequency`` of every APALoss from the training data set.

    The data set is read once, before the weights are initialised. A checkpoint loaded
    afterwards may come from other data: the frequencies of the training data are then
    restored, and the difference is logged. Every rank computes the same numbers from
    its own copy of the data set. Testing needs no training data, because the checkpoint
    contains the buffer.

    It first checks the set-up as :class:`.SetupCheckHook` does, also without APALoss.

    Raises:
        ValueError: If the data set's classes do not match the loss's ``num_classes``,
            or the set-up is refused.
    """

    def __init__(self) -> None:
        self._frequency: torch.Tensor | None = None

    def before_run(self, runner: Runner) -> None:
        """Check the set-up, and read the frequencies if this run trains."""
        super().before_run(runner)
        loop, losses = runner._train_loop, _losses(runner)
        if not losses or not isinstance(loop, BaseLoop):
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
        """Restore the frequencies if a checkpoint has replaced them."""
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


def _losses(runner: Runner) -> list[APALoss]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return [module for module in model.modules() if isinstance(module, APALoss)]

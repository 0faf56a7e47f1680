"""The hook that refuses what would go wrong silently, or only hours later."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ..datasets.labels import check_labels

# A module whose name or class name contains one of these may predict masks.
_MASK_WORDS = ("mask", "panoptic", "seg")


def unwrapped_model(runner: Runner) -> nn.Module:
    """Return a runner's model without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


@HOOKS.register_module()
class SetupCheckHook(Hook):
    """Check, before the first iteration, that data, model and metrics fit together.

    - The labels of the training data must mean what ``metainfo['classes']`` says
      (:func:`~apa_mmdet.datasets.labels.check_labels`).
    - A metric of masks needs a model that predicts masks. A detector that has no mask
      head usually inherited ``metric=['bbox', 'segm']``.
    - A metric that groups classes by their training images needs the image counts.

    Raises:
        ValueError: If they do not fit.
        RuntimeError: If class counts are missing.
    """

    def before_run(self, runner: Runner) -> None:
        """Check what this run uses."""
        # Only the loops of this run have been built. Reading runner.train_loop instead
        # would build the training data set even to test.
        if isinstance(runner._train_loop, BaseLoop):
            check_labels(runner._train_loop.dataloader.dataset)
        model = unwrapped_model(runner)
        for split, loop in (("val", runner._val_loop), ("test", runner._test_loop)):
            evaluator = getattr(loop, "evaluator", None)
            if isinstance(evaluator, Evaluator) and not _may_predict_masks(model):
                setting = f"{split}_evaluator"
                is_list = isinstance(getattr(runner, f"_{setting}"), (list, tuple))
                _refuse_masks(evaluator, setting, is_list, model)

    def before_train(self, runner: Runner) -> None:
        """Check what validation will need."""
        _require_counts(runner)

    def before_test(self, runner: Runner) -> None:
        """Check what the metrics need."""
        _require_counts(runner)


def counting_metrics(runner: Runner) -> list:
    """Return the metrics that need the class counts of the training data."""
    evaluators = [
        getattr(loop, "evaluator", None)
        for loop in (runner._val_loop, runner._test_loop)
    ]
    return [
        metric
        for evaluator in evaluators
        if isinstance(evaluator, Evaluator)
        for metric in evaluator.metrics
        if hasattr(metric, "set_class_counts")
    ]


def _require_counts(runner: Runner) -> None:
    for metric in counting_metrics(runner):
        metric.require_class_counts()


def _may_predict_masks(model: nn.Module) -> bool:
    """Return False only for MMDetection's detectors that have no module for masks."""
    if getattr(model, "with_mask", True):
        return True
    return any(
        word in f"{name} {type(module).__name__}".lower()
        for name, module in model.named_modules()
        for word in _MASK_WORDS
    )


def _refuse_masks(
    evaluator: Evaluator, setting: str, is_list: bool, model: nn.Module
) -> None:
    for index, metric in enumerate(evaluator.metrics):
        metrics = getattr(metric, "metrics", ())
        if "segm" not in metrics:
            continue
        name = f"{setting}.{index}.metric" if is_list else f"{setting}.metric"
        others = [each for each in metrics if each != "segm"] or ["bbox"]
        value = others[0] if len(others) == 1 else f"[{','.join(others)}]"
        raise ValueError(
            f"{name} has 'segm', but {type(model).__name__} has no mask head and "
            f"predicts boxes only; evaluate those, with --cfg-options {name}={value}"
        )

"""The hook that starts activations anew after a checkpoint has been loaded."""

from __future__ import annotations

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..engine.setup_check_hook import unwrapped_model
from ..layers import AGLU, APA


@HOOKS.register_module()
class RedrawActivationsHook(Hook):
    """Draw lambda and kappa of a part of the model anew before training.

    The published models for Places-LT start from ImageNet, but the activations of the
    stage that trains start from random values, those of their ``init``. A training that
    is resumed keeps what it has learnt.

    Args:
        modules: The part of the model, such as ``'backbone.layer4'``.

    Raises:
        ValueError: If the model has no such part, or the part has no AGLU or APA.
    """

    def __init__(self, modules: str) -> None:
        self.modules = modules

    def before_train(self, runner: Runner) -> None:
        """Draw the starting values, the same for all ranks."""
        found = [
            module
            for name, module in unwrapped_model(runner).named_modules()
            if f"{name}.".startswith(f"{self.modules}.")
            and isinstance(module, (AGLU, APA))
        ]
        if not found:
            raise ValueError(
                f"RedrawActivationsHook: modules={self.modules!r} of "
                f"{type(unwrapped_model(runner)).__name__} has no AGLU or APA; name a "
                f"part of the model that has, or remove the hook"
            )
        if runner.iter > 0:
            return
        for module in found:
            module.reset_parameters()
            for param in module.parameters():
                broadcast(param.data)
        runner.logger.info(
            f"{len(found)} activations in {self.modules} start from new values"
        )

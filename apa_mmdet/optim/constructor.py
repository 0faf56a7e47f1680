"""An optimizer constructor that keeps weight decay off lambda and kappa."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from types import SimpleNamespace

from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import nn

from .groups import NAMES, split


class APAOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, without weight decay for lambda and kappa.

    Every parameter whose name ends in ``lambda_param`` or ``kappa_param`` gets
    ``weight_decay=0`` and keeps whatever else ``paramwise_cfg`` gives it, such as
    ``lr_mult``. Decay would pull lambda towards the Gumbel limit 0, and kappa towards
    0, where AGLU is linear. If the model has no such parameters, or the optimizer has
    no weight decay, the result is exactly that of the base class.

    To decay them after all, name them in ``paramwise_cfg``. Among the matching
    ``custom_keys`` that contain ``lambda_param`` or ``kappa_param`` and set
    ``decay_mult`` or ``weight_decay``, the longest one decides the decay, even if a
    longer key such as ``backbone.layer1.0`` decides everything else.

    Configs need not name this class: ``apa_mmdet/__init__.py`` registers it in scope
    ``mmdet`` as ``DefaultOptimWrapperConstructor``, where ``build_optim_wrapper`` looks
    first. :func:`decay_advice` recognises the cases in which another one is used.

    Without ``paramwise_cfg``, the optimizer has two parameter groups instead of one:
    all other parameters in the order of ``model.parameters()``, then lambda and kappa;
    the log then shows ``base_lr`` beside ``lr``, as with any ``paramwise_cfg``. With
    ``paramwise_cfg``, the groups are those of the base class. A resumed checkpoint must
    have the same groups; torch raises a ValueError if their number differs.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: Options for each parameter, as in the base class. A lambda or
            kappa that several modules share is listed once, with or without
            ``bypass_duplicate``.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return an optimizer wrapper for the parameters of ``model``."""
        if self.paramwise_cfg or not self._default_decay:
            return super().__call__(model)
        others, exempt = split(getattr(model, "module", model))
        if not exempt:
            return super().__call__(model)
        print_log(
            f"no weight decay for {len(exempt)} parameters named {' or '.join(NAMES)}",
            logger="current",
        )
        groups = [{"params": others}] if others else []
        groups.append({"params": exempt, "weight_decay": 0.0})
        # Without paramwise_cfg, the base class only asks a model for its parameters.
        return super().__call__(SimpleNamespace(parameters=lambda: groups))

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Append one group to ``params`` for each parameter, as in the base class."""
        start = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        own = {
            param: f"{prefix}.{name}"
            for name, param in module.named_parameters(recurse=False)
            if name in NAMES
        }
        if not own:
            return
        # An activation may be registered with two parents, which is harmless for one
        # without parameters, such as ReLU. The base class would list lambda and kappa
        # twice, which torch rejects.
        repeated = own.keys() & {group["params"][0] for group in params[:start]}
        params[start:] = [g for g in params[start:] if g["params"][0] not in repeated]
        for group in params[start:]:
            name = own.get(group["params"][0])
            decay = self._decay(name) if name else None
            current = group.get("weight_decay", self._default_decay) or 0.0
            if decay not in (None, current):
                group["weight_decay"] = decay
                print_log(
                    f"paramwise_options -- {name.lstrip('.')}:weight_decay={decay}",
                    logger="current",
                )

    def _decay(self, name: str) -> float:
        """Return the weight decay of a lambda or kappa: 0 unless the config sets it."""
        settings = {
            key: setting
            for key, setting in self.paramwise_cfg.get("custom_keys", {}).items()
            if key in name and _sets_decay(key, setting, NAMES)
        }
        if not settings:
            return 0.0
        # The base class's rule: the longest key, and of several the first by alphabet.
        setting = settings[min(settings, key=lambda key: (-len(key), key))]
        if "weight_decay" in setting:
            return setting["weight_decay"]
        return self.base_wd * setting["decay_mult"]

    @cached_property
    def _default_decay(self) -> float | None:
        """Decay of a group without ``weight_decay``; None if the optimizer has none.

        AdamW, for example, decays by 0.01 even if the config does not set it.
        """
        if self.base_wd is not None:
            return self.base_wd
        optimizer = self.optimizer_cfg["type"]
        if isinstance(optimizer, str):
            with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                optimizer = registry.get(optimizer)
        argument = inspect.signature(optimizer).parameters.get("weight_decay")
        return None if argument is None else argument.default


def _sets_decay(key: str, setting: Mapping, names: tuple[str, ...]) -> bool:
    """Return whether a custom key contains one of the names and sets its decay."""
    return any(name in key for name in names) and (
        "decay_mult" in setting or "weight_decay" in setting
    )


def decay_advice(optim_wrapper_cfg: Mapping | None = None) -> str | None:
    """Return how to keep weight decay off lambda and kappa; None if it is off already.

    The user has to act in two cases: if ``default_scope`` is not ``mmdet``, as in
    MMDetection's configs in Python syntax, MMEngine's own constructor is used; and if
    the config names another ``constructor``, its treatment of them is unknown.

    Args:
        optim_wrapper_cfg: The config's ``optim_wrapper``; by default one that names no
            constructor. The default scope is the current one.

    Raises:
        RuntimeError: If no constructor of that name is registered.
    """
    cfg = {} if optim_wrapper_cfg is None else optim_wrapper_cfg
    constructor = cfg.get("constructor", "DefaultOptimWrapperConstructor")
    if isinstance(constructor, str):
        with OPTIM_WRAPPER_CONSTRUCTORS.switch_scope_and_registry(None) as registry:
            constructor = registry.get(constructor)
    # mmdet's learning-rate decay exempts every 1-D parameter from weight decay.
    exempting = (APAOptimWrapperConstructor, LearningRateDecayOptimizerConstructor)
    if inspect.isclass(constructor) and issubclass(constructor, exempting):
        return None

    custom_keys = (cfg.get("paramwise_cfg") or {}).get("custom_keys", {})
    if all(
        any(_sets_decay(key, setting, (name,)) for key, setting in custom_keys.items())
        for name in NAMES
    ):
        return None
    if cfg.get("optimizer", {}).get("weight_decay", True) in (0, None):
        return None

    if constructor is DefaultOptimWrapperConstructor:
        return (
            "lambda_param and kappa_param get the optimizer's weight decay, because "
            "MMEngine's own constructor builds it. Add\n"
            "    optim_wrapper = "
            "dict(constructor='mmdet.DefaultOptimWrapperConstructor')"
        )
    name = getattr(constructor, "__name__", repr(constructor))
    return (
        f"lambda_param and kappa_param may get weight decay: apa_mmdet does not know "
        f"{name}, which builds the optimizer. If it honours custom_keys, add\n"
        "    optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict("
        "lambda_param=dict(decay_mult=0.0), kappa_param=dict(decay_mult=0.0))))"
    )

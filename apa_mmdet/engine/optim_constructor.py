"""Keeps weight decay off lambda and kappa, whatever the config's optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property

from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from mmengine.registry import OPTIMIZERS
from torch import nn

_NAMES = ("lambda_param", "kappa_param")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name="DefaultOptimWrapperConstructor")
class APAOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, without weight decay for lambda and kappa.

    Every parameter whose name ends in ``lambda_param`` or ``kappa_param`` gets
    ``weight_decay=0`` and keeps whatever else ``paramwise_cfg`` gives it, such as
    ``lr_mult``. Decay would pull lambda towards the Gumbel limit 0, and kappa towards
    an activation that is a mere multiple of its input. A model without such
    parameters, or an optimizer that decays nothing, is treated exactly as by the base
    class.

    To decay them after all, name them in ``paramwise_cfg``: of the ``custom_keys`` that
    match and contain ``lambda_param`` or ``kappa_param``, the longest that sets
    ``decay_mult`` or ``weight_decay`` counts, even if a longer key such as
    ``backbone.layer1.0`` decides the rest.

    No config has to name this class. ``build_optim_wrapper`` asks the registry of the
    default scope for ``DefaultOptimWrapperConstructor``, in MMDetection ``mmdet``, and
    only if that has none its parent, MMEngine's own; here it is found in the first.
    :func:`decay_advice` tells the cases in which another constructor is used.

    What the user sees: without ``paramwise_cfg`` the optimizer has two parameter groups
    instead of one, all others in the order of ``model.parameters()`` and then lambda
    and kappa, and the log shows ``base_lr`` beside ``lr``, as with any
    ``paramwise_cfg``. Otherwise each parameter has its group as before, and the log
    has one more line for each lambda and kappa whose decay was changed. Resuming from
    a checkpoint needs the groups it was saved with; torch raises a ValueError if their
    number differs.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: Options by parameter, as in the base class. A lambda or kappa
            that several modules share is listed once, with or without
            ``bypass_duplicate``.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the wrapper of an optimizer over the parameters of ``model``."""
        if self.paramwise_cfg or not self._usual_decay:
            return super().__call__(model)
        others: dict = {"params": []}
        adaptive: dict = {"params": [], "weight_decay": 0.0}
        for name, param in getattr(model, "module", model).named_parameters():
            group = adaptive if name.rpartition(".")[2] in _NAMES else others
            group["params"].append(param)
        if not adaptive["params"]:
            return super().__call__(model)
        print_log(
            f"no weight decay for {len(adaptive['params'])} parameters named "
            f"{' or '.join(_NAMES)}",
            logger="current",
        )
        groups = [group for group in (others, adaptive) if group["params"]]
        return super().__call__(_Grouped(groups))

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Append one group for each parameter of ``module`` and its children.

        Args:
            params: The groups so far; changed in place.
            module: The module whose parameters are added.
            prefix: The module's name in the model.
            is_dcn_module: Whether the parent is a deformable convolution.
        """
        start = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        own = {
            id(param): f"{prefix}.{name}"
            for name, param in module.named_parameters(recurse=False)
            if name in _NAMES
        }
        if not own:
            return
        # The activation that was replaced had no parameters and could be registered
        # with two parents; the base class would list it twice, which torch refuses.
        known = {id(group["params"][0]) for group in params[:start]}
        twice = own.keys() & known
        params[start:] = [
            group for group in params[start:] if id(group["params"][0]) not in twice
        ]
        for group in params[start:]:
            name = own.get(id(group["params"][0]))
            if name is None:
                continue
            decay = self._decay(name)
            if (group.get("weight_decay", self._usual_decay) or 0.0) != decay:
                group["weight_decay"] = decay
                print_log(
                    f"paramwise_options -- {name.lstrip('.')}:weight_decay={decay}",
                    logger="current",
                )

    def _decay(self, name: str) -> float:
        """Weight decay of a lambda or kappa: the user's word, or else 0."""
        settings = {
            key: setting
            for key, setting in self.paramwise_cfg.get("custom_keys", {}).items()
            if key in name and _sets_decay(key, setting, _NAMES)
        }
        if not settings:
            return 0.0
        # The base class's rule: the longest key, among equals the first by alphabet.
        setting = settings[min(settings, key=lambda key: (-len(key), key))]
        if "weight_decay" in setting:
            return setting["weight_decay"]
        return self.base_wd * setting["decay_mult"]

    @cached_property
    def _usual_decay(self) -> float | None:
        """What a group without ``weight_decay`` gets; None if there is no such thing.

        AdamW, for one, decays unless told otherwise.
        """
        if self.base_wd is not None:
            return self.base_wd
        optimizer = self.optimizer_cfg["type"]
        if isinstance(optimizer, str):
            with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                optimizer = registry.get(optimizer)
        argument = inspect.signature(optimizer).parameters.get("weight_decay")
        return None if argument is None else argument.default


class _Grouped:
    """All that the base class asks of a model when there is no ``paramwise_cfg``."""

    def __init__(self, groups: list[dict]) -> None:
        self._groups = groups

    def parameters(self) -> list[dict]:
        return self._groups


def _sets_decay(key: str, setting: Mapping, names: tuple[str, ...]) -> bool:
    """Whether a custom key names one of these parameters and says how it decays."""
    return any(name in key for name in names) and (
        "decay_mult" in setting or "weight_decay" in setting
    )


def decay_advice(optim_wrapper_cfg: Mapping | None = None) -> str | None:
    """Return how to keep weight decay off lambda and kappa, None if it is off.

    Two cases are left to the user: a ``default_scope`` other than ``mmdet``, as in
    MMDetection's configs in Python syntax, where MMEngine's own constructor is found;
    and a ``constructor`` of someone else's, of which nothing is known.

    Args:
        optim_wrapper_cfg: The config's ``optim_wrapper``. Without it, one that names no
            constructor is assumed; the default scope is the current one.

    Raises:
        RuntimeError: If no constructor of that name is registered.
    """
    cfg = {} if optim_wrapper_cfg is None else optim_wrapper_cfg
    constructor = cfg.get("constructor", "DefaultOptimWrapperConstructor")
    if isinstance(constructor, str):
        with ROOT_CONSTRUCTORS.switch_scope_and_registry(None) as registry:
            constructor = registry.get(constructor)
    # mmdet's own of the second kind exempts all parameters with one axis.
    safe = (APAOptimWrapperConstructor, LearningRateDecayOptimizerConstructor)
    if inspect.isclass(constructor) and issubclass(constructor, safe):
        return None

    custom_keys = (cfg.get("paramwise_cfg") or {}).get("custom_keys", {})
    if all(
        any(_sets_decay(key, setting, (name,)) for key, setting in custom_keys.items())
        for name in _NAMES
    ):
        return None
    if cfg.get("optimizer", {}).get("weight_decay", True) in (0, None):
        return None

    if constructor is DefaultOptimWrapperConstructor:
        return (
            "lambda_param and kappa_param get the optimizer's weight decay, since "
            "MMEngine's own constructor builds it. Add\n"
            "    optim_wrapper = "
            "dict(constructor='mmdet.DefaultOptimWrapperConstructor')"
        )
    name = getattr(constructor, "__name__", repr(constructor))
    return (
        f"lambda_param and kappa_param may get weight decay: {name}, which builds the "
        "optimizer, is unknown to apa_mmdet. If it follows custom_keys, add\n"
        "    optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict("
        "lambda_param=dict(decay_mult=0.0), kappa_param=dict(decay_mult=0.0))))"
    )

"""The activations of a model: which they are, their names, their lambda and kappa."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..conversion.identify import identify
from ..conversion.planning import join, plan_model
from ..layers import AGLU, APA


def planned_names(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the sites that each fixed activation is to become, by path.

    They are in the order of the calls. That order is not known if several places call
    an activation in each pass of one loop; such an activation is left out.
    """
    names: dict[str, list[str]] = {}
    unordered = set()
    for plan in plan_model(model):
        for site in plan.sites:
            path = join(plan.paths[0], site.attribute)
            names.setdefault(path, []).append(plan.path_of(site))
            if "_" in (site.key or ""):
                unordered.add(path)
    return {path: names[path] for path in names.keys() - unordered}


def is_activation_module(module: nn.Module) -> bool:
    """Return whether a module is an activation or a gate, learnable or fixed."""
    if isinstance(module, (torch.jit.ScriptModule, nn.RNNBase, nn.RNNCellBase)):
        return False
    return isinstance(module, (APA, AGLU)) or identify(module) is not None


def parameters_of(module: nn.Module) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a copy of the effective lambda and kappa of an activation or a loss.

    A sigmoid, a SiLU and a sigmoid loss have (1, 1). None where there are none, as in a
    ReLU or with softmax.
    """
    if hasattr(module, "lambda_param") and hasattr(module, "kappa_param"):
        lam, kappa = (
            parameter.detach().double().cpu().numpy().copy()
            for parameter in (module.lambda_param, module.kappa_param)
        )
        return lam.clip(min=0), kappa
    is_exact = isinstance(module, (nn.Sigmoid, nn.SiLU))
    is_sigmoid_loss = bool(getattr(module, "use_sigmoid", False))
    return (np.ones(1), np.ones(1)) if is_exact or is_sigmoid_loss else None

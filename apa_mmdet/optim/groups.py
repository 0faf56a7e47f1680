"""Parameter groups without weight decay for lambda and kappa."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

NAMES = ("lambda_param", "kappa_param")


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for any optimizer of torch.

    ::

        optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=3e-4)

    The first group holds all other parameters in the order of ``model.parameters()``,
    the second those named ``lambda_param`` or ``kappa_param``, with
    ``weight_decay=0.0``: decay would pull lambda towards the Gumbel limit 0, and kappa
    towards 0, where AGLU is linear. A group without parameters is left out. As in
    ``model.parameters()``, frozen parameters are included, and shared ones once.

    Call it once the model is converted, wrapped and on its device, as one would call
    ``model.parameters()``. FSDP's first version flattens the parameters, which leaves
    no names to tell them by, unless ``use_orig_params=True``.

    Args:
        model: A model, or a wrapper of one, such as DistributedDataParallel.
        weight_decay: Weight decay of the other parameters. To exempt more than lambda
            and kappa, such as biases and norms, split the first group.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``weight_decay`` is not a finite number of at least 0.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    is_number = isinstance(weight_decay, (int, float))
    if not is_number or not math.isfinite(weight_decay) or weight_decay < 0:
        raise ValueError(
            f"weight_decay={weight_decay!r}, expected a finite number >= 0"
        )
    others, exempt = split(model)
    groups = [
        {"params": others, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return all other parameters of a model, and its lambdas and kappas."""
    others: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        # Parametrized, it is named parametrizations.lambda_param.original.
        is_other = set(NAMES).isdisjoint(name.split("."))
        (others if is_other else exempt).append(param)
    return others, exempt

"""Normalisation with fixed statistics, folded into the activation that follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layers import AGLU
from ...ops import norm_aglu
from ...ops.implementation import wanted


def can_fold(norm: nn.Module, activation: nn.Module) -> bool:
    """Tell whether a norm and the AGLU after it may be computed as one operation.

    That is so while a graph is being recorded for backward, if the norm is a batch
    norm in evaluation mode, nobody watches either module by a hook, and the plain
    implementation was not asked for.
    """
    return (
        torch.is_grad_enabled()
        and wanted() != "plain"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and is_fixed(norm)
        and type(activation) is AGLU
        and not activation.negative_slope
        and activation.max_value is None
        and activation.channel_dim in (None, 1)
        and not has_hooks(activation)
    )


def is_fixed(norm: nn.Module) -> bool:
    """Tell whether a module is a batch norm that uses its running statistics."""
    return (
        type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and not norm.training
        and norm.running_mean is not None
        and not has_hooks(norm)
    )


def has_hooks(module: nn.Module) -> bool:
    """Tell whether calling a module does other than its class's ``forward``."""
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def statistics(norm: nn.Module) -> tuple:
    """Return a batch norm's weight, bias, running mean and variance, and eps."""
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps


def normed_activation(x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
    """Return ``activation(norm(x))``, keeping only ``x`` for backward if it can."""
    if not can_fold(norm, activation):
        return activation(norm(x))
    return norm_aglu(x, *statistics(norm), *parameters(activation))


def parameters(activation: nn.Module) -> tuple[Tensor, Tensor]:
    """Return an AGLU's lam and kappa."""
    return activation.lambda_param, activation.kappa_param

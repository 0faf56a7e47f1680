"""Batch norm with fixed statistics and the AGLU after it, as one operation.

While a norm uses its running statistics (``norm_eval=True``, MMDetection's default), it
is a scale and a shift. Computed together with the activation, only the convolution's
output is saved for backward, not the norm's. Nothing else in the backbones calls the
fused operation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import AGLU
from ...layers.attention import APASELayer
from ...ops import norm_aglu
from ...ops.implementation import wanted


def norm_activation(x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
    """Return ``activation(norm(x))``, as one operation where :func:`can_fold`."""
    if not can_fold(norm, activation):
        return activation(norm(x))
    lam, kappa, slope, bound = _parameters(activation)
    return norm_aglu(
        *(x, *_statistics(norm), lam, kappa), negative_slope=slope, max_value=bound
    )


def norm_add_activation(
    x: Tensor,
    norm: nn.Module,
    activation: nn.Module,
    identity: Tensor,
    downsample: nn.Sequential | None = None,
    attention: APASELayer | None = None,
) -> Tensor:
    """Return ``activation(attention(norm(x)) + downsample(identity))``.

    One operation for all of it; a norm that ends ``downsample`` is part of it too.
    ``can_fold(norm, activation)`` must hold.
    """
    weight, bias, mean, var, eps = _statistics(norm)
    gate = None
    if attention is not None:
        # The spatial mean of norm(x) is the norm of the mean.
        squeezed = F.batch_norm(x.mean((2, 3)), mean, var, weight, bias, eps=eps)
        gate = attention.gate_of(squeezed)
    identity_norm = None, None, None, None, 0.0
    if downsample is not None and is_plain(downsample) and _is_fixed(downsample[-1]):
        *layers, last = downsample
        for layer in layers:
            identity = layer(identity)
        identity_norm = _statistics(last)
    elif downsample is not None:
        identity = downsample(identity)
    lam, kappa, slope, bound = _parameters(activation)
    return norm_aglu(
        *(x, weight, bias, mean, var, eps, lam, kappa, gate, identity),
        *(*identity_norm, slope, bound),
    )


def can_fold(norm: nn.Module, activation: nn.Module) -> bool:
    """Tell whether a norm and the activation after it can be one operation.

    They can if the norm is a batch norm in evaluation mode, the activation an AGLU,
    neither has a hook, and the plain implementation was not asked for. A trace keeps
    them apart: operations are counted and exported one by one.
    """
    return (
        wanted() != "plain"
        and not torch.jit.is_tracing()
        and _is_fixed(norm)
        and type(activation) is AGLU
        and activation.channel_dim in (None, 1)
        and is_plain(activation)
    )


def is_plain(module: nn.Module) -> bool:
    """Tell whether calling a module only runs its class's ``forward``."""
    return not (
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_fixed(norm: nn.Module) -> bool:
    """Tell whether a module is a batch norm that uses its running statistics."""
    return (
        type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and not norm.training
        and norm.running_mean is not None
        and is_plain(norm)
    )


def _statistics(norm: nn.Module) -> tuple:
    """Return a batch norm's arguments of :func:`norm_aglu`."""
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps


def _parameters(activation: AGLU) -> tuple[Tensor, Tensor, float, float | None]:
    return (
        activation.lambda_param,
        activation.kappa_param,
        activation.negative_slope,
        activation.max_value,
    )

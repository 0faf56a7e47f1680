"""Batch norm with fixed statistics and the AGLU after it, as one operation.

While a norm uses its running statistics (``norm_eval=True``, MMDetection's default), it
is a scale and a shift. Computed together with the activation, only the convolution's
output is saved for backward, not the norm's. Nothing else in the backbones calls the
fused operation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layers import AGLU
from ...layers.attention import APASELayer
from ...ops import affine_aglu
from ...ops.implementation import wanted


def norm_activation(x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
    """Return ``activation(norm(x))``, as one operation where :func:`can_fold`."""
    if not can_fold(norm, activation):
        return activation(norm(x))
    scale, shift = _affine(norm)
    return affine_aglu(x, scale, shift, activation.lambda_param, activation.kappa_param)


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
    scale, shift = _affine(norm)
    if attention is not None:
        # The spatial mean of norm(x) is the norm of the mean.
        factors = attention.gate_of(torch.addcmul(shift, x.mean((2, 3)), scale))
        scale, shift = factors * scale, factors * shift
    identity_scale = identity_shift = None
    if downsample is not None and is_plain(downsample) and _is_fixed(downsample[-1]):
        *layers, last = downsample
        for layer in layers:
            identity = layer(identity)
        identity_scale, identity_shift = _affine(last)
    elif downsample is not None:
        identity = downsample(identity)
    return affine_aglu(
        x,
        scale,
        shift,
        activation.lambda_param,
        activation.kappa_param,
        identity,
        identity_scale,
        identity_shift,
    )


def can_fold(norm: nn.Module, activation: nn.Module) -> bool:
    """Tell whether a norm and the activation after it can be one operation.

    They can while a graph is recorded for backward, if the norm is a batch norm in
    evaluation mode, the activation a plain AGLU, neither has a hook, and the plain
    implementation was not asked for.
    """
    return (
        torch.is_grad_enabled()
        and wanted() != "plain"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _is_fixed(norm)
        and type(activation) is AGLU
        and not activation.negative_slope
        and activation.max_value is None
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


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift, shape (C,), of a batch norm with fixed statistics."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else norm.bias + shift

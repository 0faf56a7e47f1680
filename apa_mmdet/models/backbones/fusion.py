"""Batch norm and the AGLU after it, fused into one operation.

The fused operation saves only the convolution's output for backward, not the norm's as
well, and reads and writes each feature map once. It takes running statistics
(``norm_eval=True``, MMDetection's default) as well as the batch's own. Only this file
calls it; :func:`can_fuse` says when.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.autograd import Function

from ...layers import AGLU
from ...layers.attention import APASELayer
from ...ops import norm_aglu
from ...ops.batch_statistics import shared_statistics, through_statistics
from ...ops.implementation import wanted
from ...ops.plain import compute_dtype


def can_fuse(norm: nn.Module, activation: nn.Module) -> bool:
    """Return whether a norm and the activation after it can be one operation.

    They can if the norm is a batch norm, synchronized or not, the activation an AGLU,
    neither has a hook, and the plain implementation was not requested. While tracing
    they are kept separate, because operations are counted and exported one by one, and
    under torch.compile if the norm uses its batch's statistics.
    """
    return (
        wanted() != "plain"
        and not torch.jit.is_tracing()
        and _can_fuse(norm)
        and type(activation) is AGLU
        and activation.channel_dim in (None, 1)
        and is_plain(activation)
    )


def norm_activation(x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
    """Return ``activation(norm(x))``, as one operation where :func:`can_fuse`."""
    if not can_fuse(norm, activation):
        return activation(norm(x))
    *normed, of_batch = _with_statistics(x, norm)
    return norm_aglu(
        *(*normed, activation.lambda_param, activation.kappa_param),
        negative_slope=activation.negative_slope,
        max_value=activation.max_value,
        batch_statistics=of_batch,
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

    All of it is one operation, including a batch norm that ends ``downsample``, but not
    the layers before that norm or those that compute the attention's gate.
    ``can_fuse(norm, activation)`` must hold.
    """
    shared = attention is not None  # the gate depends on the statistics as well
    *normed, of_batch = _with_statistics(x, norm, shared)
    gate = None
    if attention is not None:
        x, weight, bias, mean, var, eps = normed
        # The spatial mean of norm(x) is the norm of the mean.
        means = _SpatialMean.apply(x)
        small = mean, var, weight, bias
        small = (t if t is None else t.to(means.dtype) for t in small)
        squeezed = F.batch_norm(means, *small, eps=eps)
        # Under autocast that is float32, which the attention's LayerNorm computes in.
        gate = attention.gate_of(squeezed.to(attention.excitation[0].weight.dtype))
    *identity_norm, identity_of_batch = None, None, None, None, 0.0, False
    if downsample is not None and is_plain(downsample) and _can_fuse(downsample[-1]):
        *layers, last = downsample
        for layer in layers:
            identity = layer(identity)
        identity, *identity_norm, identity_of_batch = _with_statistics(identity, last)
    elif downsample is not None:
        identity = downsample(identity)
    return norm_aglu(
        *normed,
        *(activation.lambda_param, activation.kappa_param, gate, identity),
        *(*identity_norm, activation.negative_slope, activation.max_value),
        *(of_batch, identity_of_batch),
    )


def is_plain(module: nn.Module) -> bool:
    """Return whether calling a module only runs its class's ``forward``."""
    return not (
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


# Subclasses that do not override them, such as MMEngine's SyncBatchNorm, qualify too.
_FORWARDS = nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward


def _can_fuse(norm: nn.Module) -> bool:
    if type(norm).forward not in _FORWARDS or not is_plain(norm):
        return False
    if not _uses_batch(norm):
        return True
    return not torch.compiler.is_compiling()  # the compiler fuses them itself


def _uses_batch(norm: nn.Module) -> bool:
    """Return whether a batch norm uses its batch's statistics, by torch's rule."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def _process_group(norm: nn.Module) -> dist.ProcessGroup | None:
    """Return the processes that share a norm's batch statistics, None for only one."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _with_statistics(x: Tensor, norm: nn.Module, shared: bool = False) -> tuple:
    """Return a batch norm's x, weight, bias, mean, var and eps, and a flag.

    The flag is norm_aglu's ``batch_statistics``. It is off where
    :func:`through_statistics` takes the gradients through them: for statistics of
    several processes, and for all if ``shared``, which says that something else depends
    on them. Updates the running statistics as the module does.
    """
    if not _uses_batch(norm):
        statistics = norm.running_mean, norm.running_var
        return x, norm.weight, norm.bias, *statistics, norm.eps, False
    group, count = _process_group(norm), None
    if group is None and x.numel() == x.shape[1]:
        raise ValueError(
            f"a batch norm in training needs more than one value per channel, got an "
            f"input of shape {tuple(x.shape)}"
        )
    running, momentum = (None, None), norm.momentum or 0.0
    if norm.training and norm.track_running_stats:
        running = norm.running_mean, norm.running_var
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:  # a cumulative average
                momentum = 1.0 / float(norm.num_batches_tracked)
    with torch.no_grad():
        if group is None:
            if running[0] is None or not x.numel():
                # Running statistics set the dtype of the batch's. An empty batch, which
                # torch's modules accept, changes none.
                running = mean, var = x.new_zeros(
                    (2, x.shape[1]), dtype=compute_dtype(x)
                )
            if x.numel():
                mean, var = torch.batch_norm_update_stats(x, *running, momentum)
        else:
            mean, var, count = shared_statistics(x, group)
            if running[0] is not None:
                unbiased = var * (count / (count - 1))
                for average, now in zip(running, (mean, unbiased)):
                    average.lerp_(now.to(average.dtype), momentum)
    args = x, norm.weight, norm.bias, mean, var, norm.eps
    if group is None and not shared:
        return *args, True
    return *through_statistics(*args, group, count), mean, var, norm.eps, False


class _SpatialMean(Function):
    """The mean of each map, not rounded to half precision."""

    @staticmethod
    def forward(ctx, x):
        ctx.like = x.shape, x.dtype
        return x.mean((2, 3), dtype=compute_dtype(x))

    @staticmethod
    def backward(ctx, grad):
        shape, dtype = ctx.like
        grad = (grad / max(shape[2] * shape[3], 1)).to(dtype)
        return grad[:, :, None, None].expand(shape)  # one value in memory for each map


class FusedConvModule(ConvModule):
    """mmcv's ConvModule with its norm and AGLU fused where :func:`can_fuse`."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """Return what ConvModule does."""
        if (
            not (activate and norm and self.with_norm and self.with_activation)
            or self.order != ("conv", "norm", "act")
            or self.efficient_conv_bn_eval_forward is not None
            or not can_fuse(self.norm, self.activate)
        ):
            return super().forward(x, activate, norm)
        if self.with_explicit_padding:
            x = self.padding_layer(x)
        return norm_activation(self.conv(x), self.norm, self.activate)


def fuse_conv_modules(model: nn.Module) -> None:
    """Turn the ConvModules with a batch norm and an AGLU into FusedConvModules."""
    for module in model.modules():
        if (
            type(module) is ConvModule
            and not isinstance(module.conv, (nn.Conv1d, nn.Conv3d))  # SyncBN takes any
            and isinstance(module.norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
            and type(getattr(module, "activate", None)) is AGLU
        ):
            module.__class__ = FusedConvModule

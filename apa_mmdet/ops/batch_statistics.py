"""Batch statistics that more than one operation, or more than one process, depends on.

Part of the gradient of a norm's input flows through the batch's mean and variance.
:func:`apa_mmdet.ops.norm_aglu` with ``batch_statistics=True`` includes that part, which
is right if nothing else depends on them. Otherwise :func:`through_statistics` adds it
separately, after the gradients of everything that depends on them, in other processes
as well, have been summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from . import plain
from .implementation import is_native

if TYPE_CHECKING:  # torch can be built without it
    from torch.distributed import ProcessGroup


def shared_statistics(x: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Return the joint statistics of a norm's inputs in several processes.

    Args:
        x: Shape (N, C, H, W); only C must be the same in all processes, and some of
            the inputs, but not all, may be empty.
        group: The processes, all of which must call this.

    Returns:
        Mean and biased variance, of shape (C,), float64 if ``x`` is and float32
        otherwise; and the number of elements per channel, of shape (1,), float64.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    dtype = plain.compute_dtype(x)
    # Passed as running statistics (momentum 0: unchanged), they set the result's dtype.
    zeros = x.new_zeros((2, channels), dtype=dtype)
    statistics = torch.batch_norm_update_stats(x, *zeros, 0.0) if count else zeros
    # In float64, because E[x^2] - E[x]^2 may nearly cancel.
    sums = torch.cat((*statistics, x.new_ones(1, dtype=torch.float64)))
    mean, squares, _ = sums.split((channels, channels, 1))
    squares.addcmul_(mean, mean)
    dist.all_reduce(sums.mul_(count), group=group)
    total = sums[-1:]
    averages = sums[:-1] / total
    mean, var = averages.chunk(2)
    var.addcmul_(mean, mean, value=-1)
    return *averages.to(dtype).chunk(2), total


class _ThroughStatistics(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps, group, count):
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        share = None if group is None else x.numel() // x.shape[1] / count
        ctx.save_for_backward(x, weight, mean, var, share)
        ctx.eps, ctx.group = eps, group
        ctx.is_native = is_native(x, mean, var)
        return x, weight, bias

    @staticmethod
    def backward(ctx, grad_x, grad_weight, grad_bias):
        *saved, share = ctx.saved_tensors  # checkpointing allows this only once
        x, weight, mean, var = saved
        with torch.no_grad():
            if ctx.needs_input_grad[0]:
                sums = grad_weight, grad_bias
                if ctx.group is not None:
                    sums = torch.cat(sums).to(mean.dtype)
                    dist.all_reduce(sums, group=ctx.group)
                    # What follows divides by this process's count, not by the total.
                    sums = sums.mul_(share).chunk(2)
                args = grad_x, x, weight, mean, var, ctx.eps, *sums
                if ctx.is_native:
                    # In place: nothing else holds the gradient summed for this node.
                    torch.ops.apa_mmdet.through_statistics_.default(*args)
                else:
                    grad_x = plain.through_statistics(*args)
        grads = grad_x, grad_weight, grad_bias
        needed = zip(grads, ctx.needs_input_grad)
        grads = tuple(grad if needs else None for grad, needs in needed)
        return *plain.first_order_only(saved, grads), *(None,) * 5


def through_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    group: ProcessGroup | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x``, ``weight`` and ``bias``, completing the gradient of ``x``.

    Apply the norm ``(x - mean) / sqrt(var + eps) * weight + bias`` to what is returned,
    or to means of it, as often as needed, with ``mean`` and ``var`` as constants: the
    gradients are then those of a norm in training. Each process gets the gradients of
    ``weight`` and ``bias`` from its own results only, as in torch's SyncBatchNorm.

    Args:
        x: Shape (N, C, H, W), floating, of any strides.
        weight: Shape (C,), or None for 1.
        bias: Shape (C,), or None for 0.
        mean: Shape (C,), the mean of ``x`` over all but the channels.
        var: Shape (C,), its biased variance.
        eps: Added to ``var``.
        group: The processes over whose inputs the statistics were taken, all of which
            must run backward; None for this one only.
        count: With ``group``, the third result of :func:`shared_statistics`.

    Returns:
        The values of the arguments; for None, ones or zeros of shape (C,).
    """
    return _ThroughStatistics.apply(x, weight, bias, mean, var, eps, group, count)

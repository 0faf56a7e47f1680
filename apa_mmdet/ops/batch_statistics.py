"""The gradient through a norm's batch statistics, as a step of its own.

:func:`apa_mmdet.ops.norm_aglu` takes it along (``batch_statistics=True``) if only its
result depends on the statistics. :func:`through_statistics` takes it last, after the
gradients of everything that depends on them have been added.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from . import plain
from .implementation import is_native


class _ThroughStatistics(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.is_native = is_native(x, mean, var)
        return x, weight, bias

    @staticmethod
    def backward(ctx, grad_x, grad_weight, grad_bias):
        saved = ctx.saved_tensors  # to be read once: checkpointing recomputes them
        needs = ctx.needs_input_grad
        with torch.no_grad():
            if needs[0]:
                args = grad_x, *saved, ctx.eps, grad_weight, grad_bias
                if ctx.is_native:
                    # In place: nobody else holds a gradient that has been added up.
                    torch.ops.apa_mmdet.through_statistics_.default(*args)
                else:
                    grad_x = plain.through_statistics(*args)
        grads = [
            g if need else None
            for g, need in zip((grad_x, grad_weight, grad_bias), needs)
        ]
        return *plain.first_order_only(saved, grads), None, None, None


def through_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x``, ``weight`` and ``bias``; gradients also go through the statistics.

    Whatever is made of these and of the constants ``mean`` and ``var``, by any number
    of operations that apply the norm ``(x - mean) / sqrt(var + eps) * weight + bias``
    to it or to means of it, then has the gradients of a norm in training.

    Args:
        x: Shape (N, C, H, W), floating, of any strides.
        weight: Shape (C,), or None for 1.
        bias: Shape (C,), or None for 0.
        mean: Shape (C,), the mean of ``x`` over all but the channels.
        var: Shape (C,), its biased variance.
        eps: What is added to ``var``.
    """
    return _ThroughStatistics.apply(x, weight, bias, mean, var, eps)

"""AGLU of a scaled, shifted and summed input, as one operation.

A residual block ends in ``AGLU(gate * (a * c + b) + identity)``: a convolution's output
``c``, a normalisation with fixed statistics, a channel gate, an addition, the
activation. Taken one by one, each of these keeps a feature map for backward. Here only
``c`` and the identity are kept, which the convolutions around keep anyway; the rest is
computed again from them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from .functional import (
    check,
    compute_dtype,
    first_order_only,
    gradients,
    sum_channels,
    value,
)
from .implementation import KERNELS, chosen


def affine_aglu(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    lam: Tensor,
    kappa: Tensor,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_shift: Tensor | None = None,
) -> Tensor:
    """Return ``AGLU(scale * x + shift + residual_scale * residual + residual_shift)``.

    For backward it keeps ``x``, ``residual`` and the small tensors.

    Args:
        x: Shape (N, C, H, W), floating, of any strides.
        scale: Shape (C,) or (N, C).
        shift: The shape of ``scale``.
        lam: Shape (1,) or (C,); negative values act as 0.
        kappa: Shape (1,) or (C,).
        residual: The shape of ``x``, or None for none.
        residual_scale: Shape (C,), or None for 1.
        residual_shift: Shape (C,); given if and only if ``residual_scale`` is.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        TypeError: If ``x``, ``lam`` or ``kappa`` is not a floating-point tensor.
        ValueError: If shapes do not fit.
    """
    axis = check(x, lam, kappa, 1)
    shapes = (x.shape[1:2], x.shape[:2])
    if x.dim() != 4 or scale.shape not in shapes or shift.shape != scale.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, scale {tuple(scale.shape)} and shift "
            f"{tuple(shift.shape)}, expected (N, C, H, W) and (C,) or (N, C) for both"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}, expected that of x, "
            f"{tuple(x.shape)}"
        )
    for name, small in (
        ("residual_scale", residual_scale),
        ("residual_shift", residual_shift),
    ):
        if (small is None) != (residual_scale is None) or (
            small is not None and (residual is None or small.shape != x.shape[1:2])
        ):
            raise ValueError(
                f"{name} is {None if small is None else tuple(small.shape)}, expected "
                f"({x.shape[1]},) for both scale and shift of a residual, or None"
            )
    return _AffineAGLU.apply(
        x, scale, shift, lam, kappa, residual, residual_scale, residual_shift, axis
    )


def _over_map(small: Tensor) -> Tensor:
    """Return a tensor of shape (C,) or (N, C) that broadcasts over (N, C, H, W)."""
    return small[..., None, None]


def _sum_like(product: Tensor, small: Tensor) -> Tensor:
    """Sum a feature map to the shape of a small tensor, in its dtype."""
    axes = (2, 3) if small.dim() == 2 else (0, 2, 3)
    return product.sum(axes).to(small.dtype)


def _sum(x, scale, shift, residual, residual_scale, residual_shift):
    dtype = compute_dtype(x)
    scale, shift = (_over_map(small.to(dtype)) for small in (scale, shift))
    total = torch.addcmul(shift, x.to(dtype), scale)
    if residual is None:
        return total
    if residual_scale is None:
        return total.add_(residual)
    small = (_over_map(t.to(dtype)) for t in (residual_scale, residual_shift))
    residual_scale, residual_shift = small
    return total.addcmul_(residual.to(dtype), residual_scale).add_(residual_shift)


class _AffineAGLU(Function):
    @staticmethod
    def forward(
        ctx, x, scale, shift, lam, kappa, residual, residual_scale, residual_shift, axis
    ):
        ctx.save_for_backward(
            x, scale, shift, lam, kappa, residual, residual_scale, residual_shift
        )
        ctx.axis = axis
        ctx.chosen = chosen(x, lam, kappa)
        if ctx.chosen != "plain":
            if residual_shift is not None:
                shift = shift + residual_shift
            return KERNELS[ctx.chosen].forward(
                "aglu", x, lam, kappa, axis, scale, shift, residual, residual_scale
            )
        total = _sum(x, scale, shift, residual, residual_scale, residual_shift)
        return value("aglu", total, lam, kappa, axis).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors
        x, scale, shift, lam, kappa, residual, residual_scale, residual_shift = saved
        needs = ctx.needs_input_grad
        tensors = tuple(tensor for tensor in saved if tensor is not None)
        if ctx.chosen != "plain":
            with torch.no_grad():
                kernels = KERNELS[ctx.chosen]
                grads = _kernel_gradients(kernels, saved, grad_output, needs, ctx.axis)
            return *first_order_only(tensors, grads), None
        with torch.no_grad():
            total = _sum(x, scale, shift, residual, residual_scale, residual_shift)
            sum_needs = (any(needs[:3]) or any(needs[5:8]), *needs[3:5])
            grad, grad_lam, grad_kappa = gradients(
                "aglu", total, lam, kappa, grad_output, sum_needs, ctx.axis
            )
            grads = [None] * 8
            grads[3:5] = grad_lam, grad_kappa
            # The widest product first, in the memory of the sum, which has served.
            for at, factor, needed in (
                (1, x, needs[1]),
                (6, residual, needs[6]),
            ):
                if needed:
                    grads[at] = _sum_like(torch.mul(grad, factor, out=total), saved[at])
            for at in (2, 7):
                if needs[at]:
                    grads[at] = _sum_like(grad, saved[at])
            if needs[5]:
                own = grad
                if residual_scale is not None:
                    own = grad * _over_map(residual_scale.to(grad.dtype))
                grads[5] = own.to(residual.dtype)
            if needs[0]:
                grads[0] = (grad * _over_map(scale.to(grad.dtype))).to(x.dtype)
        return *first_order_only(tensors, tuple(grads)), None


def _kernel_gradients(kernels, saved, grad_output, needs, axis):
    x, scale, shift, lam, kappa, residual, residual_scale, residual_shift = saved
    if residual_shift is not None:
        shift = shift + residual_shift
    grad_x, grad_residual, sums = kernels.backward(
        "aglu",
        x,
        lam,
        kappa,
        grad_output,
        axis,
        needs[3] or needs[4],
        scale,
        shift,
        residual,
        residual_scale,
    )
    if grad_residual is not None:
        grad_residual = grad_residual.to(residual.dtype)
    of_lam, of_kappa, of_shift, of_scale, of_residual_scale = sums

    def small(sums: Tensor, param: Tensor | None) -> Tensor | None:
        if param is None or param.dim() == 1:
            return None if param is None else sum_channels(sums, param)
        return sums.to(param.dtype)

    grads = (
        grad_x,
        small(of_scale, scale),
        small(of_shift, saved[2]),
        small(of_lam, lam),
        small(of_kappa, kappa),
        grad_residual,
        small(of_residual_scale, residual_scale),
        small(of_shift, residual_shift),
    )
    return tuple(grad if need else None for grad, need in zip(grads, needs))

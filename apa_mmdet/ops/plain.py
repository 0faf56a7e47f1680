"""APA, AGLU and ln APA in plain torch, differentiable: on any device, in any dtype.

This is what runs where the native operators do not: ln APA, float64, devices other than
CPUs and CUDA GPUs, machines without a C++ compiler. It keeps only the input and the
parameters for backward, and evaluates the closed forms of
:mod:`apa_mmdet.ops.formula`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import formula

_VALUES = {"apa": formula.apa, "aglu": formula.aglu, "log_apa": formula.log_apa}


def _log_apa_grads(
    x: Tensor, lam: Tensor, kappa: Tensor, need_lam: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    _, r, m = formula.positive_cross_entropy(kappa * x, lam)
    return kappa * r, m, x * r


_GRADS = {
    "apa": formula.apa_grads,
    "aglu": formula.aglu_grads,
    "log_apa": _log_apa_grads,
}


class _RefuseSecondDerivative(Function):
    """Pass gradients on; differentiating them again raises an error."""

    @staticmethod
    def forward(ctx, count, *anchors_and_grads):
        # The anchors tie the result to the graph even if grad_output is a constant.
        grads = anchors_and_grads[count:]
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "second derivatives of APA's functions are not implemented: the gradient "
            "of apa, aglu, log_apa or apa_cross_entropy was itself differentiated. "
            "Drop create_graph=True, or write (1 + lam * exp(-kappa * x)) ** "
            "(-1 / lam) in plain torch for that term."
        )


def first_order_only(
    inputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients; differentiating them again raises an error."""
    if torch.is_grad_enabled():  # backward runs under create_graph=True
        return _RefuseSecondDerivative.apply(len(inputs), *inputs, *grads)
    return grads


def channel_axis(x: Tensor, channel_dim: int | None) -> int:
    """Return the axis of the channels as a non-negative index.

    Raises:
        ValueError: If ``x`` has no axis ``channel_dim``.
    """
    if x.dim() == 0:
        return 0
    if channel_dim is None:
        return 1 if x.dim() in (2, 4, 5) else x.dim() - 1
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(
            f"channel_dim={channel_dim} is not an axis of x with shape "
            f"{tuple(x.shape)}; give a value from {-x.dim()} to {x.dim() - 1}"
        )
    return channel_dim % x.dim()


def check(x: Tensor, lam: Tensor, kappa: Tensor, channel_dim: int | None) -> int:
    """Return the channel axis.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If ``lam`` or ``kappa`` does not fit the channels of ``x``.
    """
    check_tensors(x=x, lam=lam, kappa=kappa)
    axis = channel_axis(x, channel_dim)
    channels = x.shape[axis] if x.dim() else 1
    for name, param in (("lam", lam), ("kappa", kappa)):
        if param.dim() != 1 or param.shape[0] not in (1, channels):
            raise ValueError(
                f"{name} has shape {tuple(param.shape)}, expected (1,) or "
                f"({channels},): x with shape {tuple(x.shape)} has {channels} "
                f"channels on axis {axis}; set num_parameters to that, or channel_dim "
                f"to the axis that holds the channels"
            )
    return axis


def check_tensors(**arguments: Tensor) -> None:
    """Raise a TypeError for anything that is not a floating-point tensor."""
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            continue
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        if name in ("lam", "kappa"):
            raise TypeError(
                f"{name} must be a floating-point tensor of shape (1,) or (C,), got "
                f"{got}; wrap a number as torch.tensor([value])"
            )
        raise TypeError(
            f"{name} must be a floating-point tensor (float16, bfloat16, float32 or "
            f"float64), got {got}; convert it with {name}.float()"
        )


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32, or a wider one of the tensors'."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def broadcast(param: Tensor, x: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Return a parameter in a shape that broadcasts over ``x``."""
    if param.shape[0] == 1:
        return param.to(dtype).reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return param.to(dtype).reshape(shape)


def prepare(
    x: Tensor, lam: Tensor, kappa: Tensor, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments as :mod:`apa_mmdet.ops.formula` takes them."""
    dtype = compute_dtype(x, lam, kappa)
    return (
        x.to(dtype),
        broadcast(lam, x, axis, dtype).clamp(min=0),
        broadcast(kappa, x, axis, dtype),
    )


def reduce(grad: Tensor, param: Tensor, axis: int) -> Tensor:
    """Sum ``grad`` to the shape of a parameter, in its dtype."""
    if param.shape[0] == 1:
        total = grad.sum().reshape(1)
    else:
        others = [i for i in range(grad.dim()) if i != axis]
        total = grad.sum(others) if others else grad
    return total.to(param.dtype)


class _PlainAPA(Function):
    @staticmethod
    def forward(ctx, x, lam, kappa, name, axis):
        ctx.save_for_backward(x, lam, kappa)
        ctx.name, ctx.axis = name, axis
        return _VALUES[name](*prepare(x, lam, kappa, axis)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors  # checkpointing allows this only once
        x, lam, kappa = saved
        needs = ctx.needs_input_grad
        with torch.no_grad():
            args = prepare(x, lam, kappa, ctx.axis)
            d_x, d_lam, d_kappa = _GRADS[ctx.name](*args, need_lam=needs[1])
            grad = grad_output.to(d_x.dtype)
            grads = (
                (grad * d_x).to(x.dtype) if needs[0] else None,
                reduce(grad * d_lam, lam, ctx.axis) if needs[1] else None,
                reduce(grad * d_kappa, kappa, ctx.axis) if needs[2] else None,
            )
        return *first_order_only(saved, grads), None, None


def activation(
    name: str,
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    channel_dim: int | None,
    negative_slope: float = 0.0,
    max_value: float | None = None,
) -> Tensor:
    """Return ``'apa'``, ``'aglu'`` or ``'log_apa'`` of ``x``."""
    axis = check(x, lam, kappa, channel_dim)
    if is_exporting_to_onnx():
        y = _exportable(name, x, lam, kappa, axis)
    else:
        y = _PlainAPA.apply(x, lam, kappa, name, axis)
    if negative_slope:
        y = torch.lerp(y, x, negative_slope)
    return y if max_value is None else y.clamp(max=max_value)


def norm_aglu(
    x, weight, bias, mean, var, eps, lam, kappa, gate, residual, residual_weight,
    residual_bias, residual_mean, residual_var, residual_eps, negative_slope, max_value,
    batch_statistics, residual_batch_statistics,
):  # fmt: skip
    """Return what :func:`apa_mmdet.ops.norm_aglu` does, operation by operation."""

    def norm(x, mean, var, weight, bias, eps, of_batch):
        # F.batch_norm computes a batch's statistics itself, to differentiate them.
        small = (None, None) if of_batch else (mean, var)
        small = (t if t is None else t.to(dtype) for t in (*small, weight, bias))
        return F.batch_norm(x.to(dtype), *small, training=of_batch, eps=eps)

    dtype = compute_dtype(x, lam, kappa)
    z = norm(x, mean, var, weight, bias, eps, batch_statistics)
    if gate is not None:
        z = z * gate.to(dtype)[..., None, None]
    if residual is not None:
        residual = residual.to(dtype)
        if residual_mean is not None:
            args = residual_mean, residual_var, residual_weight, residual_bias
            args = *args, residual_eps, residual_batch_statistics
            residual = norm(residual, *args)
        z = z + residual
    args = lam, kappa, 1, negative_slope, max_value
    return activation("aglu", z, *args).to(x.dtype)


def through_statistics(grad_x, x, weight, mean, var, eps, grad_weight, grad_bias):
    """Return the gradient of a norm's input, given that for constant statistics."""
    dtype = compute_dtype(x, weight)
    factor = weight * (var + eps).rsqrt() * (x.shape[1] / max(x.numel(), 1))
    small = mean, var, factor * grad_weight, factor * grad_bias
    small = (tensor.to(dtype) for tensor in small)
    return (grad_x - F.batch_norm(x.to(dtype), *small, eps=eps)).to(x.dtype)


# New in torch 2.7; before, only tracing is noticed.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def is_exporting_to_onnx() -> bool:
    """Return whether a graph is being recorded for ONNX."""
    if torch.jit.is_tracing() or _is_exporting():
        return torch.onnx.is_in_onnx_export()
    return False


def _exportable(name: str, x: Tensor, lam: Tensor, kappa: Tensor, axis: int) -> Tensor:
    """Return an activation as a few operations that ONNX has."""
    dtype = compute_dtype(x, lam, kappa)
    lam, kappa = (broadcast(param, x, axis, dtype) for param in (lam, kappa))
    log_apa = formula.log_apa_exportable(x.to(dtype), lam, kappa)
    if name == "log_apa":
        return log_apa.to(x.dtype)
    gate = log_apa.exp()
    return (gate if name == "apa" else x * gate).to(x.dtype)

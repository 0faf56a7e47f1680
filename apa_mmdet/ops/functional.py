"""APA, AGLU, ln APA and the APA cross-entropy as differentiable functions.

Arithmetic is done in float32 or better whatever the input's dtype, and the result has
the input's dtype. Only the input and the two parameters are kept for backward.

An optimiser may push ``lam`` below zero, where APA is not defined. The functions then
use ``lam = 0`` and hand ``lam`` the derivative at 0, so that it can come back.

Source: Adaptive Parametric Activation, Alexandridis et al., ECCV 2024, arXiv
2407.08567; the closed forms are in :mod:`apa_mmdet.ops.formula`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import Function

from . import cpu, formula
from .implementation import KERNELS, chosen

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
    """Pass gradients on, and say plainly that they cannot be differentiated again."""

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


def _channel_axis(x: Tensor, channel_dim: int | None) -> int:
    if channel_dim is not None:
        if not -x.dim() <= channel_dim < x.dim():
            raise ValueError(
                f"channel_dim={channel_dim} is not an axis of x with shape "
                f"{tuple(x.shape)}; give a value from {-x.dim()} to {x.dim() - 1}"
            )
        return channel_dim % x.dim()
    return 1 if x.dim() in (2, 4, 5) else x.dim() - 1


def check(x: Tensor, lam: Tensor, kappa: Tensor, channel_dim: int | None) -> int:
    """Raise on what cannot be computed; return the channel axis."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"x must be a floating-point tensor (float16, bfloat16, float32 or "
            f"float64), got {got}; convert it with x.float()"
        )
    axis = _channel_axis(x, channel_dim) if x.dim() else 0
    channels = x.shape[axis] if x.dim() else 1
    for name, param in (("lam", lam), ("kappa", kappa)):
        if not isinstance(param, Tensor) or not param.is_floating_point():
            got = param.dtype if isinstance(param, Tensor) else type(param).__name__
            raise TypeError(
                f"{name} must be a floating-point tensor of shape (1,) or (C,), got "
                f"{got}; wrap a number as torch.tensor([value])"
            )
        if param.dim() != 1 or param.shape[0] not in (1, channels):
            raise ValueError(
                f"{name} has shape {tuple(param.shape)}, expected (1,) or "
                f"({channels},): x with shape {tuple(x.shape)} has {channels} "
                f"channels on axis {axis}; set num_parameters to that, or channel_dim "
                f"to the axis that holds the channels"
            )
    return axis


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32, or a wider one of the tensors'."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _broadcast(param: Tensor, x: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    if param.shape[0] == 1:
        return param.to(dtype).reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return param.to(dtype).reshape(shape)


def _prepare(
    x: Tensor, lam: Tensor, kappa: Tensor, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x, lam, kappa)
    return (
        x.to(dtype),
        _broadcast(lam, x, axis, dtype).clamp(min=0),
        _broadcast(kappa, x, axis, dtype),
    )


def _reduce(grad: Tensor, param: Tensor, axis: int) -> Tensor:
    """Sum ``grad`` over all but the channels that ``param`` tells apart."""
    if param.shape[0] == 1:
        total = grad.sum().reshape(1)
    else:
        total = grad.sum([i for i in range(grad.dim()) if i != axis])
    return total.to(param.dtype)


class _Activation(Function):
    @staticmethod
    def forward(ctx, x, lam, kappa, name, axis):
        ctx.save_for_backward(x, lam, kappa)
        ctx.name, ctx.axis = name, axis
        ctx.chosen = "plain" if name == "log_apa" else chosen(x, lam, kappa)
        if ctx.chosen == "plain":
            return value(name, x, lam, kappa, axis)
        return KERNELS[ctx.chosen].forward(name, x, lam, kappa, axis)

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors  # to be read once: checkpointing recomputes them
        needs = ctx.needs_input_grad[:3]
        with torch.no_grad():
            if ctx.chosen == "plain":
                grads = gradients(ctx.name, *saved, grad_output, needs, ctx.axis)
            else:
                grads = _kernel_gradients(
                    KERNELS[ctx.chosen], ctx.name, *saved, grad_output, needs, ctx.axis
                )
        return *first_order_only(saved, grads), None, None


def _kernel_gradients(kernels, name, x, lam, kappa, grad_output, needs, axis):
    grad_x, _, sums = kernels.backward(
        name, x, lam, kappa, grad_output, axis, need_params=needs[1] or needs[2]
    )
    return (
        grad_x if needs[0] else None,
        sum_channels(sums[0], lam) if needs[1] else None,
        sum_channels(sums[1], kappa) if needs[2] else None,
    )


def sum_channels(sums: Tensor, param: Tensor) -> Tensor:
    """Sum a kernel's sums (batch, C) to the shape of a parameter, in its dtype."""
    total = sums.sum() if param.shape[0] == 1 else sums.sum(0)
    return total.reshape(param.shape).to(param.dtype)


def value(name: str, x: Tensor, lam: Tensor, kappa: Tensor, axis: int) -> Tensor:
    """Return ``apa``, ``aglu`` or ``log_apa`` in plain torch, of checked arguments."""
    if name == "aglu" and cpu.applies(x, lam, kappa):
        dtype = compute_dtype(x, lam, kappa)
        return cpu.aglu(x, lam.item(), kappa.item(), dtype)
    return _VALUES[name](*_prepare(x, lam, kappa, axis)).to(x.dtype)


def gradients(
    name: str,
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    grad_output: Tensor,
    needs: tuple[bool, bool, bool],
    axis: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x``, ``lam`` and ``kappa`` that are needed."""
    if name == "aglu" and cpu.applies(x, lam, kappa):
        return _lean_gradients(x, lam, kappa, grad_output, needs)
    args = _prepare(x, lam, kappa, axis)
    d_x, d_lam, d_kappa = _GRADS[name](*args, need_lam=needs[1])
    grad = grad_output.to(d_x.dtype)
    return (
        (grad * d_x).to(x.dtype) if needs[0] else None,
        _reduce(grad * d_lam, lam, axis) if needs[1] else None,
        _reduce(grad * d_kappa, kappa, axis) if needs[2] else None,
    )


def _lean_gradients(x, lam, kappa, grad_output, needs):
    dtype = compute_dtype(x, lam, kappa)
    grad_x, *sums = cpu.aglu_backward(
        x, grad_output, lam.item(), kappa.item(), dtype, needs
    )
    grad_lam, grad_kappa = (
        torch.full_like(param, total) if need else None
        for param, total, need in zip((lam, kappa), sums, needs[1:])
    )
    return grad_x, grad_lam, grad_kappa


def _activate(name, x, lam, kappa, channel_dim):
    axis = check(x, lam, kappa, channel_dim)
    if is_exporting():
        return exportable(name, x, lam, kappa, axis)
    return _Activation.apply(x, lam, kappa, name, axis)


# torch.export says so from torch 2.7 on; before, it looks into autograd functions.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


_counted = ContextVar("_counted", default=False)


@contextmanager
def counted() -> Iterator[None]:
    """Keep each activation one node of the graphs traced inside, to be counted."""
    token = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(token)


def is_exporting() -> bool:
    """Tell whether a graph of plain operations is being recorded to be kept."""
    if torch.jit.is_tracing():
        return not _counted.get()
    return torch.onnx.is_in_onnx_export() or _is_exporting()


def exportable(name: str, x: Tensor, lam: Tensor, kappa: Tensor, axis: int) -> Tensor:
    """Return ``apa``, ``aglu`` or ``log_apa`` in few operations that any format has."""
    dtype = compute_dtype(x, lam, kappa)
    lam, kappa = (_broadcast(param, x, axis, dtype) for param in (lam, kappa))
    log_apa = formula.log_apa_by_few(x.to(dtype), lam, kappa)
    if name == "log_apa":
        return log_apa.to(x.dtype)
    gate = log_apa.exp()
    return (gate if name == "apa" else x * gate).to(x.dtype)


def apa(
    x: Tensor, lam: Tensor, kappa: Tensor, channel_dim: int | None = None
) -> Tensor:
    """Return ``APA(x) = (1 + lam * exp(-kappa * x)) ** (-1 / lam)``.

    Args:
        x: Floating tensor of any shape and strides; it may be empty.
        lam: Shape (1,) or (C,); negative values act as 0, the Gumbel limit
            ``exp(-exp(-kappa * x))``. 1 is the logistic sigmoid.
        kappa: Shape (1,) or (C,).
        channel_dim: Axis that holds the C channels. By default 1 for tensors of 2, 4
            and 5 axes (N x C, NCHW, NCDHW), the last one otherwise (N x L x C tokens).

    Returns:
        Values in [0, 1], in the shape and dtype of ``x``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If ``lam`` or ``kappa`` does not fit the channels of ``x``.
    """
    return _activate("apa", x, lam, kappa, channel_dim)


def aglu(
    x: Tensor, lam: Tensor, kappa: Tensor, channel_dim: int | None = None
) -> Tensor:
    """Return ``AGLU(x) = x * APA(x)``; SiLU for ``lam = kappa = 1``.

    Arguments, result and errors are those of :func:`apa`.
    """
    return _activate("aglu", x, lam, kappa, channel_dim)


def log_apa(
    x: Tensor, lam: Tensor, kappa: Tensor, channel_dim: int | None = None
) -> Tensor:
    """Return ``ln APA(x)``, exact where APA itself would underflow.

    Arguments, shape, dtype and errors are those of :func:`apa`.
    """
    return _activate("log_apa", x, lam, kappa, channel_dim)


# Elements of the logits that are worked on at a time: the temporaries of a piece stay
# small beside proposals x 1,203 classes, and on a CPU within its cache.
_PIECE = {"cpu": 1 << 15, "cuda": 1 << 22}


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, lam, kappa, labels, weight, max_slope):
        ctx.save_for_backward(logits, lam, kappa, labels, weight)
        ctx.max_slope = max_slope
        loss = logits.new_empty(logits.shape, dtype=compute_dtype(logits, lam, kappa))
        for rows in _row_pieces(logits):
            terms = _cross_entropy_terms(
                logits[rows], lam, kappa, labels[rows], max_slope, with_grads=False
            )
            loss[rows] = terms[0]
        return loss if weight is None else loss.mul_(weight)

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors
        logits, lam, kappa, labels, weight = saved
        needs = ctx.needs_input_grad[:3]
        grad_logits = torch.empty_like(logits) if needs[0] else None
        sums = [
            param.new_zeros(param.shape, dtype=grad_output.dtype) if need else None
            for param, need in zip((lam, kappa), needs[1:])
        ]
        if weight is not None:
            weight = weight.expand(logits.shape)
        with torch.no_grad():
            for rows in _row_pieces(logits):
                _, r, m = _cross_entropy_terms(
                    logits[rows], lam, kappa, labels[rows], ctx.max_slope
                )
                grad = grad_output[rows]
                if weight is not None:
                    grad = grad * weight[rows]
                r.mul_(grad)
                if needs[0]:
                    grad_logits[rows] = r * _broadcast(kappa, r, 1, r.dtype)
                if needs[1]:
                    sums[0] += _reduce(m.mul_(grad), sums[0], 1)
                if needs[2]:
                    sums[1] += _reduce(r.mul_(logits[rows]), sums[1], 1)
        grads = [
            None if total is None else total.to(param.dtype)
            for total, param in zip(sums, (lam, kappa))
        ]
        own = first_order_only((logits, lam, kappa), (grad_logits, *grads))
        return *own, None, None, None


def _row_pieces(logits: Tensor) -> Iterator[slice]:
    rows, classes = logits.shape
    size = max(_PIECE.get(logits.device.type, 1 << 22) // max(classes, 1), 1)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _cross_entropy_terms(logits, lam, kappa, labels, max_slope, with_grads=True):
    """Return loss, ``r`` and ``m`` (N, C): those of the label's class and the rest."""
    x, lam, kappa = _prepare(logits, lam, kappa, 1)
    u = kappa * x
    terms = formula.negative_cross_entropy(u, lam, with_grads)
    rows = ((labels >= 0) & (labels < logits.shape[1])).nonzero().squeeze(1)
    at = (rows, labels[rows])
    lam_at = lam.expand_as(u)[at]
    loss, *own = formula.positive_cross_entropy(u[at], lam_at, max_slope, with_grads)
    terms[0][at] = loss
    for term, special in zip(terms[1:], own):
        if with_grads:
            term[at] = -special
    return terms


def apa_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    lam: Tensor,
    kappa: Tensor,
    weight: Tensor | None = None,
    max_slope: float | None = None,
) -> Tensor:
    """Return the binary cross-entropy of ``APA(logits)``, one term per class.

    The label's class contributes ``-ln APA(z)``, every other ``-ln(1 - APA(z))``; both
    are formed from ``ln APA`` and never from a clamped probability. ``lam = 1`` is
    binary cross-entropy with logits, ``lam = 0`` that of the Gumbel classifier (GOL,
    Alexandridis et al., ECCV 2022, arXiv 2207.10936).

    Args:
        logits: Shape (N, C), floating; N may be 0.
        labels: Shape (N,), int64. A value outside [0, C), such as MMDetection's
            background label C, makes every class of its row a negative.
        lam: Shape (1,) or (C,); negative values act as 0.
        kappa: Shape (1,) or (C,).
        weight: Factors that broadcast to (N, C), without gradient.
        max_slope: If given, the loss of the label's class continues along its tangent
            from where its derivative by ``-kappa * z`` reaches this value, so that it
            stays finite for any finite logit even though ``-ln APA`` grows like
            ``exp(-kappa * z)`` for ``lam`` near 0. No effect for
            ``lam >= 1 / max_slope``.

    Returns:
        Losses of shape (N, C), in float32 or better.

    Raises:
        TypeError: If ``logits``, ``lam`` or ``kappa`` is not a floating-point tensor.
        ValueError: If shapes do not fit or ``max_slope`` is not positive.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and labels "
            f"{tuple(labels.shape)}, expected (N, C) and (N,)"
        )
    if max_slope is not None and not max_slope > 0:
        raise ValueError(f"max_slope={max_slope}, expected a positive number or None")
    check(logits, lam, kappa, 1)
    return _CrossEntropy.apply(logits, lam, kappa, labels, weight, max_slope)

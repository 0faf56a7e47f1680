"""The binary cross-entropy of APA, one term per class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from . import formula
from .implementation import is_native
from .plain import broadcast, check, compute_dtype, first_order_only, prepare, reduce


def apa_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    lam: Tensor,
    kappa: Tensor,
    weight: Tensor | None = None,
    max_slope: float | None = None,
    rare: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """Return the binary cross-entropy of ``APA(logits)``, one term per class.

    The label's class contributes ``-ln APA(z)``, every other ``-ln(1 - APA(z))``; both
    are formed from ``ln APA`` and never from a clamped probability. ``lam = 1`` is
    binary cross-entropy with logits, ``lam = 0`` that of the Gumbel classifier (GOL,
    Alexandridis et al., ECCV 2022, arXiv 2207.10936).

    With ``rare``, negatives of rare classes are dropped (DropLoss, Hsieh et al., AAAI
    2021): all of them in rows whose label is a class; in background rows each is kept
    with probability (rows with a rare label) / (rows whose label is a class), or 0 if
    no label is a class. The choice is seeded by one number from torch's generator for
    the device.

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
        rare: Shape (C,), bool: which classes are rare; None drops nothing.
        reduction: ``'none'``, or ``'sum'``, which allocates nothing of shape (N, C).

    Returns:
        Losses of shape (N, C), or their sum of shape (); in float32 or better.

    Raises:
        TypeError: If ``logits``, ``lam`` or ``kappa`` is not a floating-point tensor,
            or ``labels`` is not int64.
        ValueError: If shapes or devices do not fit, ``max_slope`` is not positive or
            ``reduction`` is unknown.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and labels "
            f"{tuple(labels.shape)}, expected (N, C) and (N,)"
        )
    if labels.dtype != torch.int64:
        raise TypeError(
            f"labels is {labels.dtype}, expected torch.int64; convert it with "
            f"labels.long()"
        )
    if weight is not None:
        sizes = zip(weight.shape[::-1], logits.shape[::-1])
        if weight.dim() > 2 or any(own not in (size, 1) for own, size in sizes):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, expected one that broadcasts "
                f"to that of logits, {tuple(logits.shape)}; give a weight for each row "
                f"the shape ({logits.shape[0]}, 1)"
            )
    if max_slope is not None and not max_slope > 0:
        raise ValueError(f"max_slope={max_slope}, expected a positive number or None")
    if reduction not in ("none", "sum"):
        raise ValueError(f"reduction={reduction!r}, expected 'none' or 'sum'")
    if rare is not None and (
        rare.shape != logits.shape[1:] or rare.dtype != torch.bool
    ):
        raise ValueError(
            f"rare is {rare.dtype} of shape {tuple(rare.shape)}, expected torch.bool "
            f"of shape ({logits.shape[1]},)"
        )
    check(logits, lam, kappa, 1)
    given = dict(labels=labels, lam=lam, kappa=kappa, weight=weight, rare=rare)
    for name, tensor in given.items():
        if tensor is not None and tensor.device != logits.device:
            raise ValueError(
                f"{name} is on {tensor.device} and logits on {logits.device}; move "
                f"both to one device"
            )
    seed = None
    if rare is not None:
        seed = torch.randint(1 << 62, (1,), device=logits.device)
    args = (logits, labels, lam, kappa, weight, rare, seed, max_slope)
    if is_native(logits, lam, kappa):
        return torch.ops.apa_mmdet.cross_entropy.default(*args, reduction == "sum")
    loss = _CrossEntropy.apply(*args)
    return loss.sum() if reduction == "sum" else loss


# Logits processed at a time, by device: temporaries of this size are small beside
# proposals x 1,203 classes, and on a CPU stay within its cache.
_PIECE = {"cpu": 1 << 15, "cuda": 1 << 22}


class _CrossEntropy(Function):
    """The cross-entropy in plain torch."""

    @staticmethod
    def forward(ctx, logits, labels, lam, kappa, weight, rare, seed, max_slope):
        ctx.save_for_backward(logits, labels, lam, kappa, weight, rare, seed)
        ctx.max_slope = max_slope
        loss = logits.new_empty(logits.shape, dtype=compute_dtype(logits, lam, kappa))
        for rows in _row_pieces(logits):
            own, _, _ = _terms(
                logits[rows], labels[rows], lam, kappa, max_slope, with_grads=False
            )
            loss[rows] = own * _factor(rows, logits, labels, weight, rare, seed)
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        logits, labels, lam, kappa, weight, rare, seed = ctx.saved_tensors
        need_logits, _, need_lam, need_kappa = ctx.needs_input_grad[:4]
        grad_logits = torch.empty_like(logits) if need_logits else None
        of_lam, of_kappa = (
            param.new_zeros(param.shape, dtype=grad_output.dtype)
            for param in (lam, kappa)
        )
        with torch.no_grad():
            for rows in _row_pieces(logits):
                _, r, m = _terms(logits[rows], labels[rows], lam, kappa, ctx.max_slope)
                grad = grad_output[rows] * _factor(
                    rows, logits, labels, weight, rare, seed
                )
                r = r * grad
                if need_logits:
                    grad_logits[rows] = r * broadcast(kappa, r, 1, r.dtype)
                if need_lam:
                    of_lam += reduce(m * grad, of_lam, 1)
                if need_kappa:
                    of_kappa += reduce(r * logits[rows], of_kappa, 1)
        grads = (
            grad_logits,
            of_lam.to(lam.dtype) if need_lam else None,
            of_kappa.to(kappa.dtype) if need_kappa else None,
        )
        grads = first_order_only((logits, lam, kappa), grads)
        return grads[0], None, *grads[1:], None, None, None, None


def _row_pieces(logits: Tensor) -> Iterator[slice]:
    rows, classes = logits.shape
    if torch.compiler.is_compiling():  # the loop would be unrolled
        yield slice(None)
        return
    size = max(_PIECE.get(logits.device.type, 1 << 22) // max(classes, 1), 1)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _terms(logits, labels, lam, kappa, max_slope, with_grads=True):
    """Return each element's loss and, if ``with_grads``, its ``r`` and ``m``.

    The loss's derivatives by ``z``, ``kappa`` and ``lam`` are ``kappa * r``, ``z * r``
    and ``m``.
    """
    x, lam, kappa = prepare(logits, lam, kappa, 1)
    u = kappa * x
    others = formula.negative_cross_entropy(u, lam, with_grads)
    own = formula.positive_cross_entropy(u, lam, max_slope, with_grads)
    is_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    loss = torch.where(is_label, own[0], others[0])
    if not with_grads:
        return loss, None, None
    return loss, *(torch.where(is_label, -a, b) for a, b in zip(own[1:], others[1:]))


def _factor(rows, logits, labels, weight, rare, seed) -> Tensor | float:
    """Return the factors of some rows' losses."""
    factor = 1.0 if weight is None else weight.expand(logits.shape)[rows]
    if rare is None:
        return factor
    classes = torch.arange(logits.shape[1], device=logits.device)
    named = (labels >= 0) & (labels < len(classes))
    of_rare = rare[labels.clamp(0, len(classes) - 1)] & named
    share = of_rare.sum().float() / named.sum().clamp(min=1).float()
    n = torch.arange(len(labels), device=logits.device)[rows]
    drawn = _draw(n, classes, seed) < share
    is_label = labels[rows, None] == classes
    return factor * (is_label | ~rare | (drawn & ~named[rows, None]))


_BITS = (1 << 32) - 1


def _draw(rows: Tensor, classes: Tensor, seed: Tensor) -> Tensor:
    """Return the same pseudo-random numbers in [0, 1) as the kernels use."""
    low, high = seed & _BITS, seed >> 32
    of_row = _mix((rows + low) & _BITS)[:, None]
    of_class = (classes * 0x9E3779B9 + high) & _BITS
    return (_mix(of_row ^ of_class) >> 8).float() * 2.0**-24


def _mix(bits: Tensor) -> Tensor:
    """Hash 32 bits."""
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x85EBCA6B) & _BITS
    bits = bits ^ (bits >> 13)
    bits = (bits * 0xC2B2AE35) & _BITS
    return bits ^ (bits >> 16)

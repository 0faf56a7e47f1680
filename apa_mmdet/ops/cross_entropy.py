"""The cross-entropy of APA, one term per class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from . import formula
from .plain import broadcast as _broadcast
from .plain import check, compute_dtype, first_order_only
from .plain import prepare as _prepare
from .plain import reduce as _reduce

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

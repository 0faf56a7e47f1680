r"""AGLU on a CPU for one pair (lam, kappa): few operations, in pieces that fit a cache.

An eager formula walks through memory once per operation, and that is what it costs.
Here every operation but the first finds its operands in the cache, and the formula is
cut to what AGLU needs (notation of :mod:`apa_mmdet.ops.formula`): with
``t = ln(lam) - kappa * x`` and ``L = softplus(t)``,

- ``AGLU = x * h * h`` with ``h = exp(-L / (2 * lam)) = sqrt(APA)``;
- ``APA * r = e * e`` with ``e = exp((t - L - L / lam - ln(lam)) / 2)``, since
  ``ln s = t - L``;
- ``L - s = s**2 * b`` with ``s = sigmoid(t)``, ``i = 1 / (2 - s)``, ``y = s * i`` and
  ``b = i + 2 * y * i**2 * (1/3 + y**2/5 + y**4/7 + ...)``, without cancellation.

Square roots are carried so that a product is right wherever it is a normal number,
for ``|x| <= 1e4``. Where it would not be, factors are held up or rounded to zero: a CPU
takes a hundred times longer over subnormal numbers, and a ReLU-like kappa makes many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .formula import atanh_series

# Elements per piece: large enough to occupy torch's threads (32,768 elements each).
_PIECE = 1 << 17
# ln(lam) must not dwarf kappa * x, or rounding t would spoil exp(t).
_LAM_RANGE = (1e-4, 1e4)
# Below this s the series is used; above it L - s loses no more than three bits.
_SERIES_BELOW = 0.35
# Below this s the series is 1/3 to rounding, and y**2 would soon be subnormal.
_SERIES_FROM = 1e-18
_SERIES_TERMS = {torch.float32: 6, torch.float64: 13}
# softplus(t) is t, to rounding, beyond this.
_SOFTPLUS_LINEAR = {torch.float32: 20.0, torch.float64: 40.0}


def applies(x: Tensor, lam: Tensor, kappa: Tensor) -> bool:
    """Tell whether :func:`aglu` and :func:`aglu_backward` can take these tensors."""
    return (
        x.device.type == "cpu"
        and lam.numel() == kappa.numel() == 1
        and not torch.compiler.is_compiling()
        and _is_dense(x)
        and _LAM_RANGE[0] <= lam.item() <= _LAM_RANGE[1]
        and math.isfinite(kappa.item())
    )


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _pieces(*tensors: Tensor | None) -> Iterator[list[Tensor | None]]:
    """Yield aligned flat views of dense tensors, in memory order; None stays None."""
    flat = [None if t is None else t.as_strided((t.numel(),), (1,)) for t in tensors]
    for start in range(0, tensors[0].numel(), _PIECE):
        yield [None if f is None else f[start : start + _PIECE] for f in flat]


def _lowest(dtype: torch.dtype) -> float:
    """Return the logarithm of a root whose square no product can make normal again."""
    return 0.5 * math.log(torch.finfo(dtype).tiny) - 15


def _log_terms(x: Tensor, lam: float, kappa: float) -> tuple[Tensor, Tensor]:
    """Return ``t`` and ``L``."""
    info = torch.finfo(x.dtype)
    # An infinite kappa * x of finite factors would turn t - L into NaN; the margin
    # lets L / lam be finite too.
    t = x.mul(-kappa).add_(math.log(lam)).clamp_(-info.max / 1e6, info.max / 1e6)
    # L / lam is below rounding there.
    floor = math.log(min(lam, 1) * info.eps / 16)
    return t, F.softplus(t.clamp(min=floor), threshold=_SOFTPLUS_LINEAR[x.dtype])


def _exp(logarithm: Tensor) -> Tensor:
    """Replace the logarithm of a root by the root, or by 0 if its square is nothing."""
    low = _lowest(logarithm.dtype)
    return F.threshold_(logarithm.clamp_(min=low).exp_(), math.exp(low + 5), 0.0)


def aglu(x: Tensor, lam: float, kappa: float, dtype: torch.dtype) -> Tensor:
    """Return ``AGLU(x)`` in the dtype and layout of ``x``, computed in ``dtype``."""
    out = torch.empty_like(x)
    for piece, result in _pieces(x, out):
        piece = piece.to(dtype)
        root = _exp(_log_terms(piece, lam, kappa)[1].mul_(-0.5 / lam))
        result.copy_(root * piece * root)
    return out


def aglu_backward(
    x: Tensor,
    grad_output: Tensor,
    lam: float,
    kappa: float,
    dtype: torch.dtype,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, float, float]:
    """Return the gradients of ``x``, ``lam`` and ``kappa``.

    Args:
        x: AGLU's input.
        grad_output: The gradient of its result.
        lam: Within the range that :func:`applies` accepts.
        kappa: Any finite value.
        dtype: What to compute in.
        needs: Which gradients are wanted; the others are None, 0 and 0.
    """
    need_x, need_lam, need_kappa = needs
    if grad_output.stride() != x.stride():
        grad_output = torch.empty_like(x).copy_(grad_output)
    grad_x = torch.empty_like(x) if need_x else None
    grad_lam = grad_kappa = 0.0
    for piece, grad, result in _pieces(x, grad_output, grad_x):
        piece, grad = piece.to(dtype), grad.to(dtype)
        t, log1p_w = _log_terms(piece, lam, kappa)
        root = _exp(log1p_w.mul(-0.5 / lam))
        if need_lam:
            q, b = _curvature(t, log1p_w)
            q.mul_(1 / lam)
            q.mul_(root)
            b.mul_(q)
            grad_lam += torch.dot(q.mul_(piece).mul_(grad), b).item()
        # From here on t is e, the root of APA * r.
        t.add_(log1p_w, alpha=-1 - 1 / lam).sub_(math.log(lam))
        t = _exp(t.mul_(0.5))
        scaled = F.hardshrink(t * piece, math.sqrt(torch.finfo(dtype).tiny))
        if need_kappa:
            grad_kappa += torch.dot(grad * scaled, scaled).item()
        if need_x:
            derivative = root.mul_(root).addcmul_(scaled, t, value=kappa)
            result.copy_(derivative.mul_(grad))
    return grad_x, grad_lam, grad_kappa


def _curvature(t: Tensor, log1p_w: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``L - s`` into ``(s, b)`` with ``L - s = s * b * s``.

    Up to ``s = c`` it is the series; from there on, the series at ``c`` plus what
    ``L - s`` has grown since. Clamps select the part: torch.where is not vectorised.
    """
    c = _SERIES_BELOW
    s = t.clamp(_lowest(t.dtype), -_lowest(t.dtype)).sigmoid_()
    low = s.clamp(max=c)
    i = (2 - low).reciprocal_()
    y = s.clamp(_SERIES_FROM, c).mul_(i)
    series = atanh_series(y, _SERIES_TERMS[t.dtype])
    b = series.mul_(y).mul_(i).mul_(2).add_(1).mul_(i)
    start = -math.log1p(-c)
    grown = log1p_w.clamp(min=start).sub_(start).sub_(s - low)
    inverse = s.reciprocal()
    b.mul_(low.mul_(inverse).square_()).add_(grown.mul_(inverse).mul_(inverse))
    return s, b

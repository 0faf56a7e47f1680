r"""Closed forms of APA and AGLU in plain torch: the reference for all other code.

Notation, as in Adaptive Parametric Activation (Alexandridis et al., ECCV 2024):

- ``APA(z) = (1 + lam * exp(-kappa * z)) ** (-1 / lam)``, ``AGLU(z) = z * APA(z)``;
- ``u = kappa * z``, ``w = lam * exp(-u)``, ``L = log1p(w)``, ``s = w / (1 + w)``;
- ``a = -ln APA = L / lam``, ``r = s / lam``, ``m = (L - s) / lam**2``.

With these, ``dAPA/dz = APA * kappa * r``, ``dAPA/dkappa = APA * z * r`` and
``dAPA/dlam = APA * m``; AGLU multiplies by ``z`` and adds ``APA`` to the first. For
``lam -> 0`` they become ``a = exp(-u)``, ``r = exp(-u)``, ``m = exp(-2u) / 2``.

Every function takes floating tensors of one dtype (float32 or float64) that broadcast
against each other, expects ``lam >= 0``, and returns tensors of the broadcast shape.
Nothing here is meant to be differentiated by autograd: masked-out branches may hold
infinities. The derivatives are functions of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Beyond this many e-foldings w = lam * exp(-u) may overflow; ln w is then formed from
# its parts. The rounding of ln(lam) - u is harmless there because L is that large.
_FAR = 60.0
# Terms of the series for (L - s) at w <= 1, where its argument y is at most 1/3.
_SERIES_TERMS = {torch.float32: 8, torch.float64: 16}


@dataclass
class _Parts:
    """What values and derivatives share; see the module's notation."""

    u: Tensor
    v: Tensor  # exp(-|u|), kept off zero
    negative: Tensor  # u < 0
    w: Tensor
    log1p_w: Tensor  # L
    a: Tensor


def _parts(u: Tensor, lam: Tensor) -> _Parts:
    info = torch.finfo(u.dtype)
    # An infinite kappa * x of finite factors would turn 0 * u into NaN.
    u = u.clamp(-info.max / 4, info.max / 4)
    v = u.abs().neg_().exp_().clamp_(min=info.tiny)
    negative = u < 0
    e = torch.where(negative, 1 / v, v)
    w = lam * e
    log1p_w = torch.where(u < -_FAR, (lam + v).log() - u, w.log1p())
    # For w < eps, log1p(w) / lam is exp(-u) to rounding; that also serves lam = 0.
    a = torch.where(w < info.eps, e, log1p_w / lam)
    return _Parts(u, v, negative, w, log1p_w, a)


def _root(a: Tensor) -> Tensor:
    """Return ``sqrt(APA)``: normal wherever a product with ``APA`` is normal."""
    return (a * -0.5).exp_()


def log_apa(x: Tensor, lam: Tensor, kappa: Tensor) -> Tensor:
    """Return ``ln APA(x) = -log1p(lam * exp(-kappa * x)) / lam``."""
    return _parts(kappa * x, lam).a.neg()


def log_apa_exportable(x: Tensor, lam: Tensor, kappa: Tensor) -> Tensor:
    """Return ``ln APA(x)`` in operations that export formats have, and few of them.

    ``-softplus(t) / lam`` with ``t = ln(lam) - kappa * x``. Below 1e-6, ``lam`` is
    taken as 1e-6, which changes APA by less than 3e-7. Rounding ``t`` costs APA a
    relative error of up to 1e-6 * (1 + ``|ln APA|``) in float32.
    """
    lam = lam.clamp(min=1e-6)
    t = lam.log() - kappa * x
    e = t.abs().neg().exp()
    # ln(1 + e) loses e to the rounding of 1 + e; the second term brings it back.
    rounded = 1 + e
    log1p_e = rounded.log() + (e - (rounded - 1)) / rounded
    return (t.relu() + log1p_e) * (-1 / lam)


def apa(x: Tensor, lam: Tensor, kappa: Tensor) -> Tensor:
    """Return ``APA(x)``, in [0, 1]."""
    return _root(_parts(kappa * x, lam).a).square_()


def aglu(x: Tensor, lam: Tensor, kappa: Tensor) -> Tensor:
    """Return ``AGLU(x) = x * APA(x)``."""
    root = _root(_parts(kappa * x, lam).a)
    return (x * root).mul_(root)


def _over_v(parts: _Parts, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(n, c, d)`` with ``exp(-u) = n / c`` and ``1 + w = d / c``.

    None of them overflows, however large ``|u|``.
    """
    n = torch.where(parts.negative, 1.0, parts.v)
    c = torch.where(parts.negative, parts.v, 1.0)
    return n, c, c + lam * n


def _rate(parts: _Parts, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``r`` into factors ``(rate, g)`` with ``r = rate * g``.

    ``g = exp(-u / 2)`` for positive ``u`` keeps both normal where ``exp(-u)`` alone
    would be subnormal.
    """
    g = (parts.u.clamp(min=0) * -0.5).exp_()
    return g / _over_v(parts, lam)[2], g


def atanh_series(y: Tensor, terms: int) -> Tensor:
    """Return ``(atanh(y) - y) / y**3 = 1/3 + y**2/5 + y**4/7 + ...`` to ``terms``."""
    y2 = y * y
    series = torch.full_like(y2, 1 / (2 * terms + 1))
    for k in range(terms - 1, 0, -1):
        series.mul_(y2).add_(1 / (2 * k + 1))
    return series


def _curvature(parts: _Parts, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``m`` into factors ``(q, b)`` with ``m = q * b * q``.

    ``L - s`` cancels for small ``w``. With ``y = w / (2 + w)`` it is
    ``2y**2 / (1 + y) + 2y**3 * (1/3 + y**2/5 + y**4/7 + ...)``, from
    ``log1p(w) = 2 atanh(y)`` and ``s = 2y / (1 + y)``: positive terms only. ``y / lam``
    is formed without dividing by ``lam``.
    """
    dtype = parts.u.dtype
    n, c, d = _over_v(parts, lam)
    q_small = n / (c + d)
    y = lam * q_small
    series = atanh_series(y, _SERIES_TERMS[dtype])
    b_small = 2 / (1 + y) + 2 * y * series
    b_large = parts.log1p_w - lam * n / d
    small = parts.w <= 1
    q = torch.where(small, q_small, 1 / lam.clamp(min=torch.finfo(dtype).tiny))
    return q, torch.where(small, b_small, b_large)


def apa_grads(
    x: Tensor, lam: Tensor, kappa: Tensor, need_lam: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return ``APA``'s derivatives by ``x``, ``lam`` (or None) and ``kappa``."""
    parts = _parts(kappa * x, lam)
    root = _root(parts.a)
    rate, g = _rate(parts, lam)
    common = (root * rate) * (root * g)
    d_lam = None
    if need_lam:
        q, b = _curvature(parts, lam)
        d_lam = (root * q) * b * (root * q)
    return kappa * common, d_lam, x * common


def aglu_grads(
    x: Tensor, lam: Tensor, kappa: Tensor, need_lam: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return ``AGLU``'s derivatives by ``x``, ``lam`` (or None) and ``kappa``."""
    parts = _parts(kappa * x, lam)
    root = _root(parts.a)
    rate, g = _rate(parts, lam)
    d_x = root * (root + (root * rate) * parts.u * g)
    d_kappa = (x * root * rate) * (x * root * g)
    d_lam = None
    if need_lam:
        q, b = _curvature(parts, lam)
        d_lam = (x * root * q) * b * (root * q)
    return d_x, d_lam, d_kappa


def positive_cross_entropy(
    u: Tensor, lam: Tensor, max_slope: float | None = None, with_grads: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return ``(a, r, m)`` at ``u = kappa * z``, where ``a = -ln APA(z)``.

    The derivatives of ``a`` by ``z``, ``kappa`` and ``lam`` are ``-kappa * r``,
    ``-z * r`` and ``-m``.

    ``a`` grows like ``exp(-u)`` where ``lam`` is near 0. With ``max_slope``, it
    continues along its tangent from the point where ``r`` reaches that value; for
    ``lam >= 1 / max_slope`` there is no such point and ``a`` is exact everywhere.

    Without ``with_grads``, ``r`` and ``m`` are None.
    """
    if max_slope is None:
        parts = _parts(u, lam)
        excess = 0.0
    else:
        # r = 1 / (lam + exp(u)) = max_slope; the logarithm is -inf if never reached.
        bound = (1 / max_slope - lam).clamp(min=0).log()
        bounded = torch.maximum(u, bound)
        parts = _parts(bounded, lam)
        excess = max_slope * (bounded - u)
    if not with_grads:
        return parts.a + excess, None, None
    rate, g = _rate(parts, lam)
    q, b = _curvature(parts, lam)
    return parts.a + excess, rate * g, q * b * q


def negative_cross_entropy(
    u: Tensor, lam: Tensor, with_grads: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return ``(c, r, m)`` at ``u = kappa * z``, where ``c = -ln(1 - APA(z))``.

    The derivatives of ``c`` by ``z``, ``kappa`` and ``lam`` are ``kappa * r``,
    ``z * r`` and ``m``. Without ``with_grads``, ``r`` and ``m`` are None.
    """
    parts = _parts(u, lam)
    a, u = parts.a, parts.u
    near = torch.where(a < math.log(2), -(-(-a).expm1()).log(), -(-(-a).exp()).log1p())
    # c = u + (lam + 1) * exp(-u) / 2 + O(exp(-2u)) for large u, where the value of a
    # itself may have underflowed.
    far = (u > _FAR / 2) & (parts.w < 1e-8)
    loss = torch.where(far, u + (lam + 1) * parts.v * 0.5, near)
    if not with_grads:
        return loss, None, None
    odds = 1 / a.expm1()  # APA / (1 - APA) = -dc/da
    n, _, d = _over_v(parts, lam)
    q, b = _curvature(parts, lam)
    return loss, odds * (n / d), (odds * q) * b * q


def logit(p: Tensor, lam: Tensor, kappa: Tensor) -> Tensor:
    """Return ``z`` with ``APA(z) = p``: ``-ln((p**-lam - 1) / lam) / kappa``.

    Args:
        p: Probabilities in (0, 1).
        lam: Values >= 0; 0 is the Gumbel limit ``z = -ln(-ln p) / kappa``.
        kappa: Non-zero values.
    """
    a = -p.log()
    # (exp(lam * a) - 1) / lam, by its limit a where lam * a is below rounding.
    t = lam * a
    grown = torch.where(t < torch.finfo(p.dtype).eps, a, t.expm1() / lam)
    return -grown.log() / kappa

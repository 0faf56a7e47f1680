"""Triton kernels of the APA cross-entropy, launched by ``csrc/gpu_cross_entropy.cpp``.

A program processes ``steps`` tiles of BLOCK_N rows by BLOCK_C classes, one below the
other. The closed forms are those of :mod:`apa_mmdet.ops.formula`.
"""

import triton
import triton.language as tl

from .triton_activation import exp2


@triton.jit
def _exp(x):
    """Return ``exp(x)``, for ``x <= 0`` not below 2**-120."""
    k = tl.floor(tl.maximum(x, -83.0) * 1.44269504 + 0.5)
    r = (tl.maximum(x, -83.0) - k * 0.693145752) - k * 1.42860677e-6
    return exp2(r * 1.44269504) * exp2(k)


@triton.jit
def _atanh_tail(y):
    """Return ``(2 * atanh(y) - 2 * y) / y**3`` for ``y`` up to 1/3, to 4e-7."""
    y2 = y * y
    return ((y2 * 0.268515 + 0.2823662) * y2 + 0.4000756) * y2 + 0.6666664


@triton.jit
def _mix(bits):
    """Hash 32 bits."""
    bits ^= bits >> 16
    bits *= 0x85EBCA6B
    bits ^= bits >> 13
    bits *= 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def _share_rare(labels, rare, size, classes):
    """Return the fraction of rare classes among the foreground labels."""
    i = tl.arange(0, 1024)
    of_rare = tl.zeros([1024], tl.int32)
    named = of_rare
    for first in range(0, size, 1024):
        label = tl.load(labels + first + i, mask=i < size - first, other=-1)
        is_class = (label >= 0) & (label < classes)
        is_rare = tl.load(rare + label, mask=is_class, other=0) != 0
        named += is_class.to(tl.int32)
        of_rare += (is_class & is_rare).to(tl.int32)
    total = tl.maximum(tl.sum(named, 0), 1).to(tl.float32)
    return tl.sum(of_rare, 0).to(tl.float32) / total


@triton.jit
def _factors(
    labels, weight, rare, seed, share, n, c, rows, classes, weight_row, weight_class,
):  # fmt: skip
    """Return which elements are their row's label, the weights, and the mask."""
    inside = (n < rows)[:, None] & (c < classes)[None, :]
    label = tl.load(labels + n, mask=n < rows, other=-1)
    is_label = label[:, None] == c[None, :].to(tl.int64)
    factor = tl.where(inside, 1.0, 0.0)
    if weight is not None:
        at = n.to(tl.int64)[:, None] * weight_row + c[None, :] * weight_class
        factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if rare is not None:
        is_rare = (tl.load(rare + c, mask=c < classes, other=0) != 0)[None, :]
        is_background = ((label < 0) | (label >= classes))[:, None]
        key = tl.load(seed)
        low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
        of_row = _mix(n.to(tl.uint32) + low)[:, None]
        of_class = (c.to(tl.uint32) * 0x9E3779B9 + high)[None, :]
        drawn = (_mix(of_row ^ of_class) >> 8).to(tl.float32) * 5.9604644775390625e-8
        kept = is_label | (is_background & (drawn < share)) | (is_rare == 0)
        factor = tl.where(kept, factor, 0.0)
    return is_label, factor, inside


@triton.jit
def _terms(z, is_label, lam, kappa, max_slope, WITH_GRADS: tl.constexpr):
    """Return each element's loss (twice) or, WITH_GRADS, its ``r`` and ``m``.

    The loss's derivatives by ``z``, ``kappa`` and ``lam`` are ``kappa * r``, ``z * r``
    and ``m``.
    """
    lam = tl.where(lam > 0, lam, lam * 0.0)  # NaN stays NaN
    inv_lam = 1.0 / tl.maximum(lam, 1e-30)
    u = tl.clamp(kappa * z, -8e37, 8e37, propagate_nan=tl.PropagateNan.ALL)
    bounded = u
    if max_slope is not None:
        # r = 1 / (lam + exp(u)) reaches max_slope there, if anywhere.
        bound = tl.log(tl.maximum(1.0 / max_slope - lam, 0.0))
        bounded = tl.where(is_label & (u < bound), bound, u)
    v = _exp(-tl.abs(bounded))
    right = bounded >= 0
    n, c = tl.where(right, v, 1.0), tl.where(right, 1.0, v)  # exp(-u) = n / c
    scaled = lam * n
    is_far = scaled > c  # w > 1
    e = tl.minimum(scaled, c) / tl.maximum(scaled, c)
    y = e / (2.0 + e)
    tail = _atanh_tail(y)
    log1p_w = 2.0 * y + (y * y * y) * tail
    log1p_w += tl.where(is_far, tl.log(tl.maximum(lam, 1e-30)) - bounded, 0.0)
    a = tl.where(scaled < 1.1920929e-7 * c, n / c, log1p_w * inv_lam)
    nothing = (u + scaled) * 0.0  # 0, or a NaN that comparisons have hidden
    # 1 - exp(-a), the probability of no label
    x = tl.where(a > 80.0, 0.0, _exp(-a))
    p = a * 0.000152226625 - 0.0013538755
    p = p * a + 0.0083214464
    p = p * a - 0.0416652672
    p = p * a + 0.1666667610
    p = (p * a - 0.5) * a + 1.0
    is_near = a < 0.6931472
    rest = tl.where(is_near, a * p, 1.0 - x)
    if WITH_GRADS:
        d = c + scaled
        rate = n / d
        q = n / (c + d)
        near = 2.0 / (1.0 + y) + y * tail
        far = (log1p_w - scaled / d) * inv_lam * inv_lam
        odds = x / rest
        r = tl.where(is_label, -rate, odds * rate) + nothing
        sign = tl.where(is_label, -1.0, odds)
        m = tl.where(is_far, sign * far, (sign * q) * near * q)
        return r, m
    else:
        half = x / (2.0 - x)
        log = 2.0 * half + (half * half * half) * _atanh_tail(half)
        other = tl.where(is_near, -tl.log(rest), log)
        # Where u is large, a itself may have underflowed.
        vanished = (bounded > 30.0) & (scaled < 1e-8)
        other = tl.where(vanished, bounded + (lam + 1.0) * v * 0.5, other)
        if max_slope is not None:
            a += max_slope * (bounded - u)
        loss = tl.where(is_label, a, other) + nothing
        return loss, loss


@triton.jit
def _parameter(ptr, c, classes, EACH: tl.constexpr):
    if EACH:
        return tl.load(ptr + c, mask=c < classes, other=1.0).to(tl.float32)[None, :]
    else:
        return tl.load(ptr).to(tl.float32)


@triton.jit
def loss_kernel(
    logits, labels, lam, kappa, weight, rare, seed, out, sums,
    rows, classes, steps, weight_row, weight_class, max_slope,
    LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write each element's loss to ``out``, or each program's total to ``sums``."""
    program = tl.program_id(0)
    num_c = tl.cdiv(classes, BLOCK_C)
    c = program % num_c * BLOCK_C + tl.arange(0, BLOCK_C)
    first = program // num_c * steps
    own_lam = _parameter(lam, c, classes, LAM_EACH)
    own_kappa = _parameter(kappa, c, classes, KAPPA_EACH)
    share = 0.0
    if rare is not None:
        share = _share_rare(labels, rare, rows, classes)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for step in range(steps):
        n = (first + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        is_label, factor, inside = _factors(
            labels, weight, rare, seed, share, n, c, rows, classes,
            weight_row, weight_class,
        )  # fmt: skip
        at = n.to(tl.int64)[:, None] * classes + c[None, :]
        z = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
        loss, _ = _terms(z, is_label, own_lam, own_kappa, max_slope, False)
        loss *= factor
        if out is not None:
            tl.store(out + at, loss, mask=inside)
        if sums is not None:
            total += tl.where(inside, loss, 0.0)
    if sums is not None:
        tl.store(sums + program, tl.sum(tl.sum(total, 1), 0))


@triton.jit
def loss_backward_kernel(
    grad, logits, labels, lam, kappa, weight, rare, seed, grad_logits, sums,
    rows, classes, steps, weight_row, weight_class, grad_row, grad_class, sums_stride,
    max_slope,
    LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the logits' gradient, and sums for the gradients of lam and kappa.

    The sums are per class, or per program if all classes share the parameter.
    """
    program = tl.program_id(0)
    num_c = tl.cdiv(classes, BLOCK_C)
    c = program % num_c * BLOCK_C + tl.arange(0, BLOCK_C)
    first = program // num_c * steps
    own_lam = _parameter(lam, c, classes, LAM_EACH)
    own_kappa = _parameter(kappa, c, classes, KAPPA_EACH)
    share = 0.0
    if rare is not None:
        share = _share_rare(labels, rare, rows, classes)
    of_lam = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    of_kappa = of_lam
    for step in range(steps):
        n = (first + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        is_label, factor, inside = _factors(
            labels, weight, rare, seed, share, n, c, rows, classes,
            weight_row, weight_class,
        )  # fmt: skip
        at = n.to(tl.int64)[:, None] * classes + c[None, :]
        z = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
        from_at = n.to(tl.int64)[:, None] * grad_row + c[None, :] * grad_class
        g = tl.load(grad + from_at, mask=inside, other=0.0).to(tl.float32) * factor
        r, m = _terms(z, is_label, own_lam, own_kappa, max_slope, True)
        r *= g
        if grad_logits is not None:
            own = (r * own_kappa).to(grad_logits.dtype.element_ty)
            tl.store(grad_logits + at, own, mask=inside)
        if sums is not None:
            of_lam += tl.where(inside, m * g, 0.0)
            of_kappa += tl.where(inside, r * z, 0.0)
    if sums is not None:
        to = sums + (program // num_c).to(tl.int64) * classes + c
        if LAM_EACH:
            tl.store(to, tl.sum(of_lam, 0), mask=c < classes)
        else:
            tl.store(sums + program, tl.sum(tl.sum(of_lam, 1), 0))
        if KAPPA_EACH:
            tl.store(to + sums_stride, tl.sum(of_kappa, 0), mask=c < classes)
        else:
            tl.store(sums + sums_stride + program, tl.sum(tl.sum(of_kappa, 1), 0))

"""Triton kernels of APA and AGLU: one pass over memory forward, one backward.

``csrc/gpu_activation.cpp`` divides a tensor into tiles and launches them;
:mod:`apa_mmdet.ops.gpu_variants` compiles a kernel for each combination of dtypes, tile
shape and arguments that are present. An absent argument is the constant None.

A tensor is viewed as (batch, channels, inner), or as (batch, inner, channels) if
``PIXELS``. A tile has BLOCK_C channels by BLOCK_I elements. A program processes one,
in the backward kernel up to ``steps`` consecutive ones, for whose parameters' gradients
it writes a row of sums; :func:`reduce_kernel` adds these up in a fixed order.

Notation of :mod:`apa_mmdet.ops.formula`. With ``t = ln(lam) - kappa * z`` and
``E = exp(-|t|)``:

- ``L = max(t, 0) + ln(1 + E)`` and ``APA = exp(-L / lam)``;
- ``s = sigmoid(t)``, and ``L - s`` is formed without cancellation from
  ``y = E / (2 + E) <= 1 / 3``, where ``ln(1 + E) = 2 atanh(y)``.

"lb" is the logarithm to base 2; ``lb_kappa = kappa / ln(2)``.

Below ``lam = 2**-23``, zero and negative values included, that value is used: APA then
differs from its limit by less than 1e-7.
"""

import os

import torch
import triton
import triton.language as tl

# The approximate instructions flush subnormal numbers to zero, which is harmless here.
# Without them, handling subnormals costs three more instructions each time.
_PTX = tl.constexpr(
    torch.version.hip is None and os.environ.get("TRITON_INTERPRET") != "1"
)


@triton.jit
def exp2(x):
    """Return ``2**x``."""
    if _PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
        )
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x):
    """Return ``1 / x`` for a normal number."""
    if _PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
        )
    else:
        return 1.0 / x


@triton.jit
def log2(x):
    """Return ``log2(x)`` for a normal number."""
    if _PTX:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
        )
    else:
        return tl.log2(x)


@triton.jit
def bounded(x, most: tl.constexpr):
    """Return ``min(x, most)``, NaN for NaN."""
    return tl.minimum(x, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _per_channel(ptr, c, channels, EACH: tl.constexpr, BLOCK_C: tl.constexpr):
    """Load a parameter: a column with one value per channel, or a scalar."""
    if EACH:
        if BLOCK_C == 1:
            return tl.load(ptr + c).to(tl.float32)[:, None]
        else:
            return tl.load(ptr + c, mask=c < channels, other=1.0).to(tl.float32)[
                :, None
            ]
    else:
        return tl.load(ptr).to(tl.float32)


@triton.jit
def _coefficients(
    lam_ptr, kappa_ptr, c, channels,
    LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return ``log2(lam)``, ``1 / lam`` and ``kappa / ln(2)``."""
    lam = _per_channel(lam_ptr, c, channels, LAM_EACH, BLOCK_C)
    kappa = _per_channel(kappa_ptr, c, channels, KAPPA_EACH, BLOCK_C)
    lam = tl.where(lam < 2.0**-23, 2.0**-23, lam)  # NaN stays NaN
    return log2(lam), reciprocal(lam), kappa * 1.4426950408889634


@triton.jit
def _normalization(
    weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, c, channels, BLOCK_C: tl.constexpr
):
    """Return weight, bias, mean and inverse deviation, each a column of channels."""
    mean = _per_channel(mean_ptr, c, channels, True, BLOCK_C)
    inverse = tl.rsqrt(_per_channel(var_ptr, c, channels, True, BLOCK_C) + eps)
    weight, bias = tl.full(mean.shape, 1.0, tl.float32), tl.zeros_like(mean)
    if weight_ptr is not None:
        weight = _per_channel(weight_ptr, c, channels, True, BLOCK_C)
    if bias_ptr is not None:
        bias = _per_channel(bias_ptr, c, channels, True, BLOCK_C)
    return weight, bias, mean, inverse


@triton.jit
def _affine(
    weight, bias, mean, var, gate, r_weight, r_bias, r_mean, r_var, eps, r_eps,
    b, c, channels, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return scale, shift, mean, rstd, and scale, mean, rstd of the residual.

    ``z = (x - mean) * scale + shift + (r - r_mean) * r_scale``; absent ones are 0.
    """
    scale, shift, center, inverse = 0.0, 0.0, 0.0, 0.0
    r_scale, r_center, r_inverse = 0.0, 0.0, 0.0
    if mean is not None:
        scale, shift, center, inverse = _normalization(
            weight, bias, mean, var, eps, c, channels, BLOCK_C
        )
        scale *= inverse
        if gate is not None:
            row = gate + b.to(tl.int64) * channels
            own_gate = _per_channel(row, c, channels, True, BLOCK_C)
            scale *= own_gate
            shift *= own_gate
        if r_mean is not None:
            r_scale, r_shift, r_center, r_inverse = _normalization(
                r_weight, r_bias, r_mean, r_var, r_eps, c, channels, BLOCK_C
            )
            r_scale *= r_inverse
            shift += r_shift
    return scale, shift, center, inverse, r_scale, r_center, r_inverse


@triton.jit
def _apa(z, lb_lam, inv_lam, lb_kappa, HALF: tl.constexpr):
    """Return APA(z); the error of ``ln(1 + E)`` is 5e-8, or 8e-6 if HALF."""
    t = lb_lam - lb_kappa * z  # in base 2, as L
    e = exp2(-tl.abs(t))
    if HALF:
        p = e * -0.034435857 + 0.14603275
        p = p * e - 0.30303606
        p = p * e + 0.469174
        p = p * e - 0.72042614
        p = p * e + 1.4426829
    else:
        p = e * 0.007395402 - 0.04194501
        p = p * e + 0.111832075
        p = p * e - 0.19623895
        p = p * e + 0.2752212
        p = p * e - 0.35829908
        p = p * e + 0.4806789
        p = p * e - 0.7213395
        p = p * e + 1.442695
    return exp2((p * e + tl.maximum(t, 0.0)) * -inv_lam)


@triton.jit
def _slopes(z, lb_lam, inv_lam, lb_kappa, HALF: tl.constexpr):
    """Return APA(z), ``s`` and ``L - s``."""
    t = bounded(lb_lam - lb_kappa * z, 1e30)  # APA is 0 long before; L stays finite
    e = exp2(-tl.abs(t))
    one, two = 1.0 + e, 2.0 + e
    q = reciprocal(one * two)
    eq = e * q
    y = eq * one
    y2 = y * y
    if HALF:  # 2/3 + 2/5 * y2 + ... to 2e-5, otherwise to 4e-7
        tail = (y2 * 0.32702854 + 0.3982209) * y2 + 0.6666778
    else:
        tail = ((y2 * 0.268515 + 0.2823662) * y2 + 0.4000756) * y2 + 0.6666664
    cube = (y * y2) * tail
    log = tl.maximum(t, 0.0) * 0.6931472 + (2.0 * y + cube)
    p = exp2(log * (inv_lam * -1.4426950408889634))
    left = t > 0
    s = tl.where(left, q, eq) * two
    return p, s, tl.where(left, log - s, e * eq + cube)


@triton.jit
def _place(
    channels, inner, rows,
    FLAT: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Return where a program works.

    ``rows`` programs share each image and block of channels. If FLAT, all elements
    share their parameters, and channels are ignored.

    Returns:
        Image, channels, row of its sums, its number among the ``rows``, offset of the
        first element of the image and channels, and the offsets within a tile: along
        inner, and of each element.
    """
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_I)
    if FLAT:
        return 0, c, program, program, 0, i, c[:, None] + i[None, :]
    else:
        num_c = tl.cdiv(channels, BLOCK_C)
        rest = program // rows
        b = rest // num_c
        first_c = (rest - b * num_c) * BLOCK_C
        at_row = program - rest * rows
        start = (b.to(tl.int64) * channels) * inner
        if PIXELS:
            start += first_c
            within = c[:, None] + i[None, :] * channels
        else:
            start += first_c.to(tl.int64) * inner
            within = c[:, None] * inner + i[None, :]
        return b, first_c + c, b * rows + at_row, at_row, start, i, within


@triton.jit
def _tile(first, start, c, i, channels, inner, PIXELS: tl.constexpr,
          BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """Return the offset of a tile's first element, and the mask of its elements."""
    at = first.to(tl.int64) * BLOCK_I
    inside = (i < (inner - at))[None, :]
    if BLOCK_C > 1:
        inside = inside & (c < channels)[:, None]
    if PIXELS:
        at = at * channels
    return start + at, inside


@triton.jit
def forward_kernel(
    x, residual, out, lam, kappa, weight, bias, mean, var, gate,
    r_weight, r_bias, r_mean, r_var, eps, r_eps, slope, bound,
    channels, inner, rows,
    IS_APA: tl.constexpr, HALF: tl.constexpr, FLAT: tl.constexpr, PIXELS: tl.constexpr,
    LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write ``APA(z)`` or ``AGLU(z)``, the latter with a slope and a bound.

    ``z`` is ``x``, or ``gate * norm(x) + residual``, the residual normalized or not.
    """
    b, c, _, tile, start, i, within = _place(
        channels, inner, rows, FLAT, PIXELS, BLOCK_C, BLOCK_I
    )
    lb_lam, inv_lam, lb_kappa = _coefficients(
        lam, kappa, c, channels, LAM_EACH, KAPPA_EACH, BLOCK_C
    )
    scale, shift, center, _, r_scale, r_center, _ = _affine(
        weight, bias, mean, var, gate, r_weight, r_bias, r_mean, r_var, eps, r_eps,
        b, c, channels, BLOCK_C,
    )  # fmt: skip
    at, inside = _tile(tile, start, c, i, channels, inner, PIXELS, BLOCK_C, BLOCK_I)
    z = tl.load((x + at) + within, mask=inside, other=0.0).to(tl.float32)
    if mean is not None:
        z = (z - center) * scale + shift
    if residual is not None:
        r = tl.load((residual + at) + within, mask=inside, other=0.0).to(tl.float32)
        if r_mean is not None:
            r = (r - r_center) * r_scale
        z += r
    y = _apa(z, lb_lam, inv_lam, lb_kappa, HALF)
    if not IS_APA:
        y *= z
    if slope is not None:
        y += slope * (z - y)
    if bound is not None:
        y = tl.where(y > bound, bound, y)
    tl.store((out + at) + within, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    x, residual, grad, grad_x, grad_residual, sums,
    lam, kappa, weight, bias, mean, var, gate,
    r_weight, r_bias, r_mean, r_var, eps, r_eps, slope, bound,
    channels, inner, rows, steps, sums_stride,
    IS_APA: tl.constexpr, HALF: tl.constexpr, FLAT: tl.constexpr, PIXELS: tl.constexpr,
    LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr,
    SUM_PARAMS: tl.constexpr, SUM_NORM: tl.constexpr, SUM_RESIDUAL: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the gradients of ``x`` and the residual, and sums for all others.

    A row of ``sums`` holds five sums per channel, ``sums_stride`` apart: the gradients
    of lam and kappa; the gradient of ``z`` itself, that gradient times the normalized
    ``x`` before weight and bias, and times the normalized residual. SUM_PARAMS requests
    the first two, SUM_NORM the next two, SUM_RESIDUAL the third and the last. Of a lam
    or kappa for all channels, there is one sum per program.
    """
    b, c, row, at_row, start, i, within = _place(
        channels, inner, rows, FLAT, PIXELS, BLOCK_C, BLOCK_I
    )
    first = at_row * steps
    count = tl.minimum(tl.cdiv(inner, BLOCK_I) - first, steps).to(tl.int32)
    lb_lam, inv_lam, lb_kappa = _coefficients(
        lam, kappa, c, channels, LAM_EACH, KAPPA_EACH, BLOCK_C
    )
    scale, shift, center, inverse, r_scale, r_center, r_inverse = _affine(
        weight, bias, mean, var, gate, r_weight, r_bias, r_mean, r_var, eps, r_eps,
        b, c, channels, BLOCK_C,
    )  # fmt: skip
    rate = lb_kappa * inv_lam * 0.6931472
    zeros = tl.zeros([BLOCK_C, BLOCK_I], tl.float32)
    of_lam, of_kappa, of_z, of_x, of_residual = zeros, zeros, zeros, zeros, zeros
    for step in range(count):
        at, inside = _tile(
            first + step, start, c, i, channels, inner, PIXELS, BLOCK_C, BLOCK_I
        )
        z = tl.load((x + at) + within, mask=inside, other=0.0).to(tl.float32)
        g = tl.load((grad + at) + within, mask=inside, other=0.0).to(tl.float32)
        centered, r = z, z
        if mean is not None:
            centered = z - center
            z = centered * scale + shift
        if residual is not None:
            r = tl.load((residual + at) + within, mask=inside, other=0.0).to(tl.float32)
            if r_mean is not None:
                r = r - r_center
                z += r * r_scale
            else:
                z += r
        p, s, excess = _slopes(z, lb_lam, inv_lam, lb_kappa, HALF)
        if bound is not None:
            y = z * p
            if slope is not None:
                y += slope * (z - y)
            g = tl.where(y > bound, 0.0, g)
        own = g
        if slope is not None:
            own = g - slope * g
        gp = own * p
        if IS_APA:
            gps = gp * s
            grad_z = gps * rate
        else:
            gpz = gp * z
            gps = gpz * s
            grad_z = gps * rate + gp
        if slope is not None:
            grad_z += slope * g
        if SUM_PARAMS:
            if IS_APA:
                of_lam += gp * excess
            else:
                of_lam += gpz * excess
            of_kappa += gps * z
        if SUM_NORM or SUM_RESIDUAL:
            of_z += grad_z
        if SUM_NORM:
            of_x += grad_z * centered
        if SUM_RESIDUAL:
            of_residual += grad_z * r
        if grad_residual is not None:
            own = grad_z
            if r_mean is not None:
                own = grad_z * r_scale
            tl.store(
                (grad_residual + at) + within,
                own.to(grad_residual.dtype.element_ty),
                mask=inside,
            )
        if grad_x is not None:
            if mean is not None:
                grad_z *= scale
            tl.store(
                (grad_x + at) + within, grad_z.to(grad_x.dtype.element_ty), mask=inside
            )
    if sums is not None:
        to = (sums + row.to(tl.int64) * channels) + c[:, None]
        valid = (c < channels)[:, None]
        if SUM_PARAMS:
            total = tl.sum(of_lam, 1, keep_dims=True) * inv_lam * inv_lam
            if LAM_EACH:
                tl.store(to, total, mask=valid)
            else:
                tl.store(sums + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))
            total = tl.sum(of_kappa, 1, keep_dims=True) * inv_lam
            if KAPPA_EACH:
                tl.store(to + sums_stride, total, mask=valid)
            else:
                own = sums + sums_stride + tl.program_id(0)
                tl.store(own, tl.sum(tl.sum(total, 1), 0))
        if SUM_NORM or SUM_RESIDUAL:
            total = tl.sum(of_z, 1, keep_dims=True)
            tl.store(to + 2 * sums_stride, total, mask=valid)
        if SUM_NORM:
            total = tl.sum(of_x, 1, keep_dims=True) * inverse
            tl.store(to + 3 * sums_stride, total, mask=valid)
        if SUM_RESIDUAL:
            total = tl.sum(of_residual, 1, keep_dims=True) * r_inverse
            tl.store(to + 4 * sums_stride, total, mask=valid)


@triton.jit
def statistics_kernel(
    x, grad_x, weight, mean, var, weight_grad, bias_grad, eps, share,
    channels, inner, rows,
    PIXELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Subtract from ``grad_x`` what flows through the batch mean and variance.

    ``share`` is one over the number of elements of a channel.
    """
    _, c, _, tile, start, i, within = _place(
        channels, inner, rows, False, PIXELS, BLOCK_C, BLOCK_I
    )
    w, _, center, inverse = _normalization(
        weight, None, mean, var, eps, c, channels, BLOCK_C
    )
    shift = w * inverse * share
    scale = shift * inverse * _per_channel(weight_grad, c, channels, True, BLOCK_C)
    shift *= _per_channel(bias_grad, c, channels, True, BLOCK_C)
    at, inside = _tile(tile, start, c, i, channels, inner, PIXELS, BLOCK_C, BLOCK_I)
    own = tl.load((x + at) + within, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load((grad_x + at) + within, mask=inside, other=0.0).to(tl.float32)
    grad -= (own - center) * scale + shift
    tl.store((grad_x + at) + within, grad.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def _write_total(out, sums, size, BLOCK: tl.constexpr):
    """Write the sum of ``size`` consecutive numbers."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, size, BLOCK):
        total += tl.load(sums + first + i, mask=i < size - first, other=0.0)
    tl.store(out, tl.sum(total, 0).to(out.dtype.element_ty))


@triton.jit
def _columns(sums, rows, c, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum some columns of a matrix of shape (rows, channels)."""
    r = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    at = r[:, None] * channels + c[None, :]
    for first in range(0, rows, BLOCK_R):
        inside = (r < rows - first)[:, None] & (c < channels)[None, :]
        total += tl.load(sums + first * channels + at, mask=inside, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _write(out, c, channels, values):
    tl.store(out + c, values.to(out.dtype.element_ty), mask=c < channels)


@triton.jit
def reduce_kernel(
    sums, gate, weight, bias,
    lam_grad, kappa_grad, weight_grad, bias_grad, gate_grad, r_weight_grad, r_bias_grad,
    images, rows, channels, totals, sums_stride,
    LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr, NORM: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the parameters' gradients from the sums of :func:`backward_kernel`.

    Each of the ``images`` has ``rows`` rows of sums; without a gate, all rows count as
    one image's. Program 0 computes the gradient of a scalar lam, program 1 that of a
    scalar kappa, from ``totals`` sums each, and the others everything else for BLOCK_C
    channels each. NORM says whether the gradient of weight, bias or gate is wanted.
    """
    program = tl.program_id(0)
    if program == 0:
        if lam_grad is not None:
            if not LAM_EACH:
                _write_total(lam_grad, sums, totals, BLOCK_R * BLOCK_C)
    elif program == 1:
        if kappa_grad is not None:
            if not KAPPA_EACH:
                _write_total(kappa_grad, sums + sums_stride, totals, BLOCK_R * BLOCK_C)
    else:
        c = (program - 2) * BLOCK_C + tl.arange(0, BLOCK_C)
        if LAM_EACH:
            if lam_grad is not None:
                total = _columns(sums, images * rows, c, channels, BLOCK_R, BLOCK_C)
                _write(lam_grad, c, channels, total)
        if KAPPA_EACH:
            if kappa_grad is not None:
                total = _columns(
                    sums + sums_stride, images * rows, c, channels, BLOCK_R, BLOCK_C
                )
                _write(kappa_grad, c, channels, total)
        if r_weight_grad is not None:
            total = _columns(
                sums + 4 * sums_stride, images * rows, c, channels, BLOCK_R, BLOCK_C
            )
            _write(r_weight_grad, c, channels, total)
        if r_bias_grad is not None:
            total = _columns(
                sums + 2 * sums_stride, images * rows, c, channels, BLOCK_R, BLOCK_C
            )
            _write(r_bias_grad, c, channels, total)
        of_weight = tl.zeros([BLOCK_C], tl.float32)
        of_bias = tl.zeros([BLOCK_C], tl.float32)
        if NORM:
            for image in range(images):
                own = (sums + 2 * sums_stride) + image * rows * channels
                of_z = _columns(own, rows, c, channels, BLOCK_R, BLOCK_C)
                of_x = _columns(own + sums_stride, rows, c, channels, BLOCK_R, BLOCK_C)
                if gate_grad is not None:
                    total = of_x
                    if weight is not None:
                        scale = tl.load(weight + c, mask=c < channels, other=0.0)
                        total *= scale.to(tl.float32)
                    if bias is not None:
                        shift = tl.load(bias + c, mask=c < channels, other=0.0)
                        total += of_z * shift.to(tl.float32)
                    _write(gate_grad + image * channels, c, channels, total)
                if gate is not None:
                    row = gate + image * channels
                    own_gate = tl.load(row + c, mask=c < channels, other=0.0)
                    of_z *= own_gate.to(tl.float32)
                    of_x *= own_gate.to(tl.float32)
                of_weight += of_x
                of_bias += of_z
        if weight_grad is not None:
            _write(weight_grad, c, channels, of_weight)
        if bias_grad is not None:
            _write(bias_grad, c, channels, of_bias)

"""The Triton kernels: APA and AGLU on a GPU, in one pass over memory each way.

The functions are those of :mod:`apa_mmdet.ops.cpu_kernels`, for float16, bfloat16 and
float32 on CUDA devices. Memory is taken as (batch, channels, inner) or, where channels
lie side by side, (batch, inner, channels), without a copy of either. Nothing waits for
the device, no atomic operation is used, and :func:`torch.compile` knows the operations.
Kernels are compiled per dtype, form and a handful of tile shapes, never per size.

With ``TRITON_INTERPRET=1`` set before the import, Triton's interpreter runs the same
code on tensors of the CPU.

Notation of :mod:`apa_mmdet.ops.formula`. With ``t = ln(lam) - kappa * z`` and
``E = exp(-|t|)``:

- ``L = max(t, 0) + ln(1 + E)`` and ``APA = exp(-L / lam)``;
- ``s = sigmoid(t)``, and ``L - s`` is formed without cancellation from
  ``y = E / (2 + E) <= 1 / 3``, where ``ln(1 + E) = 2 atanh(y)``.

Two exponentials, and in backward one division, are all that an element costs of the
units that a GPU has few of. Below ``lam = 2**-23``, zero and negative values included,
that value is used: APA then differs from its limit by less than 1e-7.
"""

# No postponed annotations: torch reads the operations' schemas from them.
import contextlib
import math
import os
from collections.abc import Callable
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

NAMES = ("apa", "aglu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# What is computed: APA, AGLU, and AGLU of a sum of one or two terms.
_APA, _AGLU, _AFFINE, _RESIDUAL = range(4)
_NUM_SUMS = {_APA: 2, _AGLU: 2, _AFFINE: 4, _RESIDUAL: 5}

# Elements of a tile. 8 per thread of 4 warps: 16 or 32 bytes are loaded at a time.
_TILE = 1024
_BLOCKS = (1, 4, 16, 64, 256, _TILE)
# Tiles of one program in backward where each has partial sums for many channels, if
# there are programs enough without.
_STEPS, _MANY = 16, 1 << 22


@triton.jit
def _shared(ptr, c, inside, EACH: tl.constexpr):
    """Return a parameter of shape (C,) or (1,) for some channels."""
    if EACH:
        return tl.load(ptr + c, mask=inside, other=1.0).to(tl.float32)
    return tl.load(ptr).to(tl.float32) + tl.zeros_like(c)


@triton.jit
def _coefficients(lam_ptr, kappa_ptr, c, inside, LAM_EACH, KAPPA_EACH):
    """Return ``log2(lam)``, ``1 / lam`` and ``kappa / ln(2)``."""
    lam = _shared(lam_ptr, c, inside, LAM_EACH)
    kappa = _shared(kappa_ptr, c, inside, KAPPA_EACH)
    lam = tl.where(lam < 2.0**-23, 2.0**-23, lam)  # a NaN stays one
    return tl.log2(lam), 1.0 / lam, kappa * 1.4426950408889634


@triton.jit
def _apa(z, lb_lam, inv_lam, lb_kappa):
    """Return APA(z). ln(1 + E) is a polynomial on [0, 1], to 5e-8 relative."""
    t = lb_lam - lb_kappa * z  # in base 2, as L
    e = tl.exp2(-tl.abs(t))
    p = e * 0.007395402 - 0.04194501
    p = p * e + 0.111832075
    p = p * e - 0.19623895
    p = p * e + 0.2752212
    p = p * e - 0.35829908
    p = p * e + 0.4806789
    p = p * e - 0.7213395
    p = p * e + 1.442695
    return tl.exp2((p * e + tl.maximum(t, 0.0)) * -inv_lam)


@triton.jit
def _gradients(z, grad, lb_lam, inv_lam, lb_kappa, IS_APA, NEED_PARAMS):
    """Return the gradients of z, and of each element's lam and kappa."""
    t = lb_lam - lb_kappa * z
    t = tl.where(t > 1e30, 1e30, t)  # APA is 0 long before, and L stays finite
    e = tl.exp2(-tl.abs(t))
    q = 1.0 / ((1.0 + e) * (2.0 + e))
    inverse = (2.0 + e) * q  # 1 / (1 + E)
    y = e * (1.0 + e) * q
    y2 = y * y
    tail = y2 * 0.268515 + 0.2823662  # 2/3 + 2/5 * y2 + ..., to 4e-7 relative
    tail = tail * y2 + 0.4000756
    tail = tail * y2 + 0.6666664
    left = t > 0
    log = tl.maximum(t, 0.0) * 0.6931472 + (2.0 * y + y * y2 * tail)
    gp = grad * tl.exp2(log * (inv_lam * -1.4426950408889634))
    s = tl.where(left, inverse, e * inverse) * inv_lam
    gpz = gp
    if not IS_APA:
        gpz = gp * z
    gpzs = gpz * s
    grad_z = gpzs * (lb_kappa * 0.6931472)
    if not IS_APA:
        grad_z += gp
    if NEED_PARAMS:
        v = y * inv_lam
        near = (e * inv_lam) * (e * inv_lam) * q + v * v * (y * tail)
        # A product with what has vanished first, or infinity would come before.
        far = (gpz * inv_lam) * (log * inv_lam - s)
        return grad_z, tl.where(left, far, gpz * near), gpzs * z
    return grad_z, gpzs, gpzs


@triton.jit
def _tile(channels, inner, stride_b, stride_c, STEPS, BLOCK_C, BLOCK_I):
    """Return a program's image, channels, position along inner and first element."""
    program = tl.program_id(0)
    num_i = tl.cdiv(inner, BLOCK_I * STEPS)
    num_c = tl.cdiv(channels, BLOCK_C)
    at_i = program % num_i
    at_c = program // num_i % num_c
    b = program // num_i // num_c
    first_c = at_c * BLOCK_C
    c = first_c + tl.arange(0, BLOCK_C)
    base = b.to(tl.int64) * stride_b + first_c.to(tl.int64) * stride_c
    return b, c, at_i, num_i, base


@triton.jit
def _sum(x, residual_ptr, at, inside, a, b, residual_scale, FORM: tl.constexpr):
    """Return what the activation is taken of, and the residual."""
    residual = x
    if FORM >= 2:
        x = a * x + b
    if FORM == 3:
        residual = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x += residual_scale * residual
    return x, residual


@triton.jit
def _affine(
    scale_ptr, shift_ptr, residual_scale_ptr, b, c, inside, scale_stride_b,
    FORM: tl.constexpr, RESIDUAL_EACH: tl.constexpr,
):  # fmt: skip
    """Return scale, shift and the residual's scale of some channels of an image."""
    scale = tl.full(c.shape, 1.0, tl.float32)
    shift, residual_scale = scale, scale
    if FORM >= 2:
        row = b.to(tl.int64) * scale_stride_b
        scale = tl.load(scale_ptr + row + c, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + row + c, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL_EACH:
        residual_scale = _shared(residual_scale_ptr, c, inside, True)
    return scale[:, None], shift[:, None], residual_scale[:, None]


@triton.jit(do_not_specialize=["scale_stride_b"])
def _forward_kernel(
    x_ptr, residual_ptr, out_ptr,
    lam_ptr, kappa_ptr, scale_ptr, shift_ptr, residual_scale_ptr,
    channels, inner, stride_b, stride_c, stride_i, scale_stride_b,
    FORM: tl.constexpr, LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr,
    RESIDUAL_EACH: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    b, c, at_i, _, base = _tile(
        channels, inner, stride_b, stride_c, 1, BLOCK_C, BLOCK_I
    )
    inside_c = c < channels
    lb_lam, inv_lam, lb_kappa = _coefficients(
        lam_ptr, kappa_ptr, c, inside_c, LAM_EACH, KAPPA_EACH
    )
    scale, shift, residual_scale = _affine(
        scale_ptr, shift_ptr, residual_scale_ptr, b, c, inside_c, scale_stride_b,
        FORM, RESIDUAL_EACH,
    )  # fmt: skip
    first = at_i.to(tl.int64) * BLOCK_I
    i = tl.arange(0, BLOCK_I)
    inside = inside_c[:, None] & (first + i < inner)[None, :]
    within = tl.arange(0, BLOCK_C)[:, None] * stride_c + i[None, :] * stride_i
    at = base + first * stride_i + within
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    z, _ = _sum(x, residual_ptr, at, inside, scale, shift, residual_scale, FORM)
    y = _apa(z, lb_lam[:, None], inv_lam[:, None], lb_kappa[:, None])
    if FORM >= 1:
        y *= z
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["scale_stride_b", "sums_stride"])
def _backward_kernel(
    x_ptr, residual_ptr, grad_ptr, out_ptr, out_residual_ptr, sums_ptr,
    lam_ptr, kappa_ptr, scale_ptr, shift_ptr, residual_scale_ptr,
    channels, inner, stride_b, stride_c, stride_i, scale_stride_b, sums_stride,
    FORM: tl.constexpr, LAM_EACH: tl.constexpr, KAPPA_EACH: tl.constexpr,
    RESIDUAL_EACH: tl.constexpr, NEED_PARAMS: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    b, c, at_i, num_i, base = _tile(
        channels, inner, stride_b, stride_c, STEPS, BLOCK_C, BLOCK_I
    )
    inside_c = c < channels
    lb_lam, inv_lam, lb_kappa = _coefficients(
        lam_ptr, kappa_ptr, c, inside_c, LAM_EACH, KAPPA_EACH
    )
    scale, shift, residual_scale = _affine(
        scale_ptr, shift_ptr, residual_scale_ptr, b, c, inside_c, scale_stride_b,
        FORM, RESIDUAL_EACH,
    )  # fmt: skip
    i = tl.arange(0, BLOCK_I)
    within = tl.arange(0, BLOCK_C)[:, None] * stride_c + i[None, :] * stride_i
    of_lam = tl.zeros([BLOCK_C, BLOCK_I], tl.float32)
    of_kappa, of_shift, of_scale, of_residual_scale = of_lam, of_lam, of_lam, of_lam
    for step in range(STEPS):
        first = (at_i.to(tl.int64) * STEPS + step) * BLOCK_I
        inside = inside_c[:, None] & (first + i < inner)[None, :]
        at = base + first * stride_i + within
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z, residual = _sum(
            x, residual_ptr, at, inside, scale, shift, residual_scale, FORM
        )
        grad_z, each_lam, each_kappa = _gradients(
            z, grad, lb_lam[:, None], inv_lam[:, None], lb_kappa[:, None],
            FORM == 0, NEED_PARAMS,
        )  # fmt: skip
        if NEED_PARAMS:
            of_lam += each_lam
            of_kappa += each_kappa
        if FORM >= 2:
            of_shift += grad_z
            of_scale += grad_z * x
        if FORM == 3:
            of_residual_scale += grad_z * residual
            own = (grad_z * residual_scale).to(out_residual_ptr.dtype.element_ty)
            tl.store(out_residual_ptr + at, own, mask=inside)
        out = (grad_z * scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, out, mask=inside)
    sums = sums_ptr + (b.to(tl.int64) * num_i + at_i) * channels + c
    if NEED_PARAMS:
        tl.store(sums, tl.sum(of_lam, 1), mask=inside_c)
        tl.store(sums + sums_stride, tl.sum(of_kappa, 1), mask=inside_c)
    if FORM >= 2:
        tl.store(sums + 2 * sums_stride, tl.sum(of_shift, 1), mask=inside_c)
        tl.store(sums + 3 * sums_stride, tl.sum(of_scale, 1), mask=inside_c)
    if FORM == 3:
        of_last = tl.sum(of_residual_scale, 1)
        tl.store(sums + 4 * sums_stride, of_last, mask=inside_c)


def _operation(name: str) -> Callable:
    """Return what makes a function an operation of torch, from torch 2.6 on."""
    triton_op = getattr(torch.library, "triton_op", None)
    if triton_op is None:
        return lambda function: function  # torch.compile then looks into it
    return triton_op(f"apa_mmdet::{name}", mutates_args=())


_traceable = getattr(torch.library, "wrap_triton", lambda kernel: kernel)


def _block(size: int, most: int) -> int:
    """Return the smallest block that holds ``size``: few, so that few are compiled."""
    for block in _BLOCKS:
        if block >= most or size <= block:
            return block
    return most


def _is_side_by_side(x: Tensor, axis: int) -> bool:
    """Tell whether neighbours in memory are those of the axis, as in NHWC."""
    return not x.is_contiguous() and x.movedim(axis, -1).is_contiguous()


def _dense(x: Tensor, axis: int) -> Tensor:
    """Return ``x``, or a contiguous copy where its memory has holes."""
    return x if _is_side_by_side(x, axis) else x.contiguous()


def _like(tensor: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return a tensor in the dtype and layout of ``x``; itself if it has them."""
    same_layout = (
        _is_side_by_side(tensor, axis)
        if _is_side_by_side(x, axis)
        else tensor.is_contiguous()
    )
    if tensor.dtype == x.dtype and same_layout:
        return tensor
    return torch.empty_like(x).copy_(tensor)


class _Launch:
    """How a call is cut into tiles."""

    def __init__(self, x, axis, lam, kappa, scale, residual_scale, backward):
        each = scale is not None or lam.shape[0] > 1 or kappa.shape[0] > 1
        per_image = scale is not None and scale.dim() == 2
        before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        if x.dim() == 0 or not each:
            channels, batch, inner = 1, 1, x.numel()
            strides = (0, 0, 1)
        else:
            channels = x.shape[axis]
            pixels = after == 1 or _is_side_by_side(x, axis)
            if pixels and not per_image:
                batch, inner = 1, before * after
            else:
                batch, inner = before, after
            strides = (1, channels) if pixels else (inner, 1)
            strides = (channels * inner, *strides)
        if strides[1] == 1:
            block_c = _block(channels, _TILE)
            block_i = _block(inner, _TILE // block_c)
        else:
            block_i = _block(inner, _TILE)
            block_c = _block(channels, _TILE // block_i)
        steps = _STEPS if backward and strides[1] == 1 and x.numel() >= _MANY else 1
        self.batch, self.channels = batch, channels
        self.num_i = -(-inner // (block_i * steps))
        self.grid = (batch * -(-channels // block_c) * self.num_i,)
        self.sizes = (channels, inner, *strides, channels if per_image else 0)
        self.constants = dict(
            LAM_EACH=lam.shape[0] > 1,
            KAPPA_EACH=kappa.shape[0] > 1,
            RESIDUAL_EACH=residual_scale is not None,
            BLOCK_C=block_c,
            BLOCK_I=block_i,
        )
        if backward:
            self.constants["STEPS"] = steps


@_operation("activation")
def _activation(
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    form: int,
    axis: int,
    scale: Optional[Tensor],
    shift: Optional[Tensor],
    residual: Optional[Tensor],
    residual_scale: Optional[Tensor],
) -> Tensor:
    out = torch.empty_like(x)
    launch = _Launch(x, axis, lam, kappa, scale, residual_scale, backward=False)
    if x.numel():
        small = (lam, kappa, scale, shift, residual_scale)
        _traceable(_forward_kernel)[launch.grid](
            *(x, x if residual is None else residual, out),
            *(x if tensor is None else tensor for tensor in small),
            *launch.sizes,
            FORM=form,
            **launch.constants,
        )
    return out


@_operation("activation_backward")
def _activation_backward(
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    grad_output: Tensor,
    form: int,
    axis: int,
    need_params: bool,
    scale: Optional[Tensor],
    shift: Optional[Tensor],
    residual: Optional[Tensor],
    residual_scale: Optional[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x)
    grad_residual = x.new_empty(0) if residual is None else torch.empty_like(x)
    launch = _Launch(x, axis, lam, kappa, scale, residual_scale, backward=True)
    shape = (_NUM_SUMS[form], launch.batch, launch.num_i, launch.channels)
    make = (
        torch.empty if x.numel() and (need_params or form >= _AFFINE) else torch.zeros
    )
    sums = make(shape, dtype=torch.float32, device=x.device)
    if x.numel():
        small = (lam, kappa, scale, shift, residual_scale)
        _traceable(_backward_kernel)[launch.grid](
            *(x, x if residual is None else residual, grad_output),
            *(grad_x, grad_residual, sums),
            *(x if tensor is None else tensor for tensor in small),
            *launch.sizes,
            sums.stride(0),
            FORM=form,
            NEED_PARAMS=need_params,
            **launch.constants,
        )
    return grad_x, grad_residual, sums


def applies(x: Tensor, lam: Tensor, kappa: Tensor) -> bool:
    """Tell whether :func:`forward` and :func:`backward` can take these tensors."""
    device = "cpu" if INTERPRETED else "cuda"
    return x.device.type == device and all(
        tensor.dtype in DTYPES for tensor in (x, lam, kappa)
    )


def _form(name: str, scale: Optional[Tensor], residual: Optional[Tensor]) -> int:
    if scale is not None:
        return _AFFINE if residual is None else _RESIDUAL
    return _APA if name == "apa" else _AGLU


def _on(x: Tensor) -> contextlib.AbstractContextManager:
    """Make the GPU of ``x`` the current one, where Triton launches its kernels."""
    if x.is_cuda and not torch.compiler.is_compiling():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()


def forward(
    name: str,
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    axis: int,
    scale: Optional[Tensor] = None,
    shift: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    residual_scale: Optional[Tensor] = None,
) -> Tensor:
    """Return ``APA(x)`` or ``AGLU(scale * x + shift + residual_scale * residual)``.

    The result has the dtype of ``x``, and its layout if that has no holes.

    Args:
        name: ``'apa'``, which takes no scale, or ``'aglu'``.
        x: What :func:`applies` accepts.
        lam: Shape (1,) or (C,).
        kappa: Shape (1,) or (C,).
        axis: Axis of the channels.
        scale: Shape (C,) or (batch, C); None for the function of ``x`` itself.
        shift: The shape of ``scale``.
        residual: The shape of ``x``, or None.
        residual_scale: Shape (C,), or None for 1.
    """
    x = _dense(x, axis)
    small = [_packed(tensor) for tensor in (lam, kappa, scale, shift, residual_scale)]
    lam, kappa, scale, shift, residual_scale = small
    residual = None if residual is None else _like(residual, x, axis)
    form = _form(name, scale, residual)
    with _on(x):
        return _activation(
            x, lam, kappa, form, axis, scale, shift, residual, residual_scale
        )


def backward(
    name: str,
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    grad_output: Tensor,
    axis: int,
    need_params: bool,
    scale: Optional[Tensor] = None,
    shift: Optional[Tensor] = None,
    residual: Optional[Tensor] = None,
    residual_scale: Optional[Tensor] = None,
) -> tuple[Tensor, Optional[Tensor], list[Optional[Tensor]]]:
    """Return the gradients of ``x`` and ``residual``, and sums for all others.

    The sums are float32 (batch, C) or, if there are no channels to tell apart, (1, 1):
    the gradients of ``lam``, ``kappa``, ``shift``, ``scale`` and ``residual_scale``,
    None for what the call did not have. Without ``need_params`` the first two hold
    nothing of use.

    Other arguments are those of :func:`forward`.
    """
    x = _dense(x, axis)
    small = [_packed(tensor) for tensor in (lam, kappa, scale, shift, residual_scale)]
    lam, kappa, scale, shift, residual_scale = small
    residual = None if residual is None else _like(residual, x, axis)
    form = _form(name, scale, residual)
    with _on(x):
        grad_x, grad_residual, parts = _activation_backward(
            x, lam, kappa, _like(grad_output, x, axis), form, axis, need_params,
            scale, shift, residual, residual_scale,
        )  # fmt: skip
    found = [*parts.sum(2).unbind(0), *[None] * (5 - _NUM_SUMS[form])]
    return grad_x, None if residual is None else grad_residual, found


def _packed(small: Optional[Tensor]) -> Optional[Tensor]:
    return None if small is None else small.contiguous()

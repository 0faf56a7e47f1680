"""The activations as differentiable functions: APA, AGLU, ln APA, norm and AGLU.

Arithmetic is done in float32 or better whatever the input's dtype, and the result has
the input's dtype. Only the input and the small tensors are kept for backward.

An optimizer may push ``lam`` below zero, where APA is not defined. The functions then
use ``lam = 0`` and give ``lam`` the derivative at 0, so that it can recover.

Each function except :func:`log_apa`, which is always :mod:`apa_mmdet.ops.plain`, is one
native operator (``torch.ops.apa_mmdet.*``, see ``csrc/``) where these apply.

Source: Adaptive Parametric Activation, Alexandridis et al., ECCV 2024, arXiv
2407.08567; the closed forms are in :mod:`apa_mmdet.ops.formula`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import plain
from .implementation import is_native


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
    if is_native(x, lam, kappa):
        return torch.ops.apa_mmdet.apa.default(x, lam, kappa, channel_dim)
    return plain.activation("apa", x, lam, kappa, channel_dim)


def aglu(
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    channel_dim: int | None = None,
    negative_slope: float = 0.0,
    max_value: float | None = None,
) -> Tensor:
    """Return ``AGLU(x) = x * APA(x)``; SiLU for ``lam = kappa = 1``.

    With ``a = negative_slope``, it is ``(1 - a) * AGLU(x) + a * x``, and with
    ``max_value`` the smaller of that and ``max_value``.

    Args:
        x: Floating tensor of any shape and strides; it may be empty.
        lam: Shape (1,) or (C,); negative values act as 0.
        kappa: Shape (1,) or (C,).
        channel_dim: Axis that holds the C channels; see :func:`apa`.
        negative_slope: Slope of a LeakyReLU that AGLU stands in for.
        max_value: Upper bound of the result, as in ReLU6.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If ``lam`` or ``kappa`` does not fit the channels of ``x``.
    """
    args = x, lam, kappa, channel_dim, negative_slope, max_value
    if is_native(x, lam, kappa):
        return torch.ops.apa_mmdet.aglu.default(*args)
    return plain.activation("aglu", *args)


def log_apa(
    x: Tensor, lam: Tensor, kappa: Tensor, channel_dim: int | None = None
) -> Tensor:
    """Return ``ln APA(x)``, exact where APA itself would underflow.

    Arguments, shape, dtype and errors are those of :func:`apa`.
    """
    return plain.activation("log_apa", x, lam, kappa, channel_dim)


def norm_aglu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    lam: Tensor,
    kappa: Tensor,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    residual_weight: Tensor | None = None,
    residual_bias: Tensor | None = None,
    residual_mean: Tensor | None = None,
    residual_var: Tensor | None = None,
    residual_eps: float = 0.0,
    negative_slope: float = 0.0,
    max_value: float | None = None,
    batch_statistics: bool = False,
    residual_batch_statistics: bool = False,
) -> Tensor:
    """Return ``AGLU(gate * norm(x) + residual_norm(residual))`` as one operation.

    That is how a residual block ends: batch norm, channel gate, addition, activation.
    ``norm(x) = (x - mean) / sqrt(var + eps) * weight + bias``. Applied separately, each
    would save a feature map for backward; here only ``x`` and the residual are saved.

    Args:
        x: Shape (N, C, H, W), floating, of any strides.
        weight: Shape (C,), or None for 1.
        bias: Shape (C,), or None for 0.
        mean: Shape (C,), a constant: it must not require a gradient.
        var: Shape (C,), likewise.
        eps: Added to ``var``.
        lam: Shape (1,) or (C,); negative values act as 0.
        kappa: Shape (1,) or (C,).
        gate: Shape (N, C), or None for 1.
        residual: The shape of ``x``, or None for 0.
        residual_weight: Shape (C,), or None for 1.
        residual_bias: Shape (C,), or None for 0.
        residual_mean: Shape (C,), or None to add the residual as it is.
        residual_var: Shape (C,), together with ``residual_mean``.
        residual_eps: Added to ``residual_var``.
        negative_slope: See :func:`aglu`.
        max_value: See :func:`aglu`.
        batch_statistics: Whether ``mean`` and ``var`` are those of ``x`` over all axes
            but the channels (``var`` biased, as ``torch.batch_norm_update_stats``
            returns it), so that the gradient of ``x`` also flows through them.
        residual_batch_statistics: The same for ``residual``.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes do not fit, or a mean or variance requires a gradient.
    """
    args = (
        *(x, weight, bias, mean, var, eps, lam, kappa, gate, residual),
        *(residual_weight, residual_bias, residual_mean, residual_var, residual_eps),
        *(negative_slope, max_value, batch_statistics, residual_batch_statistics),
    )
    if is_native(x, lam, kappa):
        return torch.ops.apa_mmdet.norm_aglu.default(*args)
    return plain.norm_aglu(*args)

"""Predictors of the published models: cosine for masks, wrapped Cauchy for classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

_EPS = 1e-6


@MODELS.register_module()
class CosineConv2d(nn.Conv2d):
    """1x1 convolution that computes cosine similarities times a temperature.

    ``y = temperature * <x, w> / (|x| |w|) + b`` with norms over the channels. Use it as
    ``predictor_cfg=dict(type='CosineConv2d')`` in FCNMaskHead. The published ResNet-50
    model learns the temperature; the ResNet-101 model fixes it at 20.

    Args:
        *args: As in :class:`torch.nn.Conv2d`.
        temperature: Initial temperature, by default the published 4.5 squared.
        learnable: Whether its square root is a parameter, of shape (1,).
        **kwargs: As in :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: If the kernel is not 1x1, or the temperature is not positive.
    """

    def __init__(
        self, *args, temperature: float = 20.25, learnable: bool = True, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.kernel_size != (1, 1):
            raise ValueError(
                f"kernel_size={self.kernel_size}, expected 1: the cosine is computed "
                f"at each position"
            )
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}, expected a positive number")
        self.temperature = float(temperature)
        # The spelling in published checkpoints.
        self.tempearture = (
            nn.Parameter(torch.full((1,), self.temperature**0.5)) if learnable else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, out_channels, H, W) for ``x`` (N, in_channels, H, W)."""
        scale = self.temperature
        if self.tempearture is not None:
            scale = self.tempearture.square()
        weight = self.weight / (self.weight.norm(dim=1, keepdim=True) + _EPS)
        x = x * (scale / (x.norm(dim=1, keepdim=True) + _EPS))
        return self._conv_forward(x, weight, self.bias)


@MODELS.register_module()
class WrappedCauchyLinear(nn.Linear):
    """Logits from the density of the angle between features and class weights.

    ``logit = s / (2 pi) * (1 - g**2) / (1 + g**2 - 2 * g * cos(theta))``, the density
    of a wrapped Cauchy distribution with concentration ``g`` in (0, 1), one per class:
    a class with few examples can keep a wide one. Use it as
    ``cls_predictor_cfg=dict(type='WrappedCauchyLinear')`` in a box head with a softmax
    loss, because all logits are positive.

    Source: Wrapped Cauchy Distributed Angular Softmax, Han, ICML 2023.

    Args:
        in_features: Number of input features.
        out_features: Number of classes C, including background.
        scale: ``s``.
        learnable: Whether ``s`` is learnt, as its logarithm.
        concentration: Initial logit of ``g``.
        **kwargs: As in :class:`torch.nn.Linear`, which is built without a bias.

    Raises:
        ValueError: If ``scale`` or ``concentration`` is not finite, or ``scale`` is not
            positive.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale: float = 300.0,
        learnable: bool = False,
        concentration: float = -1.0,
        **kwargs,
    ) -> None:
        super().__init__(in_features, out_features, bias=False, **kwargs)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale}, expected a finite number > 0")
        if not math.isfinite(concentration):
            raise ValueError(f"concentration={concentration}, expected a finite number")
        # 1-D, because heads re-initialise parameters with more dimensions.
        self.concentration = nn.Parameter(torch.full((out_features,), concentration))
        log_scale = torch.full((1,), math.log(scale))
        if learnable:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C) in float32 for ``x`` (N, in_features)."""
        with torch.autocast(x.device.type, enabled=False):
            x, weight, concentration = (
                tensor.float() for tensor in (x, self.weight, self.concentration)
            )
            cosine = F.linear(F.normalize(x, eps=_EPS), F.normalize(weight, eps=_EPS))
            g, one_minus_g = concentration.sigmoid(), (-concentration).sigmoid()
            # 1 + g**2 - 2 * g * cos(theta), without cancellation where g is near 1.
            denominator = one_minus_g.square() + 2 * g * (1 - cosine)
            scale = self.log_scale.float().exp() / (2 * math.pi)
            tiny = torch.finfo(denominator.dtype).tiny
            return scale * one_minus_g * (1 + g) / denominator.clamp(min=tiny)

"""The cosine mask predictor of the published models."""

from __future__ import annotations

import torch
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

"""The cosine mask predictor of the published ResNet-50 model."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

_EPS = 1e-6


@MODELS.register_module()
class CosineConv2d(nn.Conv2d):
    """1x1 convolution of cosine similarities, scaled by a learnable temperature.

    ``y = t**2 * <x, w> / (|x| |w|) + b`` with norms over the channels. Use it as
    ``predictor_cfg=dict(type='CosineConv2d')`` of FCNMaskHead; with a fixed
    temperature, mmdet's NormedConv2d does the same.

    Args:
        *args: As in :class:`torch.nn.Conv2d`.
        temperature_root: Start of ``t``; the published 4.5 scales by 20.25.
        **kwargs: As in :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: If the kernel is not 1x1.
    """

    def __init__(self, *args, temperature_root: float = 4.5, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.kernel_size != (1, 1):
            raise ValueError(
                f"kernel_size={self.kernel_size}, expected 1: a cosine is taken per "
                f"position"
            )
        # Published checkpoints spell it so, and so does mmdet's NormedConv2d.
        self.tempearture = nn.Parameter(torch.full((1,), float(temperature_root)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, out_channels, H, W) of ``x`` (N, in_channels, H, W)."""
        weight = self.weight / (self.weight.norm(dim=1, keepdim=True) + _EPS)
        scale = self.tempearture.square() / (x.norm(dim=1, keepdim=True) + _EPS)
        return self._conv_forward(x * scale, weight, self.bias)

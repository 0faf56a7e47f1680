"""The cosine classifiers of the published models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class CosineLinear(nn.Linear):
    """Logits ``scale * <x / (1 + |x|), w / |w|>``, without a bias.

    Use it as ``predictor_cfg=dict(type='CosineLinear')`` in :class:`.LongTailClsHead`.
    The published models for ImageNet-LT, iNaturalist 2018 and CIFAR100-LT have the
    scale 16; the one for Places-LT learns it from 25: ``scale=25, learnable=True``.

    Source: Large-Scale Long-Tailed Recognition in an Open World, Liu et al., CVPR 2019.

    Args:
        in_features: Number of features.
        out_features: Number of classes C.
        scale: The scale, or where it starts.
        learnable: Whether its square root is a parameter, ``scale`` of shape (1,).

    Raises:
        ValueError: If ``scale`` is not a finite number above 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale: float = 16.0,
        learnable: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=False)
        if not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
            raise ValueError(f"scale={scale!r}, expected a finite number > 0")
        self.fixed_scale = float(scale)
        root = torch.full((1,), math.sqrt(scale))
        self.scale = nn.Parameter(root) if learnable else None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C) in float32 for features (N, in_features)."""
        with torch.autocast(x.device.type, enabled=False):
            x, weight = x.float(), self.weight.float()
            x = x / (1 + x.norm(dim=1, keepdim=True))
            scale = self.fixed_scale if self.scale is None else self.scale.square()
            return scale * F.linear(x, F.normalize(weight))

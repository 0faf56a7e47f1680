"""SE-ResNet for images of CIFAR's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..layers.attention import APASELayer
from ..models.backbones.fusion import (
    can_fuse,
    is_plain,
    norm_activation,
    norm_add_activation,
)
from ..models.backbones.residual_block import build_activation
from ..models.published_checkpoints import adapt_published, adapt_published_classifier


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class _Block(nn.Module):
    """Two 3x3 convolutions, SE, and a shortcut without parameters.

    Where the shape changes, the shortcut takes every other pixel and adds channels of
    zeros, half of them before and half after.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        act_cfg: Mapping,
        se: APASELayer,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = build_activation(act_cfg)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.se = se
        self.act2 = build_activation(act_cfg)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(norm_activation(self.conv1(x), self.bn1, self.act1))
        if self.stride > 1 or self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        if can_fuse(self.bn2, self.act2) and is_plain(self.se):
            return norm_add_activation(out, self.bn2, self.act2, x, attention=self.se)
        out = self.se(self.bn2(out))
        out += x
        return self.act2(out)


@MODELS.register_module()
class SEResNetCIFAR(BaseModule):
    """ResNet for 32 x 32 pixels, with squeeze and excitation in every block.

    A 3x3 stem without pooling, three stages of (depth - 2) / 6 blocks with 1, 2 and 4
    times ``base_channels``, the second and third at half the resolution of the one
    before. Shortcuts have no parameters (option A of He et al., CVPR 2016, section
    4.2), as in the authors' network, whose files load (``linear.*`` into
    ``head.fc.*``). Keys are those of APAResNet: ``relu`` is the stem's activation,
    ``act1`` and ``act2`` those of a block.

    Source: Alexandridis et al., ECCV 2024, arXiv 2407.08567; the published one has
    ReLU activations and APA gates.

    Args:
        depth: 6 n + 2, such as 20, 32 or 56.
        act_cfg: Config of the activations, by default ``dict(type='ReLU')``.
        gate_cfg: Config of the gates, by default ``dict(type='APA')``; any other has
            neither LayerNorm nor Dropout, see :class:`apa_mmdet.layers.attention.
            APASELayer`.
        ratio: The excitation has C // ratio hidden channels.
        in_channels: Channels of the images.
        base_channels: Channels of the first stage.
        out_indices: Stages whose feature maps are returned, from 0.
        init_cfg: By default He's initialization of all weights.

    Raises:
        ValueError: If ``depth`` is not 6 n + 2, or ``out_indices`` names no stage.
    """

    def __init__(
        self,
        depth: int = 32,
        act_cfg: Mapping | None = None,
        gate_cfg: Mapping | None = None,
        ratio: int = 4,
        in_channels: int = 3,
        base_channels: int = 16,
        out_indices: Sequence[int] = (2,),
        init_cfg: Mapping | Sequence[Mapping] | None = None,
    ) -> None:
        layers = ["Conv2d", "Linear"]
        he = dict(type="Kaiming", layer=layers, mode="fan_in", nonlinearity="relu")
        super().__init__(he if init_cfg is None else init_cfg)
        if not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
            raise ValueError(
                f"depth={depth!r} of SEResNetCIFAR, expected 6 n + 2, such as 20, 32 "
                f"or 56; the ResNets for larger images are APAResNet's"
            )
        if not set(out_indices) <= {0, 1, 2}:
            raise ValueError(
                f"out_indices={out_indices!r} of SEResNetCIFAR, expected some of 0, 1 "
                f"and 2, its three stages"
            )
        self.out_indices = tuple(out_indices)
        act_cfg = dict(type="ReLU") if act_cfg is None else act_cfg
        gate_cfg = dict(type="APA") if gate_cfg is None else gate_cfg
        self.conv1 = _conv3x3(in_channels, base_channels)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = build_activation(act_cfg)
        inner = base_channels
        for stage in range(3):
            blocks, outer = [], base_channels * 2**stage
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                se = APASELayer(outer, ratio, gate_cfg)
                blocks.append(_Block(inner, outer, stride, act_cfg, se))
                inner = outer
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of the stages in ``out_indices``."""
        x = norm_activation(self.conv1(x), self.bn1, self.relu)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            maps.append(x)
        return tuple(maps[index] for index in self.out_indices)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # torch and MMEngine both call this for every checkpoint that is loaded.
        adapt_published(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # ImageClassifier calls this for every checkpoint that it loads.
        adapt_published_classifier(state_dict, prefix, self)

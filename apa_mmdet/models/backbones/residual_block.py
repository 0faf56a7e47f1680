"""MMDetection's residual blocks with one activation module per site.

mmdet's blocks call one ``self.relu`` after every norm. Here ``act1`` follows ``norm1``,
``act2`` follows ``norm2``, and the last one follows the addition. APAResNet builds its
stages of these blocks; a conversion turns mmdet's blocks into them
(:func:`convert_block`).

With running or batch statistics alike, a batch norm and the AGLU after it are one
fused operation, and so is the end of a block: norm, channel attention, addition and
activation (:mod:`.fusion`). Exceptions are what ``can_fuse`` excludes, and the end of a
block that is checkpointed (``with_cp``) or has a plugin other than one APASELayer.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmcv.cnn import build_activation_layer
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers.attention import APASELayer
from .fusion import can_fuse, is_plain, norm_activation, norm_add_activation


def build_activation(act_cfg: Mapping) -> nn.Module:
    """Build an activation; a ReLU works in place, as mmdet's does."""
    act_cfg = dict(act_cfg)
    if act_cfg["type"] == "ReLU":
        act_cfg.setdefault("inplace", True)
    return build_activation_layer(act_cfg)


class _PerSiteBlock:
    """Mixin of the per-site blocks; a subclass computes up to the last norm."""

    num_sites: int

    def __init__(self, *args, act_cfg: Mapping, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        del self.relu
        for site in range(1, self.num_sites + 1):
            self.add_module(f"act{site}", build_activation(act_cfg))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        last = self.num_sites
        norm, activation = getattr(self, f"norm{last}"), getattr(self, f"act{last}")
        plugins = [getattr(self, name) for name in self._plugin_names(last)]

        def branch_sum(x: Tensor) -> Tensor:
            out = self._plugins(norm(self._until_last_norm(x)), last)
            out += x if self.downsample is None else self.downsample(x)
            return out

        if self.with_cp and x.requires_grad:
            return activation(checkpoint(branch_sum, x, use_reentrant=False))
        is_attention = [type(p) is APASELayer and is_plain(p) for p in plugins]
        if is_attention in ([], [True]) and can_fuse(norm, activation):
            out = self._until_last_norm(x)
            return norm_add_activation(
                out, norm, activation, x, self.downsample, *plugins
            )
        return activation(branch_sum(x))

    def _until_last_norm(self, x: Tensor) -> Tensor:
        """Return the output of the last convolution."""
        raise NotImplementedError

    def _plugin_names(self, position: int) -> list[str]:
        """Return the names of the plugins after a convolution."""
        # A BasicBlock has none.
        return getattr(self, f"after_conv{position}_plugin_names", [])

    def _plugins(self, x: Tensor, position: int) -> Tensor:
        """Apply these plugins to ``x``."""
        for name in self._plugin_names(position):
            x = getattr(self, name)(x)
        return x


class APABasicBlock(_PerSiteBlock, BasicBlock):
    """mmdet's BasicBlock with ``act1`` and, after the addition, ``act2``."""

    num_sites = 2

    def _until_last_norm(self, x: Tensor) -> Tensor:
        return self.conv2(norm_activation(self.conv1(x), self.norm1, self.act1))


class APABottleneck(_PerSiteBlock, Bottleneck):
    """mmdet's Bottleneck with ``act1``, ``act2`` and, after the addition, ``act3``."""

    num_sites = 3

    def _until_last_norm(self, x: Tensor) -> Tensor:
        x = norm_activation(self.conv1(x), self.norm1, self.act1)
        x = self.conv2(self._plugins(x, 1))
        x = norm_activation(x, self.norm2, self.act2)
        return self.conv3(self._plugins(x, 2))


class APAResNeXtBottleneck(APABottleneck, ResNeXtBottleneck):
    """mmdet's ResNeXt Bottleneck with an activation per site, as APABottleneck."""


PER_SITE_BLOCKS: dict[type, type[_PerSiteBlock]] = {
    BasicBlock: APABasicBlock,
    Bottleneck: APABottleneck,
    ResNeXtBottleneck: APAResNeXtBottleneck,
}


def convert_block(block: nn.Module, activations: Mapping[str, nn.Module]) -> None:
    """Turn one of mmdet's blocks into its per-site twin, in place.

    Args:
        block: A block whose class is a key of PER_SITE_BLOCKS.
        activations: The activation of each site, by name: ``act1``, ``act2``, ...
    """
    block.__class__ = PER_SITE_BLOCKS[type(block)]
    del block.relu
    for name, activation in activations.items():
        block.add_module(name, activation)

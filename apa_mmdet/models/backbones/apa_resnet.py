"""MMDetection's ResNet and ResNeXt with one activation module per site."""

from __future__ import annotations

from collections.abc import Mapping

from mmdet.models.backbones.resnet import ResNet
from mmdet.models.backbones.resnext import ResNeXt
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..published_checkpoints import adapt_published
from .fusion import norm_activation
from .residual_block import PER_SITE_BLOCKS, build_activation


class _PerSiteActivations:
    """Mixin for mmdet's ResNet family that builds its blocks and stem per site.

    ``arch_settings`` keeps mmdet's own blocks, because ResNet compares against them to
    decide on ``zero_init_residual``.
    """

    def __init__(self, *args, act_cfg: Mapping | None = None, **kwargs) -> None:
        # Read while super().__init__ builds the layers.
        self.act_cfg = dict(type="AGLU") if act_cfg is None else act_cfg
        super().__init__(*args, **kwargs)

    def make_res_layer(self, block: type, **kwargs) -> nn.Sequential:
        """Build a stage of the per-site twin of ``block``."""
        return super().make_res_layer(
            block=PER_SITE_BLOCKS[block], act_cfg=self.act_cfg, **kwargs
        )

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        if not self.deep_stem:
            self.relu = build_activation(self.act_cfg)
            return
        for index, module in enumerate(self.stem):
            if type(module) is nn.ReLU:
                self.stem[index] = build_activation(self.act_cfg)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of the stages in ``out_indices``."""
        if self.deep_stem:
            x = self.stem(x)
        else:
            x = norm_activation(self.conv1(x), self.norm1, self.relu)
        x, outs = self.maxpool(x), []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # torch and MMEngine both call this for every checkpoint that is loaded.
        adapt_published(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        # mmdet freezes only conv1 and norm1: its ReLU has no parameters.
        if self.frozen_stages >= 0 and not self.deep_stem:
            self.relu.requires_grad_(False)


@MODELS.register_module()
class APAResNet(_PerSiteActivations, ResNet):
    """MMDetection's ResNet (depth 18 to 152) with one activation module per site.

    The stem's activation is ``relu`` (a deep stem keeps its indices). A BasicBlock has
    ``act1`` and ``act2``, a Bottleneck ``act1`` to ``act3``, the last of them after the
    addition. All other keys are those of mmdet's ResNet, so its checkpoints load.
    Stages frozen by ``frozen_stages`` freeze their activations too, as does the stem.
    With ``act_cfg=dict(type='ReLU')`` it computes exactly what mmdet's ResNet does. The
    authors' checkpoints load as they are
    (:mod:`apa_mmdet.models.published_checkpoints`).

    With running or batch statistics alike, a batch norm and the AGLU after it are one
    fused operation (``fusion.py``; exceptions: ``can_fuse``), so only the convolutions'
    outputs are saved for backward. So is the end of a block (``residual_block.py``),
    unless it has attention and its norm trains.

    Source: Alexandridis et al., ECCV 2024, arXiv 2407.08567.

    Args:
        *args: As in mmdet's ResNet.
        act_cfg: Config of the activation, by default ``dict(type='AGLU')``. Use
            ``dict(type='AGLU', init='relu')`` with weights pretrained with ReLU.
        **kwargs: As in mmdet's ResNet.
    """


@MODELS.register_module()
class APAResNeXt(_PerSiteActivations, ResNeXt):
    """MMDetection's ResNeXt (depth 50 to 152) with one activation module per site.

    Names, freezing and ``act_cfg`` are those of :class:`APAResNet`, and the other
    arguments those of mmdet's ResNeXt.
    """

"""MMDetection's ResNet and ResNeXt with one activation module per site."""

from __future__ import annotations

from mmcv.cnn import build_activation_layer
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.models.backbones.resnext import ResNeXt
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.utils import checkpoint

from ..published_checkpoints import adapt_published
from .folded_block import FoldedBasicBlock, FoldedBlock, FoldedBottleneck
from .frozen_norm import normed_activation


def _build_activation(act_cfg: dict) -> nn.Module:
    act_cfg = dict(act_cfg)
    if act_cfg["type"] == "ReLU":
        act_cfg.setdefault("inplace", True)
    return build_activation_layer(act_cfg)


class _PerSiteBlock(FoldedBlock):
    """Mixin for mmdet's residual blocks, which use one ``self.relu`` at every site."""

    def __init__(self, *args, act_cfg: dict, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        del self.relu
        for site in range(1, self.sites + 1):
            self.add_module(f"act{site}", _build_activation(act_cfg))

    def activation(self, site: int) -> nn.Module:
        """Return the activation after the norm ``site``."""
        return getattr(self, f"act{site}")

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        if self.with_cp and x.requires_grad:
            out = checkpoint.checkpoint(self._sum, x, use_reentrant=False)
        elif self.can_fold():
            return self.folded_forward(x)
        else:
            out = self._sum(x)
        return self.activation(self.sites)(out)

    def _sum(self, x: Tensor) -> Tensor:
        out = self.gated(self.last_norm(self.before_last_norm(x)))
        out += x if self.downsample is None else self.downsample(x)
        return out


class _PerSiteBasicBlock(_PerSiteBlock, FoldedBasicBlock, BasicBlock):
    pass


class _PerSiteBottleneck(_PerSiteBlock, FoldedBottleneck, Bottleneck):
    pass


class _PerSiteResNeXtBottleneck(_PerSiteBottleneck, ResNeXtBottleneck):
    pass


_PER_SITE = {
    BasicBlock: _PerSiteBasicBlock,
    Bottleneck: _PerSiteBottleneck,
    ResNeXtBottleneck: _PerSiteResNeXtBottleneck,
}


class _PerSiteActivations:
    """Mixin for mmdet's ResNet family; it swaps blocks and stem while they are built.

    ``arch_settings`` keeps naming mmdet's own blocks, because ResNet compares against
    them when it decides on ``zero_init_residual``.
    """

    def __init__(self, *args, act_cfg: dict | None = None, **kwargs) -> None:
        # Read while super().__init__ builds the layers.
        self.act_cfg = dict(type="AGLU") if act_cfg is None else act_cfg
        super().__init__(*args, **kwargs)

    def make_res_layer(self, block: type, **kwargs) -> nn.Sequential:
        """Build a stage from the per-site twin of ``block``."""
        return super().make_res_layer(
            block=_PER_SITE[block], act_cfg=self.act_cfg, **kwargs
        )

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        if not self.deep_stem:
            self.relu = _build_activation(self.act_cfg)
            return
        for index, module in enumerate(self.stem):
            if type(module) is nn.ReLU:
                self.stem[index] = _build_activation(self.act_cfg)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of the stages in ``out_indices``."""
        if self.deep_stem:
            x = self.stem(x)
        else:
            x = normed_activation(self.conv1(x), self.norm1, self.relu)
        x = self.maxpool(x)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # torch and MMEngine both call this, whatever it is that loads.
        adapt_published(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        # mmdet freezes conv1 and norm1 only: its ReLU has no parameters.
        if self.frozen_stages >= 0 and not self.deep_stem:
            self.relu.requires_grad_(False)


@MODELS.register_module()
class APAResNet(_PerSiteActivations, ResNet):
    """MMDetection's ResNet (depth 18 to 152) with one activation module per site.

    The stem's activation is ``relu`` (a deep stem keeps its indices), a BasicBlock has
    ``act1`` and ``act2``, a Bottleneck ``act1`` to ``act3``, the last one after the
    addition. All other keys are those of mmdet's ResNet, so its checkpoints load.
    Stages that ``frozen_stages`` freezes freeze their activations too, the stem's with
    the stem. With ``act_cfg=dict(type='ReLU')`` it computes what mmdet's ResNet does.
    The authors' checkpoints load as they are
    (:mod:`apa_mmdet.models.published_checkpoints`).

    While batch statistics are fixed (``norm_eval=True``, MMDetection's default), norm
    and AGLU are one operation, and so is the end of a block with an APASELayer or
    without plugins: for backward a site keeps the convolution's output alone.

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

    Names, freezing and arguments are those of :class:`APAResNet`.

    Args:
        *args: As in mmdet's ResNeXt.
        act_cfg: Config of the activation, by default ``dict(type='AGLU')``.
        **kwargs: As in mmdet's ResNeXt.
    """

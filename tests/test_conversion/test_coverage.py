"""A detector of every family converts and trains one step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations
from apa_mmdet.conversion.dry_run import UnlistedActivations
from apa_mmdet.testing.coverage import check_family
from apa_mmdet.testing.families import CONFIGS, GPU_ONLY, PACKAGES
from apa_mmdet.testing.wiring import original_activations

FAST = [
    "grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco",
    "hrnet/faster-rcnn_hrnetv2p-w18-1x_coco",
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
    "fsaf/fsaf_r50_fpn_1x_coco",
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
    "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco",
    "rtmdet/rtmdet_tiny_8xb32-300e_coco",
    "sabl/sabl-cascade-rcnn_r50_fpn_1x_coco",
    "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco",
    "yolo/yolov3_mobilenetv2_8xb24-320-300e_coco",
    "yolox/yolox_tiny_8xb8-300e_coco",
]


def check(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name][0])
    coverage = check_family(name)
    assert coverage.failures == []
    assert coverage.report.sites
    assert (coverage.losses is None) == (name in GPU_ONLY)


@pytest.mark.parametrize("name", FAST)
def test_converts_and_trains_one_step(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in FAST])
def test_every_other_family(name):
    check(name)


# ---- that the checks notice what they look for


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.act = nn.LeakyReLU(0.3)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.act(self.conv(x)).mean((2, 3))
        return F.relu(self.fc(x)) + F.silu(x)


def test_original_activations_compute_what_the_base_computes():
    base, x = Net(), torch.randn(2, 3, 4, 4)
    model = copy.deepcopy(base)
    report = convert_activations(model)
    assert not torch.equal(model(x), base(x))
    with original_activations(base, model, report):
        assert torch.equal(model(x), base(x))
    assert not torch.equal(model(x), base(x))


def test_a_call_that_is_not_in_the_report_is_noticed():
    model, x = Net(), torch.randn(2, 3, 4, 4)
    report = convert_activations(model, types=["ReLU", "LeakyReLU"])
    with UnlistedActivations(model, report) as unlisted:
        model(x)
    assert not unlisted.calls
    report.left.clear()
    with UnlistedActivations(model, report) as unlisted:
        model(x)
    assert unlisted.calls == {"silu in forward() is neither converted nor left"}


def test_a_config_that_cannot_be_built_is_a_failure_of_its_own():
    coverage = check_family("yolox/nowhere")
    assert coverage.report is None
    assert coverage.failures[0].startswith(
        "FileNotFoundError: no such config file: mmdet::yolox/nowhere.py"
    )


def test_the_tool_writes_a_row_for_each_config(run_tool, tmp_path, capsys):
    page = tmp_path / "page.md"
    name = "yolox/yolox_tiny_8xb8-300e_coco"
    with pytest.raises(SystemExit) as end:
        run_tool("conversion_coverage.py", "--configs", name, "--out", page)
    assert end.value.code == 0
    assert f"{name}: 74 sites, 0 left, 148 parameters" in capsys.readouterr().out
    assert f"| {name} | 74, " in page.read_text(encoding="utf-8")

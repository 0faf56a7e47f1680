"""A detector of every family converts and trains one step."""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "tools/analysis_tools/conversion_coverage.py"
_SPEC = spec_from_file_location("conversion_coverage", _PATH)
tool = sys.modules[_SPEC.name] = module_from_spec(_SPEC)  # dataclasses look it up
_SPEC.loader.exec_module(tool)

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


def covered(name):
    if name in tool._PACKAGES and find_spec(tool._PACKAGES[name][0]) is None:
        pytest.skip(f"its loss needs {tool._PACKAGES[name][1]}")
    row = tool.cover(name)
    assert row.failures == []
    assert row.report.sites
    assert (row.losses is None) == (name in tool.BUILD_ONLY)


@pytest.mark.parametrize("name", FAST)
def test_converts_and_trains_one_step(name):
    covered(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tool.CONFIGS if name not in FAST])
def test_every_other_family(name):
    covered(name)

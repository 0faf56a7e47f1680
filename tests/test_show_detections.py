"""The sheet of detections takes annotations and detectors with and without masks."""

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils

BITMAP = np.zeros((40, 60), np.uint8)
BITMAP[10:20, 5:30] = 1
RLE = mask_utils.encode(np.asfortranarray(BITMAP))
FORMS = [
    [[5, 10, 30, 10, 30, 20, 5, 20]],
    dict(size=[40, 60], counts=RLE["counts"].decode()),
]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("analysis_tools/show_detections.py")


class DataSet:
    def __init__(self, *masks):
        instance = dict(bbox=[5, 10, 30, 20], bbox_label=0)
        self.instances = [
            instance if mask is None else dict(instance, mask=mask) for mask in masks
        ]

    def get_data_info(self, index):
        return dict(instances=self.instances, height=40, width=60, img_path="a.jpg")


def test_annotations_of_every_form(tool):
    annotations = tool.load_annotations(DataSet(*FORMS), 0)
    assert annotations.bboxes.tolist() == [[5, 10, 30, 20]] * 2
    np.testing.assert_array_equal(annotations.masks.masks, [BITMAP] * 2)
    assert "masks" not in tool.load_annotations(DataSet(FORMS[0], None), 0)
    assert len(tool.load_annotations(DataSet(), 0)) == 0
    damaged = dict(FORMS[1], counts=FORMS[1]["counts"][:-1])
    with pytest.raises(ValueError, match="a.jpg: instance 2: a damaged mask"):
        tool.load_annotations(DataSet(FORMS[0], damaged), 0)


@pytest.mark.parametrize("with_masks", [False, True])
def test_detections_with_and_without_masks(tool, with_masks):
    boxes = torch.tensor([[5.0, 10, 30, 20], [5, 10, 30, 21], [30, 10, 50, 20]])
    scores, labels = torch.tensor([0.9, 0.8, 0.2]), torch.tensor([0, 1, 0])
    predictions = InstanceData(bboxes=boxes, scores=scores, labels=labels)
    if with_masks:
        predictions.masks = torch.from_numpy(np.stack([BITMAP] * 3).astype(bool))
    dets = tool.select_detections(predictions, 0.3)
    assert dets.bboxes.tolist() == boxes[:1].tolist()
    resized = tool.resize(dets, 2.0, (80, 120))
    assert resized.bboxes.tolist() == (2 * boxes[:1]).tolist()
    if with_masks:
        assert isinstance(resized.masks, BitmapMasks)
        assert resized.masks.masks.sum() == pytest.approx(4 * BITMAP.sum(), rel=0.1)

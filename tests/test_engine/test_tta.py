"""Test-time augmentation of detectors with masks."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from apa_mmdet.engine.tta import enable_tta, leave_out_masks


def config(evaluator, **model):
    dataset = dict(type="CocoDataset", pipeline=[dict(type="A"), dict(type="Pack")])
    return Config(
        dict(
            model=dict(type="MaskRCNN", **model),
            test_dataloader=dict(dataset=dict(type="Repeat", dataset=dataset)),
            test_evaluator=evaluator,
        )
    )


@pytest.mark.parametrize(
    "metric, kept", [("bbox", "bbox"), (["segm", "bbox"], ["bbox"]), (None, None)]
)
@pytest.mark.parametrize("several", [False, True])
def test_only_boxes_are_evaluated(metric, kept, several, capsys):
    evaluator = dict(type="CocoMetric", metric=metric)
    cfg = config([dict(evaluator), dict(type="Other")] if several else evaluator)
    enable_tta(cfg)
    evaluator = cfg.test_evaluator[0] if several else cfg.test_evaluator
    assert evaluator.metric == kept
    assert ("'segm' is left out" in capsys.readouterr().out) == (metric != kept)


def test_masks_as_the_only_metric_are_refused():
    with pytest.raises(ValueError, match="--tta.*'segm'.*test_evaluator.metric=bbox"):
        enable_tta(config(dict(type="CocoMetric", metric="segm")))


def test_classifiers_are_refused():
    cfg = config(dict(type="Accuracy"))
    cfg.default_scope = "mmpretrain"
    with pytest.raises(ValueError, match="--tta .* image classifier's; drop --tta"):
        enable_tta(cfg)


def test_flips_and_the_models_own_limit_are_the_default():
    cfg = config(dict(), test_cfg=dict(rcnn=dict(max_per_img=300)))
    enable_tta(cfg)
    assert cfg.model.type == "DetTTAModel" and cfg.model.module.type == "MaskRCNN"
    assert cfg.model.tta_cfg.max_per_img == 300
    load, augment = cfg.test_dataloader.dataset.dataset.pipeline
    assert load.type == "A" and augment.type == "TestTimeAug"
    assert [flip.prob for flip in augment.transforms[0]] == [1.0, 0.0]


class Detector(nn.Module):
    """Predicts masks without a mask head, as single-stage detectors do."""

    def forward(self):
        boxes, masks = torch.ones(2, 4), torch.ones(2, 8, 8)
        instances = InstanceData(bboxes=boxes, masks=masks)
        return [DetDataSample(pred_instances=instances)]


def test_masks_of_any_detector_are_dropped():
    model = nn.ModuleDict({"module": Detector()})
    leave_out_masks(model)
    (sample,) = model.module()
    assert sample.pred_instances.keys() == ["bboxes"]

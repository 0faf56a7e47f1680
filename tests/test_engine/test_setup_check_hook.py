"""SetupCheckHook stops a run before its first iteration, and lets others pass."""

import json

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner

from apa_mmdet.datasets.mini_lvis import CLASSES
from apa_mmdet.engine import ClassFrequencyHook, SetupCheckHook
from apa_mmdet.testing.configs import read_config, remove_checkpoints
from apa_mmdet.testing.models import quiet_mmdet
from apa_mmdet.testing.small_detectors import FASTER_RCNN, RETINANET, small_config


@DATASETS.register_module(force=True)
class Named(BaseDataset):
    """An image, and the classes of mini-LVIS."""

    METAINFO = dict(classes=CLASSES)

    def load_data_list(self):
        return [dict()]


class Stop(Exception):
    """The run got past the checks."""


class StopHook(Hook):
    """Stops a run after all other hooks have seen it start."""

    priority = "LOWEST"

    def before_run(self, runner):
        raise Stop


@pytest.fixture
def build(tmp_path, mini_lvis, monkeypatch):
    """A function that builds a Runner with a model and an evaluator."""
    monkeypatch.setattr(Runner, "_log_env", lambda self, env_cfg: None)

    def runner(model, evaluator, hook=SetupCheckHook):
        ann_file = str(mini_lvis / "annotations/lvis_v1_val.json")
        for each in evaluator if isinstance(evaluator, list) else [evaluator]:
            each.setdefault("ann_file", ann_file)
        loader = dict(
            dataset=dict(type="Named"),
            sampler=dict(type="DefaultSampler", shuffle=False),
            num_workers=0,
        )
        return Runner(
            model=model,
            work_dir=str(tmp_path),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
            val_dataloader=loader,
            val_cfg={},
            val_evaluator=evaluator,
            test_dataloader=loader,
            test_cfg={},
            test_evaluator=evaluator,
            custom_hooks=[hook(), StopHook()],
            default_scope="mmdet",
            experiment_name=f"{tmp_path.name}_{torch.randint(10**9, ()).item()}",
        )

    return runner


def metric(*names, kind="LVISFastMetric"):
    return dict(type=kind, metric=list(names))


@pytest.mark.parametrize(
    ("mode", "hook", "evaluator", "message"),
    [
        (
            "train",
            ClassFrequencyHook,
            metric("bbox", "segm"),
            "val_evaluator.metric has 'segm', but RetinaNet has no mask head and "
            "predicts boxes only; evaluate those, with --cfg-options "
            "val_evaluator.metric=bbox",
        ),
        ("val", SetupCheckHook, metric("segm"), "val_evaluator.metric has 'segm'"),
        (
            "test",
            SetupCheckHook,
            [metric("bbox"), metric("segm", "bbox", "proposal")],
            "--cfg-options test_evaluator.1.metric=[bbox,proposal]",
        ),
        (
            "test",
            SetupCheckHook,
            metric("segm", kind="CocoMetric"),
            "test_evaluator.met",
        ),
    ],
)
def test_a_box_detector_cannot_be_evaluated_by_masks(
    build, mode, hook, evaluator, message
):
    run = build(small_config(RETINANET, converted=False).model, evaluator, hook)
    with pytest.raises(ValueError) as error:
        getattr(run, mode)()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_box_detector_can_be_evaluated_by_boxes(build):
    with pytest.raises(Stop):
        build(small_config(FASTER_RCNN, converted=False).model, metric("bbox")).train()


@pytest.mark.parametrize(
    "path",
    [
        "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",  # with_mask is False
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",  # the same
    ],
)
def test_models_with_masks_pass(build, path):
    cfg = read_config(f"mmdet::{path}")
    remove_checkpoints(cfg.model)
    with quiet_mmdet(), torch.device("meta"):
        model = MODELS.build(cfg.model)
    run = build(small_config(RETINANET, converted=False).model, metric("segm"))
    run.model = model
    with pytest.raises(Stop):
        run.test()


def test_labels_of_the_training_data(build, tmp_path):
    path = tmp_path / "train.json"
    image = dict(id=1, height=9, width=9, file_name="a.jpg")
    box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], area=25)
    categories = [dict(id=i, name=name) for i, name in enumerate("ab")]
    data = dict(images=[image], annotations=[box], categories=categories)
    path.write_text(json.dumps(data))
    dataset = dict(type="CocoDataset", ann_file=str(path), data_prefix=dict(img=""))
    dataset["metainfo"] = dict(classes=("b", "a"))
    refused = pytest.raises(ValueError, match="train.json: label 0 is category 0, 'a'")
    for mode, expected in (("train", refused), ("test", pytest.raises(Stop))):
        run = build(small_config(RETINANET, converted=False).model, metric("bbox"))
        run._train_dataloader = dict(run._train_dataloader, dataset=dataset)
        with expected:  # testing does not read the training data
            getattr(run, mode)()

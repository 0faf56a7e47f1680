"""Class statistics in a run, and several calibrations in one test."""

import json
import sys

import numpy as np
import pytest
import torch
from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import RepeatDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import METRICS
from mmengine.runner import Runner

from apa_mmdet.datasets.box_positions import box_positions
from apa_mmdet.engine.calibration import provide_class_counts, try_calibrations
from apa_mmdet.models.calibration import FRACAL, ClassStatistics, fractal_dimension

NAMES = ("often", "seldom", "never")
# label, left, top, right, bottom, ignored
IMAGES = [
    [(0, 0, 0, 10, 10, 0), (0, 30, 0, 40, 10, 0), (1, 0, 0, 40, 20, 0)],
    [(0, 20, 30, 40, 40, 0), (2, 0, 0, 9, 9, 1)],
    [],
    [(0, 5, 5, 9, 9, 0), (0, 10, 10, 40, 40, 0)],
]


@DATASETS.register_module(force=True)
class BoxToy(BaseDetDataset):
    """Images of 40 x 40 pixels with the boxes given."""

    METAINFO = dict(classes=NAMES)

    def __init__(self, images=IMAGES, **kwargs):
        self.images = images
        super().__init__(pipeline=[], **kwargs)

    def load_data_list(self):
        return [
            dict(
                width=40,
                height=40,
                instances=[
                    dict(bbox_label=label, bbox=list(box), ignore_flag=ignored)
                    for label, *box, ignored in boxes
                ],
            )
            for boxes in self.images
        ]

    def prepare_data(self, idx):
        return dict(inputs=torch.ones(2))


class Head(torch.nn.Module):
    """What a run sees of a calibrated RoI head."""

    def __init__(self, num_classes, rule):
        super().__init__()
        self.class_statistics = ClassStatistics(num_classes)
        self.calibrations = dict(FRACAL=rule)


class Model(BaseModel):
    """A model that does nothing but have a calibrated head."""

    def __init__(self, num_classes=3, rule=None):
        super().__init__()
        self.roi_head = Head(num_classes, rule or FRACAL(min_images=1))
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode):
        return [{}] if mode == "predict" else dict(loss=self.weight.sum())


@METRICS.register_module(force=True)
class Nothing(BaseMetric):
    """A metric without figures."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


def runner(tmp_path, model, images=IMAGES, in_test=False, **kwargs):
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=dict(type="mmdet.BoxToy", images=images),
    )
    hook = dict(type="mmdet.ClassFrequencyHook", read_in_test=in_test)
    return Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=dict(type="Nothing"),
        custom_hooks=[hook],
        experiment_name=f"{tmp_path.name}_{torch.randint(10**9, ()).item()}",
        cfg=Config(dict(train_dataloader=loader)),
        **kwargs,
    )


def check(statistics):
    assert statistics.image_counts.tolist() == [3, 1, 0]
    assert statistics.box_counts.tolist() == [5, 1, 0]
    assert statistics.num_images.tolist() == [3]
    boxes = box_positions(BoxToy())
    expected = fractal_dimension(boxes.labels, boxes.centers, 3)
    assert expected[0] > 1
    np.testing.assert_allclose(statistics.fractal_dimension, expected, rtol=1e-6)


def test_box_positions():
    for dataset in (BoxToy(), RepeatDataset(BoxToy(), times=3)):
        boxes = box_positions(dataset)
        assert boxes.labels.tolist() == [0, 0, 1, 0, 0, 0]
        expected = [(5, 5), (35, 5), (20, 10), (30, 35), (7, 7), (25, 25)]
        np.testing.assert_allclose(boxes.centers, np.array(expected) / 40, rtol=1e-6)
        assert boxes.image_counts.tolist() == [3, 1, 0]
        assert boxes.box_counts.tolist() == [5, 1, 0]
        assert boxes.num_images == 3


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[(0, 0, 0, 1, 1, 0)], [(3, 0, 0, 1, 1, 0)]], "image 2 of BoxToy has labels"),
        ([[], [(0, 0, 0, 1, 1, 1)]], "has no boxes"),
    ],
)
def test_unusable_boxes(images, words):
    with pytest.raises(ValueError, match=words):
        box_positions(BoxToy(images))


def test_data_sets_that_give_no_boxes():
    with pytest.raises(TypeError, match="from list: expected an mmdet data set"):
        box_positions([])
    dataset = BoxToy()
    dataset.full_init()
    dataset.get_data_info = lambda index: dict(width=1, instances=[])
    with pytest.raises(TypeError, match="BoxToy: image 1 has no 'height'"):
        box_positions(dataset)


def test_training_fills_the_statistics_and_the_checkpoint(tmp_path):
    run = runner(tmp_path / "first", Model())
    run.train()
    check(run.model.roi_head.class_statistics)
    path = tmp_path / "first" / "epoch_1.pth"
    cfg = config()
    cfg.model.test_cfg.rcnn.calibration = "FRACAL"
    provide_class_counts(cfg, str(path), False)
    fresh = Model()
    fresh.load_state_dict(torch.load(path)["state_dict"])
    check(fresh.roi_head.class_statistics)
    # Training data wins over a checkpoint from other data.
    other = runner(tmp_path / "other", Model(), images=IMAGES[:1], load_from=str(path))
    other.train()
    assert other.model.roi_head.class_statistics.image_counts.tolist() == [1, 1, 0]


def test_testing_reads_nothing_unless_asked(tmp_path):
    with pytest.raises(RuntimeError, match="class counts.*--read-counts"):
        runner(tmp_path / "no", Model()).test()
    run = runner(tmp_path / "yes", Model(), in_test=True)
    run.test()
    check(run.model.roi_head.class_statistics)
    run = runner(tmp_path / "missing", Model(), in_test=True)
    run.cfg.train_dataloader.dataset = dict(
        type="mmdet.CocoDataset", ann_file="no.json", data_root="nowhere"
    )
    with pytest.raises(FileNotFoundError, match="counts are read, .*no.json"):
        run.test()


def test_what_does_not_fit_stops_before_training(tmp_path):
    for model, words in (
        (Model(num_classes=5), "has 3 classes.*num_classes=5"),
        (Model(rule=FRACAL()), "1 of 3 classes have no boxes.* label 2 "),
    ):
        run = runner(tmp_path, model)
        with pytest.raises(ValueError, match=words):
            run.train()
        assert run.iter == 0


# --------------------------------------------------------------- several in one test


def config(**evaluator):
    return Config(
        dict(
            model=dict(test_cfg=dict(rcnn=dict(score_thr=0.1, max_per_img=300))),
            test_evaluator=dict(type="LVISFastMetric", **evaluator),
        )
    )


def test_one_calibration_keeps_the_evaluator(capsys):
    cfg = config(metric_items=["AP", "AR@300"])
    try_calibrations(cfg, ["FRACAL"])
    assert cfg.model.test_cfg.rcnn.calibration == ["FRACAL"]
    assert cfg.test_evaluator.type == "LVISFastMetric" and cfg.test_evaluator.fixed_ap
    assert cfg.test_evaluator.metric_items == ["AP", "AR@300", "FixedAP"]
    assert "at most 300 detections" in capsys.readouterr().out
    cfg.model.test_cfg.rcnn.max_per_img = 1000
    try_calibrations(cfg, ["none"])
    assert not capsys.readouterr().out


def test_several_calibrations_get_the_evaluator():
    cfg = config()
    try_calibrations(cfg, ["none", "NORCAL:gamma=0.5"])
    evaluator = cfg.test_evaluator
    assert evaluator.type == "CalibrationEvaluator"
    assert evaluator.calibrations == ["none", "NORCAL:gamma=0.5"]
    (metric,) = evaluator.metrics
    assert metric.type == "LVISFastMetric" and metric.fixed_ap
    try_calibrations(cfg, ["FRACAL", "NORCAL"])
    assert cfg.test_evaluator.calibrations == ["FRACAL", "NORCAL"]
    assert [metric.type for metric in cfg.test_evaluator.metrics] == ["LVISFastMetric"]


def test_configs_that_cannot_be_calibrated():
    cfg = config()
    with pytest.raises(ValueError, match="type='FRACTAL'"):
        try_calibrations(cfg, ["FRACTAL"])
    del cfg.model.test_cfg["rcnn"]
    with pytest.raises(ValueError, match="no test_cfg.rcnn.*model.head.calib"):
        try_calibrations(cfg, ["FRACAL"])


def test_the_hook_is_added_once():
    cfg = config()
    provide_class_counts(cfg, "no.pth", False)
    assert "custom_hooks" not in cfg
    cfg.model.test_cfg.rcnn.calibration = ["none", "FRACAL"]
    for in_test in (True, True):
        provide_class_counts(cfg, "no.pth", in_test)
    assert cfg.custom_hooks == [dict(type="ClassFrequencyHook", read_in_test=True)]
    cfg.custom_hooks = [dict(type="EMAHook"), dict(type="mmdet.ClassFrequencyHook")]
    provide_class_counts(cfg, "https://host/remote.pth", False)
    assert [hook.get("read_in_test") for hook in cfg.custom_hooks] == [None, False]
    cfg.custom_hooks[1].read_in_test = True
    provide_class_counts(cfg, "no.pth", False)  # the file is not asked for counts
    assert cfg.custom_hooks[1].read_in_test is True


def test_a_checkpoint_without_counts(tmp_path):
    cfg = config()
    with pytest.raises(ValueError, match="--read-counts: nothing needs class counts"):
        provide_class_counts(cfg, "no.pth", True)
    cfg.model.test_cfg.rcnn.calibration = dict(type="FRACAL")
    path = str(tmp_path / "a.pth")
    for content in ({}, dict(state_dict=Model().state_dict())):
        torch.save(content, path)
        with pytest.raises(ValueError, match="a.pth has no class counts.*--read-coun"):
            provide_class_counts(cfg, path, False)


def test_counts_for_the_metric_of_a_classifier():
    hooks = [dict(type="EMAHook"), dict(type="ClassFrequencyHook")]
    cfg = Config(
        dict(model=dict(type="ImageClassifier", head=dict()), custom_hooks=hooks)
    )
    provide_class_counts(cfg, "no.pth", True)
    assert [hook.get("read_in_test") for hook in cfg.custom_hooks] == [None, True]


# ------------------------------------------------------------------- tools/test.py


def test_the_tool_tries_several(load_tool, repo, mini_lvis, tmp_path, monkeypatch):
    cfg = Config.fromfile(repo / "configs/mini_lvis/mask_rcnn_r18_apa.py")
    options = {
        "model.backbone.base_channels": 8,
        "model.neck.in_channels": [8, 16, 32, 64],
        "model.roi_head.mask_head": None,
        "model.test_cfg.rpn.max_per_img": 16,
        "data_root": str(mini_lvis),
        "test_dataloader.dataset.indices": 2,
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
        "test_evaluator.metric": "bbox",
        "test_evaluator.img_ids": "predicted",
    }
    cfg.merge_from_dict(options)
    path = tmp_path / "random.pth"
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), path)
    argv = ["test.py", cfg.filename, str(path), "--work-dir", str(tmp_path)]
    argv += ["--calibration", "none", "NORCAL:gamma=0.5", "--read-counts"]
    argv += ["--cfg-options"]
    argv += [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]
    monkeypatch.setattr(sys, "argv", argv)
    load_tool("test.py").main()
    (path,) = tmp_path.glob("*/*.json")
    (figures,) = map(json.loads, path.read_text().splitlines())
    for name in ("none", "NORCAL:gamma=0.5"):
        for figure in ("AP", "APr", "FixedAP", "FixedAPr"):
            assert f"{name}/lvis/bbox_{figure}" in figures
    log = "".join(path.read_text() for path in tmp_path.glob("*/*.log"))
    assert "class counts and box positions read from the training data: 1,377" in log

"""The metric in MMEngine's Runner: classes, checkpoints, submissions, refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, MODELS
from mmengine.model import BaseModel
from mmengine.runner import Runner

from apa_mmdet.datasets.mini_lvis import CLASSES


@DATASETS.register_module(force=True)
class MiniLVIS(CocoDataset):
    """Mini-LVIS in COCO's format, without its images."""

    def parse_data_info(self, raw_data_info):
        image = raw_data_info["raw_img_info"]
        return super().parse_data_info(
            {**raw_data_info, "raw_img_info": {**image, "file_name": "none.jpg"}}
        )

    def prepare_data(self, idx):
        return dict(images=SimpleNamespace(**self.get_data_info(idx)))


@MODELS.register_module(force=True)
class Oracle(BaseModel):
    """Predicts what is annotated, moved to the right by its only parameter.

    A step of training with SGD moves it to the left by the learning rate.
    `learned` are the labels that the model learned for those of the data set.
    """

    def __init__(self, shift=0.0, learned=range(40)):
        super().__init__()
        self.learned = learned
        self.shift = torch.nn.Parameter(torch.tensor(float(shift)))
        self.num_predicted = 0

    def forward(self, images, mode):
        """Return the loss or the predictions."""
        if mode == "loss":
            return dict(loss=self.shift)
        self.num_predicted += len(images)
        return [
            dict(img_id=image.img_id, pred_instances=self.predict(image))
            for image in images
        ]

    def predict(self, image):
        boxes = torch.tensor([i["bbox"] for i in image.instances]).reshape(-1, 4)
        labels = [self.learned[i["bbox_label"]] for i in image.instances]
        labels = torch.tensor(labels).long()
        masks = torch.zeros(len(boxes), image.height, image.width, dtype=torch.bool)
        if self.shift.isnan():  # no score passes a threshold
            boxes, labels, masks = boxes[:0], labels[:0], masks[:0]
        boxes[:, ::2] += self.shift.detach()
        for mask, box in zip(masks, boxes.round().int().clip(0).tolist()):
            left, top, right, bottom = box
            mask[top:bottom, left:right] = True
        scores = torch.ones(len(boxes))
        return dict(bboxes=boxes, labels=labels, masks=masks, scores=scores)


@pytest.fixture
def build(tmp_path, mini_lvis, monkeypatch):
    """A function that builds a Runner to train and evaluate on a few images."""
    # It runs compilers to see their versions.
    monkeypatch.setattr(Runner, "_log_env", lambda self, env_cfg: None)

    def runner(model=None, classes=CLASSES, change=None, settings=None, **evaluator):
        data = json.loads((mini_lvis / "annotations/lvis_v1_val.json").read_text())
        if change is not None:
            change(data)
        path = tmp_path / "val.json"
        path.write_text(json.dumps(data))
        evaluator = dict(type="LVISFastMetric", ann_file=str(path)) | evaluator
        dataset = dict(
            type="MiniLVIS",
            ann_file=str(path),
            data_prefix=dict(img=""),
            metainfo=dict(classes=classes),
        )
        loader = dict(batch_size=20, num_workers=0, dataset=dataset)
        loader["sampler"] = dict(type="DefaultSampler", shuffle=False)
        train = dict(loader, dataset=dict(dataset, indices=4))
        return Runner(
            model=dict(type="Oracle", **(model or {})),
            work_dir=str(tmp_path),
            train_dataloader=train,
            train_cfg=dict(by_epoch=True, max_epochs=3),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=10)),
            val_dataloader=loader,
            val_cfg={},
            val_evaluator=evaluator,
            test_dataloader=loader,
            test_cfg={},
            test_evaluator=evaluator,
            default_scope="mmdet",
            experiment_name=f"{tmp_path.name}_{torch.randint(10**9, ()).item()}",
            **(settings or {}),
        )

    return runner


def log_of(folder):
    """Return everything that was logged in a working directory."""
    return "".join(path.read_text() for path in folder.rglob("*.log"))


# ---------------------------------------------------------------------------- classes


def test_some_of_the_file_s_classes(build, tmp_path):
    options = dict(classwise=True, metric=["bbox", "segm"])
    chosen = CLASSES[3], CLASSES[20], CLASSES[31]
    whole = build(**options).test()
    some = build(classes=chosen, **options).test()
    for kind in ("bbox", "segm"):
        names = [f"lvis/{kind}_{name}_precision" for name in chosen]
        assert [name for name in some if "_precision" in name and kind in name] == names
        assert [some[name] for name in names] == [whole[name] for name in names]
        mean = sum(whole[name] for name in names) / 3
        assert some[f"lvis/{kind}_AP"] == pytest.approx(mean)
    assert some["lvis/bbox_AP"] == pytest.approx(1)
    assert some["lvis/segm_AP"] > 0
    assert "3 of 40 categories are evaluated" in log_of(tmp_path)


def test_categories_in_another_order_than_the_classes(build, tmp_path):
    def reverse(data):
        data["categories"].reverse()

    trained = dict(learned=range(39, -1, -1))  # on a file in the order of the classes
    results = build(trained, change=reverse).test()
    assert results["lvis/bbox_AP"] == pytest.approx(1)
    log = log_of(tmp_path)
    assert "in another order than the data set's metainfo['classes']" in log
    assert f"label 0 is {CLASSES[0]!r}" in log
    # Without the names, labels follow the file, as before MMEngine sets them.
    runner = build(trained, change=reverse)
    runner.test_loop.evaluator.dataset_meta = {}
    assert runner.test()["lvis/bbox_AP"] == 0


@pytest.mark.parametrize(
    ("mode", "classes", "message"),
    [
        (
            "train",
            (CLASSES[0], "moon"),
            r"val.json: no category is named 'moon' \(1 of",
        ),
        (
            "test",
            "red_star",
            r"is the string 'red_star', .*written classes=\('red_star',",
        ),
        ("test", CLASSES[:2] * 2, f"has {CLASSES[0]!r} 2 times"),
    ],
)
def test_classes_that_cannot_be_evaluated(build, mode, classes, message):
    runner = build(classes=classes)
    with pytest.raises(ValueError, match=message):
        getattr(runner, mode)()
    assert runner.iter == runner.model.num_predicted == 0


# ----------------------------------------------------------------- checkpoints, scores


@pytest.mark.parametrize("save_best", ["auto", "lvis/segm_AP"])
def test_save_best(build, tmp_path, save_best):
    """Nothing is right after the first and third epoch, everything after the second."""
    hook = dict(type="CheckpointHook", save_best=save_best, interval=9)
    stop = dict(type="EarlyStoppingHook", monitor="lvis/segm_AP", patience=9)
    build(
        dict(shift=20),
        metric=["bbox", "segm"],
        settings=dict(default_hooks=dict(checkpoint=hook), custom_hooks=[stop]),
    ).train()
    name = "lvis/bbox_AP" if save_best == "auto" else save_best
    best = [path.name for path in tmp_path.glob("best*")]
    assert best == [f"best_{name.replace('/', '_')}_epoch_2.pth"]


def test_weights_that_are_nan(build, tmp_path):
    def remove_some(data):
        gone = {image["id"] for image in data["images"][:7]}
        data["annotations"] = [
            item for item in data["annotations"] if item["image_id"] not in gone
        ]

    assert build(dict(shift="nan"), change=remove_some).test()["lvis/bbox_AP"] == 0
    log = log_of(tmp_path)
    assert "none of the 60 predicted images has a detection with a finite score" in log
    build(change=remove_some).test()
    expected = "7 of the 60 predicted images have no detection with a finite score"
    assert expected in log_of(tmp_path).replace(log, "")


# ------------------------------------------------------------------------ submissions


def as_test_set(data):
    """Leave what LVIS's file of its test-dev images has."""
    data["annotations"] = []
    for image in data["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]


def without_annotations(data):
    """Leave even less."""
    as_test_set(data)
    del data["annotations"]
    for category in data["categories"]:
        del category["frequency"]


@pytest.mark.parametrize("strip", [as_test_set, without_annotations])
def test_submission(build, tmp_path, strip):
    """The file is the one that LVISMetric writes; its ids are the file's."""
    options = dict(format_only=True, metric=["bbox", "segm"])
    prefix = str(tmp_path / "theirs")
    runner = build(type="LVISMetric", outfile_prefix=prefix, **options)
    batches = [*runner.test_dataloader]
    samples = [s for batch in batches for s in runner.model.test_step(batch)]
    for sample in samples:
        sample["ori_shape"] = sample["pred_instances"]["masks"].shape[1:]
    runner.test_loop.evaluator.metrics[0].process(None, samples)
    runner.test_loop.evaluator.evaluate(len(samples))

    ours = dict(outfile_prefix=str(tmp_path / "ours"), **options)
    runner = build(change=strip, **ours)
    metric = runner.test_loop.evaluator.metrics[0]
    metric.process(None, samples)
    assert metric.evaluate(len(samples)) == {}
    for kind in ("bbox", "segm"):
        written, expected = (
            json.loads((tmp_path / f"{who}.{kind}.json").read_text())
            for who in ("ours", "theirs")
        )
        assert written == expected
        assert len(written) > 60
    assert "results of 60 of 60 images written" in log_of(tmp_path)
    with pytest.raises(ValueError, match="LVIS evaluation needs"):
        build(change=strip).test()

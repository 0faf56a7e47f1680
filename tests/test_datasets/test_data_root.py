"""Moving a config's data to another folder."""

import pytest
from mmengine.config import Config

from apa_mmdet.datasets import set_data_root


def config(old="data/coco/", prefix="data/coco/", **top):
    """Return a config whose data lie in a folder, in each way that configs write it."""
    dataset = dict(
        type="CocoDataset",
        data_root=old,
        ann_file="annotations/train.json",
        data_prefix=dict(img="train2017/"),
    )
    whole_paths = dict(
        type="CocoDataset",
        ann_file=[f"{prefix}a.json", "./data//coco/b.json"],
        data_prefix=dict(img=f"{prefix}train2017/", seg="data/coco"),
        metainfo=dict(classes=f"{prefix}classes.txt"),
        pipeline=(dict(type="LoadImageFromFile", key="data/coco/"),),
    )
    return Config(
        dict(
            data_root=old,
            work_dir="data/coco/work",
            model=dict(type="data/coco", embedding_file=f"{prefix}text.npy"),
            train_dataloader=dict(
                dataset=dict(type="ConcatDataset", datasets=[dataset, whole_paths])
            ),
            val_dataloader=dict(dataset=dict(dataset, data_root="data/coco2/")),
            val_evaluator=[
                dict(ann_file=f"{prefix}val.json", outfile_prefix="data/coco/out"),
                dict(ann_file="data/coco2/val.json"),
            ],
            **top,
        )
    )


@pytest.mark.parametrize("old", ["data/coco/", "data/coco", "./data/coco"])
def test_paths_in_the_data_root_move(old):
    cfg = config(old)
    set_data_root(cfg, "/new/place")
    dataset, whole_paths = cfg.train_dataloader.dataset.datasets
    assert cfg.data_root == dataset.data_root == "/new/place/"
    assert dataset.ann_file == "annotations/train.json"
    assert dataset.data_prefix.img == "train2017/"
    assert whole_paths.ann_file == ["/new/place/a.json", "/new/place/b.json"]
    assert whole_paths.data_prefix.img == "/new/place/train2017/"
    assert whole_paths.data_prefix.seg == "/new/place/"
    assert whole_paths.metainfo.classes == "/new/place/classes.txt"
    assert cfg.val_evaluator[0].ann_file == "/new/place/val.json"
    assert cfg.model.embedding_file == "/new/place/text.npy"


def test_nothing_else_changes():
    cfg = config()
    set_data_root(cfg, "/new/place")
    whole_paths = cfg.train_dataloader.dataset.datasets[1]
    assert cfg.val_dataloader.dataset.data_root == "data/coco2/"
    assert cfg.val_evaluator[1].ann_file == "data/coco2/val.json"
    assert cfg.model.type == whole_paths.pipeline[0].key.rstrip("/") == "data/coco"
    assert whole_paths.type == "CocoDataset"
    assert cfg.val_evaluator[0].outfile_prefix == "data/coco/out"
    assert cfg.work_dir == "data/coco/work"


def test_urls_and_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = config("s3://bucket/coco/", "s3://bucket/coco/")
    set_data_root(cfg, "~/coco/")
    assert cfg.val_evaluator[0].ann_file == "/home/me/coco/val.json"
    set_data_root(cfg, "s3://other")
    assert cfg.val_evaluator[0].ann_file == "s3://other/val.json"


@pytest.mark.parametrize("old", ["", ".", "./", None, 3])
def test_a_config_without_a_root_says_what_to_set(old):
    cfg = config(old)
    before = cfg.to_dict()
    with pytest.raises(ValueError, match="data_root.*cannot be replaced") as error:
        set_data_root(cfg, "/new/place")
    assert cfg.to_dict() == before
    for name in (
        "train_dataloader.dataset.datasets.0.data_root",
        "train_dataloader.dataset.datasets.1.data_root",
        "val_dataloader.dataset.data_root",
        "val_evaluator.0.ann_file",
        "val_evaluator.1.ann_file",
    ):
        assert name in str(error.value)


def test_a_root_that_no_data_set_uses_is_refused():
    cfg = Config(
        dict(
            data_root="data/coco/",
            val_dataloader=dict(dataset=dict(data_root="data/mine/", ann_file="a")),
        )
    )
    with pytest.raises(ValueError, match="nothing.*'data/coco/'; set val_dataloader"):
        set_data_root(cfg, "/new/place")
    with pytest.raises(ValueError, match="has no data_root; set the data_root of its"):
        set_data_root(Config(dict(model=dict())), "/new/place")


@pytest.mark.parametrize("new", ["", None, 5])
def test_the_new_root_must_be_a_path(new):
    with pytest.raises(ValueError, match=f"data_root={new!r}, expected the path"):
        set_data_root(config(), new)

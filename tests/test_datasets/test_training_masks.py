"""Training with masks is refused before it starts if annotations have none."""

import gzip
import json

import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as mask_utils

from apa_mmdet.datasets import check_files, training_masks
from apa_mmdet.datasets.training_masks import check_training_masks

POLYGON = [[1, 1, 30, 1, 30, 20]]
RLE = mask_utils.encode(np.eye(60, 80, dtype=np.uint8, order="F"))
RLE = dict(size=[60, 80], counts=RLE["counts"].decode())
USABLE = [POLYGON, RLE, dict(size=[60, 80], counts=[60 * 80 - 5, 5])]
UNUSABLE = [
    ([], "segmentation is []; expected a polygon"),
    (None, "segmentation is null or missing; expected polygons"),
    ([[1, 2]], "segmentation is [[1, 2]]; expected a polygon"),
    ([[None, 1, 30, 1, 30, 20]], "polygon is [null, 1, 30, 1, 30, 20]; expected a"),
    ([[2e8, 1, 30, 1, 30, 20]], "corner 1 of a polygon is (2e+08, 1) in an image"),
    (dict(RLE, counts=RLE["counts"][:-1]), "damaged, an RLE that does not fill its"),
    (dict(RLE, counts=[5, 5]), "damaged, an RLE that does not fill its image"),
    (dict(RLE, counts=None), "RLE counts is null; expected run lengths"),
    (dict(RLE, size=[80, 60]), "RLE size is [80, 60] in an image of 60 x 80"),
]


def write(folder, masks, classes=("cat", "dog"), **changes):
    """Write a COCO file of one image, in which the classes take turns."""
    (folder / "1.jpg").touch()
    annotations = [
        dict(id=i + 10, image_id="a", category_id=i % len(classes), area=9)
        | dict(bbox=[0, 0, 9, 9], segmentation=mask, **changes)
        for i, mask in enumerate(masks)
    ]
    data = dict(
        images=[dict(id="a", height=60, width=80, file_name="1.jpg")],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes)],
        annotations=annotations,
    )
    path = folder / "train.json"
    path.write_text(json.dumps(data))
    return path


def test_usable_masks_are_accepted(tmp_path):
    check_training_masks(write(tmp_path, USABLE))


def test_mmdet_leaves_out_some_polygons(tmp_path):
    check_training_masks(write(tmp_path, [[[1, 1], *POLYGON, [1, 1, 2]]]))


@pytest.mark.parametrize(("mask", "reason"), UNUSABLE)
def test_unusable_masks_are_counted_and_the_first_is_named(
    tmp_path, mask, reason, monkeypatch
):
    monkeypatch.setattr(training_masks, "_CHECKED_AT_ONCE", 2)
    path = write(tmp_path, [*USABLE, mask, RLE, mask, RLE])
    expected = (
        f"{path}: 2 of 7 annotations to train on have no usable mask, the first: "
        f"annotation 13 ({reason}"
    )
    data = json.loads(path.read_text())
    # The same with annotations before images, and compressed.
    for text in (data, dict(reversed(data.items()))):
        path.write_bytes(gzip.compress(json.dumps(text).encode()))
        with pytest.raises(ValueError) as caught:
            check_training_masks(path)
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="2 of 3 annotations"):
        check_training_masks(path, classes=("dog",))
    check_training_masks(path, classes=("cat",))


@pytest.mark.parametrize(
    "change", [dict(ignore=1), dict(area=0), dict(bbox=[0, 0, 0.5, 9])]
)
def test_annotations_that_mmdet_drops_need_no_mask(tmp_path, change):
    path = write(tmp_path, [[]])
    with pytest.raises(ValueError, match="1 of 1 annotations"):
        check_training_masks(path)
    data = json.loads(path.read_text())
    data["annotations"][0].update(change)
    path.write_text(json.dumps(data))
    check_training_masks(path)


def test_only_training_with_masks_needs_them(tmp_path):
    write(tmp_path, [[]])

    def config(with_mask, loader="LoadAnnotations", **metainfo):
        pipeline = [dict(type=loader, with_bbox=True, with_mask=with_mask)]
        dataset = dict(type="CocoDataset", ann_file="train.json", pipeline=pipeline)
        dataset |= dict(data_root=str(tmp_path), metainfo=metainfo)
        repeated = dict(type="RepeatDataset", dataset=dataset)
        loaders = dict(train_dataloader=dict(dataset=repeated))
        loaders["val_dataloader"] = dict(dataset=dataset)
        return Config(dict(model=dict(), **loaders))

    check_files(config(False))
    check_files(config(True, "LoadPanopticAnnotations"))
    check_files(config(True), splits=("val",))
    check_files(config(True, classes=("dog",)))
    with pytest.raises(ValueError, match="1 of 1 annotations to train on have no"):
        check_files(config(True))
    with pytest.raises(ValueError, match="1 of 1 annotations to train on have no"):
        check_files(config(True, classes=("cat", "dog")))

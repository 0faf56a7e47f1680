"""Data sets of any classes in LVIS's or COCO's format."""

import json

import pytest
from mmdet.datasets import LVISV1Dataset

from apa_mmdet.datasets import class_frequency
from apa_mmdet.datasets.lvis_format import LVISFormatDataset

URL = "http://images.cocodataset.org/"


@pytest.fixture
def data():
    """Two images; category ids and their order in the file are not those of names."""
    return dict(
        images=[
            dict(id=4, file_name="train/a.jpg", height=30, width=40),
            dict(id=2, coco_url=f"{URL}train/b.jpg", height=30, width=40),
        ],
        categories=[
            dict(id=9, name="cat"),
            dict(id=3, name="dog"),
            dict(id=5, name="cow"),
        ],
        annotations=[
            dict(id=i, image_id=image, category_id=category, bbox=[1, 2, 9, 9], area=81)
            for i, (image, category) in enumerate([(4, 9), (4, 3), (2, 3), (2, 5)])
        ],
    )


@pytest.fixture
def load(tmp_path, data):
    """Write the data by then to a file, and load it with these classes."""

    def load(classes, **kwargs):
        (tmp_path / "truth.json").write_text(json.dumps(data))
        metainfo = dict(classes=classes)
        return LVISFormatDataset(
            data_root=str(tmp_path), ann_file="truth.json", metainfo=metainfo, **kwargs
        )

    return load


def labels(dataset):
    return {
        info["img_id"]: [item["bbox_label"] for item in info["instances"]]
        for info in map(dataset.get_data_info, range(len(dataset)))
    }


def test_labels_go_by_name(load, data):
    names = ("dog", "cow", "cat")
    dataset = load(names)
    assert dataset.metainfo["classes"] == names
    assert labels(dataset) == {4: [2, 0], 2: [0, 1]}
    assert class_frequency(dataset).tolist() == [1, 0.5, 0.5]
    data["categories"].reverse()
    assert labels(load(names)) == {4: [2, 0], 2: [0, 1]}
    # Categories that are not among the classes are left out.
    subset = load(("cow",), filter_cfg=dict(filter_empty_gt=True))
    assert labels(subset) == {2: [0]}


def test_classes_from_a_file(load, tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
    assert labels(load(str(tmp_path / "classes.txt"))) == {4: [0, 1], 2: [1, 2]}


def test_images_by_file_name_or_url(load, data, tmp_path):
    prefix = dict(img="images/")
    paths = [info["img_path"] for info in load(("cat",), data_prefix=prefix)]
    assert paths == [f"{tmp_path}/images/train/{name}.jpg" for name in "ab"]


def test_reads_lvis_files_like_mmdets_data_set(load, data, tmp_path):
    data["images"][0] = dict(id=4, coco_url=f"{URL}train/a.jpg", height=30, width=40)
    names = ("cat", "dog", "cow")  # mmdet's labels follow the order of the file
    ours = load(names)
    theirs = LVISV1Dataset(
        ann_file=str(tmp_path / "truth.json"),
        metainfo=dict(classes=names),
        data_prefix=dict(img=str(tmp_path)),
    )
    assert [ours[i] for i in range(2)] == [theirs[i] for i in range(2)]


def test_a_test_set_without_annotations(load, data):
    del data["annotations"]
    assert labels(load(("cat", "dog"), test_mode=True)) == {4: [], 2: []}


@pytest.mark.parametrize(
    "classes, message",
    [
        ("cat", r"\['classes'\]='cat': expected different class names .*\('cat',\)"),
        ((), r"\['classes'\]=\(\): expected"),
        (("cat", "dog", "cat"), "expected different class names"),
        (("cat", "horse"), "no category 'horse' .1 of the 2 .* 'cat', 'dog', 'cow'$"),
        (("cow",), "categories 5 and 6 are both named 'cow'"),
    ],
)
def test_unusable_classes_are_refused(load, data, classes, message):
    data["categories"].append(dict(id=6, name="cow"))
    with pytest.raises(ValueError, match=message):
        load(classes)

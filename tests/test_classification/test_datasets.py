"""Long-tailed data sets of MMPretrain: drawn from another, and read from a list."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS, TRANSFORMS

import apa_mmdet.classification  # noqa: F401
from apa_mmdet.datasets.class_frequency import image_counts
from apa_mmdet.datasets.long_tail import draw, exponential_counts

NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images: 12 ants, 9 bees, 6 cats."""
    root = tmp_path_factory.mktemp("images")
    for name, number in zip(NAMES, (12, 9, 6)):
        (root / name).mkdir()
        for index in range(number):
            Image.new("RGB", (8, 8)).save(root / name / f"{index:02}.png")
    return root


def build(**cfg):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return DATASETS.build(cfg)


def custom(folder, **kwargs):
    return dict(type="CustomDataset", data_root=str(folder), **kwargs)


def long_tail(folder, **kwargs):
    return build(type="LongTailDataset", dataset=custom(folder), **kwargs)


def test_the_drawn_images_are_those_that_are_counted(folder):
    dataset = long_tail(folder, rule="exponential", ratio=4, seed=3)
    counts = exponential_counts(3, 12, 4)
    assert counts.tolist() == [12, 6, 3]
    assert dataset.get_gt_labels().tolist() == [0] * 12 + [1] * 6 + [2] * 3
    assert image_counts(dataset)[0].tolist() == [12, 6, 3]
    around = dict(type="RepeatDataset", times=2)
    inner = dict(type="LongTailDataset", dataset=custom(folder), ratio=4, seed=3)
    assert image_counts(build(**around, dataset=inner))[0].tolist() == [12, 6, 3]
    whole = build(**custom(folder))
    kept = draw(whole.get_gt_labels(), counts, 3)
    paths = [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]
    assert paths == [whole.get_data_info(int(i))["img_path"] for i in kept]
    assert dataset.CLASSES == NAMES and dataset.get_cat_ids(12) == [1]
    assert dataset[20]["gt_label"] == 2


def test_a_pareto_tail(folder):
    dataset = long_tail(folder, rule="pareto", max_count=8, min_count=2, alpha=2.0)
    numbers = np.bincount(dataset.get_gt_labels())
    assert numbers[0] == 8 and numbers[2] == 2 and 2 < numbers[1] < 8


def test_cifar_without_files(monkeypatch):
    """Images in memory, as CIFAR100 has them."""
    from mmpretrain.datasets import CIFAR100

    images = np.arange(60, dtype=np.uint8)
    data = [dict(img=images[i], gt_label=i % 3) for i in range(60)]
    monkeypatch.setattr(CIFAR100, "load_data_list", lambda self: data)
    cifar = dict(type="CIFAR100", metainfo=dict(classes=NAMES), data_root="nowhere")
    dataset = build(type="LongTailDataset", ratio=10, dataset=cifar)
    labels = dataset.get_gt_labels()
    assert np.bincount(labels).tolist() == [20, 6, 2]
    for index, label in enumerate(labels):
        assert dataset.get_data_info(index)["img"] % 3 == label


def test_named_images(folder, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("cat/03.png\nant/11.png\nbee/00.png\n")
    dataset = long_tail(folder, rule="names", ann_file=str(path))
    assert dataset.get_gt_labels().tolist() == [2, 0, 1]
    for content, words in (
        ("cat/33.png\n", "image 1: 'cat/33.png' is the name of 0 images"),
        ("cat/03.png\n03.png\n", "image 2: '03.png' is the name of 3 images"),
        ("cat/03.png 1\n", "has label 1, but 2 in the data set"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError) as error:
            long_tail(folder, rule="names", ann_file=str(path))
        assert words in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(rule="linear"), ValueError, "rule='linear', expected one of exponential"),
        (dict(alpha=2.0), ValueError, "does not have alpha, expected max_count, ratio"),
        (dict(ann_file="a.txt"), ValueError, "does not have ann_file"),
        (dict(rule="names", max_count=5), ValueError, "does not have max_count"),
        (dict(rule="names"), ValueError, "needs ann_file"),
        (dict(ratio=1), ValueError, "label 1 ('bee') has 9 images.* from 12 to 6"),
    ],
)
def test_wrong_arguments(folder, kwargs, error, words):
    with pytest.raises(error) as caught:
        long_tail(folder, **kwargs)
    for word in words.split(".*"):
        assert word in str(caught.value)


def test_wrappers_inside_are_refused(folder):
    inner = dict(type="RepeatDataset", times=2, dataset=custom(folder))
    with pytest.raises(TypeError, match="put wrappers outside LongTailDataset"):
        build(type="LongTailDataset", dataset=inner, ratio=2)


def split_file(folder, ann_file, **kwargs):
    cfg = dict(type="SplitFileDataset", data_root=str(folder), ann_file=str(ann_file))
    return build(**cfg, **kwargs)


def test_split_files(folder, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("cat/03.png 1\nant/11.png 0\n")
    dataset = split_file(folder, path)
    assert [dataset.get_data_info(i)["gt_label"] for i in range(2)] == [1, 0]
    assert dataset.get_data_info(0)["img_path"] == str(folder / "cat/03.png")
    assert dataset.CLASSES == ("0", "1")
    assert image_counts(dataset)[0].tolist() == [1, 1]
    assert split_file(folder, path, metainfo=dict(classes=NAMES)).CLASSES == NAMES
    with pytest.raises(ValueError, match="image 1: label 1.* 1 classes"):
        split_file(folder, path, metainfo=dict(classes=("ant",)))
    with pytest.raises(FileNotFoundError, match="first image .*set data_root"):
        split_file(folder / "ant", path)
    with pytest.raises(FileNotFoundError, match="no such split file"):
        split_file(folder, tmp_path / "none.txt")


def test_inaturalists_json(folder, tmp_path):
    path = tmp_path / "train2018.json"
    content = dict(
        images=[dict(id=5, file_name="bee/01.png"), dict(id=6, file_name="ant/02.png")],
        annotations=[
            dict(image_id=6, category_id=0),
            dict(image_id=5, category_id=4),
        ],
        categories=[dict(id=4, name="bee"), dict(id=0, name="ant")],
    )
    path.write_text(json.dumps(content))
    dataset = split_file(folder, path)
    assert dataset.CLASSES == ("ant", "bee")
    assert [dataset.get_data_info(i)["gt_label"] for i in range(2)] == [0, 1]
    assert image_counts(dataset)[0].tolist() == [1, 1]


def test_cifar_auto_augment():
    augment = TRANSFORMS.build(dict(type="CIFARAutoAugment"))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = [augment(dict(img=image))["img"] for _ in range(20)]
    assert all(each.shape == (32, 32, 3) and each.dtype == np.uint8 for each in found)
    assert all(each.flags.writeable for each in found)  # as PackInputs expects
    assert len({each.tobytes() for each in found}) > 5

"""Labels must mean what metainfo['classes'] says, in MMDetection's own data sets."""

import json

import pytest
import torch
from mmdet.datasets import CocoDataset, ConcatDataset, LVISV1Dataset
from mmengine.dataset import ClassBalancedDataset, RepeatDataset

from apa_mmdet.datasets import class_frequency
from apa_mmdet.datasets.labels import check_labels, class_names


@pytest.fixture
def build(tmp_path):
    """A function that writes an annotation file and opens it as a data set.

    Of the categories, names or pairs of id and name, image k shows the first k.
    """

    def write(classes, categories, kind=CocoDataset, name="a.json", is_first=True):
        pairs = [
            each if isinstance(each, tuple) else (i, each)
            for i, each in enumerate(categories, start=1)
        ]
        shown = [pairs[:k] for k in range(1, min(len(pairs), 5) + 1)]
        images = [
            dict(id=k, height=9, width=9, file_name="a.jpg", coco_url="a.jpg")
            for k in range(len(shown))
        ]
        annotations = [
            dict(id=10 * k + n, image_id=k, category_id=i, bbox=[1, 1, 5, 5], area=25)
            for k, categories in enumerate(shown)
            for n, (i, _) in enumerate(categories)
        ]
        parts = [
            # The word occurs again, as in files made by other tools.
            dict(
                categories=[dict(id=i, name=name, categories=[{}]) for i, name in pairs]
            ),
            dict(images=images, annotations=annotations),
        ]
        first, second = parts if is_first else parts[::-1]
        path = tmp_path / name
        path.write_text(json.dumps({**first, "info": "categories", **second}))
        metainfo = None if classes is None else dict(classes=classes)
        prefix = dict(img="")
        return kind(ann_file=str(path), metainfo=metainfo, data_prefix=prefix)

    return write


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("kind", [CocoDataset, LVISV1Dataset])
def test_right_labels_are_accepted(build, kind, is_first):
    check_labels(build(("x", "y"), [(7, "x"), (3, "y")], kind, is_first=is_first))
    many = tuple(f"class {i} é" for i in range(6000))  # more than is read at first
    check_labels(build(many, many, kind, is_first=is_first))
    spelled = ("a", "speaker_(stereo_equipment)")  # as in LVISV1Dataset
    check_labels(build(spelled, ["a", "speaker_(stero_equipment)"], kind=LVISV1Dataset))


def test_a_subset_has_the_frequencies_of_its_classes(build):
    frequency = class_frequency(build(("b", "d"), "abcd"))
    torch.testing.assert_close(frequency, torch.tensor([1, 1 / 3]))


def test_what_cannot_be_compared_is_accepted(build):
    data = build(("a", "b"), "ab")
    data.cat2label = {"a": 0, "b": 1}
    data.ann_file = "a.txt"  # as in VOC
    check_labels(data)
    data = build(("object",), "ab")
    data.cat2label = {1: 0, 2: 0}  # one class for all categories
    check_labels(data)
    check_labels([1, 2])


ROOT = [(0, "thing"), (1, "thing"), (2, "b")]


@pytest.mark.parametrize(
    ("classes", "categories", "kind", "message"),
    [
        (
            ("b", "a"),
            "ab",
            CocoDataset,
            "label 0 is category 1, 'a', but metainfo['classes'] has 'b' there; "
            "CocoDataset numbers labels in the order of the file",
        ),
        (
            ("a", "z", "b"),
            "abc",
            CocoDataset,
            "no category is named 'z' (1 of the data set's 3 classes); the file has 3, "
            "'a', 'b', 'c'",
        ),
        # Labels are right, but a class is misspelled and would never be learned.
        (("a", "b", "z"), "abc", CocoDataset, "no category is named 'z'"),
        (
            None,
            "abc",
            CocoDataset,
            "no category is named 'person', 'bicycle', 'car', ...",
        ),
        (
            ("thing", "b"),
            ROOT,
            CocoDataset,
            "categories 0 and 1 share the name 'thing'",
        ),
        (
            ("a", "b"),
            "abc",
            LVISV1Dataset,
            "LVISV1Dataset numbers all 3 categories of the file, but "
            "metainfo['classes'] has 2",
        ),
        (("b", "a"), "ab", LVISV1Dataset, "label 0 is category 1, 'a', but"),
    ],
)
def test_wrong_labels_are_refused(build, classes, categories, kind, message):
    data = build(classes, categories, kind)
    for wrapped in (
        data,
        RepeatDataset(data, times=2),
        ClassBalancedDataset(data, oversample_thr=0.1),
        ConcatDataset([data]),
    ):
        for read in (check_labels, class_frequency):
            with pytest.raises(ValueError) as error:
                read(wrapped)
            assert str(error.value).startswith(f"{data.ann_file}: {message}")
            assert "\n" not in str(error.value)


def test_concatenated_files_must_agree(build):
    classes = ("a", "b")
    first = build(classes, "ab", name="first.json")
    with pytest.raises(ValueError, match=r"second.json: label 0 is category 1, 'b'"):
        check_labels(ConcatDataset([first, build(classes, "ba", name="second.json")]))
    other = build(("b", "a"), "ba", name="second.json")
    message = "label 0 is 'a' in the first and 'b' in data set 2; give all the same"
    with pytest.raises(ValueError, match=message):
        check_labels(ConcatDataset([first, other]))
    # A class that one file lacks is harmless if the labels agree all the same.
    part = build(classes, "a", name="second.json")
    frequency = class_frequency(ConcatDataset([first, part]))
    torch.testing.assert_close(frequency, torch.tensor([1, 1 / 3]))


def test_class_names():
    for empty in (None, {}, dict(classes=None), dict(classes=()), [{}, {}]):
        assert class_names(empty) is None
    assert class_names(dict(classes=["a", 1])) == ("a", "1")
    same = [dict(classes=["a"], palette=[1]), dict(classes=("a",))]
    assert class_names(same) == ("a",)
    with pytest.raises(ValueError, match=r"the string 'red_star', .*\('red_star',\)"):
        class_names(dict(classes="red_star"))
    with pytest.raises(
        ValueError, match="label 0 is 'a' in the first and None in data "
    ):
        class_names([*same, {}])

"""Class frequencies through any nesting of wrappers."""

import pytest
import torch
from mmdet.datasets import ConcatDataset
from mmengine.dataset import BaseDataset, ClassBalancedDataset, RepeatDataset

from apa_mmdet.datasets import class_frequency


class Toy(BaseDataset):
    """A data set of images that are given by the labels they show."""

    METAINFO = dict(classes=("a", "b", "c"))

    def __init__(self, shown, **kwargs):
        self.shown = shown
        self.loads = 0
        super().__init__(pipeline=[], **kwargs)

    def load_data_list(self):
        self.loads += 1
        return [
            dict(instances=[dict(bbox_label=label) for label in labels])
            for labels in self.shown
        ]

    def get_cat_ids(self, idx):
        return [i["bbox_label"] for i in self.get_data_info(idx)["instances"]]


class Outer:
    """Another library's wrapper around a wrapper."""

    def __init__(self, dataset):
        self.dataset = dataset


SHOWN = [[0, 0, 1], [0], [], [0, 1], [2]]
EXPECTED = torch.tensor([3 / 4, 2 / 4, 1 / 4])


def test_counts_images_not_instances_and_skips_empty_images():
    torch.testing.assert_close(class_frequency(Toy(SHOWN)), EXPECTED)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: RepeatDataset(data, times=3),
        lambda data: ClassBalancedDataset(data, oversample_thr=0.9),
        lambda data: ConcatDataset([data]),
        lambda data: Outer(ClassBalancedDataset(data, oversample_thr=0.9)),
    ],
)
def test_wrappers_do_not_change_the_result_or_load_the_data_again(wrap):
    data = Toy(SHOWN)
    torch.testing.assert_close(class_frequency(wrap(data)), EXPECTED)
    assert data.loads == 1


def test_concatenated_data_sets_are_counted_together():
    both = ConcatDataset([Toy(SHOWN), Toy([[1], [1, 2]])])
    expected = torch.tensor([3 / 6, 4 / 6, 2 / 6])
    torch.testing.assert_close(class_frequency(both), expected)


def test_lazy_data_sets_are_loaded():
    data = Toy(SHOWN, lazy_init=True)
    torch.testing.assert_close(class_frequency(data), EXPECTED)


def test_errors():
    with pytest.raises(TypeError, match="cannot read class frequencies from list"):
        class_frequency([1, 2])
    with pytest.raises(ValueError, match="no image .* has an annotation"):
        class_frequency(Toy([[], []]))
    message = r"image 2 of Toy has labels 1 to 3, but .*\['classes'\] has 3 names, lab"
    with pytest.raises(ValueError, match=message):
        class_frequency(Toy([[0], [3, 1]]))
    with pytest.raises(ValueError, match="is the string 'red_star'"):
        class_frequency(Toy(SHOWN, metainfo=dict(classes="red_star")))
    other = Toy([[0]], metainfo=dict(classes=("a", "b")))
    loose = type("Loose", (), dict(datasets=[Toy(SHOWN), other]))()
    with pytest.raises(ValueError, match="different classes"):
        class_frequency(loose)

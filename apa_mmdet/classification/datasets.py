"""Long-tailed data sets for MMPretrain: drawn from another, or read from a list."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from mmengine.dataset import BaseDataset as EngineDataset
from mmengine.fileio import join_path
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..datasets.long_tail import draw, exponential_counts, pareto_counts
from ..datasets.split_files import read_split

_RULES = {
    "exponential": (exponential_counts, ("max_count", "ratio")),
    "pareto": (pareto_counts, ("max_count", "min_count", "alpha")),
}


@DATASETS.register_module()
class LongTailDataset:
    """A long tail of another data set.

    ::

        dataset = dict(
            type="LongTailDataset", rule="exponential", ratio=100,
            dataset=dict(type="CIFAR100", split="train", ...))

    The images are sorted by class, in the order of the labels; class 0 is the most
    frequent. See :mod:`apa_mmdet.datasets.long_tail` for the counts of each rule, and
    for which images are drawn.

    Args:
        dataset: The data set, or its config; it must be one of MMPretrain's.
        rule: ``'exponential'`` with ``max_count`` and ``ratio``; ``'pareto'`` with
            ``max_count``, ``min_count`` and ``alpha``; or ``'names'`` for exactly the
            images that a file lists.
        max_count: Images of class 0; by default all that it has.
        seed: Of the draw, whatever the seed of the training.
        ann_file: With ``'names'``, the file: a name in each line, perhaps followed by
            the label, or iNaturalist's JSON. A name is the end of the path of an
            image, such as ``n01440764/n01440764_190.JPEG``.
        **options: The other arguments of the rule.

    Raises:
        FileNotFoundError: If there is no ``ann_file``.
        TypeError: If ``dataset`` is not a data set of MMPretrain.
        ValueError: If an argument is unusable, a class has too few images, or a name is
            not that of one image, or has another label.
    """

    def __init__(
        self,
        dataset: dict | EngineDataset,
        rule: str = "exponential",
        max_count: int | None = None,
        seed: int = 0,
        ann_file: str | None = None,
        **options,
    ) -> None:
        known = (*_RULES, "names")
        if rule not in known:
            raise ValueError(f"rule={rule!r}, expected one of {', '.join(known)}")
        names = _RULES[rule][1] if rule in _RULES else ()
        unknown = [name for name in options if name not in names]
        given = dict(ann_file=ann_file, max_count=max_count)
        unknown += [
            name
            for name, value in given.items()
            if value is not None and (name == "ann_file") != (rule == "names")
        ]
        if unknown:
            raise ValueError(
                f"LongTailDataset with rule={rule!r} does not have {unknown[0]}, "
                f"expected {', '.join(names) or 'ann_file'}"
            )
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if not isinstance(self.dataset, EngineDataset):
            raise TypeError(
                f"dataset is a {type(self.dataset).__name__}, expected a data set with "
                f"annotations, such as CIFAR100; put wrappers outside LongTailDataset"
            )
        self.dataset.full_init()
        if rule == "names":
            kept = self._listed(ann_file)
        else:
            kept = self._drawn(rule, max_count, seed, options)
        # What is left out is dropped from the data set itself, so that whatever looks
        # into wrappers counts the images that are there.
        self.dataset.get_subset_([int(index) for index in kept])

    def _labels(self) -> np.ndarray:
        infos = map(self.dataset.get_data_info, range(len(self.dataset)))
        return np.array([int(info["gt_label"]) for info in infos], np.int64)

    def _drawn(self, rule, max_count, seed, options) -> np.ndarray:
        labels, names = self._labels(), self.metainfo.get("classes")
        num_classes = len(names) if names else int(labels.max(initial=-1)) + 1
        if max_count is None:
            max_count = int((labels == 0).sum())
        counts = _RULES[rule][0](num_classes, max_count, **options)
        return draw(labels, counts, seed, names)

    def _listed(self, ann_file: str | None) -> list[int]:
        if ann_file is None:
            raise ValueError("rule='names' needs ann_file, the list of the images")
        split = read_split(ann_file, need_labels=False)
        infos = [self.dataset.get_data_info(i) for i in range(len(self.dataset))]
        if infos and "img_path" not in infos[0]:
            raise ValueError(
                f"rule='names': the images of {type(self.dataset).__name__} have no "
                f"paths; expected a data set of image files"
            )
        paths = [PurePosixPath(info["img_path"]).parts for info in infos]
        by_length: dict[int, dict[tuple, list[int]]] = {}
        kept = []
        for place, name in enumerate(split.paths):
            parts = PurePosixPath(name).parts
            if len(parts) not in by_length:
                found = by_length[len(parts)] = {}
                for index, path in enumerate(paths):
                    found.setdefault(path[-len(parts) :], []).append(index)
            matches = by_length[len(parts)].get(parts, [])
            if len(matches) != 1:
                raise ValueError(
                    f"{ann_file}, image {place + 1}: {name!r} is the name of "
                    f"{len(matches)} images of the data set, expected one; a name is "
                    f"the end of a path such as {infos[0]['img_path']!r}"
                )
            label = infos[matches[0]]["gt_label"]
            if split.labels is not None and split.labels[place] != label:
                raise ValueError(
                    f"{ann_file}, image {place + 1}: {name!r} has label "
                    f"{split.labels[place]}, but {label} in the data set; give the "
                    f"data set the classes in the order of the file's labels, or list "
                    f"names without labels"
                )
            kept.append(matches[0])
        return kept

    @property
    def metainfo(self) -> dict:
        """That of the data set."""
        return copy.deepcopy(self.dataset.metainfo)

    @property
    def CLASSES(self) -> Sequence[str] | None:  # noqa: N802
        """The names of the classes."""
        return self.metainfo.get("classes")

    def full_init(self) -> None:
        """Do nothing: the data set has been read."""

    def get_data_info(self, idx: int) -> dict:
        """Return the annotation of an image."""
        return self.dataset.get_data_info(idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the label of an image, as a list."""
        return self.dataset.get_cat_ids(idx)

    def get_gt_labels(self) -> np.ndarray:
        """Return the labels of all images."""
        return self._labels()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, idx: int) -> dict:
        """Return an image after the data set's pipeline."""
        return self.dataset[idx]


@DATASETS.register_module()
class SplitFileDataset(BaseDataset):
    """The images that a public split file lists, with their labels.

    It reads the lists of ImageNet-LT, Places-LT and iNaturalist 2018 as they are
    published, see :mod:`apa_mmdet.datasets.split_files`. The paths in the file are
    relative to ``data_prefix``.

    Args:
        ann_file: The file, relative to ``data_root``.
        metainfo: As in MMPretrain; without ``classes``, they are named by a JSON file,
            or by their numbers.
        **kwargs: As in MMPretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: If the file, or the first image it lists, does not exist.
        ValueError: If it is not a split file, or has a label without a class.
    """

    def load_data_list(self) -> list[dict]:
        """Return the path and label of each image."""
        split = read_split(self.ann_file)
        names = self._metainfo.get("classes") or split.classes
        if names is None:
            names = [str(label) for label in range(max(split.labels) + 1)]
        self._metainfo["classes"] = tuple(names)
        if max(split.labels) >= len(names):
            line = split.labels.index(max(split.labels)) + 1
            raise ValueError(
                f"{self.ann_file}, image {line}: label {max(split.labels)}, but the "
                f"data set has {len(names)} classes, labels 0 to {len(names) - 1}; "
                f"correct metainfo.classes"
            )
        data = [
            dict(img_path=join_path(self.img_prefix, path), gt_label=label)
            for path, label in zip(split.paths, split.labels)
        ]
        first = data[0]["img_path"]
        if "://" not in first and not Path(first).is_file():
            raise FileNotFoundError(
                f"not found: {Path(first).absolute()}, the first image in "
                f"{self.ann_file}; put the images below "
                f"{self.img_prefix or '.'}, or set data_root or data_prefix to where "
                f"they are"
            )
        return data

"""What the labels of a data set mean: the classes of its annotation file."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import NoReturn

from mmengine.fileio import get_local_path
from torch.utils.data import Dataset

from ..evaluation.core.classes import in_lvis_spelling, shared_name, unknown_classes

_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[\s*\{)')


def leaves(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the data sets inside any nesting of wrappers."""
    if hasattr(dataset, "datasets"):  # ConcatDataset
        for inner in dataset.datasets:
            yield from leaves(inner)
    elif hasattr(dataset, "dataset"):  # ClassBalanced, Repeat, MultiImageMix, ...
        yield from leaves(dataset.dataset)
    else:
        yield dataset


def class_names(metainfo: dict | list[dict] | None) -> tuple[str, ...] | None:
    """Return the classes that a data set's ``metainfo`` names, None if it does not.

    Args:
        metainfo: Of a data set, or the list that ConcatDataset makes of different ones.

    Raises:
        ValueError: If ``classes`` is a string, or the members of a list have different
            classes.
    """
    if isinstance(metainfo, (list, tuple)):
        first, *others = (class_names(each) or () for each in metainfo)
        for position, names in enumerate(others, start=2):
            for label, (a, b) in enumerate(zip_longest(first, names)):
                if a != b:
                    raise ValueError(
                        f"the concatenated data sets have different classes: label "
                        f"{label} is {a!r} in the first and {b!r} in data set "
                        f"{position}; give all the same metainfo['classes']"
                    )
        return first or None
    names = (metainfo or {}).get("classes")
    if isinstance(names, str):
        raise ValueError(
            f"metainfo['classes'] is the string {names!r}, neither a list of names nor "
            f"a file that exists; a single class is written classes=({names!r},), with "
            "the comma"
        )
    return tuple(map(str, names)) if names else None


def check_labels(dataset: Dataset) -> None:
    """Check that a data set's labels mean what ``metainfo['classes']`` says.

    MMDetection numbers labels in the order of the annotation file's categories and
    never compares that with the order of ``metainfo['classes']``. Of several files in
    different orders it trains on mixed labels. Data sets without a JSON file, and those
    that give categories labels in their own way, are not checked.

    Args:
        dataset: An mmdet data set, or any nesting of wrappers around such data sets.

    Raises:
        ValueError: If a label stands for another category than its class, a class is in
            none of the files, or the data sets have different classes.
    """
    members = [*leaves(dataset)]
    numberings = [_Numbering.of(member) for member in members]
    checked = [numbering for numbering in numberings if numbering is not None]
    if not checked:
        return
    class_names([dict(classes=numbering.names) for numbering in checked])
    for numbering in checked:
        numbering.check()
    if len(checked) < len(members):
        return
    # A class that one of several files lacks has no images there, which is harmless.
    first = checked[0]
    nowhere = set.intersection(*({*numbering.missing} for numbering in checked))
    if nowhere:
        unknown = [name for name in first.names if name in nowhere]
        first.refuse(unknown_classes(unknown, first.names, [*first.in_file.values()]))


@dataclass
class _Numbering:
    """How a data set numbers the categories of its annotation file.

    Attributes:
        path: The annotation file.
        kind: The type of the data set.
        names: Its ``metainfo['classes']``.
        in_file: The name of each category id in the file, in the file's order.
        label_of: The label of each category id that has one.
    """

    path: str
    kind: str
    names: list[str]
    in_file: dict[int, str]
    label_of: dict[int, int]

    @classmethod
    def of(cls, dataset: Dataset) -> _Numbering | None:
        """Return that of a data set, None if it assigns labels differently."""
        if hasattr(dataset, "full_init"):
            dataset.full_init()
        names = class_names(getattr(dataset, "metainfo", {}))
        label_of = getattr(dataset, "cat2label", None)
        path = str(getattr(dataset, "ann_file", ""))
        if names is None or not isinstance(label_of, dict) or path[-5:] != ".json":
            return None
        if sorted(label_of.values()) != [*range(len(label_of))]:
            return None  # such as one label for all categories
        backend_args = getattr(dataset, "backend_args", None)
        with get_local_path(path, backend_args=backend_args) as local_path:
            in_file = _read_categories(local_path, label_of)
        if in_file is None:
            return None
        in_file = {i: in_lvis_spelling(name) for i, name in in_file.items()}
        names = [*map(in_lvis_spelling, names)]
        return cls(path, type(dataset).__name__, names, in_file, label_of)

    @property
    def missing(self) -> list[str]:
        """The classes that are not in the file."""
        known = {*self.in_file.values()}
        return [name for name in self.names if name not in known]

    def refuse(self, problem: str) -> NoReturn:
        """Raise a ValueError that names the file."""
        raise ValueError(f"{self.path}: {problem}")

    def check(self) -> None:
        """Raise a ValueError if a label stands for another category than its class."""
        names, in_file = self.names, self.in_file
        wrong = {
            label: i
            for i, label in self.label_of.items()
            if names[label : label + 1] != [in_file[i]]
        }
        if not wrong:
            return
        if self.missing:
            self.refuse(unknown_classes(self.missing, names, [*in_file.values()]))
        for name in names:
            ids = [i for i in self.label_of if in_file[i] == name]
            if len(ids) > names.count(name):
                self.refuse(shared_name(name, ids))
        if len(self.label_of) > len(names):
            self.refuse(
                f"{self.kind} numbers all {len(self.label_of):,} categories of the "
                f"file, but metainfo['classes'] has {len(names):,}; name all of them "
                "in the file's order, or use LVISFormatDataset, which goes by name"
            )
        label = min(wrong)
        self.refuse(
            f"label {label} is category {wrong[label]}, {in_file[wrong[label]]!r}, but "
            f"metainfo['classes'] has {names[label]!r} there; {self.kind} numbers "
            "labels in the order of the file, so put metainfo['classes'] in that "
            "order, or use LVISFormatDataset, which goes by name"
        )


def _read_categories(path: str, ids: Iterable[int]) -> dict[int, str] | None:
    """Return the name of each category of an annotation file, in the file's order.

    The file can be gigabytes of text, of which only the categories are parsed. Returns
    None if none of its lists of categories has all the ids.
    """
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        for match in _CATEGORIES.finditer(text):
            items = _decode(text, match.end())
            if all(isinstance(item, dict) and "id" in item for item in items):
                names = {
                    item["id"]: str(item.get("name", item["id"])) for item in items
                }
                if names and all(i in names for i in ids):
                    return names
    return None


def _decode(text: mmap.mmap, start: int) -> list:
    """Return the list that begins at a byte, empty if it is not JSON."""
    length = 1 << 16
    while True:
        part = text[start : start + length]
        try:
            return json.JSONDecoder().raw_decode(part.decode(errors="ignore"))[0]
        except json.JSONDecodeError:
            if start + length >= len(text):
                return []
            length *= 8

"""Annotations in COCO's format, completed to LVIS's."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.core.masks import encode, mask_api
from ..evaluation.files.annotations import load_ground_truth
from ..evaluation.files.json_stream import iter_members

EXHAUSTIVE = ("all", "annotated", "none")
_LISTS = ("images", "annotations", "categories")
_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}


class Converted(NamedTuple):
    """What :func:`coco_to_lvis` wrote for one split.

    Attributes:
        path: The LVIS file.
        images: Number of images.
        instances: Number of annotations written.
        crowds: Annotations left out because they are crowds or to be ignored.
        empty: Annotations left out because they have no area.
        boxes_only: Annotations written that have no mask.
        frequencies: How many of the categories are ``r``, ``c`` and ``f``.
    """

    path: Path
    images: int
    instances: int
    crowds: int
    empty: int
    boxes_only: int
    frequencies: dict[str, int]


def coco_to_lvis(
    files: Mapping[str, str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    exhaustive: str = "all",
    rare_max: int = 10,
    common_max: int = 100,
    drop_unused: bool = False,
) -> dict[str, Converted]:
    """Write COCO annotation files in LVIS v1 format.

    Categories get ``image_count`` and ``instance_count``, both of the training file,
    and ``frequency``: ``r`` (rare) up to ``rare_max`` training images, ``c`` (common)
    up to ``common_max``, otherwise ``f``. Images get ``neg_category_ids`` and
    ``not_exhaustive_category_ids``. LVIS has no crowds: they are left out, as are
    annotations with ``ignore``, and the image becomes not exhaustive for their class.
    A missing ``area`` is that of the mask, or of the box if there is no mask.
    Annotations whose box or area is empty are left out. Ids do not change.

    Args:
        files: COCO files by split (``train``, ``val``, ...). All must have the same
            categories.
        out_dir: Folder to write ``<split>.json`` to.
        exhaustive: What is annotated of an image. ``"all"``: every object of every
            class, so the classes without an annotation are absent. ``"annotated"``:
            every object of the classes that have an annotation; of other classes
            nothing is known. ``"none"``: some objects of those classes.
        rare_max: Most training images of a rare class.
        common_max: Most training images of a common class.
        drop_unused: Whether to leave out the categories that no file annotates.

    Returns:
        What was written, by split.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If an argument or a file is unusable. Nothing is written then.
    """
    if "train" not in files:
        raise ValueError(
            f"files={list(files)}: expected a train file; frequencies are counted in it"
        )
    if exhaustive not in EXHAUSTIVE:
        raise ValueError(f"exhaustive={exhaustive!r}: expected one of {EXHAUSTIVE}")
    if not 0 <= rare_max <= common_max:
        raise ValueError(
            f"rare_max={rare_max}, common_max={common_max}: expected 0 <= rare_max <= "
            f"common_max, numbers of training images"
        )
    out_dir = Path(out_dir)
    outputs = {split: out_dir / f"{split}.json" for split in files}
    for path in files.values():
        if Path(path).resolve() in [output.resolve() for output in outputs.values()]:
            raise ValueError(
                f"{path}: would be overwritten; choose another folder than {out_dir}"
            )
    splits = {split: _Split(path) for split, path in files.items()}
    train = splits["train"]
    for split in splits.values():
        _require_same_categories(train, split)
    if drop_unused:
        used = {category for split in splits.values() for category in split.used}
        train.categories = [item for item in train.categories if item["id"] in used]
    categories = _count_classes(train, rare_max, common_max)

    out_dir.mkdir(parents=True, exist_ok=True)
    unchecked = {split: out_dir / f".{split}.json.unchecked" for split in splits}
    try:
        for name, split in splits.items():
            text = json.dumps(split.to_lvis(categories, exhaustive))
            unchecked[name].write_text(text, encoding="utf-8")
            _check(unchecked[name], split)
        for name, path in unchecked.items():
            path.replace(outputs[name])
    finally:
        for path in unchecked.values():
            path.unlink(missing_ok=True)
    frequencies = Counter(item["frequency"] for item in categories)
    return {
        name: Converted(
            path=outputs[name],
            images=len(split.images),
            instances=len(split.annotations),
            crowds=split.num_crowds,
            empty=split.num_empty,
            boxes_only=split.num_boxes_only,
            frequencies={group: frequencies[group] for group in "rcf"},
        )
        for name, split in splits.items()
    }


class _Split:
    """One COCO file, with what LVIS needs to know of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.categories: list[dict] = []
        self.licenses: list[dict] = []
        self.num_crowds = self.num_empty = 0
        for key, item in iter_members(path):
            if key not in (*_LISTS, "licenses"):
                continue
            items = getattr(self, key)
            if not isinstance(item, dict):
                raise ValueError(
                    f"{path}: {key} has {_describe_value(item)} in position "
                    f"{len(items) + 1}, expected a list of objects"
                )
            items.append(item)
        for key in _LISTS:
            if not getattr(self, key):
                raise ValueError(f"{path}: no {key}; expected COCO's annotation format")
        self._check_images()
        self._check_categories()
        self._read_annotations()

    def _check_images(self) -> None:
        self._sizes = {}
        for position, image in enumerate(self.images, start=1):
            if "neg_category_ids" in image:
                raise ValueError(
                    f"{self.path}: {_name('image', position, image)} has "
                    f"neg_category_ids already: the file is in LVIS format; use it as "
                    f"it is, or remove the lists to compute them anew"
                )
            image_id, height, width = (
                self._whole_number("image", position, image, key)
                for key in ("id", "height", "width")
            )
            if height < 1 or width < 1:
                raise ValueError(
                    f"{self.path}: {_name('image', position, image)} has height "
                    f"{height} and width {width}, expected pixels of the image file"
                )
            file_name = image.get("file_name", image.get("coco_url"))
            if not isinstance(file_name, str):
                raise ValueError(
                    f"{self.path}: {_name('image', position, image)} has file_name "
                    f"{file_name!r}, expected its path below the folder of images"
                )
            self._sizes[image_id] = height, width

    def _check_categories(self) -> None:
        names = {}
        for position, category in enumerate(self.categories, start=1):
            category_id = self._whole_number("category", position, category, "id")
            name = category.get("name")
            if not isinstance(name, str):
                raise ValueError(
                    f"{self.path}: {_name('category', position, category)} has name "
                    f"{name!r}, expected a string"
                )
            names.setdefault(name, []).append(category_id)
        self.ids_by_name = names

    def _read_annotations(self) -> None:
        """Fill in areas, leave out what LVIS does not have, and collect the classes."""
        self.shown: dict[int, set[int]] = defaultdict(set)  # classes by image
        self.not_exhaustive: dict[int, set[int]] = defaultdict(set)
        self.used: set[int] = set()
        annotations, self.annotations = self.annotations, []
        for position, item in enumerate(annotations, start=1):
            self._whole_number("annotation", position, item, "id")
            image_id, category_id = (
                self._whole_number("annotation", position, item, key)
                for key in ("image_id", "category_id")
            )
            self.used.add(category_id)
            if item.get("iscrowd") or item.get("ignore"):
                self.not_exhaustive[image_id].add(category_id)
                self.num_crowds += 1
                continue
            if not item.get("segmentation"):  # boxes only; some tools write []
                item.pop("segmentation", None)
            self._fill_area(position, item)
            if 0 in (item["area"], *item["bbox"][2:]):
                self.num_empty += 1
                continue
            self.shown[image_id].add(category_id)
            self.annotations.append(item)

    @property
    def num_boxes_only(self) -> int:
        return sum("segmentation" not in item for item in self.annotations)

    def _fill_area(self, position: int, item: dict) -> None:
        where = f"{self.path}: {_name('annotation', position, item)}"
        box = item.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise ValueError(
                f"{where} has bbox {box!r}, expected [x, y, width, height] in pixels"
            )
        if item.get("area") is None:
            item["area"] = float(box[2] * box[3])
            size = self._sizes.get(item["image_id"])
            if size and "segmentation" in item:
                try:
                    counts = encode(item["segmentation"], *size)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{where}: {error}") from None
                rle = dict(size=list(size), counts=counts)
                item["area"] = float(mask_api().area(rle))
        if not _is_number(item["area"]) or item["area"] < 0:
            raise ValueError(
                f"{where} has area {item['area']!r}, expected a number of pixels; "
                f"without an area it is computed"
            )

    def _whole_number(self, kind: str, position: int, item: dict, key: str) -> int:
        """Return a whole number, which it also becomes in the item: 1.0 is 1."""
        value = item.get(key)
        if not _is_number(value) or value != int(value):
            raise ValueError(
                f"{self.path}: {_name(kind, position, item)} has {key} {value!r}, "
                f"expected a whole number"
            )
        item[key] = int(value)
        return item[key]

    def to_lvis(self, categories: list[dict], exhaustive: str) -> dict[str, Any]:
        """Return the content of the LVIS file."""
        every = {category["id"] for category in categories}
        for image in self.images:
            shown = self.shown[image["id"]]
            crowded = self.not_exhaustive[image["id"]]
            absent = every - shown - crowded if exhaustive == "all" else ()
            incomplete = crowded | shown if exhaustive == "none" else crowded
            image["neg_category_ids"] = sorted(absent)
            image["not_exhaustive_category_ids"] = sorted(incomplete)
        return dict(
            licenses=self.licenses,
            images=self.images,
            annotations=self.annotations,
            categories=categories,
        )


def _require_same_categories(train: _Split, other: _Split) -> None:
    if train.ids_by_name == other.ids_by_name:
        return
    for name in [*train.ids_by_name, *other.ids_by_name]:
        ids = train.ids_by_name.get(name), other.ids_by_name.get(name)
        if ids[0] != ids[1]:
            in_train, in_other = (
                "no category" if each is None else f"id {' and '.join(map(str, each))}"
                for each in ids
            )
            raise ValueError(
                f"{other.path}: category {name!r} has {in_other}, and {in_train} in "
                f"{train.path}; expected the same categories and ids in all files"
            )


def _count_classes(
    train: _Split, rare_max: int, common_max: int
) -> list[dict[str, Any]]:
    """Return LVIS's categories, with counts of the training annotations."""
    instances = Counter(item["category_id"] for item in train.annotations)
    images = Counter(category for shown in train.shown.values() for category in shown)
    categories, names = [], {}
    for item in train.categories:
        name, category_id = item["name"], item["id"]
        if names.setdefault(name, category_id) != category_id:
            raise ValueError(
                f"{train.path}: categories {names[name]} and {category_id} are both "
                f"named {name!r}, expected different names; rename one, or leave out "
                f"the unannotated one with drop_unused (--drop-unused)"
            )
        count = images[category_id]
        frequency = "r" if count <= rare_max else "c" if count <= common_max else "f"
        categories.append(
            dict(
                item,
                synset=item.get("synset", f"{name}.n.01"),
                synonyms=item.get("synonyms", [name]),
                image_count=count,
                instance_count=instances[category_id],
                frequency=frequency,
            )
        )
        categories[-1].setdefault("def", name)
    return categories


def _check(path: Path, split: _Split) -> None:
    """Read what was written as the evaluation will, with the source in errors."""
    try:
        load_ground_truth(path, with_masks=not split.num_boxes_only)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), str(split.path))) from None


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 2**63  # false for NaN


def _name(kind: str, position: int, item: dict) -> str:
    item_id = item.get("id")
    return f"{kind} {item_id}" if _is_number(item_id) else f"{kind} number {position}"


def _describe_value(value: object) -> str:
    return _JSON_NAMES.get(type(value), json.dumps(value))

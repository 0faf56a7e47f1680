"""A COCO annotation file, checked as far as its conversion needs."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ..evaluation.core.masks import PackedMasks, encode, find_damaged, mask_api
from ..evaluation.files.json_stream import iter_members

_LISTS = ("images", "annotations", "categories")


class CocoFile:
    """A COCO annotation file without what LVIS does not have.

    Crowds, annotations to be ignored and those without area are left out, and missing
    areas filled in.

    Args:
        path: The JSON file, plain or gzip.

    Attributes:
        images: As in the file.
        annotations: Those that are not left out.
        categories: As in the file.
        licenses: As in the file.
        ids_by_name: The category ids of each class name.
        shown: Classes that each image has annotations of, by image id.
        not_exhaustive: Classes of the crowds and ignored annotations, by image id.
        used: Classes of any annotation, also of those left out.
        num_crowds: Crowds and ignored annotations left out.
        num_empty: Annotations without area left out.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged or not in COCO's format.
    """

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
            if key in _LISTS and not isinstance(item, dict):
                raise ValueError(
                    f"{path}: {key} has {json.dumps(item)[:40]} in position "
                    f"{len(items) + 1}, expected a list of objects"
                )
            items.append(item)
        for key in _LISTS:
            if not getattr(self, key):
                raise ValueError(f"{path}: no {key}; expected COCO's annotation format")
        self._sizes: dict[int, list[int]] = {}
        self._check_images()
        self.ids_by_name: dict[str, list[int]] = defaultdict(list)
        self._check_categories()
        self.shown: dict[int, set[int]] = defaultdict(set)  # classes by image
        self.not_exhaustive: dict[int, set[int]] = defaultdict(set)
        self.used: set[int] = set()
        self._read_annotations()

    def _named(self, key: str, kind: str) -> Iterator[tuple[str, dict]]:
        """Yield the entries of a list, each with its name for errors."""
        for position, item in enumerate(getattr(self, key), start=1):
            has_id = _is_number(item.get("id"))
            name = f"{kind} {item['id']}" if has_id else f"{kind} number {position}"
            yield f"{self.path}: {name}", item

    def _check_images(self) -> None:
        for where, image in self._named("images", "image"):
            if "neg_category_ids" in image:
                raise ValueError(
                    f"{where} has neg_category_ids already: the file is in LVIS "
                    f"format; use it as it is, or remove the lists to compute them anew"
                )
            image_id, *size = (
                _whole_number(where, image, key) for key in ("id", "height", "width")
            )
            if min(size) < 1:
                raise ValueError(
                    f"{where} has height {size[0]} and width {size[1]}, expected "
                    f"pixels of the image file"
                )
            file_name = image.get("file_name", image.get("coco_url"))
            if not isinstance(file_name, str):
                raise ValueError(
                    f"{where} has file_name {file_name!r}, expected its path below the "
                    f"folder of images"
                )
            self._sizes[image_id] = size

    def _check_categories(self) -> None:
        for where, category in self._named("categories", "category"):
            category_id = _whole_number(where, category, "id")
            name = category.get("name")
            if not isinstance(name, str):
                raise ValueError(f"{where} has name {name!r}, expected a string")
            self.ids_by_name[name].append(category_id)

    def _read_annotations(self) -> None:
        """Fill in areas, leave out what LVIS does not have, and collect the classes."""
        kept = []
        for where, item in self._named("annotations", "annotation"):
            _, image_id, category_id = (
                _whole_number(where, item, key)
                for key in ("id", "image_id", "category_id")
            )
            self.used.add(category_id)
            if item.get("iscrowd") or item.get("ignore"):
                self.not_exhaustive[image_id].add(category_id)
                self.num_crowds += 1
                continue
            if not item.get("segmentation"):  # boxes only; some tools write []
                item.pop("segmentation", None)
            self._fill_area(where, item)
            if 0 in (item["area"], *item["bbox"][2:]):
                self.num_empty += 1
                continue
            self.shown[image_id].add(category_id)
            kept.append(item)
        self.annotations = kept

    @property
    def num_boxes_only(self) -> int:
        """Annotations that have no mask."""
        return sum("segmentation" not in item for item in self.annotations)

    def _fill_area(self, where: str, item: dict) -> None:
        box = item.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise ValueError(
                f"{where} has bbox {box!r}, expected [x, y, width, height] in pixels"
            )
        if item.get("area") is None:
            item["area"] = float(box[2] * box[3])
            size = self._sizes.get(item["image_id"])
            if size and "segmentation" in item:
                item["area"] = _area(where, item["segmentation"], size)
        if not _is_number(item["area"]) or item["area"] < 0:
            raise ValueError(
                f"{where} has area {item['area']!r}, expected a number of pixels; "
                f"without an area it is computed"
            )


def _area(where: str, segmentation: object, size: list[int]) -> float:
    """Return the number of pixels of a mask in an image of (height, width)."""
    try:
        counts = encode(segmentation, *size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    if find_damaged(PackedMasks.pack([counts]), np.array([size[0] * size[1]]))[0]:
        raise ValueError(
            f"{where} has a damaged mask, an RLE that does not fill its image; mend "
            f"it, or remove its segmentation to keep only the box"
        )
    return float(mask_api().area(dict(size=size, counts=counts)))


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 2**63  # false for NaN


def _whole_number(where: str, item: dict, key: str) -> int:
    """Return a whole number, which it also becomes in the item: 1.0 is 1."""
    value = item.get(key)
    if not _is_number(value) or value != int(value):
        raise ValueError(f"{where} has {key} {value!r}, expected a whole number")
    item[key] = int(value)
    return item[key]

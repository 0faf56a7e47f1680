"""Reading LVIS annotation files."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from ..core.errors import InputErrors
from ..core.ground_truth import GroundTruth, lookup
from ..core.masks import PackedMasks, encode
from ..core.params import FREQUENCIES
from ..core.values import (
    as_box,
    as_count,
    as_id,
    as_number,
    as_object,
    describe_entry,
    field,
    show,
)
from .json_stream import iter_members

# The lists in a file, and what an entry of each is called.
_LISTS = dict(images="image", categories="category", annotations="annotation")


def load_ground_truth(
    path: str | os.PathLike[str], with_masks: bool = False, is_annotated: bool = True
) -> GroundTruth:
    """Read an LVIS annotation file, plain or gzip.

    Args:
        path: The JSON file.
        with_masks: Whether masks are needed. Polygons are converted to RLEs.
        is_annotated: False to read only images and categories, also of a file without
            annotations, lists of absent classes and frequencies, such as that of LVIS's
            test-dev images.

    Raises:
        ValueError: If the file is truncated, is not an LVIS annotation file, uses an id
            twice or refers to one it does not have, or an entry has an unusable value
            or mask.
        FileNotFoundError: If the file does not exist.
    """
    images: list[tuple] = []
    categories: list[tuple] = []
    sizes: dict[int, tuple[int, int]] = {}
    annotations = _Annotations(path, with_masks, sizes)
    position = dict.fromkeys(_LISTS, 0)
    lists = [name for name in _LISTS if is_annotated or name != "annotations"]
    for key, item in iter_members(path, lists):
        if key not in lists:
            continue
        position[key] += 1
        try:
            if key == "images":
                images.append(_read_image(item, is_annotated))
                sizes[images[-1][0]] = images[-1][1:3]
            elif key == "categories":
                categories.append(_read_category(item, is_annotated))
            else:
                annotations.append(item)
        except ValueError as error:
            entry = describe_entry(_LISTS[key], item, position[key])
            raise ValueError(f"{path}: {entry}: {error}") from None
    for kind, items in (("images", images), ("categories", categories)):
        if not items:
            raise ValueError(f"{path}: no {kind}; expected an LVIS annotation file")
    return annotations.assemble(images, categories)


def _read_image(item: Any, is_annotated: bool) -> tuple:
    """Return id, height, width, and the ids of absent and not exhaustive classes."""
    image_id = as_id(field(as_object(item), "id"), "id")
    # A size that is not given is 0; only masks need it.
    size = (as_count(item.get(side) or 0, side) for side in ("height", "width"))
    lists = (
        _read_class_ids(item, name, is_annotated)
        for name in ("neg_category_ids", "not_exhaustive_category_ids")
    )
    return image_id, *size, *lists


def _read_class_ids(item: dict[str, Any], name: str, is_required: bool) -> array:
    if name not in item and not is_required:
        return array("q")
    if name not in item:
        raise ValueError(
            f"has no {name}; LVIS evaluation needs each image's neg_category_ids and "
            "not_exhaustive_category_ids, so use an LVIS annotation file "
            "(lvis_v1_val.json), not COCO's"
        )
    if type(item[name]) is not list:
        raise ValueError(
            f"{name} is {show(item[name])}; expected a list of category ids, [] if "
            "there are none"
        )
    return array("q", [as_id(value, f"an entry of {name}") for value in item[name]])


def _read_category(item: Any, is_annotated: bool) -> tuple:
    """Return id, name, frequency and number of images."""
    category_id = as_id(field(as_object(item), "id"), "id")
    keys = ("name", "frequency", "image_count")
    name, frequency, count = (item.get(key) for key in keys)
    if frequency not in FREQUENCIES and (is_annotated or frequency is not None):
        raise ValueError(
            f"frequency is {show(frequency)}; expected 'r', 'c' or 'f', as in "
            "lvis_v1_val.json"
        )
    return (
        category_id,
        str(category_id if name is None else name),
        -1 if frequency is None else FREQUENCIES.index(frequency),
        -1 if count is None else as_count(count, "image_count"),
    )


def _check_annotation(item: Any) -> dict[str, Any]:
    """Return an annotation with its fields in the types of the arrays."""
    names = ("id", "image_id", "category_id")
    ids = {name: as_id(field(as_object(item), name), name) for name in names}
    box = as_box(field(item, "bbox"), "bbox")
    area = as_number(field(item, "area"), "area")
    return {**item, **ids, "bbox": box, "area": area}


class _Annotations:
    """The annotations read so far, in growing arrays of numbers."""

    def __init__(self, path: Any, with_masks: bool, sizes: dict) -> None:
        self._with_masks = with_masks
        self._sizes = sizes  # of the images read so far
        self._errors = InputErrors(path)
        self._ids = array("q")
        self._image_ids = array("q")
        self._category_ids = array("q")
        self._boxes = array("d")
        self._areas = array("d")
        self._ignore = array("b")
        self._counts: list[bytes] = []
        self._is_rle = array("b")
        self._pending: list[tuple[int, Any]] = []

    def append(self, item: Any) -> None:
        """Read an annotation."""
        row = len(self._ignore)
        try:
            self._append(item)
        except (KeyError, OverflowError, TypeError, ValueError):
            # Arrays take no other values than these, but do not say what is wrong.
            for column in (self._ids, self._image_ids, self._category_ids, self._areas):
                del column[row:]
            del self._boxes[4 * row :]
            self._append(_check_annotation(item))

    def _append(self, item: dict[str, Any]) -> None:
        x, y, width, height = item["bbox"]  # neither more nor fewer
        self._boxes.extend((x, y, width, height))
        self._ids.append(item["id"])
        self._image_ids.append(item["image_id"])
        self._category_ids.append(item["category_id"])
        self._areas.append(item["area"])
        self._ignore.append(bool(item.get("ignore", 0)))
        if self._with_masks:
            self._add_mask(item["image_id"], item.get("segmentation"))

    def _add_mask(self, image_id: int, segmentation: Any) -> None:
        row = len(self._counts)
        self._is_rle.append(isinstance(segmentation, dict))
        self._counts.append(b"")
        if image_id in self._sizes:
            self._encode(row, segmentation)
        else:  # the file has its annotations before its images
            self._pending.append((row, segmentation))

    def _encode(self, row: int, segmentation: Any) -> None:
        try:
            size = self._sizes[self._image_ids[row]]
            self._counts[row] = encode(segmentation, *size)
        except ValueError as error:
            self._errors.add_unusable_mask(self._name(row), error)

    def assemble(self, images: list[tuple], categories: list[tuple]) -> GroundTruth:
        """Check what was read and return it, sorted."""
        errors = self._errors
        by_id = np.argsort([category[0] for category in categories])
        class_ids, names, frequency, image_counts = zip(*(categories[i] for i in by_id))
        image_ids, heights, widths, absent, not_exhaustive = zip(
            *sorted(images, key=itemgetter(0))
        )
        image_ids, class_ids = np.array(image_ids), np.array(class_ids)
        for kind, ids in (
            ("image", image_ids),
            ("category", class_ids),
            ("annotation", np.asarray(self._ids)),
        ):
            errors.add_repeated(
                f"{kind} id used more than once", ids, lambda i, ids=ids: str(ids[i])
            )
        ids = np.asarray(self._image_ids)
        image_index = errors.index_of("image_id", image_ids, ids, self._name)
        ids = np.asarray(self._category_ids)
        class_index = errors.index_of("category_id", class_ids, ids, self._name)
        boxes, areas = np.asarray(self._boxes).reshape(-1, 4), np.asarray(self._areas)
        errors.add_bad_numbers(self._name, boxes, area=areas)
        errors.raise_if_any(len(areas), "annotations")
        num_pixels = np.array(heights, np.int64) * widths
        masks = None
        if self._with_masks:
            masks = self._pack_masks(num_pixels[image_index])

        # lvis-api drops annotations without area.
        order = np.lexsort((class_index, image_index))
        order = order[areas[order] > 0]
        image_index, class_index = image_index[order], class_index[order]
        annotated = image_index.astype(np.int64) * len(class_ids) + class_index
        return GroundTruth(
            image_ids=image_ids,
            heights=np.array(heights, np.int32),
            widths=np.array(widths, np.int32),
            class_ids=class_ids,
            class_names=list(names),
            frequency=np.array(frequency, np.int8),
            image_counts=np.array(image_counts, np.int64),
            label_to_class=np.argsort(by_id).astype(np.int32),
            judged_pairs=np.unique(np.append(annotated, _pairs(absent, class_ids))),
            not_exhaustive_pairs=np.unique(_pairs(not_exhaustive, class_ids)),
            image_index=image_index,
            class_index=class_index,
            boxes=boxes[order],
            areas=areas[order],
            ignore=np.asarray(self._ignore)[order].astype(bool),
            masks=None if masks is None else masks.take(order),
        )

    def _name(self, row: int) -> str:
        return f"annotation {self._ids[row]}"

    def _pack_masks(self, num_pixels: np.ndarray) -> PackedMasks:
        for row, segmentation in self._pending:
            self._encode(row, segmentation)
        masks = PackedMasks.pack(self._counts)
        rles = np.flatnonzero(self._is_rle)
        self._errors.add_damaged(
            lambda i: self._name(rles[i]), masks.take(rles), num_pixels[rles]
        )
        self._errors.raise_if_any(len(masks), "annotations")
        return masks


def _pairs(lists: Sequence[array], class_ids: np.ndarray) -> np.ndarray:
    """Return the pairs of lists of class ids, one list for each image."""
    lengths = [len(ids) for ids in lists]
    ids = np.array([i for ids in lists for i in ids], dtype=np.int64)
    # lvis-api ignores classes that the file does not have.
    class_index, is_known = lookup(class_ids, ids)
    image_index = np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
    return (image_index * len(class_ids) + class_index)[is_known]

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
from .json_stream import iter_members

# What the files of test sets lack, and only evaluation needs.
_WITHOUT_ANNOTATIONS = {
    "images": dict(neg_category_ids=[], not_exhaustive_category_ids=[]),
    "categories": dict(frequency=FREQUENCIES[0]),
}


def load_ground_truth(
    path: str | os.PathLike[str], with_masks: bool = False, is_annotated: bool = True
) -> GroundTruth:
    """Read an LVIS annotation file, plain or gzip.

    Args:
        path: The JSON file.
        with_masks: Whether masks are needed. Polygons are converted to RLEs.
        is_annotated: False to read only images and categories, also of a file that
            lacks annotations and what evaluation needs to know, such as a test set's.

    Raises:
        ValueError: If the file is truncated, is not an LVIS annotation file, uses an id
            twice or refers to one it does not have, or has a damaged mask.
        FileNotFoundError: If the file does not exist.
    """
    images: list[tuple] = []
    categories: list[tuple] = []
    sizes: dict[int, tuple[int, int]] = {}
    annotations = _Annotations(path, with_masks, sizes)
    for key, item in iter_members(path):
        if not is_annotated:
            if key == "annotations":
                continue
            if isinstance(item, dict):
                item = {**_WITHOUT_ANNOTATIONS.get(key, {}), **item}
        if key == "images":
            images.append(_read_image(item, path))
            sizes[images[-1][0]] = images[-1][1:3]
        elif key == "categories":
            categories.append(_read_category(item, path))
        elif key == "annotations":
            annotations.append(item)
    for kind, items in (("images", images), ("categories", categories)):
        if not items:
            raise ValueError(f"{path}: no {kind}; expected an LVIS annotation file")
    return annotations.assemble(images, categories)


def _read_image(item: dict[str, Any], path: Any) -> tuple:
    """Return id, height, width, and the ids of absent and not exhaustive classes."""
    try:
        size = int(item.get("height") or 0), int(item.get("width") or 0)
        lists = item["neg_category_ids"], item["not_exhaustive_category_ids"]
        return int(item["id"]), *size, *(array("q", ids) for ids in lists)
    except KeyError as error:
        raise ValueError(
            f"{path}: image {item.get('id')} has no {error}; LVIS evaluation needs "
            "each image's neg_category_ids and not_exhaustive_category_ids, so use an "
            "LVIS annotation file (lvis_v1_val.json), not COCO's"
        ) from None


def _read_category(item: dict[str, Any], path: Any) -> tuple:
    """Return id, name, frequency and number of images."""
    frequency = item.get("frequency")
    if frequency not in FREQUENCIES:
        raise ValueError(
            f"{path}: category {item.get('id')} has frequency {frequency!r}; expected "
            "'r', 'c' or 'f', as in lvis_v1_val.json"
        )
    count = int(item.get("image_count", -1))
    name = str(item.get("name", item["id"]))
    return int(item["id"]), name, FREQUENCIES.index(frequency), count


class _Annotations:
    """The annotations read so far, in growing arrays of numbers."""

    def __init__(self, path: Any, with_masks: bool, sizes: dict) -> None:
        self._path = path
        self._with_masks = with_masks
        self._sizes = sizes  # of the images read so far
        self._ids = array("q")
        self._image_ids = array("q")
        self._category_ids = array("q")
        self._boxes = array("d")
        self._areas = array("d")
        self._ignore = array("b")
        self._counts: list[bytes] = []
        self._is_rle = array("b")
        self._pending: list[tuple[int, Any]] = []

    def append(self, item: dict[str, Any]) -> None:
        try:
            self._ids.append(item["id"])
            self._image_ids.append(item["image_id"])
            self._category_ids.append(item["category_id"])
            self._boxes.extend(item["bbox"])
            self._areas.append(item["area"])
            self._ignore.append(bool(item.get("ignore", 0)))
            if len(item["bbox"]) != 4:
                raise ValueError(f"a bbox of {len(item['bbox'])} numbers")
            if self._with_masks:
                self._add_mask(item["image_id"], item["segmentation"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable(item.get("id"), error) from None

    def _unreadable(self, annotation_id: Any, error: Exception) -> ValueError:
        problem = f" has no {error}" if isinstance(error, KeyError) else f": {error}"
        return ValueError(f"{self._path}: annotation {annotation_id}{problem}")

    def _add_mask(self, image_id: int, segmentation: Any) -> None:
        self._is_rle.append(isinstance(segmentation, dict))
        if image_id in self._sizes:
            self._counts.append(self._encode(image_id, segmentation))
        else:  # the file has its annotations before its images
            self._pending.append((len(self._counts), segmentation))
            self._counts.append(b"")

    def _encode(self, image_id: int, segmentation: Any) -> bytes:
        height, width = self._sizes[image_id]
        if not height or not width:
            raise ValueError(
                f"image {image_id} has no height and width, which masks need"
            )
        return encode(segmentation, height, width)

    def assemble(self, images: list[tuple], categories: list[tuple]) -> GroundTruth:
        """Check what was read and return it, sorted."""
        errors = InputErrors(str(self._path))
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
            masks = self._pack_masks(errors, num_pixels[image_index])

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

    def _pack_masks(self, errors: InputErrors, num_pixels: np.ndarray) -> PackedMasks:
        for row, segmentation in self._pending:
            try:
                self._counts[row] = self._encode(self._image_ids[row], segmentation)
            except (TypeError, ValueError) as error:
                raise self._unreadable(self._ids[row], error) from None
        masks = PackedMasks.pack(self._counts)
        rles = np.flatnonzero(self._is_rle)
        errors.add_damaged(
            lambda i: self._name(rles[i]), masks.take(rles), num_pixels[rles]
        )
        errors.raise_if_any(len(masks), "annotations")
        return masks


def _pairs(lists: Sequence[array], class_ids: np.ndarray) -> np.ndarray:
    """Return the pairs of lists of class ids, one list for each image."""
    lengths = [len(ids) for ids in lists]
    ids = np.array([i for ids in lists for i in ids], dtype=np.int64)
    # lvis-api ignores classes that the file does not have.
    class_index, is_known = lookup(class_ids, ids)
    image_index = np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
    return (image_index * len(class_ids) + class_index)[is_known]

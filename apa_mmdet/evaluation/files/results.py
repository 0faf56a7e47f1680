"""Detections in LVIS's results format: JSON files, read and written as streams."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..core.detections import Detections
from ..core.errors import InputErrors
from ..core.ground_truth import GroundTruth
from ..core.masks import PackedMasks, encode, measure
from ..core.segmentation import parse_segmentation
from ..core.values import as_box, as_id, as_number, as_object, field
from ..core.workers import progress_bar
from .json_stream import iter_array

# Detections that are Python objects at the same time.
_WRITTEN_AT_ONCE = 10_000
_CHECKED_AT_ONCE = 10_000


def read_results(
    path: str | os.PathLike[str], truth: GroundTruth, with_masks: bool = False
) -> Detections:
    """Return the detections in a results file, in the file's order.

    Args:
        path: A list of ``{"image_id", "category_id", "score", "bbox": [x, y, width,
            height], "segmentation"}``, JSON, plain or gzip. If the first has no
            ``bbox``, boxes and areas are those of the masks, as in lvis-api.
        truth: The annotations, of all images that the file may name.
        with_masks: Whether to read masks, of those detections that are judged.

    Raises:
        ValueError: If the file is truncated or not such a list, or a detection has an
            unknown image or category, a score that is not finite, a box of negative
            size, a damaged mask, a mask that does not fit its image or an id that
            another one has; with the number and the first three of each kind.
        FileNotFoundError: If the file does not exist.
    """
    reader = _Reader(path, truth, with_masks)
    description = f"reading {os.path.basename(path)}"
    for item in progress_bar(description, "detections", iterable=iter_array(path)):
        reader.append(item)
    return reader.finish()


class _Reader:
    """The results read so far, in growing arrays of numbers."""

    def __init__(self, path: Any, truth: GroundTruth, with_masks: bool) -> None:
        self._path = path
        self._truth = truth
        self._with_masks = with_masks
        self._errors = InputErrors(path)
        self._has_boxes = True
        self._image_ids = array("q")
        self._category_ids = array("q")
        self._scores = array("d")
        self._boxes = array("d")
        self._ids = array("q")
        self._unchecked: list[tuple[bytes, int, bool]] = []
        self._masks = [PackedMasks.pack([])]
        self._sizes = {
            int(i): (int(h), int(w))
            for i, h, w in zip(truth.image_ids, truth.heights, truth.widths)
        }
        image_index, class_index = np.divmod(truth.judged_pairs, truth.num_classes)
        image_ids = truth.image_ids[image_index].tolist()
        self._judged = set(zip(image_ids, truth.class_ids[class_index].tolist()))

    def append(self, item: Any) -> None:
        """Read a result."""
        row, num_ids = len(self._scores), len(self._ids)
        try:
            if not row:
                self._inspect_first(as_object(item))
            try:
                self._append(item)
            except (KeyError, OverflowError, TypeError, ValueError):
                # Arrays take no other values than these, but do not say what is wrong.
                for column in (self._image_ids, self._category_ids):
                    del column[row:]
                del self._boxes[4 * row :], self._ids[num_ids:]
                self._append(self._check_fields(item))
        except ValueError as error:
            raise ValueError(f"{self._path}: {_name(row)}: {error}") from None

    def _inspect_first(self, item: dict[str, Any]) -> None:
        """Decide from the first result whether boxes and masks are read."""
        self._has_boxes = "bbox" in item
        if not self._has_boxes:
            self._with_masks = True  # boxes and areas come from there
        if self._with_masks and "segmentation" not in item:
            raise ValueError(
                "has no segmentation; evaluate boxes (--metric bbox), or give a "
                "results file with masks"
            )

    def _append(self, item: dict[str, Any]) -> None:
        if self._has_boxes:
            x, y, width, height = item["bbox"]  # neither more nor fewer
            self._boxes.extend((x, y, width, height))
        elif "bbox" in item:
            raise ValueError
        segmentation = item["segmentation"] if self._with_masks else None
        if "id" in item:
            self._ids.append(item["id"])
        image_id, category_id = item["image_id"], item["category_id"]
        self._image_ids.append(image_id)
        self._category_ids.append(category_id)
        self._scores.append(item["score"])
        if self._with_masks:
            self._add_mask(image_id, category_id, segmentation)

    def _check_fields(self, item: Any) -> dict[str, Any]:
        """Return a result's fields in the types of the arrays."""
        names = ("image_id", "category_id")
        checked = {name: as_id(field(as_object(item), name), name) for name in names}
        checked["score"] = as_number(field(item, "score"), "score")
        if self._has_boxes:
            checked["bbox"] = as_box(field(item, "bbox"), "bbox")
        elif "bbox" in item:
            raise ValueError("has a bbox, but the first result has none")
        if self._with_masks:
            checked["segmentation"] = field(item, "segmentation")
        if item.get("id") is not None:
            checked["id"] = as_id(item["id"], "id")
        return checked

    def _add_mask(self, image_id: int, category_id: int, segmentation: Any) -> None:
        counts, is_judged = b"", (image_id, category_id) in self._judged
        height, width = self._sizes.get(image_id, (0, 0))
        if image_id in self._sizes:  # finish() reports the others
            try:
                if is_judged or isinstance(segmentation, dict):
                    counts = encode(segmentation, height, width)
                else:  # nobody will need it
                    parse_segmentation(segmentation, height, width)
            except ValueError as error:
                name = self._name_with_image(len(self._image_ids) - 1)
                self._errors.add_unusable_mask(name, error)
        self._unchecked.append((counts, height * width, is_judged))
        if len(self._unchecked) >= _CHECKED_AT_ONCE:
            self._check_masks()

    def _check_masks(self) -> None:
        """Check masks, and keep those that are judged: nothing decodes the others."""
        if not self._unchecked:
            return
        counts, num_pixels, is_judged = zip(*self._unchecked)
        begin = len(self._image_ids) - len(counts)
        self._errors.add_damaged(
            lambda i: self._name_with_image(begin + i),
            PackedMasks.pack(counts),
            np.array(num_pixels),
        )
        kept = (each if keep else b"" for each, keep in zip(counts, is_judged))
        self._masks.append(PackedMasks.pack(kept))
        self._unchecked = []

    def finish(self) -> Detections:
        """Check what was read and return it."""
        truth, errors = self._truth, self._errors
        self._check_masks()
        scores = np.asarray(self._scores)
        boxes = np.asarray(self._boxes).reshape(-1, 4)
        ids = np.asarray(self._image_ids)
        image_index = errors.index_of("image_id", truth.image_ids, ids, _name)
        ids = np.asarray(self._category_ids)
        class_index = errors.index_of("category_id", truth.class_ids, ids, _name)
        errors.add_bad_numbers(self._name_with_image, boxes, score=scores)
        if len(self._ids) == len(scores):  # LVIS's format has no ids, COCO's has
            errors.add_repeated(
                "id of another result",
                np.asarray(self._ids),
                lambda i: f"{_name(i)} (id {self._ids[i]})",
            )
        errors.raise_if_any(len(scores))
        masks = PackedMasks.concatenate(self._masks) if self._with_masks else None
        areas = None
        if not self._has_boxes:
            size = truth.heights[image_index], truth.widths[image_index]
            areas, boxes = measure(masks, *size)
        return Detections(image_index, class_index, scores, boxes, masks, areas)

    def _name_with_image(self, row: int) -> str:
        return f"{_name(row)} (image {self._image_ids[row]})"


def _name(row: int) -> str:
    return f"result {row + 1}"


def has_masks(path: str | os.PathLike[str]) -> bool:
    """Return whether the first result of a file has a mask."""
    first = next(iter_array(path), None)
    return isinstance(first, dict) and "segmentation" in first


def write_results(
    path: str | os.PathLike[str], truth: GroundTruth, pieces: Iterable[Detections]
) -> None:
    """Write a results file piece by piece, with the masks if there are some.

    The file has another name until it is complete.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    separator = "["
    with open(f"{path}.unfinished", "w", encoding="utf-8") as file:
        for piece in pieces:
            for begin in range(0, len(piece), _WRITTEN_AT_ONCE):
                rows = np.arange(begin, min(begin + _WRITTEN_AT_ONCE, len(piece)))
                for item in _results(truth, piece.take(rows)):
                    file.write(separator + json.dumps(item))
                    separator = ", "
        file.write("[]" if separator == "[" else "]")
    os.replace(f"{path}.unfinished", path)


def _results(truth: GroundTruth, detections: Detections) -> Iterator[dict]:
    columns = zip(
        truth.image_ids[detections.image_index].tolist(),
        detections.boxes.tolist(),
        detections.scores.tolist(),
        truth.class_ids[detections.class_index].tolist(),
    )
    for row, (image_id, box, score, category_id) in enumerate(columns):
        item = dict(image_id=image_id, bbox=box, score=score, category_id=category_id)
        if detections.masks is not None:
            image = detections.image_index[row]
            size = int(truth.heights[image]), int(truth.widths[image])
            (rle,) = detections.masks.rles(row, row + 1, *size)
            item["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        yield item

"""Detections in LVIS's results format: json files, read and written in a stream."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from .detections import Detections, Problems, note_bad_numbers
from .ground_truth import GroundTruth, find
from .json_stream import iter_array
from .masks import PackedMasks, encode, measure

_AT_ONCE = 10_000  # detections that are Python objects while they are written


def read_results(
    path: str | os.PathLike[str],
    truth: GroundTruth,
    with_masks: bool = False,
    progress: bool = True,
) -> Detections:
    """Read a results file.

    Args:
        path: A list of ``{"image_id", "category_id", "score", "bbox": [x, y, width,
            height], "segmentation"}``, json, plain or gzip. Without ``bbox`` in the
            first of them, boxes and areas come from the masks, as in lvis-api.
        truth: The annotations, of all images the file may name.
        with_masks: Whether masks are needed. Those of detections that no image judges
            are not kept.
        progress: Whether to show how far it is, if it takes longer than seconds.

    Returns:
        The detections, in the file's order.

    Raises:
        ValueError: If the file is cut short or not such a list, or any detection has
            an unknown image or category, a score that is not finite, a box of negative
            size, a mask unlike its image or an id that another one has; with their
            number and the first three of each kind.
        FileNotFoundError: If it is not there.
    """
    reading = _Reading(path, truth, with_masks)
    bar = tqdm(
        iter_array(path),
        desc=f"reading {os.path.basename(path)}",
        unit=" detections",
        unit_scale=True,
        delay=2,
        leave=False,
        disable=None if progress else True,
    )
    for item in bar:
        reading.append(item)
    return reading.finish()


class _Reading:
    """Results as they are read, in growing arrays of numbers."""

    def __init__(self, path: Any, truth: GroundTruth, with_masks: bool) -> None:
        self._path = path
        self._truth = truth
        self._problems = Problems(str(path))
        self._with_masks = with_masks
        self._has_boxes = True
        self._image = array("q")
        self._category = array("q")
        self._score = array("d")
        self._box = array("d")
        self._ids = array("q")
        self._counts: list[bytes] = []
        self._sizes = {
            int(i): (int(h), int(w))
            for i, h, w in zip(truth.image_ids, truth.height, truth.width)
        }
        pairs = np.divmod(truth.judged, truth.num_classes)
        image, category = truth.image_ids[pairs[0]], truth.class_ids[pairs[1]]
        self._judged = set(zip(image.tolist(), category.tolist()))

    def append(self, item: Any) -> None:
        if not len(self._image):
            self._look_at_first(item)
        try:
            image_id, category_id = item["image_id"], item["category_id"]
            if self._has_boxes:
                x, y, width, height = item["bbox"]
                self._box.extend((x, y, width, height))
            self._image.append(image_id)
            self._category.append(category_id)
            self._score.append(item["score"])
            if "id" in item:
                self._ids.append(item["id"])
            if self._with_masks:
                self._counts.append(self._mask(image_id, category_id, item))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            missing = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{self._path}: result {len(self._image)} is not what is expected "
                f"({missing}): {json.dumps(item)[:200]}; expected image_id, "
                "category_id, score, and bbox as [x, y, width, height] or segmentation"
            ) from None

    def _look_at_first(self, item: Any) -> None:
        if not isinstance(item, dict):
            return
        self._has_boxes = "bbox" in item
        if not self._has_boxes:
            self._with_masks = True  # its boxes and areas come from there
        if self._with_masks and "segmentation" not in item:
            raise ValueError(
                f"{self._path}: the first result has no segmentation; evaluate boxes "
                "(--metric bbox), or give a results file with masks"
            )

    def _mask(self, image_id: int, category_id: int, item: dict) -> bytes:
        if image_id not in self._sizes:
            return b""  # noted later, with all others of its kind
        segmentation, size = item["segmentation"], self._sizes[image_id]
        if isinstance(segmentation, dict) and tuple(segmentation["size"]) != size:
            height, width = segmentation["size"]
            self._problems.add(
                "mask of another size than its image (height x width)",
                f"result {len(self._counts)} {height} x {width} in image {image_id} "
                f"of {size[0]} x {size[1]}",
            )
            return b""
        if (image_id, category_id) not in self._judged:
            return b""
        return encode(segmentation, *size)

    def finish(self) -> Detections:
        truth, problems = self._truth, self._problems
        image_id, category_id = np.asarray(self._image), np.asarray(self._category)
        score, box = np.asarray(self._score), np.asarray(self._box).reshape(-1, 4)
        image, is_image = find(truth.image_ids, image_id)
        category, is_category = find(truth.class_ids, category_id)
        for kind, ids, is_known in (
            ("image_id", image_id, is_image),
            ("category_id", category_id, is_category),
        ):
            problems.add_where(
                f"unknown {kind}",
                ~is_known,
                lambda i, ids=ids: f"result {i} ({ids[i]})",
            )
        note_bad_numbers(
            problems, score, box, lambda i: f"result {i} (image {image_id[i]})"
        )
        self._note_repeated_ids()
        problems.check(len(image_id))
        masks = PackedMasks.pack(self._counts) if self._with_masks else None
        area = None
        image, category = image.astype(np.int32), category.astype(np.int32)
        if not self._has_boxes:
            area, box = measure(masks, truth.height[image], truth.width[image])
        return Detections(image, category, score, box, masks, area)

    def _note_repeated_ids(self) -> None:
        if len(self._ids) < len(self._image):
            return  # LVIS's format has none
        ids = np.asarray(self._ids)
        _, first = np.unique(ids, return_index=True)
        is_repeated = np.ones(len(ids), bool)
        is_repeated[first] = False
        self._problems.add_where(
            "id of another result", is_repeated, lambda i: f"result {i} (id {ids[i]})"
        )


class ResultsWriter:
    """Writes a results file, piece by piece.

    It is written under another name and gets its own when it is complete.

    Args:
        path: The json file to write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = str(path)
        os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
        self._file = open(f"{self._path}.unfinished", "w", encoding="utf-8")
        self._file.write("[")
        self._is_empty = True

    def write(self, truth: GroundTruth, detections: Detections) -> None:
        """Append detections, with the masks they have."""
        for item in _as_results(truth, detections):
            self._file.write("" if self._is_empty else ", ")
            self._file.write(json.dumps(item))
            self._is_empty = False

    def close(self) -> None:
        """Complete the file."""
        self._file.write("]")
        self._file.close()
        os.replace(f"{self._path}.unfinished", self._path)


def _as_results(truth: GroundTruth, detections: Detections) -> Iterator[dict]:
    for start in range(0, len(detections), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(detections)))
        yield from _dicts(truth, detections.take(rows))


def _dicts(truth: GroundTruth, detections: Detections) -> Iterator[dict]:
    masks = detections.masks
    columns = zip(
        truth.image_ids[detections.image].tolist(),
        detections.box.tolist(),
        detections.score.tolist(),
        truth.class_ids[detections.category].tolist(),
    )
    for index, (image_id, box, score, category_id) in enumerate(columns):
        item = dict(image_id=image_id, bbox=box, score=score, category_id=category_id)
        if masks is not None:
            image = detections.image[index]
            size = int(truth.height[image]), int(truth.width[image])
            (rle,) = masks.rles(index, index + 1, *size)
            item["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        yield item

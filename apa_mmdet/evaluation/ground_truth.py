"""The annotations of LVIS as arrays."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .json_stream import iter_members
from .masks import PackedMasks, encode

FREQUENCIES = ("r", "c", "f")


@dataclass
class GroundTruth:
    """Annotations, and what LVIS says of classes it did not annotate.

    N images, K classes and G annotations. Images and classes are named by their index
    in the sorted ids; pairs of both by ``image * K + class``, int64.

    Attributes:
        image_ids: int64 (N,), sorted.
        height: int32 (N,), in pixels; 0 where the file does not say.
        width: int32 (N,).
        class_ids: int64 (K,), sorted.
        names: Of the classes.
        frequency: int8 (K,): 0 rare, 1 common, 2 frequent.
        image_count: int64 (K,), training images that show the class; -1 if not known.
        labels: int32 (K,): index of the class that mmdet numbers k, which goes by the
            order in the annotation file.
        judged: Sorted pairs that can be judged: the class is annotated in the image or
            known to be absent. Detections of all others are dropped.
        not_exhaustive: Sorted pairs of which not every instance is annotated.
        image: int32 (G,); annotations are sorted by image, then class, then as in the
            file.
        category: int32 (G,).
        box: float64 (G, 4): x, y, width, height in pixels.
        area: float64 (G,), of the mask, in square pixels.
        ignore: bool (G,).
        masks: G masks, None if they were not asked for.
    """

    image_ids: np.ndarray
    height: np.ndarray
    width: np.ndarray
    class_ids: np.ndarray
    names: list[str]
    frequency: np.ndarray
    image_count: np.ndarray
    labels: np.ndarray
    judged: np.ndarray
    not_exhaustive: np.ndarray
    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    area: np.ndarray
    ignore: np.ndarray
    masks: PackedMasks | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_ids)

    def pair(self, image: np.ndarray, category: np.ndarray) -> np.ndarray:
        """Return the names of pairs, int64."""
        return image.astype(np.int64) * self.num_classes + category

    def is_judged(self, pair: np.ndarray) -> np.ndarray:
        """Say which pairs can be judged, bool."""
        return _contains(self.judged, pair)

    def is_not_exhaustive(self, pair: np.ndarray) -> np.ndarray:
        """Say in which pairs instances may be missing, bool."""
        return _contains(self.not_exhaustive, pair)

    def only(self, image_ids: Iterable[int]) -> GroundTruth:
        """Return the part that concerns some images.

        Raises:
            ValueError: If one of the ids is not in the annotation file.
        """
        wanted = np.unique(np.asarray(list(image_ids), dtype=np.int64))
        index, is_known = find(self.image_ids, wanted)
        if not is_known.all():
            unknown = wanted[~is_known]
            raise ValueError(
                f"img_ids: {len(unknown)} of {len(wanted)} ids are not in the "
                f"annotation file, the first: {unknown[:3].tolist()}"
            )
        new_index = np.full(self.num_images, -1, np.int64)
        new_index[index] = np.arange(len(index))
        kept = np.flatnonzero(new_index[self.image] >= 0)

        def moved(pairs: np.ndarray) -> np.ndarray:
            image, category = np.divmod(pairs, self.num_classes)
            pairs = self.pair(new_index[image], category)
            return pairs[new_index[image] >= 0]

        return replace(
            self,
            image_ids=wanted,
            height=self.height[index],
            width=self.width[index],
            judged=moved(self.judged),
            not_exhaustive=moved(self.not_exhaustive),
            image=new_index[self.image[kept]].astype(np.int32),
            category=self.category[kept],
            box=self.box[kept],
            area=self.area[kept],
            ignore=self.ignore[kept],
            masks=self.masks.take(kept) if self.masks is not None else None,
        )


def find(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each wanted id among sorted ids, and whether it is there."""
    if not len(ids):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    index = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return index, ids[index] == wanted


def _contains(pairs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return find(pairs, wanted)[1]


def load_ground_truth(
    path: str | os.PathLike[str], with_masks: bool = False
) -> GroundTruth:
    """Read an LVIS annotation file.

    Args:
        path: The json file, plain or gzip.
        with_masks: Whether masks are needed. Polygons become RLEs here, and only here.

    Raises:
        ValueError: If the file is cut short, is no LVIS annotation file, or names
            something twice or something that it does not have.
        FileNotFoundError: If it is not there.
    """
    images: list[tuple] = []
    size: dict[int, tuple[int, int]] = {}
    classes: list[tuple] = []
    annotations = _Annotations(path, with_masks, size)
    for key, item in iter_members(path):
        if key == "images":
            images.append(_image(item, path))
            size[images[-1][0]] = images[-1][1:3]
        elif key == "categories":
            classes.append(_category(item, path))
        elif key == "annotations":
            annotations.append(item)
    for kind, items in (("images", images), ("categories", classes)):
        if not items:
            raise ValueError(f"{path}: no {kind}; expected an LVIS annotation file")
    return annotations.assemble(images, classes)


def _image(item: dict[str, Any], path: Any) -> tuple:
    try:
        size = int(item.get("height") or 0), int(item.get("width") or 0)
        lists = item["neg_category_ids"], item["not_exhaustive_category_ids"]
        return (int(item["id"]), *size, *(array("q", ids) for ids in lists))
    except KeyError as error:
        raise ValueError(
            f"{path}: image {item.get('id')} has no {error}; LVIS is evaluated with "
            "each image's neg_category_ids and not_exhaustive_category_ids, so give an "
            "LVIS annotation file (lvis_v1_val.json), not COCO's"
        ) from None


def _category(item: dict[str, Any], path: Any) -> tuple:
    frequency = item.get("frequency")
    if frequency not in FREQUENCIES:
        raise ValueError(
            f"{path}: category {item.get('id')} has frequency {frequency!r}; expected "
            "'r', 'c' or 'f', as in lvis_v1_val.json"
        )
    count = item.get("image_count", -1)
    name = str(item.get("name", item["id"]))
    return int(item["id"]), name, FREQUENCIES.index(frequency), int(count)


class _Annotations:
    """Annotations as they are read, in growing arrays of numbers."""

    def __init__(self, path: Any, with_masks: bool, size: dict) -> None:
        self._path = path
        self._with_masks = with_masks
        self._size = size  # of the images read so far
        self._ids = array("q")
        self._image = array("q")
        self._category = array("q")
        self._box = array("d")
        self._area = array("d")
        self._ignore = array("b")
        self._counts: list[bytes] = []
        self._waiting: list[tuple[int, Any]] = []

    def append(self, item: dict[str, Any]) -> None:
        try:
            self._ids.append(item["id"])
            self._image.append(item["image_id"])
            self._category.append(item["category_id"])
            self._box.extend(item["bbox"])
            self._area.append(item["area"])
            self._ignore.append(bool(item.get("ignore", 0)))
            if len(item["bbox"]) != 4:
                raise ValueError(f"a bbox of {len(item['bbox'])} numbers")
            if self._with_masks:
                self._add_mask(item["image_id"], item["segmentation"])
        except KeyError as error:
            raise ValueError(
                f"{self._path}: annotation {item.get('id')} has no {error}"
            ) from None
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self._path}: annotation {item.get('id')}: {error}"
            ) from None

    def _add_mask(self, image_id: int, segmentation: Any) -> None:
        if image_id in self._size:
            self._counts.append(self._encode(image_id, segmentation))
        else:  # the file has its images after its annotations
            self._waiting.append((len(self._counts), segmentation))
            self._counts.append(b"")

    def _encode(self, image_id: int, segmentation: Any) -> bytes:
        height, width = self._size[image_id]
        if not height or not width:
            raise ValueError(f"image {image_id} has no height and width, masks need it")
        return encode(segmentation, height, width)

    def assemble(self, images: list[tuple], classes: list[tuple]) -> GroundTruth:
        images.sort(key=lambda item: item[0])
        file_ids = np.array([item[0] for item in classes], dtype=np.int64)
        by_id = np.argsort(file_ids)
        classes = [classes[index] for index in by_id]
        image_ids = np.array([item[0] for item in images], dtype=np.int64)
        class_ids = file_ids[by_id]
        ids = np.asarray(self._ids)
        for kind, those in (
            ("image", image_ids),
            ("category", class_ids),
            ("annotation", np.sort(ids)),
        ):
            again = np.unique(those[1:][those[1:] == those[:-1]])
            if len(again):
                raise ValueError(
                    f"{self._path}: {len(again)} {kind} ids are used more than once, "
                    f"the first: {again[:3].tolist()}"
                )
        image = self._known("image", image_ids, self._image, ids)
        category = self._known("category", class_ids, self._category, ids)
        box = np.asarray(self._box).reshape(-1, 4)
        self._check_numbers(box, ids)
        for index, segmentation in self._waiting:
            self._counts[index] = self._encode(self._image[index], segmentation)

        # lvis-api does not see annotations without area.
        area = np.asarray(self._area)
        order = np.lexsort((category, image))
        order = order[area[order] > 0]
        shown = image[order].astype(np.int64) * len(class_ids) + category[order]
        absent, not_exhaustive = (
            _pairs([item[column] for item in images], class_ids) for column in (3, 4)
        )
        masks = PackedMasks.pack(self._counts).take(order) if self._with_masks else None
        return GroundTruth(
            image_ids=image_ids,
            height=np.array([item[1] for item in images], dtype=np.int32),
            width=np.array([item[2] for item in images], dtype=np.int32),
            class_ids=class_ids,
            names=[item[1] for item in classes],
            frequency=np.array([item[2] for item in classes], dtype=np.int8),
            image_count=np.array([item[3] for item in classes], dtype=np.int64),
            labels=np.argsort(by_id).astype(np.int32),
            judged=np.unique(np.concatenate([shown, absent])),
            not_exhaustive=np.unique(not_exhaustive),
            image=image[order],
            category=category[order],
            box=box[order],
            area=area[order],
            ignore=np.asarray(self._ignore)[order].astype(bool),
            masks=masks,
        )

    def _known(
        self, kind: str, ids: np.ndarray, wanted: array, annotation_ids: np.ndarray
    ) -> np.ndarray:
        wanted = np.asarray(wanted)
        index, is_known = find(ids, wanted)
        if not is_known.all():
            first = np.flatnonzero(~is_known)[:3]
            raise ValueError(
                f"{self._path}: {(~is_known).sum()} of {len(wanted)} annotations name "
                f"an unknown {kind}, the first: "
                + ", ".join(
                    f"annotation {annotation_ids[i]} ({kind}_id {wanted[i]})"
                    for i in first
                )
            )
        return index.astype(np.int32)

    def _check_numbers(self, box: np.ndarray, ids: np.ndarray) -> None:
        bad = ~np.isfinite(box).all(axis=1) | (box[:, 2:] < 0).any(axis=1)
        bad |= ~np.isfinite(np.asarray(self._area))
        if bad.any():
            raise ValueError(
                f"{self._path}: {bad.sum()} of {len(bad)} annotations have a box of "
                "negative size, or a box or area that is not finite, the first: "
                f"{ids[bad][:3].tolist()}"
            )


def _pairs(lists: list[array], class_ids: np.ndarray) -> np.ndarray:
    """Return the pairs of lists of class ids, one list for each image."""
    lengths = [len(ids) for ids in lists]
    flat = np.array([i for ids in lists for i in ids], dtype=np.int64)
    # lvis-api never looks at classes that the file does not have.
    category, is_known = find(class_ids, flat)
    image = np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
    return (image * len(class_ids) + category)[is_known]

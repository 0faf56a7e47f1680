"""Predictions on disk: each process writes shards of arrays, one reads them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..core.detections import Detections
from ..core.ground_truth import GroundTruth
from ..core.masks import PackedMasks

_MAX_BYTES_HELD = 64 << 20  # before a shard is written
_MAX_DETS_HELD = 2_000_000  # before those that cannot count are dropped


class Shard(NamedTuple):
    """The predictions for some images.

    Attributes:
        image_index: int32 (images,).
        num_dets: int32 (images,): detections of each image, which follow one another.
        is_empty: bool (images,): whether the model detected nothing, rather than
            nothing that is kept.
        class_index: int32 (n,).
        scores: float32 (n,).
        mask_scores: float32 (n,); the scores, unless the model scores masks separately.
        boxes: float32 (n, 4): left, top, right, bottom in pixels.
        mask_lengths: int32 (n,): bytes of each mask; 0 for a mask that was left out.
        mask_bytes: uint8: compressed RLEs, end to end.
    """

    image_index: np.ndarray
    num_dets: np.ndarray
    is_empty: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray
    boxes: np.ndarray
    mask_lengths: np.ndarray
    mask_bytes: np.ndarray

    def detections(self, is_wanted: np.ndarray, iou_type: str) -> Detections:
        """Return the detections of the images that are wanted, bool (images,)."""
        with_masks = iou_type == "segm"
        masks = PackedMasks.from_lengths(self.mask_bytes, self.mask_lengths)
        detections = Detections(
            np.repeat(self.image_index, self.num_dets),
            self.class_index,
            self.mask_scores if with_masks else self.scores,
            as_xywh(self.boxes),
            masks if with_masks else None,
        )
        return detections.take(np.flatnonzero(np.repeat(is_wanted, self.num_dets)))


def as_xywh(corners: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4) as x, y, width, height, float64, from their corners."""
    corners = corners.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


class ShardWriter:
    """Writes predictions to a folder as they come.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.num_images = 0
        self._held: list[Shard] = []
        self._num_bytes = 0
        self._num_files = 0

    def add(self, shard: Shard) -> None:
        """Add the predictions for one or more images."""
        self._held.append(shard)
        self.num_images += len(shard.image_index)
        self._num_bytes += sum(array.nbytes for array in shard)
        if self._num_bytes >= _MAX_BYTES_HELD:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory."""
        if not self._held:
            return
        joined = Shard(*(np.concatenate(arrays) for arrays in zip(*self._held)))
        path = os.path.join(self._folder, f"{self._num_files:06d}.npz")
        np.savez(path, **joined._asdict())
        self._held, self._num_bytes = [], 0
        self._num_files += 1


class ShardReader:
    """Reads the shards of all processes, one at a time.

    ``iou_type`` is ``'bbox'``, or ``'segm'`` for mask scores and masks.

    Args:
        folders: One for each process.
        truth: The annotations that the shards' image indices refer to.
    """

    def __init__(self, folders: Iterable[str], truth: GroundTruth) -> None:
        self._folders = list(folders)
        self._truth = truth

    def _files(self) -> Iterator[Mapping[str, np.ndarray]]:
        for folder in self._folders:
            for name in sorted(os.listdir(folder)):
                with np.load(os.path.join(folder, name)) as file:
                    yield file

    def times_predicted(self) -> np.ndarray:
        """Return how many times each image was predicted, int64 (N,)."""
        times = np.zeros(self._truth.num_images, np.int64)
        for file in self._files():
            times += np.bincount(file["image_index"], minlength=len(times))
        return times

    def num_without_detections(self) -> int:
        """Return in how many images the model detected nothing."""
        is_empty = np.zeros(self._truth.num_images, bool)
        for file in self._files():
            is_empty[file["image_index"]] = file["is_empty"]
        return int(is_empty.sum())

    def detections(self, iou_type: str) -> Iterator[Detections]:
        """Yield the detections of each shard; of a repeated image only the first."""
        is_seen = np.zeros(self._truth.num_images, bool)
        for file in self._files():
            shard = Shard(**file)
            is_first = np.zeros(len(shard.image_index), bool)
            is_first[np.unique(shard.image_index, return_index=True)[1]] = True
            is_first &= ~is_seen[shard.image_index]
            is_seen[shard.image_index] = True
            yield shard.detections(is_first, iou_type)

    def select(
        self,
        iou_type: str,
        subset: GroundTruth,
        select: Callable[[Detections], np.ndarray],
    ) -> Detections:
        """Return some of the detections in a subset of the images.

        One shard, and what was selected from the others, is in memory at a time.

        Args:
            iou_type: See above.
            subset: The annotations that the image indices returned refer to.
            select: Returns the rows that may count. It is called with whole images,
                and again with what it selected from several shards.
        """

        def pick(dets: Detections) -> Detections:
            dets = dets.take(select(dets))
            if dets.masks is not None:
                dets.masks = dets.masks.compact()  # frees the bytes of masks dropped
            return dets

        held: list[Detections] = []
        max_held = _MAX_DETS_HELD
        for dets in self.detections(iou_type):
            held.append(pick(dets.subset(self._truth, subset)))
            if sum(map(len, held)) > max_held:
                held = [pick(Detections.concatenate(held))]
                max_held = len(held[0]) + _MAX_DETS_HELD
        return Detections.concatenate(held) if held else Detections.empty()

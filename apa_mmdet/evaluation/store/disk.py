"""Predictions on disk: each process writes shards of arrays, one reads them all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..core.detections import Detections
from ..core.masks import PackedMasks

_MAX_BYTES_HELD = 64 << 20  # before a shard is written


class Shard(NamedTuple):
    """The predictions for some images.

    Attributes:
        image_index: int32 (images,).
        num_dets: int32 (images,): detections of each image, which follow one another.
        class_index: int32 (n,).
        scores: float32 (n,).
        mask_scores: float32 (n,); the scores, unless the model scores masks separately.
        boxes: float32 (n, 4): left, top, right, bottom in pixels.
        mask_lengths: int32 (n,): bytes of each mask; 0 for a mask that was left out.
        mask_bytes: uint8: compressed RLEs, end to end.
    """

    image_index: np.ndarray
    num_dets: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray
    boxes: np.ndarray
    mask_lengths: np.ndarray
    mask_bytes: np.ndarray

    def detections(self, is_wanted: np.ndarray, iou_type: str) -> Detections:
        """Return the detections of some of the images.

        Args:
            is_wanted: bool (images,).
            iou_type: ``'bbox'``, or ``'segm'`` for mask scores and masks.
        """
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

    Args:
        folders: One for each process.
        num_images: N, of the annotation file.
    """

    def __init__(self, folders: Iterable[str], num_images: int) -> None:
        self._folders = list(folders)
        self._num_images = num_images

    def _shards(self) -> Iterator[Shard]:
        for folder in self._folders:
            for name in sorted(os.listdir(folder)):
                with np.load(os.path.join(folder, name)) as file:
                    yield Shard(**file)

    def times_predicted(self) -> np.ndarray:
        """Return how many times each image was predicted, int64 (N,)."""
        times = np.zeros(self._num_images, np.int64)
        for shard in self._shards():
            times += np.bincount(shard.image_index, minlength=self._num_images)
        return times

    def detections(self, iou_type: str) -> Iterator[Detections]:
        """Yield the detections of each shard; of a repeated image only the first ones.

        Args:
            iou_type: As in :meth:`Shard.detections`.
        """
        is_seen = np.zeros(self._num_images, bool)
        for shard in self._shards():
            is_first = np.zeros(len(shard.image_index), bool)
            is_first[np.unique(shard.image_index, return_index=True)[1]] = True
            is_first &= ~is_seen[shard.image_index]
            is_seen[shard.image_index] = True
            yield shard.detections(is_first, iou_type)

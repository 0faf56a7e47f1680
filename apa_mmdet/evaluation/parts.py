"""Predictions on disk: what each process found, in arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .detections import Detections
from .masks import PackedMasks

_BYTES = 64 << 20  # held before a file is written


class Part(NamedTuple):
    """Some images with what was found in them.

    Attributes:
        image: int32 (images,): their indices.
        count: int32 (images,): how many detections each has; they follow one another.
        category: int32 (n,).
        score: float32 (n,).
        mask_score: float32 (n,); the score, unless the model scores masks apart.
        box: float32 (n, 4): left, top, right, bottom in pixels.
        mask_length: int32 (n,): bytes of each mask; 0 for one that nobody will ask for.
        mask_bytes: uint8: compressed RLEs, end to end.
    """

    image: np.ndarray
    count: np.ndarray
    category: np.ndarray
    score: np.ndarray
    mask_score: np.ndarray
    box: np.ndarray
    mask_length: np.ndarray
    mask_bytes: np.ndarray

    def detections(self, is_wanted: np.ndarray, by_mask_score: bool) -> Detections:
        """Return the detections of some of the images.

        Args:
            is_wanted: bool (images,).
            by_mask_score: Whether their score is that of the mask.
        """
        found = Detections(
            np.repeat(self.image, self.count),
            self.category,
            self.mask_score if by_mask_score else self.score,
            as_xywh(self.box),
            PackedMasks.from_lengths(self.mask_bytes, self.mask_length),
        )
        return found.take(np.flatnonzero(np.repeat(is_wanted, self.count)))


def as_xywh(box: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4) as x, y, width, height, float64, from their corners."""
    box = box.astype(np.float64)
    return np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], axis=1)


class PartWriter:
    """Writes parts to a folder as predictions come.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.num_images = 0
        self._held: list[Part] = []
        self._bytes = 0
        self._files = 0

    def add(self, part: Part) -> None:
        """Add a part, of one image or more."""
        self._held.append(part)
        self.num_images += len(part.image)
        self._bytes += sum(array.nbytes for array in part)
        if self._bytes >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        joined = Part(*(np.concatenate(arrays) for arrays in zip(*self._held)))
        path = os.path.join(self._folder, f"{self._files:06d}.npz")
        np.savez(path, **joined._asdict())
        self._held, self._bytes = [], 0
        self._files += 1


class PartReader:
    """Reads the parts of all processes, one at a time.

    Args:
        folders: One for each process.
        num_images: N, of the annotation file.
    """

    def __init__(self, folders: Iterable[str], num_images: int) -> None:
        self._folders = list(folders)
        self._num_images = num_images

    def _parts(self) -> Iterator[Part]:
        for folder in self._folders:
            for name in sorted(os.listdir(folder)):
                with np.load(os.path.join(folder, name)) as file:
                    yield Part(**file)

    def times_predicted(self) -> np.ndarray:
        """Return how often each image was predicted, int64 (N,)."""
        times = np.zeros(self._num_images, np.int64)
        for part in self._parts():
            times += np.bincount(part.image, minlength=self._num_images)
        return times

    def detections(self, by_mask_score: bool) -> Iterator[Detections]:
        """Yield the detections of each part; of an image that comes again, none.

        Args:
            by_mask_score: Whether their score is that of the mask.
        """
        seen = np.zeros(self._num_images, bool)
        for part in self._parts():
            is_first = np.zeros(len(part.image), bool)
            is_first[np.unique(part.image, return_index=True)[1]] = True
            is_first &= ~seen[part.image]
            seen[part.image] = True
            yield part.detections(is_first, by_mask_score)

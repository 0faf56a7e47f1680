"""Many masks in a few arrays: COCO's compressed run lengths, end to end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils


class PackedMasks:
    """Compressed RLEs as slices of one buffer of bytes, not as Python objects.

    Args:
        buffer: uint8 array, the ``counts`` of all masks.
        start: int64 array (n,): where in the buffer each mask begins.
        stop: int64 array (n,): where it ends. An empty slice stands for a mask that
            was left out because nothing will ask for it.
    """

    def __init__(self, buffer: np.ndarray, start: np.ndarray, stop: np.ndarray) -> None:
        self.buffer = buffer
        self.start = start
        self.stop = stop

    @classmethod
    def pack(cls, counts: Iterable[bytes]) -> PackedMasks:
        """Copy the ``counts`` of RLEs into one buffer."""
        counts = list(counts)
        stop = np.cumsum([len(item) for item in counts], dtype=np.int64)
        buffer = np.frombuffer(b"".join(counts), dtype=np.uint8)
        return cls(buffer, np.concatenate([[0], stop[:-1]]).astype(np.int64), stop)

    @classmethod
    def from_lengths(cls, buffer: np.ndarray, lengths: np.ndarray) -> PackedMasks:
        """Return the masks that lie end to end in a buffer."""
        stop = np.cumsum(lengths, dtype=np.int64)
        return cls(buffer, stop - lengths, stop)

    @classmethod
    def concatenate(cls, parts: list[PackedMasks]) -> PackedMasks:
        """Return the masks of all parts in one buffer."""
        shifts = np.cumsum([0] + [len(part.buffer) for part in parts])
        return cls(
            np.concatenate([part.buffer for part in parts]),
            np.concatenate([part.start + by for part, by in zip(parts, shifts)]),
            np.concatenate([part.stop + by for part, by in zip(parts, shifts)]),
        )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def lengths(self) -> np.ndarray:
        """Number of bytes of each mask, int64 (n,)."""
        return self.stop - self.start

    def take(self, index: np.ndarray) -> PackedMasks:
        """Return some of the masks, which share this buffer."""
        return PackedMasks(self.buffer, self.start[index], self.stop[index])

    def compact(self) -> PackedMasks:
        """Return the same masks in a buffer that holds nothing else."""
        view = memoryview(self.buffer)
        kept = b"".join(
            [view[a:b] for a, b in zip(self.start.tolist(), self.stop.tolist())]
        )
        buffer = np.frombuffer(kept, dtype=np.uint8)
        return PackedMasks.from_lengths(buffer, self.lengths)

    def rles(
        self, begin: int, end: int, height: int, width: int
    ) -> list[dict[str, Any]]:
        """Return masks ``begin`` to ``end`` of one image as pycocotools takes them."""
        bounds = zip(self.start[begin:end].tolist(), self.stop[begin:end].tolist())
        size = [height, width]
        return [{"size": size, "counts": self.buffer[a:b].tobytes()} for a, b in bounds]


def encode(segmentation: Any, height: int, width: int) -> bytes:
    """Return the compressed RLE of a segmentation in any of COCO's forms.

    Args:
        segmentation: Polygons ``[[x1, y1, ...], ...]``, an uncompressed RLE, or a
            compressed one.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: If it is none of these, or its size is not the image's.
    """
    if isinstance(segmentation, list):
        polygons = mask_utils.frPyObjects(segmentation, height, width)
        return mask_utils.merge(polygons)["counts"]
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= {*segmentation}:
        raise ValueError(f"a segmentation of type {type(segmentation).__name__}")
    size = [int(length) for length in segmentation["size"]]
    if size != [height, width]:
        raise ValueError(
            f"a mask of {size[0]} x {size[1]} in an image of {height} x "
            f"{width} (height x width)"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = mask_utils.frPyObjects(segmentation, height, width)["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def encode_array(masks: np.ndarray) -> list[bytes]:
    """Return the compressed RLEs of bitmaps (n, height, width), of bool or uint8."""
    if not len(masks):
        return []
    bitmaps = np.asfortranarray(masks.astype(np.uint8).transpose(1, 2, 0))
    return [rle["counts"] for rle in mask_utils.encode(bitmaps)]


def measure(
    masks: PackedMasks, height: np.ndarray, width: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return area and bounding box of masks.

    Args:
        masks: n masks.
        height: Of the image that each belongs to, (n,), in pixels.
        width: The same, (n,).

    Returns:
        Areas (n,) in pixels and boxes (n, 4) as x, y, width, height, both float64;
        zeros for masks that were left out.
    """
    area, box = np.zeros(len(masks)), np.zeros((len(masks), 4))
    for index in np.flatnonzero(masks.lengths).tolist():
        rle = masks.rles(index, index + 1, int(height[index]), int(width[index]))
        area[index] = mask_utils.area(rle)[0]
        box[index] = mask_utils.toBbox(rle)[0]
    return area, box

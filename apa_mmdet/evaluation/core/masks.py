"""Many masks in a few arrays: COCO's compressed run lengths, end to end.

What goes in is checked in two places: :func:`encode` refuses a segmentation of the
wrong form or size, :func:`find_damaged` finds run lengths that do not fill their image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

_CHECKED_AT_ONCE = 100  # masks; their runs fit in the cache


@functools.cache
def mask_api() -> ModuleType:
    """Return ``pycocotools.mask``, so that importing this module needs only numpy."""
    from pycocotools import mask

    return mask


class PackedMasks:
    """Compressed RLEs as slices of one buffer of bytes instead of Python objects.

    Args:
        buffer: uint8 array, the ``counts`` of all masks.
        start: int64 array (n,): where in the buffer each mask begins.
        stop: int64 array (n,): where it ends. An empty slice stands for a mask that
            was left out because nothing will use it.
    """

    def __init__(self, buffer: np.ndarray, start: np.ndarray, stop: np.ndarray) -> None:
        self.buffer = buffer
        self.start = start
        self.stop = stop

    @classmethod
    def pack(cls, counts: Iterable[bytes]) -> PackedMasks:
        """Copy the ``counts`` of RLEs into one buffer."""
        counts = list(counts)
        lengths = np.array([len(item) for item in counts], np.int64)
        return cls.from_lengths(np.frombuffer(b"".join(counts), np.uint8), lengths)

    @classmethod
    def from_lengths(cls, buffer: np.ndarray, lengths: np.ndarray) -> PackedMasks:
        """Return masks that lie end to end in a buffer, given their lengths (n,)."""
        stop = np.cumsum(lengths, dtype=np.int64)
        return cls(buffer, stop - lengths, stop)

    @classmethod
    def concatenate(cls, pieces: list[PackedMasks]) -> PackedMasks:
        """Return the masks of all pieces in one buffer."""
        offsets = np.cumsum([0] + [len(piece.buffer) for piece in pieces])
        return cls(
            np.concatenate([piece.buffer for piece in pieces]),
            np.concatenate([piece.start + by for piece, by in zip(pieces, offsets)]),
            np.concatenate([piece.stop + by for piece, by in zip(pieces, offsets)]),
        )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def lengths(self) -> np.ndarray:
        """Number of bytes of each mask, int64 (n,)."""
        return self.stop - self.start

    def take(self, rows: np.ndarray) -> PackedMasks:
        """Return some of the masks, which share this buffer."""
        return PackedMasks(self.buffer, self.start[rows], self.stop[rows])

    def compact(self) -> PackedMasks:
        """Return the same masks in a buffer that holds nothing else."""
        view = memoryview(self.buffer)
        used = b"".join(
            [view[a:b] for a, b in zip(self.start.tolist(), self.stop.tolist())]
        )
        return PackedMasks.from_lengths(np.frombuffer(used, np.uint8), self.lengths)

    def rles(
        self, begin: int, end: int, height: int, width: int
    ) -> list[dict[str, Any]]:
        """Return masks ``begin`` to ``end``, of one image, in pycocotools' form."""
        bounds = zip(self.start[begin:end].tolist(), self.stop[begin:end].tolist())
        size = [height, width]
        return [{"size": size, "counts": self.buffer[a:b].tobytes()} for a, b in bounds]


def encode(segmentation: Any, height: int, width: int) -> bytes:
    """Return the compressed RLE of a segmentation in any of COCO's forms.

    Args:
        segmentation: Polygons ``[[x1, y1, ...], ...]``, an uncompressed RLE, or a
            compressed one, which is returned as it is (see :func:`find_damaged`).
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: If it is none of these, is empty, or its size is not the image's.
    """
    if isinstance(segmentation, list):
        polygons = mask_api().frPyObjects(segmentation, height, width)
        return mask_api().merge(polygons)["counts"]
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= {*segmentation}:
        raise ValueError(
            f"a segmentation of type {type(segmentation).__name__}; expected polygons "
            "or an RLE with size and counts"
        )
    size = [int(length) for length in segmentation["size"]]
    if size != [height, width]:
        raise ValueError(
            f"a mask of {size[0]} x {size[1]} in an image of {height} x "
            f"{width} (height x width)"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = mask_api().frPyObjects(segmentation, height, width)["counts"]
    if not counts:
        raise ValueError("an RLE whose counts are empty")
    return counts.encode() if isinstance(counts, str) else counts


def encode_bitmaps(bitmaps: np.ndarray) -> list[bytes]:
    """Return the compressed RLEs of bitmaps (n, height, width), bool or uint8."""
    if not len(bitmaps):
        return []
    columns_first = np.asfortranarray(bitmaps.astype(np.uint8).transpose(1, 2, 0))
    return [rle["counts"] for rle in mask_api().encode(columns_first)]


def find_damaged(masks: PackedMasks, num_pixels: np.ndarray) -> np.ndarray:
    """Return which masks are damaged: their run lengths do not fill their image.

    pycocotools does not check this. Given a truncated RLE it returns a wrong overlap,
    or never returns.

    Args:
        masks: n masks; those that were left out are not damaged.
        num_pixels: (n,): height x width of the image of each.

    Returns:
        bool (n,).
    """
    is_damaged = np.zeros(len(masks), bool)
    present = np.flatnonzero(masks.lengths)
    for begin in range(0, len(present), _CHECKED_AT_ONCE):
        rows = present[begin : begin + _CHECKED_AT_ONCE]
        is_damaged[rows] = _sum_of_runs(masks.take(rows).compact()) != num_pixels[rows]
    return is_damaged


def _sum_of_runs(masks: PackedMasks) -> np.ndarray:
    """Return the sum of each mask's run lengths, -1 if they cannot be decoded.

    A run is written in characters of 6 bits, counted from '0': 5 bits of its value,
    lowest first, and whether more follow. The value is signed. From the fourth run on
    it is the difference from the run before the previous one.

    Args:
        masks: None of them empty, in a buffer that holds nothing else.
    """
    char = masks.buffer - np.uint8(ord("0"))  # wraps around
    is_last = (char & 32) == 0
    is_broken = char > 63
    is_broken[masks.stop - 1] |= ~is_last[masks.stop - 1]
    is_last[masks.stop - 1] = True  # so that each mask begins with a new run
    last = np.flatnonzero(is_last)
    first = np.concatenate([[0], last[:-1] + 1])
    num_chars = last - first + 1
    is_broken[first[num_chars > 7]] = True  # no run needs more
    value = (char[first] & 31).astype(np.int64)
    for place in range(1, min(num_chars.max(), 7)):
        longer = np.flatnonzero(num_chars > place)
        bits = (char[first[longer] + place] & 31).astype(np.int64)
        value[longer] |= bits << 5 * place
    sign = (char[last] & 16).astype(np.int64)
    value -= sign << (5 * np.minimum(num_chars, 7) - 4)

    # Runs in two columns, every other one in each, so that differences add up along a
    # column. Each mask begins a row; its first run is not part of the sums.
    first_run = np.searchsorted(first, masks.start)
    num_runs = np.diff(np.append(first_run, len(value)))
    num_rows = (num_runs + 1) >> 1
    begin = 2 * (np.cumsum(num_rows) - num_rows)
    runs = np.zeros(2 * num_rows.sum(), np.int64)
    runs[np.arange(len(value)) + np.repeat(begin - first_run, num_runs)] = value
    runs[begin] = 0
    for column in (0, 1):
        differences = runs[column::2].copy()
        total = np.cumsum(differences)
        row = begin >> 1
        runs[column::2] = total - np.repeat((total - differences)[row], num_rows)
    runs[begin] = value[first_run]
    runs[(begin + num_runs)[num_runs % 2 == 1]] = 0  # the empty end of a last row
    is_bad = np.logical_or.reduceat(is_broken, masks.start)
    is_bad |= np.minimum.reduceat(runs, begin) < 0
    return np.where(is_bad, -1, np.add.reduceat(runs, begin))


def measure(
    masks: PackedMasks, heights: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return areas and bounding boxes of masks.

    Args:
        masks: n masks.
        heights: (n,): of the image that each belongs to, in pixels.
        widths: (n,).

    Returns:
        Areas (n,) in pixels and boxes (n, 4) as x, y, width, height, both float64;
        zeros for masks that were left out.
    """
    areas, boxes = np.zeros(len(masks)), np.zeros((len(masks), 4))
    for row in np.flatnonzero(masks.lengths).tolist():
        rle = masks.rles(row, row + 1, int(heights[row]), int(widths[row]))
        areas[row] = mask_api().area(rle)[0]
        boxes[row] = mask_api().toBbox(rle)[0]
    return areas, boxes

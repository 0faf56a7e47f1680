"""Many masks in a few arrays: COCO's compressed run lengths, end to end.

What goes in is checked in two places: :func:`encode` refuses what
:func:`.segmentation.parse_segmentation` does, :func:`find_damaged` finds run lengths
that do not fill their image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from .segmentation import parse_segmentation

_CHECKED_AT_ONCE = 300  # masks; their runs fit in the cache
_MAX_CHARS = 7  # of a run, 5 bits each
_SIGNED = (np.arange(32) ^ 16) - 16  # the value of a run's last 5 bits


@functools.cache
def mask_api() -> ModuleType:
    """Return ``pycocotools.mask``, so that importing this module needs only numpy."""
    from pycocotools import mask

    return mask


@dataclass
class PackedMasks:
    """Compressed RLEs as slices of one buffer of bytes instead of Python objects.

    Attributes:
        buffer: uint8, the ``counts`` of all masks.
        start: int64 (n,): where in the buffer each mask begins.
        stop: int64 (n,): where it ends. An empty slice stands for a mask that was left
            out because nothing will use it.
    """

    buffer: np.ndarray
    start: np.ndarray
    stop: np.ndarray

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
        bounds = zip(self.start.tolist(), self.stop.tolist())
        used = b"".join([view[start:stop] for start, stop in bounds])
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

    A compressed RLE is returned as it is, so its runs need :func:`find_damaged`.

    Args:
        segmentation: See :func:`.segmentation.parse_segmentation`.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: If the segmentation is not one, or does not fit the image.
    """
    parsed = parse_segmentation(segmentation, height, width)
    if isinstance(parsed, bytes):
        return parsed
    if isinstance(parsed, list):
        return mask_api().merge(mask_api().frPyObjects(parsed, height, width))["counts"]
    rle = dict(size=[height, width], counts=parsed)
    return mask_api().frPyObjects(rle, height, width)["counts"]


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the bitmap of a segmentation, uint8 (height, width).

    Raises:
        ValueError: As by :func:`encode`, or if an RLE does not fill the image.
    """
    counts = encode(segmentation, height, width)
    if find_damaged(PackedMasks.pack([counts]), np.array([height * width])).any():
        raise ValueError("a damaged mask, an RLE that does not fill its image")
    return mask_api().decode(dict(size=[height, width], counts=counts))


def encode_bitmaps(bitmaps: np.ndarray) -> list[bytes]:
    """Return the compressed RLEs of bitmaps (n, height, width), bool or uint8."""
    if not len(bitmaps):
        return []
    columns_first = np.asfortranarray(bitmaps.astype(np.uint8).transpose(1, 2, 0))
    return [rle["counts"] for rle in mask_api().encode(columns_first)]


def find_damaged(masks: PackedMasks, num_pixels: np.ndarray) -> np.ndarray:
    """Return which masks are damaged, bool (n,): their runs do not fill their image.

    pycocotools does not check this. Given a truncated RLE it returns a wrong overlap,
    or never returns. Masks that were left out are not damaged.

    ``num_pixels`` (n,) is the height x width of each mask's image.
    """
    is_damaged = np.zeros(len(masks), bool)
    present = np.flatnonzero(masks.lengths)
    for begin in range(0, len(present), _CHECKED_AT_ONCE):
        rows = present[begin : begin + _CHECKED_AT_ONCE]
        is_damaged[rows] = _sum_of_runs(masks.take(rows)) != num_pixels[rows]
    return is_damaged


def _sum_of_runs(masks: PackedMasks) -> np.ndarray:
    """Return the sum of each mask's run lengths, -1 if they cannot be decoded.

    A run is written in characters of 6 bits, counted from '0': 5 bits of its value,
    lowest first, and whether more follow. The value is signed. From the fourth run on
    it is the difference from the run before the previous one.

    The masks must not be empty.
    """
    if (masks.start[1:] != masks.stop[:-1]).any():
        masks = masks.compact()
    start, stop = masks.start - masks.start[0], masks.stop - masks.start[0]
    char = masks.buffer[masks.start[0] : masks.stop[-1]] - np.uint8(ord("0"))  # wraps
    is_bad = np.zeros(len(masks), bool)
    ends = stop - 1
    if char.max() > 63 or char[ends].max() > 31:
        is_broken = char > 63
        is_broken[ends] |= char[ends] > 31
        is_bad[np.searchsorted(stop, np.flatnonzero(is_broken), side="right")] = True
        char[ends] &= 31  # so that each mask begins with a new run
    last = np.flatnonzero(char < 32)  # characters of the runs
    num_chars = np.diff(last, prepend=-1)
    run = _SIGNED[char[last]]
    longer, place = np.flatnonzero(num_chars > 1), 1
    while len(longer) and place < _MAX_CHARS:
        run[longer] = run[longer] << 5 | (char[last[longer] - place] & 31)
        place += 1
        longer = longer[num_chars[longer] > place]
    first = np.searchsorted(last, start)  # each mask's first run
    is_bad[np.searchsorted(first, longer, side="right") - 1] = True

    total = run[first]
    is_bad |= total < 0
    run[first] = 0  # it is not part of the differences
    for parity in (0, 1):
        # Every other run, as a sum that goes on from one mask to the next.
        sums = np.cumsum(np.append(run[parity::2], 0))
        edges = np.append((first - parity + 1) >> 1, len(sums) - 1)
        number = np.diff(edges)
        before = np.where(edges > 0, sums[edges - 1], 0)[:-1]
        lowest = np.minimum.reduceat(sums, edges)[:-1]
        is_bad |= (number > 0) & (lowest < before)
        sums = np.add.reduceat(sums, edges)[:-1] - number * before
        total += np.where(number > 0, sums, 0)
    return np.where(is_bad, -1, total)


def measure(
    masks: PackedMasks, heights: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return areas (n,) in pixels and boxes (n, 4: x, y, width, height), float64.

    ``heights`` and ``widths`` (n,) are those of the image that each mask belongs to.
    For masks that were left out the numbers are 0.
    """
    areas, boxes = np.zeros(len(masks)), np.zeros((len(masks), 4))
    for row in np.flatnonzero(masks.lengths).tolist():
        rle = masks.rles(row, row + 1, int(heights[row]), int(widths[row]))
        areas[row] = mask_api().area(rle)[0]
        boxes[row] = mask_api().toBbox(rle)[0]
    return areas, boxes

"""Checking a segmentation before anything decodes it.

pycocotools checks next to nothing: a coordinate that is null, or millions of pixels
away, kills the process. What passes here is safe to rasterise. Whether the runs of an
RLE fill its image is left to :func:`.masks.find_damaged`, which checks many at a time.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from .values import show

_MAX_OUTSIDE = 100_000  # pixels by which a corner may lie outside its image
_MAX_OUTLINE = 4_000_000  # pixels; to rasterise one, pycocotools takes 80 bytes
_MAX_RUN = 2**32 - 1
_TEXT_OF_BYTES = ("b'", 'b"')  # how str(bytes) begins; not how an RLE can
_MIN_LENGTH = 6  # of a polygon: x and y of three corners


def parse_segmentation(
    segmentation: Any, height: int, width: int
) -> list[np.ndarray] | np.ndarray | bytes:
    """Return a segmentation in a form that pycocotools can be trusted with.

    Args:
        segmentation: Polygons ``[[x1, y1, ...], ...]``, an uncompressed RLE, or a
            compressed one.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        Of polygons those with at least three corners, as the others cover nothing, each
        float64 (2 * corners,); of an uncompressed RLE the runs, int64 (runs,); of a
        compressed one the ``counts``.

    Raises:
        ValueError: If it is none of these, has no polygon of three corners or no runs,
            has another size than the image, or a number in it is unusable. The message
            leaves it to the caller to name the annotation.
    """
    if not height or not width:
        raise ValueError("its image has no height and width, which masks need")
    if height * width > _MAX_RUN:
        raise ValueError(f"its image of {height} x {width} pixels is too large")
    if isinstance(segmentation, list):
        return _polygons(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _runs(segmentation, height, width)
    found = "null or missing" if segmentation is None else show(segmentation)
    raise ValueError(
        f"segmentation is {found}; expected polygons [[x1, y1, x2, y2, ...], ...] or "
        "an RLE {size, counts}"
    )


def _polygons(segmentation: list, height: int, width: int) -> list[np.ndarray]:
    polygons = []
    for polygon in segmentation:
        points = _numbers(polygon)
        if points is None or len(points) % 2:
            raise ValueError(
                f"polygon is {show(polygon)}; expected a list of numbers, x and y of "
                "each corner"
            )
        if len(points) >= _MIN_LENGTH:
            _check_corners(points, height, width)
            polygons.append(points)
    if not polygons:
        raise ValueError(
            f"segmentation is {show(segmentation)}; expected a polygon of at least "
            "three corners (6 numbers)"
        )
    return polygons


def _numbers(values: Any) -> np.ndarray | None:
    """Return a list of numbers, float64 (n,), or None if it is not one."""
    if not isinstance(values, list):
        return None
    try:
        return np.asarray(array("d", values))
    except (TypeError, OverflowError):
        return None


def _check_corners(points: np.ndarray, height: int, width: int) -> None:
    low, high = points.min(), points.max()
    if (
        low >= -_MAX_OUTSIDE
        and high <= _MAX_OUTSIDE
        and len(points) * (high - low) <= _MAX_OUTLINE
    ):
        return  # so are nearly all; the exact rules take longer
    corners = points.reshape(-1, 2)
    is_near = corners >= -_MAX_OUTSIDE  # False also for NaN
    is_near &= corners <= np.array([width, height]) + _MAX_OUTSIDE
    if not is_near.all():
        number = int(np.argmin(is_near.all(axis=1)))
        x, y = corners[number].tolist()
        raise ValueError(
            f"corner {number + 1} of a polygon is ({x:g}, {y:g}) in an image of "
            f"{height} x {width} (height x width); expected pixels, at most "
            f"{_MAX_OUTSIDE:,} outside it"
        )
    steps = np.abs(np.diff(corners, axis=0, append=corners[:1]))
    if steps.max(axis=1).sum() > _MAX_OUTLINE:
        raise ValueError(
            f"the outline of a polygon is {steps.max(axis=1).sum():,.0f} pixels long; "
            f"expected at most {_MAX_OUTLINE:,}"
        )


def _runs(rle: dict, height: int, width: int) -> np.ndarray | bytes:
    try:
        size, counts = rle["size"], rle["counts"]
    except KeyError as error:
        raise ValueError(
            f"RLE has no {error.args[0]}; expected size and counts"
        ) from None
    if size != [height, width] and size != (height, width):
        raise ValueError(
            f"RLE size is {show(size)} in an image of {height} x {width} (height x "
            "width); expected the same"
        )
    if isinstance(counts, str) and counts:
        if counts[:2] in _TEXT_OF_BYTES:
            raise ValueError(
                f"RLE counts is {show(counts)}, Python's text for bytes; write "
                "counts.decode() instead of str(counts)"
            )
        return counts.encode("utf-8", "surrogatepass")
    if isinstance(counts, bytes) and counts:
        return counts
    runs = _numbers(counts)
    if runs is None or not len(runs) or not _are_run_lengths(runs):
        raise ValueError(
            f"RLE counts is {show(counts)}; expected run lengths, or the text that "
            "pycocotools writes"
        )
    return runs.astype(np.int64)


def _are_run_lengths(runs: np.ndarray) -> bool:
    return bool(((runs >= 0) & (runs <= _MAX_RUN) & (runs == np.floor(runs))).all())

"""The settings of LVIS evaluation, those of lvis-api's ``Params``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Groups of classes: rare, common, frequent.
FREQUENCIES = ("r", "c", "f")
# In square pixels, both ends included.
AREA_NAMES = ("all", "small", "medium", "large")
AREA_RANGES = np.array(
    [[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]], dtype=np.float64
)
IOU_THRS = np.linspace(0.5, 0.95, 10)
RECALL_THRS = np.linspace(0.0, 1.0, 101)
EPS = np.spacing(1)  # keeps the precision of no detections at 0


def check_iou_thrs(iou_thrs: float | Sequence[float] | None) -> np.ndarray:
    """Return IoU thresholds as a float64 array, LVIS's own for None.

    Raises:
        ValueError: If a threshold is not above 0 and at most 1.
    """
    if iou_thrs is None:
        return IOU_THRS
    thresholds = np.atleast_1d(np.asarray(iou_thrs, dtype=np.float64))
    is_valid = (thresholds > 0) & (thresholds <= 1)
    if thresholds.ndim != 1 or not thresholds.size or not is_valid.all():
        raise ValueError(
            f"iou_thrs={iou_thrs!r}: expected one or more numbers above 0 and at most "
            "1, such as [0.5, 0.75]"
        )
    return thresholds


def outside_area_ranges(areas: np.ndarray) -> np.ndarray:
    """Return which areas (n,) lie outside each of LVIS's ranges, bool (n, 4)."""
    low, high = AREA_RANGES.T
    return (areas[:, None] < low) | (areas[:, None] > high)

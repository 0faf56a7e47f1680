"""How evenly each class is spread over the image plane: its fractal dimension."""

from __future__ import annotations

import numpy as np

_MAX_GRID = 64
_MIN_BOXES = 4  # fewer boxes justify only the 1x1 grid, through which any line passes


def fractal_dimension(
    labels: np.ndarray, centers: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return the box-counting dimension of each class's box centres.

    With ``N_G`` the number of cells of a ``G x G`` grid that contain a centre, the
    dimension is the least-squares slope of ``log N_G`` on ``log G`` over the grids
    ``G = 1..64`` that have at most as many cells as the class has boxes. It is 2 for a
    class found everywhere; classes found along a line or in one spot get 1, the lower
    limit, and so do classes with fewer than 4 boxes.

    Source: Fractal Calibration for Long-tailed Object Detection, Alexandridis et al.,
    CVPR 2025.

    Args:
        labels: int (n,), the class of each box.
        centers: float (n, 2), x and y as shares of the image's width and height; those
            outside [0, 1] count in the nearest cell.
        num_classes: Number of classes C.

    Returns:
        float64 (C,), in [1, 2].
    """
    num_boxes = np.bincount(labels, minlength=num_classes)
    sums = np.zeros((5, num_classes))  # of 1, x, y, x * x, x * y over the grids
    for grid in range(1, _MAX_GRID + 1):
        is_used = num_boxes >= grid**2
        if not is_used.any():
            break
        cells = (centers * grid).astype(np.int64).clip(0, grid - 1)
        is_occupied = np.zeros((num_classes, grid, grid), bool)
        is_occupied[labels, cells[:, 1], cells[:, 0]] = True
        x, y = np.log(grid), np.log(is_occupied.sum(axis=(1, 2)).clip(1))
        terms = np.broadcast_arrays(1.0, x, y, x * x, x * y)
        sums += np.where(is_used, terms, 0)
    is_enough = num_boxes >= _MIN_BOXES
    n, x, y, xx, xy = np.where(is_enough, sums, np.array([[2], [1], [1], [1], [1]]))
    return np.where(is_enough, (n * xy - x * y) / (n * xx - x * x), 1).clip(1)

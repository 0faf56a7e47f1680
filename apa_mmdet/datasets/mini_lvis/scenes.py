"""The images of mini-LVIS: scenes of simple objects and their visible masks.

An object is a shape painted with a skin. Objects are drawn at three times the
resolution and averaged down, so edges are smooth and a mask contains the pixels of
which the object covers more than half.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np

SHAPES = ("star", "heart", "moon", "fish", "tree", "house", "cat", "mushroom")
SKINS = ("red", "blue", "yellow", "striped", "dotted")

_OBJECT_SIZE = (0.16, 0.45)  # nominal diameter / image side
_MIN_SIDE = 8  # pixels, of a visible box
_MIN_VISIBLE = 0.6  # of an object's full area
_SUPERSAMPLE = 3


def compose(
    size: int, categories: list[int], rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw one scene, later objects over earlier ones.

    Args:
        size: Side of the square image in pixels.
        categories: Category ids to draw in this order, ``1 + shape * len(SKINS) +
            skin``.
        rng: Source of everything random.

    Returns:
        The image (size, size, 3), uint8, BGR, and the visible mask of each object
        (size, size), uint8 of 0 and 1. No mask has a hole, and each contains at least
        60 % of its object and has a box of at least 8 x 8 pixels.

    Raises:
        RuntimeError: If the objects do not fit in the image.
    """
    background = _background(size, rng)
    for _ in range(100):
        image = background.copy()
        owner = np.full((size, size), -1, np.int8)
        areas: list[int] = []
        if all(_place(category, image, owner, areas, rng) for category in categories):
            break
    else:
        raise RuntimeError(f"{len(categories)} objects do not fit in {size} px")
    image = image * rng.uniform(0.8, 1.1)
    image += rng.normal(0, rng.uniform(3, 9), image.shape)
    masks = [(owner == index).astype(np.uint8) for index in range(len(categories))]
    return image.clip(0, 255).astype(np.uint8), masks


def _place(
    category: int,
    image: np.ndarray,
    owner: np.ndarray,
    areas: list[int],
    rng: np.random.Generator,
) -> bool:
    """Draw one object without hiding too much of another; False if none is possible.

    ``image``, ``owner`` (index of the visible object at each pixel) and ``areas`` (full
    area of each object in pixels) are modified in place.
    """
    shape, skin = divmod(category - 1, len(SKINS))
    size = len(owner)
    for _ in range(20):
        radius = size / 2 * np.exp(rng.uniform(*np.log(_OBJECT_SIZE)))
        colour, cover = _draw_object(SHAPES[shape], SKINS[skin], radius, rng)
        side = len(cover)
        # The centre of the object is inside the image; its rim may not be.
        margin = int(radius / 2)
        x, y = rng.integers(margin, size - margin, 2) - side // 2
        inside = np.s_[max(y, 0) : y + side, max(x, 0) : x + side]
        patch = np.s_[max(-y, 0) : size - y, max(-x, 0) : size - x]
        mask = cover > 0.5
        trial = owner.copy()
        trial[inside][mask[patch]] = len(areas)
        full = [*areas, int(mask.sum())]
        if all(_is_visible(trial == i, area) for i, area in enumerate(full)):
            alpha = cover[patch][..., None]
            image[inside] += alpha * (colour[patch] - image[inside])
            owner[:] = trial
            areas[:] = full
            return True
    return False


def _is_visible(mask: np.ndarray, full_area: int) -> bool:
    if mask.sum() < _MIN_VISIBLE * full_area:
        return False
    mask = mask.astype(np.uint8)
    # Polygons cannot represent a hole.
    _, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    has_hole = (tree[0, :, 3] >= 0).any()
    return not has_hole and min(cv2.boundingRect(mask)[2:]) >= _MIN_SIDE


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a cloudy background with shapes of no class, (size, size, 3) float32."""
    image = np.zeros((size, size, 3), np.float32)
    for cells, strength in ((2, 50), (5, 30), (20, 15)):
        grid = rng.normal(0, strength, (cells, cells, 1))
        grid = grid + rng.normal(0, 0.4 * strength, (cells, cells, 3))
        image += cv2.resize(
            grid.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
    image += rng.uniform(70, 180, 3)
    for _ in range(rng.integers(2, 7)):
        corners = rng.uniform(0, size, 2) + rng.normal(0, size / 8, (4, 2))
        layer = image.copy()
        colour = rng.uniform(20, 235, 3).tolist()
        points = [np.int32(corners * 8)]
        if rng.random() < 0.5:
            cv2.fillPoly(layer, points, colour, cv2.LINE_8, shift=3)
        else:
            cv2.polylines(layer, points, True, colour, 3, cv2.LINE_8, shift=3)
        image += rng.uniform(0.2, 0.6) * (layer - image)
    return cv2.GaussianBlur(image, (3, 3), 0)


def _draw_object(
    shape: str, skin: str, radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one object on a patch of its own.

    Returns its colour (n, n, 3) and the share of each pixel that it covers (n, n).
    """
    side = 2 * int(np.ceil(1.3 * radius)) + 1
    fine = side * _SUPERSAMPLE
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5:
        turn[:, 0] *= -1
    scale = radius * _SUPERSAMPLE

    def to_patch(points: np.ndarray) -> np.ndarray:
        return np.int32(np.rint(points @ turn.T * scale + fine / 2))

    cover = np.zeros((fine, fine), np.float32)
    cv2.fillPoly(cover, [to_patch(_OUTLINES[shape])], 1.0)
    # Columns, rows -> the object's own axes; turn is orthogonal.
    axis = (np.arange(fine) + 0.5 - fine / 2) / scale
    own = np.stack(np.meshgrid(axis, axis), axis=-1) @ turn
    light = rng.normal(0, 0.15, 2)
    colour = _skin_colour(skin, own, rng) * (1 + own @ light)[..., None]
    rim = max(1, round(0.1 * scale))
    cv2.polylines(colour, [to_patch(_OUTLINES[shape])], True, (25, 25, 25), rim)
    for spot in to_patch(np.array(_SPOTS.get(shape, ())).reshape(-1, 2)):
        cv2.circle(colour, spot.tolist(), round(0.12 * scale), (25, 25, 25), -1)
    colour, cover = (
        cv2.resize(layer.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        for layer in (colour, cover)
    )
    return colour, cover


def _skin_colour(skin: str, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the colour at points ``own`` (n, n, 2) in the object's coordinates."""
    phase = rng.uniform(0, 1, 2)
    if skin == "striped":
        light = (own[..., 0] * 2 + phase[0]) % 1 < 0.5
    elif skin == "dotted":
        cell = (own * 2 + phase) % 1 - 0.5
        light = np.hypot(cell[..., 0], cell[..., 1]) < 0.3
    else:
        light = np.zeros(own.shape[:2], bool)
    hue = {"red": 0, "blue": 112, "yellow": 27}.get(skin, rng.uniform(0, 180))
    # OpenCV's hue is in half degrees.
    hsv = np.array([[[(hue + rng.normal(0, 3)) % 180, 0, 0]]], np.uint8)
    hsv[..., 1:] = rng.integers((170, 150), (256, 256))
    dark = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(float)
    return np.where(light[..., None], rng.uniform(215, 255), dark)


def _arc(
    centre: tuple[float, float], radii: tuple[float, float], start: float, stop: float
) -> list[tuple[float, float]]:
    """Return points of an elliptic arc; degrees, clockwise as seen in an image."""
    angles = np.radians(np.linspace(start, stop, 25))
    x, y = np.cos(angles) * radii[0] + centre[0], np.sin(angles) * radii[1] + centre[1]
    return list(zip(x, y))


def _mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return half + [(-x, y) for x, y in reversed(half)]


_TURN = np.linspace(0, 2 * np.pi, 40, endpoint=False)
# Unit outlines: x to the right, y down, no point further than 1.25 from the origin.
_OUTLINES: dict[str, np.ndarray] = {
    shape: np.array(points)
    for shape, points in dict(
        star=[
            (r * np.sin(k * np.pi / 5), -r * np.cos(k * np.pi / 5))
            for k, r in zip(range(10), itertools.cycle((1.1, 0.5)))
        ],
        heart=[
            (
                np.sin(t) ** 3,
                (5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)) / 16
                - 13 / 16 * np.cos(t),
            )
            for t in _TURN
        ],
        moon=_arc((0, 0), (1, 1), 50, 310) + _arc((0.55, 0), (0.77, 0.77), 277, 83),
        fish=_arc((0.25, 0), (0.8, 0.6), -155, 155)
        + [(-1.1, 0.6), (-0.85, 0), (-1.1, -0.6)],
        tree=_mirrored(
            [(0, -1.1), (0.5, -0.45), (0.3, -0.45), (0.7, 0.1), (0.45, 0.1)]
            + [(0.95, 0.65), (0.2, 0.65), (0.2, 1.05)]
        ),
        house=[(-0.7, 0.9), (-0.7, -0.1), (-1, -0.1), (0, -1), (0.35, -0.65)]
        + [(0.35, -0.95), (0.6, -0.95), (0.6, -0.4), (1, -0.1), (0.7, -0.1)]
        + [(0.7, 0.9)],
        cat=_arc((0, 0.15), (0.9, 0.75), -30, 210)
        + [(-0.85, -1), (-0.3, -0.55), (0.3, -0.55), (0.85, -1)],
        mushroom=_arc((0, 0), (1.05, 0.95), 180, 360)
        + [(0.95, 0.2), (0.3, 0.2), (0.4, 1), (-0.4, 1), (-0.3, 0.2), (-0.95, 0.2)],
    ).items()
}
_SPOTS: dict[str, tuple[tuple[float, float], ...]] = {
    "fish": ((0.65, -0.15),),
    "house": ((0, -0.45),),
    "cat": ((-0.35, 0), (0.35, 0)),
}

"""Random LVIS data with detections, large enough to measure an evaluation.

Nothing is drawn: there are annotations and detections, but no images. It has as many
classes, classes per image and instances per image as LVIS v1. Needs numpy only, and
pycocotools for masks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HEIGHT, WIDTH, NUM_CLASSES = 480, 640, 1203
# LVIS v1's numbers of classes, and the training images of the first and last of each.
_GROUPS = (("f", 405, 2000, 101), ("c", 461, 100, 11), ("r", 337, 10, 1))


def write_random_lvis(
    folder: Path,
    num_images: int,
    num_dets: int,
    judged_share: float,
    with_masks: bool,
    seed: int,
) -> None:
    """Write ``truth.json``, an annotation file, and ``detections.npz``.

    The latter holds ``image_index``, ``class_index``, ``scores`` and ``boxes`` of all
    detections; image i has the id 2 i + 1, class k the id k + 1. With masks it also has
    ``mask_bytes``, the RLEs end to end, and their ``mask_lengths``.

    Args:
        folder: Where to write.
        num_images: Number of images.
        num_dets: Detections of each image.
        judged_share: Share of the detections that the federated rules judge.
        with_masks: Whether detections get masks; annotations always have them.
        seed: Of everything random.
    """
    rng = np.random.default_rng(seed)
    # A long tail: class k is shown in proportion to 1 / (k + 10).
    popularity = 1 / (np.arange(NUM_CLASSES) + 10)
    popularity /= popularity.sum()
    images, annotations, dets = [], [], []
    for index in range(num_images):
        # As in LVIS: 3.4 classes and 11 instances in an image.
        number = 1 + rng.poisson(2.4)
        shown = rng.choice(NUM_CLASSES, number, replace=False, p=popularity)
        absent = np.setdiff1d(rng.choice(NUM_CLASSES, 8, replace=False), shown)
        not_exhaustive = shown[rng.random(len(shown)) < 0.1]
        images.append(
            dict(
                id=2 * index + 1,
                height=HEIGHT,
                width=WIDTH,
                neg_category_ids=(absent + 1).tolist(),
                not_exhaustive_category_ids=(not_exhaustive + 1).tolist(),
            )
        )
        classes = np.repeat(shown, rng.geometric(0.3, len(shown)))
        boxes = _random_boxes(rng, len(classes))
        for class_index, box in zip(classes.tolist(), boxes):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=2 * index + 1,
                    category_id=class_index + 1,
                    bbox=box.tolist(),
                    area=float(np.pi / 4 * box[2] * box[3]),
                    segmentation=[_ellipse(box)],
                )
            )
        judged = np.concatenate([shown, absent])
        columns = _detect(rng, num_dets, judged_share, boxes, classes, judged)
        dets.append([np.full(num_dets, index, np.int32), *columns])
    data = dict(images=images, categories=_categories(), annotations=annotations)
    (folder / "truth.json").write_text(json.dumps(data))
    names = ("image_index", "class_index", "scores", "boxes")
    arrays = dict(zip(names, map(np.concatenate, zip(*dets))))
    if with_masks:
        arrays |= _ellipse_masks(arrays["boxes"])
    np.savez(folder / "detections.npz", **arrays)


def as_results(arrays: dict[str, np.ndarray]) -> list[dict]:
    """Return detections in LVIS's results format."""
    names = ("image_index", "class_index", "scores", "boxes")
    columns = zip(*(arrays[name].tolist() for name in names))
    items = [
        dict(image_id=2 * i + 1, category_id=c + 1, score=s, bbox=b)
        for i, c, s, b in columns
    ]
    if "mask_bytes" in arrays:
        lengths = arrays["mask_lengths"]
        text = arrays["mask_bytes"].tobytes().decode()
        for item, end, length in zip(items, np.cumsum(lengths), lengths):
            counts = text[end - length : end]
            item["segmentation"] = dict(size=[HEIGHT, WIDTH], counts=counts)
    return items


def _categories() -> list[dict]:
    counts = [
        (group, round(count))
        for group, number, most, least in _GROUPS
        for count in np.geomspace(most, least, number)
    ]
    return [
        dict(id=k, name=f"class_{k}", frequency=group, image_count=count)
        for k, (group, count) in enumerate(counts, start=1)
    ]


def _random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Return boxes of all sizes, (number, 4), to two digits."""
    size = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
    corner = rng.random((number, 2)) * (np.array([WIDTH, HEIGHT]) - size)
    return np.round(np.concatenate([corner, size], axis=1), 2)


def _detect(
    rng: np.random.Generator,
    number: int,
    judged_share: float,
    boxes: np.ndarray,
    classes: np.ndarray,
    judged_classes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class indices, scores and boxes of one image's detections."""
    class_index = rng.integers(0, NUM_CLASSES, number)
    dets = _random_boxes(rng, number)
    scores = rng.beta(1, 6, number)
    # Half of those that are judged lie near an annotation and have its class.
    is_judged = rng.random(number) < judged_share
    is_near = is_judged & (rng.random(number) < 0.5)
    near = rng.integers(0, len(boxes), is_near.sum())
    others = np.setdiff1d(np.arange(NUM_CLASSES), judged_classes)
    class_index[~is_judged] = rng.choice(others, (~is_judged).sum())
    class_index[is_judged] = rng.choice(judged_classes, is_judged.sum())
    class_index[is_near] = classes[near]
    jitter = rng.normal(0, 0.1, (len(near), 4)) * np.tile(boxes[near, 2:], 2)
    dets[is_near] = boxes[near] + jitter
    dets[:, :2] = dets[:, :2].clip(0)
    dets[:, 2:] = dets[:, 2:].clip(2, np.array([WIDTH, HEIGHT]) - dets[:, :2])
    scores[is_near] += 0.5 * rng.random(len(near))
    scores = scores.clip(0, 1).astype(np.float32)
    return class_index.astype(np.int32), scores, dets.astype(np.float32)


def _ellipse(box: np.ndarray) -> list[float]:
    """Return the polygon of the ellipse in a box."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    centre, radius = box[:2] + box[2:] / 2, box[2:] / 2
    points = centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.round(points, 2).ravel().tolist()


def _ellipse_masks(boxes: np.ndarray) -> dict[str, np.ndarray]:
    from pycocotools import mask

    counts = [
        mask.frPyObjects([_ellipse(box)], HEIGHT, WIDTH)[0]["counts"]
        for box in boxes.astype(np.float64)
    ]
    return dict(
        mask_bytes=np.frombuffer(b"".join(counts), np.uint8),
        mask_lengths=np.array([len(item) for item in counts], np.int32),
    )

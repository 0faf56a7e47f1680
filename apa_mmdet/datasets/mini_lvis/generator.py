"""Generating the folder of mini-LVIS: images and annotation files."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from .assignment import CLASSES, assign_classes, describe_classes, image_quotas
from .scenes import compose

# Increase it whenever the same arguments would give other files.
_VERSION = 1
_SPLITS = ("train", "val")
_MARKER = ".mini_lvis_unfinished"
_LEAST = dict(seed=0, num_train=375, num_val=60, image_size=96)
_MAX_OBJECTS = 6  # in one image
_NUM_NEGATIVES = 12
_SECOND_INSTANCE, _UNANNOTATED = 0.12, 0.04  # probabilities


class MiniLVIS(NamedTuple):
    """What :func:`make_mini_lvis` generated or left unchanged.

    Attributes:
        root: Folder of the data set, the ``data_root`` of a config.
        created: False if the set already existed.
        splits: For ``'train'`` and ``'val'``: numbers of ``images`` and
            ``instances``, and for each group ``r``, ``c``, ``f`` the number of its
            classes that the split shows.
    """

    root: Path
    created: bool
    splits: dict[str, dict[str, int]]


def make_mini_lvis(
    out_dir: str | os.PathLike[str],
    seed: int = 0,
    num_train: int = 600,
    num_val: int = 150,
    image_size: int = 160,
    progress: Callable[[int, int], None] | None = None,
) -> MiniLVIS:
    """Generate mini-LVIS in a folder, or leave it unchanged if it already exists.

    An interrupted set is generated again. Equal arguments give equal bytes under the
    same versions of numpy and OpenCV.

    Args:
        out_dir: Folder to make. It gets ``annotations/lvis_v1_{train,val}.json``,
            ``train2017/`` and ``val2017/``.
        seed: Seed of everything random, at least 0.
        num_train: Number of training images, at least 375; from 530 on, ten classes
            are frequent.
        num_val: Number of validation images, at least 60.
        image_size: Side of the square images in pixels, at least 96.
        progress: Called as ``progress(done, total)`` after each image.

    Returns:
        The folder, whether this call generated it, and what it contains.

    Raises:
        ValueError: If a number is not an integer or too small.
        FileExistsError: If ``out_dir`` contains a set made with other arguments, a
            damaged set, or anything else.
    """
    numbers = (seed, num_train, num_val, image_size)
    made_with = dict(zip(_LEAST, numbers), generator_version=_VERSION)
    for name, least in _LEAST.items():
        value = made_with[name]
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(
                f"{name}={value!r}: expected an integer of at least {least}; "
                f"set {name} to {least} or more."
            )
        made_with[name] = int(value)

    root = Path(out_dir)
    existing = _read_existing(root, made_with)
    if existing is not None:
        return MiniLVIS(root, False, _count(existing))

    marker = root / _MARKER
    root.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for folder in ("annotations", "train2017", "val2017"):
        # Anything here was left by an interrupted call.
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir()

    data, first_id, size = {}, 1, made_with["image_size"]
    quotas = image_quotas(num_train, num_val)
    for stream, split in enumerate(_SPLITS):
        rng = np.random.default_rng((made_with["seed"], stream))
        shown = assign_classes(quotas[stream], made_with[f"num_{split}"], rng)
        data[split] = dict(
            info=dict(
                description="mini-LVIS: synthetic long-tailed instance segmentation",
                url="",
                version="1.0",
                year=2024,
                contributor="apa_mmdet",
                date_created="2024-01-01 00:00:00",
                mini_lvis=made_with,
            ),
            annotations=[],
            images=[],
            licenses=[dict(id=1, name="Synthetic images of apa_mmdet", url="")],
        )
        for image_id, classes in enumerate(shown, start=first_id):
            _write_image(root, split, image_id, classes, size, data[split], rng)
            if progress is not None:
                progress(image_id, num_train + num_val)
        first_id += len(shown)

    categories = describe_classes(data["train"]["annotations"])
    for split in _SPLITS:
        data[split]["categories"] = categories
        text = json.dumps(data[split])
        _annotation_file(root, split).write_text(text, encoding="utf-8")
    marker.unlink()
    return MiniLVIS(root, True, _count(data))


def _annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"lvis_v1_{split}.json"


def _read_existing(root: Path, made_with: dict[str, int]) -> dict[str, Any] | None:
    """Return the annotations of a complete set, or None if it has to be generated."""
    is_new = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    if is_new or (root / _MARKER).exists():
        return None
    remedy = "Delete that folder or choose another out_dir."
    try:
        files = {split: _annotation_file(root, split) for split in _SPLITS}
        data = {split: json.loads(files[split].read_text("utf-8")) for split in files}
        existing = data["train"]["info"]["mini_lvis"]
    except (OSError, ValueError, LookupError, TypeError):
        raise FileExistsError(
            f"out_dir={str(root)!r} contains something that is not mini-LVIS; expected "
            f"a new or empty folder, or a set made before. {remedy}"
        ) from None
    if existing != made_with:
        raise FileExistsError(
            f"out_dir={str(root)!r} contains mini-LVIS made with {existing}; expected "
            f"{made_with}. {remedy}"
        )
    for split in _SPLITS:
        num_files = len(list((root / f"{split}2017").glob("*.jpg")))
        num_images = len(data[split]["images"])
        if num_files != num_images:
            raise FileExistsError(
                f"out_dir={str(root)!r} contains a damaged mini-LVIS: {num_files} "
                f"images in {split}2017, expected {num_images}. {remedy}"
            )
    return data


def _count(data: dict[str, Any]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in _SPLITS:
        shown = {ann["category_id"] for ann in data[split]["annotations"]}
        groups = Counter(
            cat["frequency"] for cat in data[split]["categories"] if cat["id"] in shown
        )
        counts[split] = dict(
            images=len(data[split]["images"]),
            instances=len(data[split]["annotations"]),
            **{group: groups[group] for group in "rcf"},
        )
    return counts


def _write_image(
    root: Path,
    split: str,
    image_id: int,
    classes: list[int],
    size: int,
    data: dict[str, Any],
    rng: np.random.Generator,
) -> None:
    """Write one image and append its records to ``data``."""
    objects = [(category, True) for category in classes]  # whether it is annotated
    objects += [item for item in objects if rng.random() < _SECOND_INSTANCE]
    objects = objects[:_MAX_OBJECTS]
    not_exhaustive = []
    if len(objects) < _MAX_OBJECTS and rng.random() < _UNANNOTATED:
        not_exhaustive = [int(rng.choice(classes))]
        objects.append((not_exhaustive[0], False))
    objects = [objects[i] for i in rng.permutation(len(objects))]

    image, masks = compose(size, [category for category, _ in objects], rng)
    name = f"{split}2017/{image_id:012d}.jpg"
    if not cv2.imwrite(str(root / name), image, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"cannot write {root / name}")
    absent = [i for i in range(1, len(CLASSES) + 1) if i not in classes]
    negative = rng.choice(absent, _NUM_NEGATIVES, replace=False)
    data["images"].append(
        dict(
            id=image_id,
            width=size,
            height=size,
            coco_url=f"http://images.cocodataset.org/{name}",
            flickr_url="",
            license=1,
            date_captured="2024-01-01 00:00:00",
            neg_category_ids=np.sort(negative).tolist(),
            not_exhaustive_category_ids=not_exhaustive,
        )
    )
    for (category, is_annotated), mask in zip(objects, masks):
        if is_annotated:
            data["annotations"].append(
                dict(
                    id=len(data["annotations"]) + 1,
                    image_id=image_id,
                    category_id=category,
                    bbox=[float(value) for value in cv2.boundingRect(mask)],
                    area=float(mask.sum()),
                    segmentation=_polygons(mask),
                )
            )


def _polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace a mask without holes along the edges of its pixels.

    OpenCV traces the centres of border pixels, half a pixel inside the edge. Tripled,
    a mask has corners only in the first and last third of a pixel. These round to the
    pixel's edges, so the polygons reproduce the mask exactly.
    """
    tripled = np.kron(mask, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(tripled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        points = np.rint((contour[:, 0] + 0.5) / 3)
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        polygons.append(points.ravel().tolist())
    return polygons

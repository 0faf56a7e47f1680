"""The public split files of long-tailed data sets: which images, with which labels.

ImageNet-LT, Places-LT and the lists of iNaturalist 2018 that go with them are text,
with ``path label`` in each line; iNaturalist's own files are JSON, with ``images``,
``annotations`` and perhaps ``categories`` as in COCO.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Split(NamedTuple):
    """The images of a split file, in its order.

    Attributes:
        paths: Of the images, as the file has them.
        labels: Of the images, from 0; None for those of a file without labels.
        classes: Names of the classes, None if the file does not have them.
    """

    paths: list[str]
    labels: list[int] | None
    classes: list[str] | None


def read_split(path: str | Path, need_labels: bool = True) -> Split:
    """Return the images of a split file.

    The labels of a JSON file number its categories by their ids, in ascending order.

    Args:
        path: The file: JSON if its name ends so, else text.
        need_labels: Whether a text file without labels is an error. If it is not,
            every line must have a label, or none.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: In one line, with the file and the line, if it is not a split file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no such split file: {path}; download it from the page of the data set, "
            f"or set ann_file to where it is"
        )
    split = _read_json(path) if path.suffix == ".json" else _read_text(path)
    if not split.paths:
        raise ValueError(f"{path}: has no images, expected lines 'path label'")
    if need_labels and split.labels is None:
        raise ValueError(
            f"{path}, line 1: {split.paths[0]!r:.60}, expected 'path label' with an "
            f"integer label >= 0"
        )
    return split


def _read_text(path: Path) -> Split:
    paths, labels = [], []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        is_label = label.isascii() and label.isdigit() and name
        paths.append(name.rstrip() if is_label else line.strip())
        if is_label:
            labels.append(int(label))
        if labels and len(labels) < len(paths):
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r:.60}, expected 'path label' "
                f"with an integer label >= 0, as in other lines"
            )
    return Split(paths, labels or None, None)


def _read_json(path: Path) -> Split:
    try:
        content = json.loads(path.read_text("utf-8"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        pairs = [(a["image_id"], a["category_id"]) for a in content["annotations"]]
        categories = {c["id"]: str(c["name"]) for c in content.get("categories") or ()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path}: is not a split file in JSON ({what:.80}); expected images with "
            f"id and file_name, annotations with image_id and category_id"
        ) from None
    ids = sorted(categories or {category for _, category in pairs})
    label_of = {category: label for label, category in enumerate(ids)}
    for place, (image, category) in enumerate(pairs):
        if image not in names or category not in label_of:
            name, value = "image_id", image
            if image in names:
                name, value = "category_id", category
            raise ValueError(
                f"{path}: annotations[{place}].{name} is {value!r}, which is not the "
                f"id of any of its {'images' if name == 'image_id' else 'categories'}"
            )
    if len({image for image, _ in pairs}) < len(pairs):
        raise ValueError(
            f"{path}: has {len(pairs):,} annotations of fewer images, expected one "
            f"for each, its class"
        )
    return Split(
        [names[image] for image, _ in pairs],
        [label_of[category] for _, category in pairs],
        [categories[i] for i in ids] if categories else None,
    )

"""Annotations in COCO's format, completed to LVIS's."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.files.annotations import load_ground_truth
from .coco_file import CocoFile

EXHAUSTIVE = ("all", "annotated", "none")


class Converted(NamedTuple):
    """What :func:`coco_to_lvis` wrote for one split.

    Attributes:
        path: The LVIS file.
        images: Number of images.
        instances: Number of annotations written.
        crowds: Annotations left out because they are crowds or to be ignored.
        empty: Annotations left out because they have no area.
        boxes_only: Annotations written that have no mask.
        frequencies: How many of the categories are ``r``, ``c`` and ``f``.
    """

    path: Path
    images: int
    instances: int
    crowds: int
    empty: int
    boxes_only: int
    frequencies: dict[str, int]


def coco_to_lvis(
    files: Mapping[str, str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    exhaustive: str = "all",
    rare_max: int = 10,
    common_max: int = 100,
    drop_unused: bool = False,
) -> dict[str, Converted]:
    """Write COCO annotation files in LVIS v1 format.

    Categories get ``image_count`` and ``instance_count``, both of the training file,
    and ``frequency``: ``r`` (rare) up to ``rare_max`` training images, ``c`` (common)
    up to ``common_max``, otherwise ``f``. Images get ``neg_category_ids`` and
    ``not_exhaustive_category_ids``. LVIS has no crowds: they are left out, as are
    annotations with ``ignore``, and the image becomes not exhaustive for their class.
    A missing ``area`` is computed from the mask, or from the box if there is none.
    Annotations whose box or area is empty are left out. Ids do not change.

    Args:
        files: COCO files by split (``train``, ``val``, ...). All must have the same
            categories.
        out_dir: Folder to write ``<split>.json`` to.
        exhaustive: What is annotated of an image. ``"all"``: every object of every
            class, so the classes without an annotation are absent. ``"annotated"``:
            every object of the classes that have an annotation; of other classes
            nothing is known. ``"none"``: some objects of those classes.
        rare_max: Most training images of a rare class.
        common_max: Most training images of a common class.
        drop_unused: Whether to leave out the categories that no file annotates.

    Returns:
        What was written, by split.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If an argument or a file is unusable. Nothing is written then.
    """
    if "train" not in files:
        raise ValueError(
            f"files={list(files)}: expected a train file; frequencies are counted in it"
        )
    if exhaustive not in EXHAUSTIVE:
        raise ValueError(f"exhaustive={exhaustive!r}: expected one of {EXHAUSTIVE}")
    if not 0 <= rare_max <= common_max:
        raise ValueError(
            f"rare_max={rare_max}, common_max={common_max}: expected 0 <= rare_max <= "
            f"common_max, numbers of training images"
        )
    out_dir = Path(out_dir)
    outputs = {split: out_dir / f"{split}.json" for split in files}
    for path in files.values():
        if Path(path).resolve() in [output.resolve() for output in outputs.values()]:
            raise ValueError(
                f"{path}: would be overwritten; choose another folder than {out_dir}"
            )
    splits = {split: CocoFile(path) for split, path in files.items()}
    train = splits["train"]
    for split in splits.values():
        _require_same_categories(train, split)
    if drop_unused:
        used = {category for split in splits.values() for category in split.used}
        train.categories = [item for item in train.categories if item["id"] in used]
    categories = _count_classes(train, rare_max, common_max)

    out_dir.mkdir(parents=True, exist_ok=True)
    unchecked = {split: out_dir / f".{split}.json.unchecked" for split in splits}
    try:
        for name, split in splits.items():
            text = json.dumps(_to_lvis(split, categories, exhaustive))
            unchecked[name].write_text(text, encoding="utf-8")
            _check(unchecked[name], split)
        for name, path in unchecked.items():
            path.replace(outputs[name])
    finally:
        for path in unchecked.values():
            path.unlink(missing_ok=True)
    frequencies = Counter(item["frequency"] for item in categories)
    return {
        name: Converted(
            path=outputs[name],
            images=len(split.images),
            instances=len(split.annotations),
            crowds=split.num_crowds,
            empty=split.num_empty,
            boxes_only=split.num_boxes_only,
            frequencies={group: frequencies[group] for group in "rcf"},
        )
        for name, split in splits.items()
    }


def _to_lvis(
    coco: CocoFile, categories: list[dict[str, Any]], exhaustive: str
) -> dict[str, Any]:
    """Return the content of the LVIS file."""
    every = {category["id"] for category in categories}
    for image in coco.images:
        shown = coco.shown[image["id"]]
        crowded = coco.not_exhaustive[image["id"]]
        absent = every - shown - crowded if exhaustive == "all" else ()
        incomplete = crowded | shown if exhaustive == "none" else crowded
        image["neg_category_ids"] = sorted(absent)
        image["not_exhaustive_category_ids"] = sorted(incomplete)
    return dict(
        licenses=coco.licenses,
        images=coco.images,
        annotations=coco.annotations,
        categories=categories,
    )


def _require_same_categories(train: CocoFile, other: CocoFile) -> None:
    if train.ids_by_name == other.ids_by_name:
        return
    for name in [*train.ids_by_name, *other.ids_by_name]:
        ids = train.ids_by_name.get(name), other.ids_by_name.get(name)
        if ids[0] != ids[1]:
            in_train, in_other = (
                "no category" if each is None else f"id {' and '.join(map(str, each))}"
                for each in ids
            )
            raise ValueError(
                f"{other.path}: category {name!r} has {in_other}, and {in_train} in "
                f"{train.path}; expected the same categories and ids in all files"
            )


def _count_classes(
    train: CocoFile, rare_max: int, common_max: int
) -> list[dict[str, Any]]:
    """Return LVIS's categories, with counts of the training annotations."""
    instances = Counter(item["category_id"] for item in train.annotations)
    images = Counter(category for shown in train.shown.values() for category in shown)
    categories, names = [], {}
    for item in train.categories:
        name, category_id = item["name"], item["id"]
        if names.setdefault(name, category_id) != category_id:
            raise ValueError(
                f"{train.path}: categories {names[name]} and {category_id} are both "
                f"named {name!r}, expected different names; rename one, or leave out "
                f"the unannotated one with drop_unused (--drop-unused)"
            )
        count = images[category_id]
        frequency = "r" if count <= rare_max else "c" if count <= common_max else "f"
        categories.append(
            dict(
                item,
                synset=item.get("synset", f"{name}.n.01"),
                synonyms=item.get("synonyms", [name]),
                image_count=count,
                instance_count=instances[category_id],
                frequency=frequency,
            )
        )
        categories[-1].setdefault("def", name)
    return categories


def _check(path: Path, split: CocoFile) -> None:
    """Read what was written as the evaluation will, with the source in errors."""
    try:
        load_ground_truth(path, with_masks=not split.num_boxes_only)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), str(split.path))) from None

"""Checking that the data files that a config names exist."""

from __future__ import annotations

import json
import mmap
import os
import os.path as osp
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..requirements import PACKAGE_SCHEME, package_file
from .training_masks import check_training_masks

if TYPE_CHECKING:
    from mmengine.config import Config

_LVIS_LAYOUT = """expected layout of an LVIS v1 folder:
  {root}
    annotations/lvis_v1_train.json, lvis_v1_val.json
    train2017/000000000009.jpg, ...
    val2017/000000000139.jpg, ...
To try without a download: python tools/dataset_converters/make_mini_lvis.py"""
_LAYOUT = """expected layout, according to the config's data set:
  {root}
    {ann_file}
    {images}, with the images that the annotations name"""
_COCO_URL_KEY, _FILE_NAME_KEY = b'"coco_url"', b'"file_name"'
_CLASSIFICATION = ("CustomDataset", "ImageNet", "SplitFileDataset")
_KNOWN = ("CocoDataset", "LVISDataset", "LVISV1Dataset", "LVISFormatDataset")
COCO_URL = "http://images.cocodataset.org/"


def check_files(cfg: Config, splits: Iterable[str] = ("train", "val")) -> None:
    """Check that a config's annotations, images and pretrained weights exist.

    Of data sets that are COCO's, LVIS v1's or ours, two images are checked, the first
    and the last in the annotation file, which is searched without parsing it; but to
    train with masks, the file is read and every mask checked. Of data sets of images to
    classify, the folder and the annotation file are checked. Remote files, and other
    data sets without a JSON file, are left to mmdet.

    Args:
        cfg: The config, with command-line options merged.
        splits: Which of ``train``, ``val`` and ``test`` to check. Pretrained weights
            are checked only with ``train``.

    Raises:
        FileNotFoundError: If something is missing. The message has the path, the
            expected layout of the folder, and the option that points elsewhere.
        ValueError: If an annotation file is not one that its data set can read, or
            masks are trained and annotations have no usable one.
    """
    for split in splits:
        loader = f"{split}_dataloader"
        for path, dataset in named_dicts(cfg.get(loader), loader):
            if _type(dataset) in _CLASSIFICATION:
                _check_folder(dataset, split)
            elif str(dataset.get("ann_file")).endswith(".json"):
                _check_dataset(dataset, split, path)
                if split == "train" and _trains_masks(cfg):
                    _check_masks(dataset)
    if "train" not in splits or cfg.get("load_from"):
        return
    for init in _dicts(cfg.model):
        path = init.get("checkpoint")
        if init.get("type") != "Pretrained" or not path:
            continue
        if path.startswith(PACKAGE_SCHEME):
            package_file(path)
        elif not _is_remote(path) and not osp.isfile(osp.expanduser(path)):
            raise FileNotFoundError(
                f"not found: {osp.abspath(path)}, the pretrained weights\n"
                f"Weights of the published SE-ResNet backbones come from the authors, "
                f"github.com/kostas1515/AGLU (ImageNet-1K models with APA); save the "
                f"file under that name, or train from scratch with "
                f"--cfg-options model.backbone.init_cfg=None"
            )


def _dicts(node: object) -> Iterator[dict]:
    """Yield all dicts of a part of a config, from the outermost inwards."""
    return (inner for _, inner in named_dicts(node, ""))


def named_dicts(node: object, path: str) -> Iterator[tuple[str, dict]]:
    """Yield all dicts of a part of a config with their names in ``--cfg-options``.

    Args:
        node: The part.
        path: Its own name.
    """
    if isinstance(node, dict):
        yield path, node
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for key, inner in items:
        yield from named_dicts(inner, f"{path}.{key}")


def _check_folder(dataset: dict, split: str) -> None:
    root, ann_file = dataset.get("data_root") or "", dataset.get("ann_file") or ""
    prefix = dataset.get("data_prefix") or ""
    prefix = prefix if isinstance(prefix, str) else prefix.get("img_path") or ""
    if any(map(_is_remote, (root, ann_file, prefix))):
        return
    path = osp.expanduser(osp.join(root, ann_file or prefix))
    if path and not osp.exists(path):
        what = "list of the images" if ann_file else "folder of the images"
        raise FileNotFoundError(
            f"not found: {osp.abspath(path)}, the {what} to {split}; put the data "
            f"there or link it (ln -s /path/to/data {root.rstrip('/')}), or point "
            f"elsewhere with --cfg-options data_root=/path/to/data"
        )


def _check_dataset(dataset: dict, split: str, path: str) -> None:
    root = dataset.get("data_root") or ""
    is_remote = _is_remote(root) or _is_remote(dataset["ann_file"])
    if is_remote or dataset.get("backend_args"):
        return
    ann_file = osp.join(root, dataset["ann_file"])
    if not osp.isfile(ann_file):
        raise _missing(f"the {split} annotations", ann_file, dataset)
    # Data sets of other types find their images in other ways.
    if _type(dataset) not in _KNOWN or "img_path" in (dataset.get("data_prefix") or {}):
        return
    folder = osp.join(root, _image_folder(dataset))
    names = _first_and_last_image(ann_file, _image_keys(dataset))
    if not names and _first_and_last_image(ann_file, [_FILE_NAME_KEY]):
        raise ValueError(
            f"{ann_file}: its images have file_name and no coco_url, which "
            f"LVISV1Dataset needs; set type='LVISFormatDataset', which reads both, and "
            f"metainfo=dict(classes=...) in {path}, for the type also by --cfg-options "
            f"{path}.type=LVISFormatDataset (docs/your_data.md)"
        )
    for name in names:
        image = osp.join(folder, name)
        if not osp.isfile(image):
            raise _missing(f"a {split} image named in {ann_file}", image, dataset)


def _trains_masks(cfg: Config) -> bool:
    # Panoptic files, with a loader of their own, have no masks in this sense.
    return any(
        node.get("with_mask") and "LoadAnnotations" in str(node.get("type"))
        for node in _dicts(cfg.train_dataloader)
    )


def _check_masks(dataset: dict) -> None:
    ann_file = osp.join(dataset.get("data_root") or "", dataset["ann_file"])
    classes = (dataset.get("metainfo") or {}).get("classes")
    # One process reads the file; if it stops, the launcher ends the others.
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if rank == "0" and not _is_remote(ann_file) and not dataset.get("backend_args"):
        # Text is the name of a file of classes.
        check_training_masks(ann_file, None if isinstance(classes, str) else classes)


def _image_folder(dataset: dict) -> str:
    return dataset.get("data_prefix", {}).get("img", "")


def _type(dataset: dict) -> str:
    """Return the name of a data set's type, which is a class in lazy configs."""
    name = dataset.get("type")
    return name.__name__ if isinstance(name, type) else str(name).rpartition(".")[2]


def _is_lvis(dataset: dict) -> bool:
    """Return whether a data set is mmdet's for LVIS itself."""
    return _type(dataset) in ("LVISDataset", "LVISV1Dataset", "LVISV05Dataset")


def _image_keys(dataset: dict) -> list[bytes]:
    """Return where a data set reads the path of an image, the first choice first."""
    if _type(dataset) in ("LVISDataset", "LVISV1Dataset"):
        return [_COCO_URL_KEY]
    return [_FILE_NAME_KEY, _COCO_URL_KEY]


def _is_remote(path: str) -> bool:
    return "://" in path


def _first_and_last_image(ann_file: str, keys: Iterable[bytes]) -> list[str]:
    """Return the first and the last image name under the first key that occurs."""
    if not osp.getsize(ann_file):  # mmdet has a better error
        return []
    with (
        open(ann_file, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        for key in keys:
            positions = {text.find(key), text.rfind(key)} - {-1}
            if positions:
                return [_name_at(text, start) for start in sorted(positions)]
    return []


def _name_at(text: mmap.mmap, start: int) -> str:
    pattern = rb'"\w+"\s*:\s*("(?:[^"\\]|\\.)*")'
    match = re.match(pattern, text[start : start + 4096])
    return json.loads(match.group(1)).replace(COCO_URL, "") if match else ""


def _missing(what: str, path: str, dataset: dict) -> FileNotFoundError:
    root = dataset.get("data_root") or "."
    layout = _LVIS_LAYOUT if _is_lvis(dataset) else _LAYOUT
    expected = layout.format(
        root=osp.abspath(root),
        ann_file=dataset["ann_file"],
        images=_image_folder(dataset) or "here",
    )
    return FileNotFoundError(
        f"not found: {osp.abspath(path)}, {what}\n{expected}\n"
        f"Put the data there or link it (ln -s /path/to/data {root.rstrip('/')}), or "
        f"point elsewhere with --cfg-options data_root=/path/to/data"
    )

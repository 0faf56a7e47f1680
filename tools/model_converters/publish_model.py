"""Convert a checkpoint's weights between the authors' names and this package's."""

from __future__ import annotations

import argparse
import glob
import hashlib
import io
import os.path as osp
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from mmdet.registry import MODELS
from torch import Tensor

from apa_mmdet.engine import read_checkpoint
from apa_mmdet.models.architecture import backbone_cfg, backbone_weights
from apa_mmdet.models.published_checkpoints import (
    from_published,
    is_published,
    to_published,
    weights_of,
)

# Equal computations may round differently where memory is laid out differently.
_TOLERANCE = 1e-6


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The authors' files also load without conversion. Optimizer, schedule, "
        "arguments and a classifier's head are dropped; of a detector's meta data the "
        "class names are kept.",
    )
    add = parser.add_argument
    add("input", help="checkpoint of the authors or of this package")
    add("output", help="file to write; NAME.pth becomes NAME-<8 digits of sha256>.pth")
    to_help = "whose names to write (default: %(default)s)"
    add("--to", choices=["apa_mmdet", "published"], default="apa_mmdet", help=to_help)
    add(
        "--weights",
        choices=["model", "model_ema"],
        help="which weights of a classification file to convert (default: model, which "
        "the authors' programs evaluate and initialise detectors from)",
    )
    add(
        "--check",
        action="store_true",
        help="before writing, build the backbone that the file describes, once with "
        "the input's weights and once with the output's: both must load completely, "
        "the output's names must be exactly the backbone's, and the feature maps of a "
        "random image must agree to 1e-6 of their largest value",
    )
    return parser.parse_args()


def output_stem(output: str) -> str:
    """Return the output's absolute path without ``.pth``, if it can be written."""
    folder, name = osp.split(osp.abspath(output))
    if not osp.isdir(folder):
        raise SystemExit(f"output {output}: no folder {folder}; create it first")
    stem = osp.join(folder, name.removesuffix(".pth"))
    if name in ("", ".pth") or osp.isdir(output):
        raise SystemExit(f"output {output}: expected the name of a file, as NAME.pth")
    taken = sorted(glob.glob(f"{glob.escape(stem)}-{8 * '[0-9a-f]'}.pth"))
    if taken:
        raise SystemExit(
            f"output {output}: {taken[0]} already exists; remove it or choose another "
            f"name"
        )
    return stem


def read(path: str) -> object:
    """Return the content of the input, after verifying its checksums."""
    if not osp.isfile(path):
        raise SystemExit(f"input {path}: no such file")
    damaged = None
    try:
        checkpoint = read_checkpoint(path)
        if zipfile.is_zipfile(path):  # torch itself does not compare checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
    except Exception as error:
        raise SystemExit(f"error: {error}") from None
    if damaged:
        raise SystemExit(
            f"error: {path} is damaged: {damaged} does not match its checksum; "
            f"download it again"
        )
    return checkpoint


def check(
    before: Mapping[str, Tensor], classification: bool, after: Mapping[str, Tensor]
) -> str:
    """Compare a backbone with the input's weights to one with the output's.

    Returns:
        A sentence that says what was compared.

    Raises:
        ValueError: If it is not a ResNet, or something differs.
    """
    ours = from_published(backbone_weights(before), classification)
    cfg = backbone_cfg(ours)
    backbones = []
    for state in (ours, from_published(backbone_weights(after))):
        backbone = MODELS.build(cfg)
        try:
            backbone.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{cfg} does not load the weights: {error}") from None
        backbone.eval()  # mmdet's train() does not return the module
        backbones.append(backbone)
    expected = backbones[0].state_dict()
    written = set(backbone_weights(after))
    names = set(to_published(expected) if is_published(after) else expected)
    if written != names:
        wrong = sorted(written ^ names)
        raise ValueError(f"{len(wrong)} keys are not those of {cfg}: {wrong[:4]}")
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, others = (backbone(image) for backbone in backbones)
    for level, (first, second) in enumerate(zip(maps, others)):
        largest, difference = first.abs().max(), (first - second).abs().max()
        if not difference <= _TOLERANCE * largest:
            raise ValueError(
                f"feature map {level} differs by up to {difference:g}; its largest "
                f"value is {largest:g}"
            )
    return (
        f"{len(written)} backbone keys are those of {cfg['type']}-{cfg['depth']}, and "
        f"its {len(maps)} feature maps are equal before and after, to {_TOLERANCE:g} "
        f"of their largest value"
    )


def main() -> None:
    """Read, convert, check, write."""
    args = parse_args()
    stem = output_stem(args.output)
    checkpoint = read(args.input)
    try:
        state, classification = weights_of(checkpoint, args.weights)
        result = from_published(state, classification)
        if args.to == "published":
            result = to_published(result)
        if args.check:
            print("checked:", check(state, classification, result))
    except ValueError as error:
        raise SystemExit(f"error: {args.input}: {error}") from None

    content: dict = {"state_dict": result}
    meta = checkpoint.get("meta")
    if isinstance(meta, Mapping) and "dataset_meta" in meta:
        content["meta"] = {"dataset_meta": meta["dataset_meta"]}
    # In memory first, because the name depends on the hash, and torch writes the name
    # into the file.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    path = f"{stem}-{digest[:8]}.pth"
    unfinished = Path(f"{path}.part")
    unfinished.write_bytes(buffer.getbuffer())
    unfinished.replace(path)
    print(f"{len(result)} tensors written: {path}")


if __name__ == "__main__":
    main()

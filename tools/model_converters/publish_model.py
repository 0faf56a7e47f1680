"""Convert a checkpoint between the authors' keys and this package's, weights only."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import os.path as osp
import re
import zipfile
from collections.abc import Mapping

import torch
from mmdet.registry import MODELS
from torch import Tensor

from apa_mmdet.engine import read_checkpoint
from apa_mmdet.models.architecture import backbone_cfg
from apa_mmdet.models.published import (
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
        epilog="The authors' files load without conversion as well. Optimizer, "
        "schedule, arguments and the classifier are dropped; of a detector's meta "
        "data the class names stay.",
    )
    parser.add_argument("input", help="checkpoint of the authors or of this package")
    parser.add_argument(
        "output", help="where to write; NAME.pth becomes NAME-<8 digits of sha256>.pth"
    )
    parser.add_argument(
        "--to",
        choices=["apa_mmdet", "published"],
        default="apa_mmdet",
        help="whose keys to write (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=["model", "model_ema"],
        help="which weights of a classification file to take (default: model, which "
        "the authors' programs evaluate and start detectors from)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="before writing, build the backbone that the file describes, once with "
        "the input's weights and once with the output's: both must fill it exactly, "
        "the keys must be those of that backbone in either spelling, and the feature "
        "maps of a random image must be equal to 1e-6 of their largest value",
    )
    return parser.parse_args()


def require_room(output: str) -> str:
    """Return the output's name without ending; it and its folder must be fit for use.

    Raises:
        SystemExit: If the folder is not there, or an output of that name is.
    """
    folder, name = osp.split(osp.abspath(output))
    if not osp.isdir(folder):
        raise SystemExit(f"output {output}: no folder {folder}; make it first")
    stem = name.removesuffix(".pth")
    if not stem or osp.isdir(output):
        raise SystemExit(f"output {output}: expected the name of a file, as NAME.pth")
    taken = re.compile(re.escape(stem) + r"-[0-9a-f]{8}\.pth")
    for other in sorted(os.listdir(folder)):
        if taken.fullmatch(other):
            raise SystemExit(
                f"output {output}: {osp.join(folder, other)} is already there; remove "
                f"it or choose another name"
            )
    return osp.join(folder, stem)


def read(path: str) -> object:
    """Return what the input holds, with the checksums of its tensors verified.

    Raises:
        SystemExit: If it is not there, damaged or refused.
    """
    try:
        checkpoint = read_checkpoint(path)
        if zipfile.is_zipfile(path):  # torch itself does not compare checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise RuntimeError(
                    f"{path} is damaged: {damaged} does not match its checksum; fetch "
                    f"it again"
                )
    except Exception as error:
        raise SystemExit(f"error: {error}") from None
    return checkpoint


def backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's weights of a detector's, or of a backbone's."""
    if any(key.startswith("layer1.") for key in state):
        return dict(state)
    part = "backbone."
    return {
        key.removeprefix(part): value
        for key, value in state.items()
        if key.startswith(part)
    }


def check(
    before: Mapping[str, Tensor], classification: bool, after: Mapping[str, Tensor]
) -> str:
    """Compare the backbone with the input's weights and with the output's.

    Args:
        before: The input's weights.
        classification: Whether they are a classifier's.
        after: The weights to be written.

    Returns:
        What was found to be equal.

    Raises:
        ValueError: If it is no ResNet, or something differs.
    """
    ours = from_published(backbone_of(before), classification)
    cfg = backbone_cfg(ours)
    backbones = []
    for state in (ours, from_published(backbone_of(after))):
        backbone = MODELS.build(cfg)
        try:
            backbone.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{cfg} does not take the weights: {error}") from None
        backbone.eval()  # mmdet's returns nothing
        backbones.append(backbone)
    expected = backbones[0].state_dict()
    written = set(backbone_of(after))
    spellings = (set(expected), set(to_published(expected)))
    if written != spellings[is_published(after)]:
        odd = sorted(written ^ spellings[is_published(after)])
        raise ValueError(f"{len(odd)} keys are not those of {cfg}: {odd[:4]}")
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, others = (backbone(image) for backbone in backbones)
    for level, (first, second) in enumerate(zip(maps, others)):
        largest, difference = first.abs().max(), (first - second).abs().max()
        if not difference <= _TOLERANCE * largest:
            raise ValueError(
                f"feature map {level} differs by up to {difference:g}, its largest "
                f"value being {largest:g}"
            )
    return (
        f"{len(written)} backbone keys are those of {cfg['type']}-{cfg['depth']}, and "
        f"its {len(maps)} feature maps are equal before and after, to {_TOLERANCE:g} "
        f"of their largest value"
    )


def main() -> None:
    """Read, convert, check, write."""
    args = parse_args()
    if not osp.isfile(args.input):
        raise SystemExit(f"input {args.input}: no such file")
    stem = require_room(args.output)
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
    # Saved to memory first: under another name the file would have another hash.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    path = f"{stem}-{digest[:8]}.pth"
    with open(f"{path}.part", "wb") as file:
        file.write(buffer.getbuffer())
    os.replace(f"{path}.part", path)
    print(f"{len(result)} tensors written: {path}")


if __name__ == "__main__":
    main()

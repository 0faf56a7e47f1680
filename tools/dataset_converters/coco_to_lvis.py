"""Complete COCO annotation files to LVIS v1 format: frequencies, negative lists.

    python tools/dataset_converters/coco_to_lvis.py --train train.json --val val.json \
        --out data/mine/annotations

Frequencies are counted in the training file and written to all files.
"""

from __future__ import annotations

import argparse
import sys

from apa_mmdet.datasets.coco_to_lvis import EXHAUSTIVE, coco_to_lvis

SPLITS = ("train", "val", "test")


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    for split in SPLITS:
        required = split == "train"
        add(f"--{split}", metavar="JSON", required=required, help="COCO annotations")
    add("--out", required=True, help="folder to write train.json, val.json, ... to")
    exhaustive_help = (
        "what is annotated in each image: every object of every class (all, the "
        "default); every object of the classes that it has annotations of "
        "(annotated); or some of those (none)"
    )
    add("--exhaustive", choices=EXHAUSTIVE, default="all", help=exhaustive_help)
    rare_help = "most training images of a rare class (%(default)s, as in LVIS)"
    add("--rare-max", type=int, default=10, help=rare_help)
    common_help = "most training images of a common class (%(default)s)"
    add("--common-max", type=int, default=100, help=common_help)
    unused_help = "leave out categories that no file annotates, such as a root category"
    add("--drop-unused", action="store_true", help=unused_help)
    return parser.parse_args()


def main() -> None:
    """Convert, and print what was written."""
    args = parse_args()
    files = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    try:
        written = coco_to_lvis(
            files,
            args.out,
            exhaustive=args.exhaustive,
            rare_max=args.rare_max,
            common_max=args.common_max,
            drop_unused=args.drop_unused,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for result in written.values():
        print(f"{result.path}: {result.images} images, {result.instances} instances")
        for number, what in (
            (result.crowds, "crowds or ignored left out, their classes not exhaustive"),
            (result.empty, "without area left out"),
            (result.boxes_only, "without a mask: evaluate boxes only"),
        ):
            if number:
                print(f"  {number} {what}")
    counts = "{f} frequent, {c} common and {r} rare".format(**result.frequencies)
    print(f"{counts} classes, counted in {args.train}")


if __name__ == "__main__":
    main()

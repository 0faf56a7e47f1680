"""Generate mini-LVIS, the synthetic long-tailed data set that the demo trains on."""

from __future__ import annotations

import argparse
import sys

from apa_mmdet.datasets.mini_lvis import make_mini_lvis


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("out", nargs="?", default="data/mini_lvis", help="folder (%(default)s)")
    for flag, default, help_text in (
        ("--seed", 0, "seed of everything random"),
        ("--num-train", 600, "number of training images"),
        ("--num-val", 150, "number of validation images"),
        ("--image-size", 160, "side of the images in pixels"),
    ):
        add(flag, type=int, default=default, help=f"{help_text} (%(default)s)")
    return parser.parse_args()


def show_progress(done: int, total: int) -> None:
    """Update one line on a terminal; print a few lines to a log."""
    if sys.stdout.isatty():
        print(f"\rgenerating: {done}/{total}", end="\n" if done == total else "")
    elif done == total or done % max(total // 5, 1) == 0:
        print(f"generating: {done}/{total}", flush=True)


def main() -> None:
    """Generate the set, or say that it already exists."""
    args = parse_args()
    try:
        made = make_mini_lvis(
            args.out,
            seed=args.seed,
            num_train=args.num_train,
            num_val=args.num_val,
            image_size=args.image_size,
            progress=show_progress,
        )
    except (ValueError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    state = "generated" if made.created else "already exists"
    print(f"mini-LVIS {state} in {made.root}")
    for split, counts in made.splits.items():
        print(
            "{:5} {images} images, {instances} instances of {f} frequent, {c} common "
            "and {r} rare classes".format(split, **counts)
        )


if __name__ == "__main__":
    main()

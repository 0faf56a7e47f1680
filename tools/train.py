"""Train a detector: MMDetection's tools/train.py, but it first checks the data."""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import os

from apa_mmdet.requirements import check_requirements

check_requirements()  # importing apa_mmdet checks nothing if mmengine is missing

from apa_mmdet.engine.launch import (
    add_common_arguments,
    build_runner,
    exit_on_error,
    load_config,
)


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description="Train a detector")
    add = parser.add_argument
    add("config", help="path of the config file")
    add("--amp", action="store_true", help="train with automatic mixed precision")
    scale_help = "scale the learning rate to the actual batch size"
    add("--auto-scale-lr", action="store_true", help=scale_help)
    resume_help = "continue, from this checkpoint or the latest in the work dir"
    add("--resume", nargs="?", const="auto", help=resume_help)
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse_args()
    with exit_on_error():
        train(args)


def train(args: argparse.Namespace) -> None:
    """Train the config's detector."""
    cfg = load_config(args, splits=("train", "val"))
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise ValueError(
                "--auto-scale-lr needs auto_scale_lr.base_batch_size in the config; "
                "add auto_scale_lr=dict(base_batch_size=16), or drop the option"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        if args.resume != "auto" and not os.path.isfile(args.resume):
            raise ValueError(
                f"--resume {args.resume}: no such file; give a checkpoint, or only "
                f"--resume for the latest one in {cfg.work_dir}"
            )
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    build_runner(cfg).train()


if __name__ == "__main__":
    main()

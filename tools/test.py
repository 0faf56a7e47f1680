"""Test a detector: MMDetection's tools/test.py, but it first checks its files."""

# ruff: noqa: E402
from __future__ import annotations

import argparse

from torch import nn

from apa_mmdet.requirements import check_requirements

check_requirements()  # importing apa_mmdet checks nothing if mmengine is missing

from apa_mmdet.engine.calibration import provide_class_counts, try_calibrations
from apa_mmdet.engine.launch import (
    add_common_arguments,
    build_runner,
    exit_on_error,
    is_classifier,
    load_config,
)
from apa_mmdet.engine.tta import enable_tta, leave_out_masks
from apa_mmdet.engine.weights import (
    check_weights,
    load_detector,
    load_weights,
    refuse_backbone,
)


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description="Test (and evaluate) a detector")
    add = parser.add_argument
    add("config", help="path of the config file")
    add("checkpoint", help="path or URL of the checkpoint")
    add("--out", help="write the predictions to this .pkl file")
    add("--show", action="store_true", help="show each prediction")
    add("--show-dir", help="draw each prediction to this folder in the work dir")
    add("--wait-time", type=float, default=2, help="seconds to show each picture")
    add("--tta", action="store_true", help="test-time augmentation (boxes only)")
    calibration_help = "calibrate scores; of several, each is evaluated on one pass "
    calibration_help += "over the images: none FRACAL NORCAL:gamma=0.6 LogitAdjustment"
    add("--calibration", nargs="+", metavar="NAME", help=calibration_help)
    counts_help = "read the class counts that calibrations need from the training data"
    add("--read-counts", action="store_true", help=counts_help)
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"--out {args.out}: expected a name ending in .pkl")
    if len(args.calibration or ()) > 1 and (args.out or args.tta):
        option = "--out" if args.out else "--tta"
        parser.error(f"{option} works with one --calibration, not several; give one")
    return args


def main() -> None:
    """Test."""
    args = parse_args()
    with exit_on_error():
        test(args)


def test(args: argparse.Namespace) -> None:
    """Test the checkpoint with the config."""
    is_remote = "://" in args.checkpoint
    checkpoint = None if is_remote else load_weights(args.checkpoint)
    cfg = load_config(args, splits=("test",))
    if checkpoint and not is_classifier(cfg):
        refuse_backbone(checkpoint, args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.calibration:
        try_calibrations(cfg, args.calibration)
    provide_class_counts(cfg, args.checkpoint, args.read_counts)
    if args.show or args.show_dir:
        from mmdet.engine.hooks.utils import trigger_visualization_hook

        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        enable_tta(cfg)
    runner = build_runner(cfg)
    if args.tta:
        leave_out_masks(runner.model)
    # FlexibleRunner builds its model only when it tests.
    if isinstance(runner.model, nn.Module) and not cfg.get("allow_weight_mismatch"):
        load = load_weights if is_classifier(cfg) else load_detector
        checkpoint = checkpoint or load(args.checkpoint)
        check_weights(
            runner.model,
            checkpoint,
            args.checkpoint,
            alternative=", or, if only training uses that part, insist with "
            "--cfg-options allow_weight_mismatch=True",
        )
    del checkpoint
    if args.out:
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == "__main__":
    main()

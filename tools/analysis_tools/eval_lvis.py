"""Evaluate LVIS result files, and compare them.

    python tools/analysis_tools/eval_lvis.py lvis_v1_val.json results.segm.json
    python tools/analysis_tools/eval_lvis.py lvis_v1_val.json A.bbox.json B.bbox.json

Result files are lists in LVIS's format, json or json.gz, as an evaluator with
format_only=True or outfile_prefix writes them. With several, each is compared with the
first: the difference in each group of classes, and an interval from a bootstrap over
the images. Needs neither torch nor mmdet.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec, module_from_spec
from pathlib import Path

# apa_mmdet's __init__ would import torch and mmdet, which takes seconds and which the
# evaluation does not need. This enters the package without running its __init__.
sys.modules.setdefault("apa_mmdet", module_from_spec(find_spec("apa_mmdet")))

from apa_mmdet.evaluation.bootstrap import compare
from apa_mmdet.evaluation.ground_truth import GroundTruth, load_ground_truth
from apa_mmdet.evaluation.lvis_eval import LVISResult, check_iou_thrs, evaluate
from apa_mmdet.evaluation.report import (
    class_table,
    difference_table,
    plot_long_tail,
    summary_table,
    write_class_csv,
)
from apa_mmdet.evaluation.results_file import read_results


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("truth", metavar="GT.json", help="LVIS annotation file")
    parser.add_argument(
        "results", metavar="RESULTS.json", nargs="+", help="result files"
    )
    parser.add_argument(
        "--metric",
        choices=["bbox", "segm"],
        help="what is compared with the annotations (segm if every file's first result "
        "has a mask, else bbox)",
    )
    parser.add_argument(
        "--iou-thrs", type=float, nargs="+", help="IoU thresholds (0.5, 0.55 .. 0.95)"
    )
    parser.add_argument(
        "--max-dets", type=int, default=300, help="detections of an image (300)"
    )
    parser.add_argument(
        "--img-ids",
        nargs="+",
        help="images to evaluate: ids, or a json file that holds a list of them",
    )
    parser.add_argument(
        "--fixed-ap",
        action="store_true",
        help="add Fixed AP: no limit for an image, the best 10,000 of each class",
    )
    parser.add_argument(
        "--max-dets-per-class", type=int, default=10_000, help="with --fixed-ap"
    )
    parser.add_argument(
        "--classwise", action="store_true", help="print AP of each class"
    )
    parser.add_argument("--csv", help="file to write AP of each class to")
    parser.add_argument(
        "--png", help="file to plot AP of each class against its image count to"
    )
    parser.add_argument(
        "--json", help="file to write the figures to, at full precision"
    )
    parser.add_argument(
        "--draws", type=int, default=1000, help="of the bootstrap (1000); 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument(
        "--workers", type=int, help="processes (one for each core, if it pays)"
    )
    args = parser.parse_args()
    for name in ("max_dets", "max_dets_per_class", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if args.draws < 0:
        parser.error(f"--draws {args.draws}: expected at least 0")
    for path in (args.truth, *args.results):
        if not os.path.isfile(path):
            parser.error(f"{path}: no such file")
    return args


def has_masks(path: str) -> bool:
    """Say whether the first result of a file has a mask."""
    from apa_mmdet.evaluation.json_stream import iter_array

    first = next(iter_array(path), None)
    return isinstance(first, dict) and "segmentation" in first


def read_ids(given: list[str]) -> list[int]:
    """Return image ids given on the command line or in a json file."""
    if len(given) == 1 and os.path.isfile(given[0]):
        with open(given[0], encoding="utf-8") as file:
            ids = json.load(file)
        if not isinstance(ids, list):
            raise ValueError(f"--img-ids {given[0]}: expected a json list of ids")
        return ids
    try:
        return [int(image_id) for image_id in given]
    except ValueError:
        raise ValueError(
            f"--img-ids {' '.join(given)}: expected numbers, or one json file"
        ) from None


def evaluate_file(
    path: str,
    truth: GroundTruth,
    kept: GroundTruth,
    args: argparse.Namespace,
) -> tuple[LVISResult, dict[str, float], dict[str, float]]:
    """Return the result of a file, its figures, and those of Fixed AP if wanted.

    Args:
        path: The file.
        truth: The annotations of all images it may name.
        kept: Those of the images to evaluate.
        args: The command line's.
    """
    found = read_results(path, truth, args.metric == "segm")
    if kept is not truth:
        found = found.within(truth, kept)
    options = dict(
        iou_type=args.metric, iou_thrs=args.iou_thrs, num_workers=args.workers
    )
    result = evaluate(kept, found, max_dets=args.max_dets, **options)
    figures = result.summary()
    fixed = {}
    if args.fixed_ap:
        limit = args.max_dets_per_class
        fixed = evaluate(kept, found, max_dets_per_class=limit, **options).summary()
    return result, figures, fixed


def run(args: argparse.Namespace) -> None:
    """Evaluate the files and report."""
    check_iou_thrs(args.iou_thrs)
    if args.metric is None:
        args.metric = "segm" if all(map(has_masks, args.results)) else "bbox"
    ids = None if args.img_ids is None else read_ids(args.img_ids)
    truth = load_ground_truth(args.truth, args.metric == "segm")
    kept = truth if ids is None else truth.only(ids)
    print(
        f"{args.metric}, {kept.num_images:,} images, {len(kept.image):,} annotations, "
        f"{len(kept.class_ids):,} classes; figures in per cent"
    )
    results, figures, fixed = {}, {}, {}
    for path, name in zip(args.results, short_names(args.results)):
        results[name], figures[name], fixed[name] = evaluate_file(
            path, truth, kept, args
        )
    print(summary_table(figures))
    if args.fixed_ap:
        limit = f"{args.max_dets_per_class:,} of each class"
        print(f"\nFixed AP: no limit for an image, the best {limit}")
        print(summary_table(fixed))
    if args.classwise:
        for name, result in results.items():
            print(f"\nAP of each class, {name}\n{class_table(result)}")
    differences = report_differences(results, args) if args.draws else {}
    if args.csv:
        write_class_csv(args.csv, list(results.values()))
        print(f"AP of each class written: {args.csv}")
    if args.png:
        plot_long_tail(args.png, results)
        print(f"plotted: {args.png}")
    if args.json:
        all_figures = {name: figures[name] | fixed[name] for name in figures}
        text = json.dumps(dict(figures=all_figures, differences=differences), indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
        print(f"figures written: {args.json}")


def report_differences(
    results: dict[str, LVISResult], args: argparse.Namespace
) -> dict[str, dict]:
    """Compare each result with the first and print the differences."""
    (first, base), *others = results.items()
    written = {}
    for name, result in others:
        differences = compare(
            base, result, args.draws, seed=args.seed, num_workers=args.workers
        )
        print(f"\nA = {first}, B = {name}; {args.draws:,} draws of the images")
        print(difference_table(differences))
        written[f"{name} - {first}"] = {
            group: {"difference": each.value, **each._asdict()}
            for group, each in differences.items()
        }
    return written


def short_names(paths: list[str]) -> list[str]:
    """Return as little of each path's end as tells it from the others."""
    parts = [Path(path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def main() -> None:
    """Evaluate; what is wrong with the input is said in a line, not a traceback."""
    try:
        run(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Evaluate LVIS results files, and compare them.

    python tools/analysis_tools/eval_lvis.py lvis_v1_val.json results.segm.json
    python tools/analysis_tools/eval_lvis.py lvis_v1_val.json A.bbox.json B.bbox.json

Results files are lists in LVIS's format, json or json.gz, as an evaluator with
format_only=True or outfile_prefix writes them. Of several, each is compared with the
first: the difference in each group of classes, with an interval from a bootstrap over
the images. Needs neither torch nor mmdet.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

# The package's __init__ would import torch and mmdet, which takes seconds and which the
# evaluation does not need. An empty module in its place gives access to its modules.
package = sys.modules.setdefault("apa_mmdet", ModuleType("apa_mmdet"))
package.__path__ = [str(Path(__file__).parents[2] / "apa_mmdet")]

from apa_mmdet.evaluation import (
    GroundTruth,
    LVISResult,
    compare,
    evaluate,
    load_ground_truth,
    read_results,
)
from apa_mmdet.evaluation.core.params import check_iou_thrs
from apa_mmdet.evaluation.core.values import show
from apa_mmdet.evaluation.files.results import has_masks
from apa_mmdet.evaluation.report import (
    class_table,
    difference_table,
    plot_long_tail,
    summary_table,
    write_class_csv,
)


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("truth", metavar="GT.json", help="LVIS annotation file")
    add("results", metavar="RESULTS.json", nargs="+", help="results files")
    add(
        "--metric",
        choices=["bbox", "segm"],
        help="evaluate boxes or masks (masks if every file's first result has one)",
    )
    add("--iou-thrs", type=float, nargs="+", help="thresholds (0.5, 0.55 .. 0.95)")
    add(
        "--img-ids",
        nargs="+",
        help="images to evaluate: ids, or a file of them, JSON list or plain text",
    )
    add(
        "--fixed-ap",
        action="store_true",
        help="add Fixed AP: no limit for an image, the best 10,000 of each class",
    )
    add("--classwise", action="store_true", help="print AP of each class")
    add("--csv", help="write AP of each class to this file")
    add("--png", help="plot AP of each class against its image count to this file")
    add("--json", help="write the figures at full precision to this file")
    numbers = (
        ("--max-dets", 300, 1, "limit of detections for each image (%(default)s)"),
        ("--max-dets-per-class", 10_000, 1, "with --fixed-ap (%(default)s)"),
        ("--num-resamples", 1000, 0, "of the bootstrap (%(default)s); 0 for none"),
        ("--seed", 0, 0, "of the bootstrap (%(default)s)"),
        ("--workers", None, 1, "processes (one per core if it takes seconds)"),
    )
    for flag, default, _, help_text in numbers:
        add(flag, type=int, default=default, help=help_text)
    args = parser.parse_args()
    for flag, _, least, _ in numbers:
        value = getattr(args, flag[2:].replace("-", "_"))
        if value is not None and value < least:
            parser.error(f"{flag} {value}: expected at least {least}")
    for path in (args.truth, *args.results):
        if not os.path.isfile(path):
            parser.error(f"{path}: no such file")
    if args.png and find_spec("matplotlib") is None:
        parser.error(
            "--png needs matplotlib; pip install matplotlib, or leave the option out"
        )
    return args


def read_ids(values: list[str]) -> list[int]:
    """Return image ids from the command line, or from the file it names."""
    name = "--img-ids"
    if len(values) == 1 and os.path.isfile(values[0]):
        name = f"--img-ids {values[0]}"
        text = Path(values[0]).read_text(encoding="utf-8-sig", errors="replace")
        values = text.strip().strip("[]").replace(",", " ").split()
    if not values:
        raise ValueError(f"{name}: the file has no ids")
    ids = []
    for value in values:
        try:
            ids.append(int(value))
        except ValueError:
            raise ValueError(
                f"{name}: {show(value)} is neither a whole number nor a file; expected "
                "ids, or one file of them (a JSON list or text)"
            ) from None
    return ids


def evaluate_file(
    path: str, truth: GroundTruth, subset: GroundTruth, args: argparse.Namespace
) -> tuple[LVISResult, dict[str, float], dict[str, float]]:
    """Return a file's result on a subset, its figures, and those of Fixed AP if asked.

    ``truth`` has all images that the file may name, ``subset`` those to evaluate.
    """
    dets = read_results(path, truth, args.metric == "segm")
    if subset is not truth:
        dets = dets.subset(truth, subset)
    options = dict(
        iou_type=args.metric, iou_thrs=args.iou_thrs, num_workers=args.workers
    )
    result = evaluate(subset, dets, max_dets=args.max_dets, **options)
    if not args.fixed_ap:
        return result, result.summary(), {}
    limit = args.max_dets_per_class
    fixed = evaluate(subset, dets, max_dets_per_class=limit, **options)
    return result, result.summary(), fixed.summary()


def run(args: argparse.Namespace) -> None:
    """Evaluate the files and report."""
    check_iou_thrs(args.iou_thrs)
    if args.metric is None:
        args.metric = "segm" if all(map(has_masks, args.results)) else "bbox"
    ids = args.img_ids and read_ids(args.img_ids)
    truth = load_ground_truth(args.truth, args.metric == "segm")
    subset = truth if ids is None else truth.subset(ids)
    print(
        f"{args.metric}, {subset.num_images:,} images, {len(subset.areas):,} "
        f"annotations, {subset.num_classes:,} classes; figures in per cent"
    )
    results, figures, fixed = {}, {}, {}
    for path, name in zip(args.results, short_names(args.results)):
        results[name], figures[name], fixed[name] = evaluate_file(
            path, truth, subset, args
        )
    print(summary_table(figures))
    if args.fixed_ap:
        limit = f"{args.max_dets_per_class:,} of each class"
        print(f"\nFixed AP: no limit for an image, the best {limit}")
        print(summary_table(fixed))
    if args.classwise:
        for name, result in results.items():
            print(f"\nAP of each class, {name}\n{class_table(result)}")
    differences = report_differences(results, args) if args.num_resamples else {}
    if args.json:
        all_figures = {name: figures[name] | fixed[name] for name in figures}
        text = json.dumps(dict(figures=all_figures, differences=differences), indent=1)
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
        print(f"figures written: {args.json}")
    if args.csv:
        write_class_csv(args.csv, results)
        print(f"AP of each class written: {args.csv}")
    if args.png:
        plot_long_tail(args.png, results)
        print(f"plotted: {args.png}")


def report_differences(
    results: dict[str, LVISResult], args: argparse.Namespace
) -> dict[str, dict]:
    """Compare each result with the first and print the differences."""
    (first, base), *others = results.items()
    written = {}
    for name, result in others:
        differences = compare(
            base, result, args.num_resamples, seed=args.seed, num_workers=args.workers
        )
        print(f"\nA = {first}, B = {name}; {args.num_resamples:,} resamples")
        print(difference_table(differences))
        written[f"{name} - {first}"] = {
            group: {"difference": each.value, **each._asdict()}
            for group, each in differences.items()
        }
    return written


def short_names(paths: list[str]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [Path(path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def main() -> None:
    """Evaluate; report unusable input in a line instead of a traceback."""
    try:
        run(parse_args())
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Measure LVIS evaluation: apa_mmdet, lvis-api and faster-coco-eval on generated data.

    python tools/analysis_tools/benchmark_lvis_eval.py
    python tools/analysis_tools/benchmark_lvis_eval.py --metric segm
    python tools/analysis_tools/benchmark_lvis_eval.py --growth

Each evaluator runs in a process of its own, one after another, with the detections in
the form it takes: arrays here, a list of dicts for the others. The time is from there
to the figures; reading the annotation file is timed apart. Where other programs run,
compare the seconds of CPU, which leave out waiting for a core. The memory is the most
that the process and its children held, shared pages counted once. faster-coco-eval is
left out if it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import numpy as np

# The evaluation needs neither torch nor mmdet, which apa_mmdet's __init__ would import,
# so the package is entered without running it. See eval_lvis.py.
sys.modules.setdefault("apa_mmdet", module_from_spec(find_spec("apa_mmdet")))
NAMES = ("apa_mmdet", "lvis-api", "faster-coco-eval")
GROWTH = (1000, 2000, 5000, 10_000, 20_000)
HEIGHT, WIDTH, NUM_CLASSES = 480, 640, 1203
_GROUPS = {"f": 405, "c": 461, "r": 337}  # LVIS v1's numbers of classes
_IMAGE_COUNTS = {"f": (2000, 101), "c": (100, 11), "r": (10, 1)}


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2500, help="number of images")
    parser.add_argument("--detections", type=int, default=300, help="of each image")
    parser.add_argument("--metric", choices=["bbox", "segm"], default="bbox")
    parser.add_argument(
        "--judged",
        type=float,
        default=1 / 3,
        help="share of the detections that the federated rules keep",
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs; medians count")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, help="evaluators to run"
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help=f"run apa_mmdet alone on {', '.join(map(str, GROWTH))} images and plot it",
    )
    parser.add_argument("--plot", default="lvis_eval_growth.png", help="with --growth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (one for each core)")
    parser.add_argument("--data", help="folder to keep the generated data in")
    parser.add_argument("--run", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------ generated data


def generate(folder: Path, args: argparse.Namespace) -> None:
    """Write an annotation file and the arrays of detections for it."""
    rng = np.random.default_rng(args.seed)
    # A long tail: class k is shown in proportion to 1 / (k + 10).
    popularity = 1 / (np.arange(NUM_CLASSES) + 10)
    popularity /= popularity.sum()
    groups = "".join(letter * number for letter, number in _GROUPS.items())
    counts = [
        np.geomspace(*_IMAGE_COUNTS[letter], number)
        for letter, number in _GROUPS.items()
    ]
    categories = [
        dict(id=k + 1, name=f"class_{k + 1}", frequency=group, image_count=round(count))
        for k, (group, count) in enumerate(zip(groups, np.concatenate(counts)))
    ]
    images, annotations, found = [], [], []
    for index in range(args.images):
        # As in LVIS: 3.4 classes and 11 instances in an image.
        shown = rng.choice(
            NUM_CLASSES, 1 + rng.poisson(2.4), replace=False, p=popularity
        )
        absent = rng.choice(NUM_CLASSES, 8, replace=False)
        absent = np.setdiff1d(absent, shown)
        images.append(
            dict(
                id=2 * index + 1,
                height=HEIGHT,
                width=WIDTH,
                neg_category_ids=(absent + 1).tolist(),
                not_exhaustive_category_ids=(
                    shown[rng.random(len(shown)) < 0.1] + 1
                ).tolist(),
            )
        )
        counts = rng.geometric(0.3, len(shown))
        boxes = draw_boxes(rng, counts.sum())
        truth_class = np.repeat(shown, counts)
        for class_index, box in zip(truth_class.tolist(), boxes):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=2 * index + 1,
                    category_id=class_index + 1,
                    bbox=box.tolist(),
                    area=float(np.pi / 4 * box[2] * box[3]),
                    segmentation=[ellipse(box)],
                )
            )
        found.append(detect(rng, args, index, boxes, truth_class, shown, absent))
    data = dict(images=images, categories=categories, annotations=annotations)
    (folder / "truth.json").write_text(json.dumps(data))
    arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    if args.metric == "segm":
        arrays |= draw_masks(arrays["box"])
    np.savez(folder / "detections.npz", **arrays)


def draw_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Return boxes of all sizes, (number, 4), to two digits."""
    size = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
    corner = rng.random((number, 2)) * (np.array([WIDTH, HEIGHT]) - size)
    return np.round(np.concatenate([corner, size], axis=1), 2)


def detect(
    rng: np.random.Generator,
    args: argparse.Namespace,
    index: int,
    boxes: np.ndarray,
    truth_class: np.ndarray,
    shown: np.ndarray,
    absent: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return one image's detections."""
    number = args.detections
    category = rng.integers(0, NUM_CLASSES, number)
    box = draw_boxes(rng, number)
    score = rng.beta(1, 6, number)
    # Of those that are judged, half lie near an annotation and share its class.
    is_judged = rng.random(number) < args.judged
    is_near = is_judged & (rng.random(number) < 0.5)
    near = rng.integers(0, len(boxes), is_near.sum())
    judged = np.concatenate([shown, absent])
    others = np.setdiff1d(np.arange(NUM_CLASSES), judged)
    category[~is_judged] = rng.choice(others, (~is_judged).sum())
    category[is_judged] = rng.choice(judged, is_judged.sum())
    category[is_near] = truth_class[near]
    jitter = rng.normal(0, 0.1, (len(near), 4)) * np.tile(boxes[near, 2:], 2)
    box[is_near] = boxes[near] + jitter
    box[:, :2] = box[:, :2].clip(0)
    box[:, 2:] = box[:, 2:].clip(2, np.array([WIDTH, HEIGHT]) - box[:, :2])
    score[is_near] += 0.5 * rng.random(len(near))
    return dict(
        image=np.full(number, index, np.int32),
        category=category.astype(np.int32),
        score=score.clip(0, 1).astype(np.float32),
        box=box.astype(np.float32),
    )


def ellipse(box: np.ndarray) -> list[float]:
    """Return the polygon of the ellipse in a box."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    middle, radius = box[:2] + box[2:] / 2, box[2:] / 2
    points = middle + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.round(points, 2).ravel().tolist()


def draw_masks(boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Return RLEs of the ellipses in boxes, end to end."""
    from pycocotools import mask as mask_utils

    counts = [
        mask_utils.frPyObjects([ellipse(box)], HEIGHT, WIDTH)[0]["counts"]
        for box in boxes.astype(np.float64)
    ]
    return dict(
        mask_bytes=np.frombuffer(b"".join(counts), np.uint8),
        mask_length=np.array([len(item) for item in counts], np.int32),
    )


# ---------------------------------------------------------------------- evaluators


def as_dicts(arrays: dict[str, np.ndarray]) -> list[dict]:
    """Return detections as the other evaluators take them."""
    columns = zip(
        *(arrays[name].tolist() for name in ("image", "category", "score", "box"))
    )
    items = [
        dict(image_id=2 * i + 1, category_id=c + 1, score=s, bbox=b)
        for i, c, s, b in columns
    ]
    if "mask_bytes" in arrays:
        stop = np.cumsum(arrays["mask_length"])
        text = arrays["mask_bytes"].tobytes().decode()
        for item, end, length in zip(items, stop, arrays["mask_length"]):
            item["segmentation"] = dict(
                size=[HEIGHT, WIDTH], counts=text[end - length : end]
            )
    return items


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def run_ours(folder: Path, arrays: dict, args: argparse.Namespace) -> dict:
    """Evaluate with apa_mmdet."""
    from apa_mmdet.evaluation.detections import Detections
    from apa_mmdet.evaluation.ground_truth import load_ground_truth
    from apa_mmdet.evaluation.lvis_eval import evaluate
    from apa_mmdet.evaluation.masks import PackedMasks

    start, begin = time.perf_counter(), cpu_seconds()
    truth = load_ground_truth(folder / "truth.json", args.metric == "segm")
    loaded, middle = time.perf_counter(), cpu_seconds()
    masks = None
    if args.metric == "segm":
        masks = PackedMasks.from_lengths(arrays["mask_bytes"], arrays["mask_length"])
    detections = Detections(
        arrays["image"],
        arrays["category"],
        arrays["score"],
        arrays["box"].astype(np.float64),
        masks,
    )
    result = evaluate(truth, detections, args.metric, num_workers=args.workers)
    figures = result.summary()
    print(figures, file=sys.stderr)
    end = time.perf_counter()
    judged = len(result.ranking.image)
    return dict(
        load=loaded - start,
        evaluate=end - loaded,
        load_cpu=middle - begin,
        cpu=cpu_seconds() - middle,
        AP=figures["AP"],
        APr=figures["APr"],
        judged=judged / len(arrays["image"]),
    )


def run_lvis_api(folder: Path, arrays: dict, args: argparse.Namespace) -> dict:
    """Evaluate with lvis-api, whose np.float is repaired as apa_mmdet.compat does."""
    import lvis.eval
    from lvis import LVIS, LVISEval, LVISResults

    if not hasattr(np, "float"):
        lvis.eval.np.float = float
    items = as_dicts(arrays)
    start, begin = time.perf_counter(), cpu_seconds()
    truth = LVIS(str(folder / "truth.json"))
    loaded, middle = time.perf_counter(), cpu_seconds()
    evaluation = LVISEval(truth, LVISResults(truth, items), args.metric)
    evaluation.run()
    evaluation.print_results()
    end = time.perf_counter()
    figures = evaluation.get_results()
    return dict(
        load=loaded - start,
        evaluate=end - loaded,
        load_cpu=middle - begin,
        cpu=cpu_seconds() - middle,
        AP=figures["AP"],
        APr=figures["APr"],
    )


def run_faster(folder: Path, arrays: dict, args: argparse.Namespace) -> dict:
    """Evaluate with faster-coco-eval in its LVIS mode."""
    from faster_coco_eval import COCO, COCOeval_faster

    items = as_dicts(arrays)
    start, begin = time.perf_counter(), cpu_seconds()
    truth = COCO(str(folder / "truth.json"))
    loaded, middle = time.perf_counter(), cpu_seconds()
    evaluation = COCOeval_faster(
        truth, truth.loadRes(items), args.metric, lvis_style=True
    )
    evaluation.params.maxDets = [300]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    end = time.perf_counter()
    figures = evaluation.stats_as_dict
    return dict(
        load=loaded - start,
        evaluate=end - loaded,
        load_cpu=middle - begin,
        cpu=cpu_seconds() - middle,
        AP=figures["AP_all"],
        APr=figures["APr"],
    )


RUNS = dict(zip(NAMES, (run_ours, run_lvis_api, run_faster)))


# ------------------------------------------------------------------------- measuring


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not waited for."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [
            int(c) for task in tasks for c in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended


def held_by(pid: int) -> int:
    """Return the bytes a process and its descendants hold, shared ones once."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = sum(int(line.split()[1]) for line in text.splitlines() if "Pss:" in line[:4])
    return own * 1024 + sum(map(held_by, children(pid)))


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict | None:
    """Run one evaluator in a process of its own; None if it fails."""
    command = [
        *(sys.executable, "-W", "ignore", __file__, "--run", name),
        *("--data", str(folder), "--metric", args.metric),
    ]
    if args.workers:
        command += ["--workers", str(args.workers)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak = 0

    def watch() -> None:
        # Looking costs the process time; alone, it knows its own peak.
        nonlocal peak
        while process.poll() is None:
            if children(process.pid):
                peak = max(peak, held_by(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, errors = process.communicate()
    watcher.join()
    if process.returncode:
        print(f"{name} ended with {process.returncode}: {errors[-500:]}")
        return None
    result = json.loads(out.splitlines()[-1])
    result["memory"] = max(peak, result.pop("highest")) / 1e9
    return result


def run_here(args: argparse.Namespace) -> None:
    """Run one evaluator in this process and print what it took as json."""
    folder = Path(args.data)
    with np.load(folder / "detections.npz") as file:
        arrays = dict(file)
    result = RUNS[args.run](folder, arrays, args)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            result["highest"] = int(line.split()[1]) * 1024
    print(json.dumps(result))


def median_of(name: str, folder: Path, args: argparse.Namespace) -> dict | None:
    """Return the medians over the repeated runs."""
    runs = [measure(name, folder, args) for _ in range(args.repeats)]
    if None in runs:
        return None
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Run the evaluators on the same data and print a table."""
    print(
        f"{args.metric}: {args.images:,} images x {args.detections} detections x "
        f"{NUM_CLASSES:,} classes, median of {args.repeats}"
    )
    head = ("evaluator", "annotations", "evaluation", "its CPU", "memory", "AP", "APr")
    print("{:18}{:>13}{:>12}{:>11}{:>10}{:>10}{:>10}".format(*head), flush=True)
    rows = {}
    for name in args.only:
        if name == "faster-coco-eval" and find_spec("faster_coco_eval") is None:
            print(f"{name:18}  not installed: pip install faster-coco-eval")
            continue
        row = rows[name] = median_of(name, folder, args)
        if row is not None:
            print(
                f"{name:18}{row['load']:11.2f} s{row['evaluate']:10.2f} s"
                f"{row['cpu']:9.2f} s{row['memory']:7.2f} GB"
                f"{row['AP']:10.6f}{row['APr']:10.6f}",
                flush=True,
            )
    ours = rows.get("apa_mmdet")
    if ours:
        print(f"judged by the federated rules: {ours['judged']:.1%} of the detections")
    for name, row in rows.items():
        if ours and row and row is not ours:
            whole = (row["evaluate"] + row["load"]) / (ours["evaluate"] + ours["load"])
            print(
                f"{name}: {row['evaluate'] / ours['evaluate']:.1f} times the time "
                f"({row['cpu'] / ours['cpu']:.1f} of CPU; {whole:.1f} with the "
                f"annotations), {row['memory'] / ours['memory']:.1f} times the memory"
            )


def grow(args: argparse.Namespace) -> None:
    """Measure apa_mmdet at growing sizes, and plot time and memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = []
    print(f"{'images':>8}{'annotations':>13}{'evaluation':>12}{'memory':>10}")
    for args.images in GROWTH:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), args)
            row = median_of("apa_mmdet", Path(folder), args)
        if row is None:
            sys.exit("the measurement failed")
        rows.append(row)
        print(
            f"{args.images:8,}{row['load']:11.2f} s{row['evaluate']:10.2f} s"
            f"{row['memory']:7.2f} GB",
            flush=True,
        )
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    series = (
        ("seconds", [row["load"] + row["evaluate"] for row in rows]),
        ("seconds of CPU", [row["load_cpu"] + row["cpu"] for row in rows]),
        ("GB", [row["memory"] for row in rows]),
    )
    for axis, (unit, values) in zip(axes, series):
        slope, offset = np.polyfit(GROWTH, values, 1)
        fitted = np.polyval((slope, offset), GROWTH)
        left = 1 - np.var(values - fitted) / np.var(values)
        axis.plot(GROWTH, values, "o", label="measured")
        axis.plot(GROWTH, fitted, "-", label=f"straight line, R² = {left:.4f}")
        axis.set(xlabel="images", ylabel=unit, xlim=0, ylim=0)
        axis.legend()
        print(
            f"{unit}: {offset:.2f} + {slope * 1000:.3f} for each 1,000 images, "
            f"R² = {left:.4f}"
        )
    figure.suptitle(f"{args.metric}: {args.detections} detections an image")
    figure.savefig(args.plot, dpi=120)
    print(f"plotted: {args.plot}")


def main() -> None:
    """Measure."""
    args = parse_args()
    if args.run:
        run_here(args)
    elif args.growth:
        grow(args)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(args.data or scratch)
            folder.mkdir(parents=True, exist_ok=True)
            generate(folder, args)
            compare(args, folder)


if __name__ == "__main__":
    main()

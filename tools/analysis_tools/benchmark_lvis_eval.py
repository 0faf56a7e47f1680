"""Measure LVIS evaluation: apa_mmdet, lvis-api and faster-coco-eval on random data.

    python tools/analysis_tools/benchmark_lvis_eval.py
    python tools/analysis_tools/benchmark_lvis_eval.py --metric segm
    python tools/analysis_tools/benchmark_lvis_eval.py --growth

Each evaluator runs in a process of its own, one after another, with the detections in
the form it takes: arrays here, a list of dicts for the others. The evaluation is timed
from there to the figures; reading the annotation file is timed separately. If other
programs are running, compare the seconds of CPU, which leave out waiting for a core.
The memory is the peak of the process and its children, shared pages counted once.
faster-coco-eval is left out if it is not installed.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import numpy as np

# As in eval_lvis.py: without torch and mmdet.
sys.modules.setdefault("apa_mmdet", module_from_spec(find_spec("apa_mmdet")))

from apa_mmdet.testing.lvis_evaluators import EVALUATORS
from apa_mmdet.testing.random_lvis import NUM_CLASSES, write_random_lvis

GROWTH = (1000, 2000, 5000, 10_000, 20_000)
HEAD = f"{'':16}  annotations  evaluation   its CPU    memory        AP       APr"
ROW = (
    "{:18}{load:9.2f} s{evaluate:10.2f} s{cpu:8.2f} s{memory:7.2f} GB{AP:10.6f}"
    "{APr:10.6f}"
)


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
        help="share of the detections that the federated rules judge",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="take medians of so many"
    )
    parser.add_argument(
        "--only", nargs="+", choices=EVALUATORS, default=[*EVALUATORS], help="run these"
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help=f"run apa_mmdet on {', '.join(map(str, GROWTH))} images and plot it",
    )
    parser.add_argument("--plot", default="lvis_eval_growth.png", help="with --growth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (one for each core)")
    parser.add_argument("--data", type=Path, help="folder to keep the random data in")
    parser.add_argument("--run", choices=EVALUATORS, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_data(folder: Path, args: argparse.Namespace) -> None:
    """Write random data of the size that was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    with_masks = args.metric == "segm"
    write_random_lvis(
        folder, args.images, args.detections, args.judged, with_masks, args.seed
    )


def run_here(args: argparse.Namespace) -> None:
    """Run one evaluator in this process and print its figures and peak memory."""
    with np.load(args.data / "detections.npz") as file:
        arrays = dict(file)
    result = EVALUATORS[args.run](args.data, arrays, args.metric, args.workers)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            result["own_peak"] = int(line.split()[1]) * 1024
    print(json.dumps(result))


def children(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [
            int(c) for task in tasks for c in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended


def memory_of(pid: int) -> int:
    """Return the bytes of a process and its descendants, shared pages counted once."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = sum(int(line.split()[1]) for line in text.splitlines() if "Pss:" in line[:4])
    return own * 1024 + sum(map(memory_of, children(pid)))


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
        # Reading its memory slows a process down; without children it knows its peak.
        nonlocal peak
        while process.poll() is None:
            if children(process.pid):
                peak = max(peak, memory_of(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, errors = process.communicate()
    watcher.join()
    if process.returncode:
        print(f"{name} ended with {process.returncode}: {errors[-500:]}")
        return None
    result = json.loads(out.splitlines()[-1])
    result["memory"] = max(peak, result.pop("own_peak")) / 1e9
    return result


def measure_median(name: str, folder: Path, args: argparse.Namespace) -> dict | None:
    """Return the medians over the repeated runs."""
    runs = [measure(name, folder, args) for _ in range(args.repeats)]
    if None in runs:
        return None
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Run the evaluators on the same data and print a table."""
    print(
        f"{args.metric}: {args.images:,} images x {args.detections} detections x "
        f"{NUM_CLASSES:,} classes, median of {args.repeats}\n{HEAD}"
    )
    rows = {}
    for name in args.only:
        if name == "faster-coco-eval" and find_spec("faster_coco_eval") is None:
            print(f"{name:18}  not installed: pip install faster-coco-eval")
            continue
        row = measure_median(name, folder, args)
        if row is not None:
            rows[name] = row
            print(ROW.format(name, **row), flush=True)
    ours = rows.pop("apa_mmdet", None)
    if ours is None:
        return
    print(f"judged by the federated rules: {ours['judged']:.1%} of the detections")
    for name, row in rows.items():
        total = (row["evaluate"] + row["load"]) / (ours["evaluate"] + ours["load"])
        print(
            f"{name}: {row['evaluate'] / ours['evaluate']:.1f} times the time "
            f"({row['cpu'] / ours['cpu']:.1f} of CPU; {total:.1f} with the "
            f"annotations), {row['memory'] / ours['memory']:.1f} times the memory"
        )


def measure_growth(args: argparse.Namespace) -> None:
    """Measure apa_mmdet at growing sizes, and plot time and memory."""
    from matplotlib.figure import Figure

    rows = []
    print(HEAD)
    for args.images in GROWTH:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), args)
            row = measure_median("apa_mmdet", Path(folder), args)
        if row is None:
            sys.exit("the measurement failed")
        rows.append(row)
        print(ROW.format(f"{args.images:,} images", **row), flush=True)
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    series = (
        ("seconds", [row["load"] + row["evaluate"] for row in rows]),
        ("seconds of CPU", [row["load_cpu"] + row["cpu"] for row in rows]),
        ("GB", [row["memory"] for row in rows]),
    )
    for axis, (unit, values) in zip(figure.subplots(1, 3), series):
        slope, offset = np.polyfit(GROWTH, values, 1)
        fitted = np.polyval((slope, offset), GROWTH)
        r_squared = 1 - np.var(values - fitted) / np.var(values)
        axis.plot(GROWTH, values, "o", label="measured")
        axis.plot(GROWTH, fitted, "-", label=f"straight line, R² = {r_squared:.4f}")
        axis.set(xlabel="images", ylabel=unit, xlim=0, ylim=0)
        axis.legend()
        print(
            f"{unit}: {offset:.2f} + {slope * 1000:.3f} for each 1,000 images, "
            f"R² = {r_squared:.4f}"
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
        measure_growth(args)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.data or Path(scratch)
            write_data(folder, args)
            compare(args, folder)


if __name__ == "__main__":
    main()

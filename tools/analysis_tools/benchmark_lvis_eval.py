r"""Measure LVIS evaluation: apa_mmdet, lvis-api and faster-coco-eval on random data.

    python tools/analysis_tools/benchmark_lvis_eval.py
    python tools/analysis_tools/benchmark_lvis_eval.py --metric segm
    python tools/analysis_tools/benchmark_lvis_eval.py --only apa_mmdet \
        --images 1000 2000 5000 10000 20000 --plot lvis_eval_growth.png

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
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np

# As in eval_lvis.py: without torch and mmdet.
package = sys.modules.setdefault("apa_mmdet", ModuleType("apa_mmdet"))
package.__path__ = [str(Path(__file__).parents[2] / "apa_mmdet")]

from apa_mmdet.testing.lvis_evaluators import EVALUATORS, run_evaluator
from apa_mmdet.testing.random_lvis import NUM_CLASSES, write_random_lvis

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
    add = parser.add_argument
    add("--images", type=int, nargs="+", default=[2500], help="numbers of images")
    add("--detections", type=int, default=300, help="of each image")
    add("--metric", choices=["bbox", "segm"], default="bbox")
    add(
        "--judged",
        type=float,
        default=1 / 3,
        help="share of the detections that the federated rules judge",
    )
    add("--repeats", type=int, default=1, help="take medians of so many")
    names = [*EVALUATORS]
    add("--only", nargs="+", choices=names, default=names, help="run these")
    add("--plot", help="plot the figures at several sizes to this file")
    add("--seed", type=int, default=0)
    add("--workers", type=int, help="processes (one for each core)")
    for flag in ("--run", "--data"):  # what a measured process runs, and on what
        add(flag, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_here(args: argparse.Namespace) -> None:
    """Run one evaluator in this process and print its figures and peak memory."""
    folder = Path(args.data)
    with np.load(folder / "detections.npz") as file:
        arrays = dict(file)
    result = run_evaluator(args.run, folder, arrays, args.metric, args.workers)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            result["own_peak"] = int(line.split()[1]) * 1024
    print(json.dumps(result))


def children(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    try:
        tasks = [*Path(f"/proc/{pid}/task").glob("*/children")]
        return [int(child) for task in tasks for child in task.read_text().split()]
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
    command = [sys.executable, "-W", "ignore", __file__, "--run", name]
    command += ["--data", str(folder), "--metric", args.metric]
    if args.workers:
        command += ["--workers", str(args.workers)]
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            # A process knows its own peak, and reading its memory slows it down.
            if children(process.pid):
                peak = max(peak, memory_of(process.pid))
            time.sleep(0.05)
        output.seek(0)
        out = output.read()
    if process.returncode:
        print(f"{name} ended with {process.returncode}: {out[-500:]}")
        return None
    result = json.loads(out.splitlines()[-1])
    result["memory"] = max(peak, result.pop("own_peak")) / 1e9
    return result


def compare(args: argparse.Namespace, num_images: int, folder: Path) -> dict[str, dict]:
    """Run the evaluators on the same data, print a table and return the figures."""
    sizes = num_images, args.detections, args.judged
    write_random_lvis(folder, *sizes, args.metric == "segm", args.seed)
    print(
        f"{args.metric}: {num_images:,} images x {args.detections} detections x "
        f"{NUM_CLASSES:,} classes, median of {args.repeats}\n{HEAD}"
    )
    rows = {}
    for name in args.only:
        if name == "faster-coco-eval" and find_spec("faster_coco_eval") is None:
            print(f"{name:18}  not installed: pip install faster-coco-eval")
            continue
        runs = [measure(name, folder, args) for _ in range(args.repeats)]
        if None not in runs:
            rows[name] = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
            print(ROW.format(name, **rows[name]), flush=True)
    if "apa_mmdet" in rows:
        print_ratios(rows)
    return rows


def print_ratios(rows: dict[str, dict]) -> None:
    """Print how many times apa_mmdet's time and memory the others take."""
    ours = rows["apa_mmdet"]
    print(f"judged by the federated rules: {ours['judged']:.1%} of the detections")
    for name, row in rows.items():
        if row is not ours:
            total = (row["evaluate"] + row["load"]) / (ours["evaluate"] + ours["load"])
            print(
                f"{name}: {row['evaluate'] / ours['evaluate']:.1f} times the time "
                f"({row['cpu'] / ours['cpu']:.1f} of CPU; {total:.1f} with the "
                f"annotations), {row['memory'] / ours['memory']:.1f} times the memory"
            )


def plot(sizes: dict[int, dict[str, dict]], args: argparse.Namespace) -> None:
    """Plot time and memory against the number of images, with straight-line fits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    series = {
        "seconds": lambda row: row["load"] + row["evaluate"],
        "seconds of CPU": lambda row: row["load_cpu"] + row["cpu"],
        "GB": lambda row: row["memory"],
    }
    for axis, (unit, value) in zip(figure.subplots(1, 3), series.items()):
        for name in sizes[max(sizes)]:
            measured = {n: value(rows[name]) for n, rows in sizes.items()}
            x, y = np.array([*measured.items()]).T
            slope, offset = np.polyfit(x, y, 1)
            fitted = offset + slope * x
            r_squared = 1 - np.var(y - fitted) / np.var(y)
            (points,) = axis.plot(x, y, "o", label=name)
            label = f"straight line, R² = {r_squared:.4f}"
            axis.plot(x, fitted, "-", color=points.get_color(), label=label)
            print(
                f"{name}, {unit}: {offset:.2f} + {slope * 1000:.3f} for each 1,000 "
                f"images, R² = {r_squared:.4f}"
            )
        axis.set(xlabel="images", ylabel=unit, xlim=0, ylim=0)
        axis.legend()
    figure.suptitle(f"{args.metric}: {args.detections} detections an image")
    figure.savefig(args.plot, dpi=120)
    print(f"plotted: {args.plot}")


def main() -> None:
    """Measure."""
    args = parse_args()
    if args.run:
        run_here(args)
        return
    sizes = {}
    for num_images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            sizes[num_images] = compare(args, num_images, Path(folder))
    if args.plot:
        plot(sizes, args)


if __name__ == "__main__":
    main()

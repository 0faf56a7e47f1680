"""Measure training steps of whole detectors side by side: time, launches and memory.

    python tools/analysis_tools/benchmark_train_step.py CONFIG [CONFIG ...]
    python tools/analysis_tools/benchmark_train_step.py --relu-twin CONFIG [CONFIG ...]

Ratios are to the first config or, with --relu-twin, of each config to itself with ReLU
(GELU or SiLU where AGLU starts like these) for AGLU, a sigmoid for each APA gate and SE
without LayerNorm and Dropout. Weights are random, images and annotations made up; the
models that are compared take turns, a step each, round after round in one process, and
a ratio is the median of the rounds' ratios. All two-stage detectors get the proposals
of the first. The figures:

- step: wall time; host: the part of it until control returns, in which the CPU issues
  the work; busy: time in which the GPU runs kernels, copies or fills, by the profiler;
  launches: how many of those. A step takes at least the larger of host and busy. On a
  CPU, launches are those that forward and backward would need on a GPU, with one kernel
  for each operation of torch; counting them needs Triton.
- saved: bytes of the distinct storages that autograd keeps for backward, without
  parameters and buffers; peak: the most that a step allocates on a GPU.

Writes benchmark_train_step.json and .png.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from mmengine import Config

import apa_mmdet  # noqa: F401  registers everything
from apa_mmdet.testing.benchmark import bar_charts, benchmark_parser, positive, table
from apa_mmdet.testing.configs import make_relu_twin, read_config
from apa_mmdet.testing.launches import count_launches
from apa_mmdet.testing.memory import peak_bytes, saved_bytes
from apa_mmdet.testing.timing import (
    gpu_work,
    machine,
    median_ratio,
    wall_and_host_seconds,
)
from apa_mmdet.testing.training_step import AMP_DTYPES, TrainingStep

_MIB = 2**20
_COLUMNS = {
    "step ms": "{ms:.1f}",
    "ratio": "{time_ratio:.3f}",
    "host ms": "{host_ms:.1f}",
    "busy ms": "{gpu_busy_ms:.1f}",
    "launches": "{gpu_launches:d}",
    "saved MiB": "{saved_mib:.1f}",
    "saved ratio": "{saved_ratio:.3f}",
    "peak MiB": "{peak_mib:.0f}",
}


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = benchmark_parser(__doc__, rounds=7)
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG")
    add("--batch", type=positive, default=2, help="number of images")
    size = dict(type=positive, nargs=2, default=[320, 320])
    add("--size", help="height and width", **size)
    amp_help = "autocast to this type; mmcv's NMS and RoIAlign have no bf16"
    add("--amp", choices=AMP_DTYPES, help=amp_help)
    add("--backbone", action="store_true", help="train the backbones only")
    add("--relu-twin", action="store_true", help="compare each config with its twin")
    add("--name", default="benchmark_train_step", help="of the files written")
    args = parser.parse_args()
    for path in args.configs:
        try:
            read(path, args.device)
        except (FileNotFoundError, ValueError) as error:
            parser.error(f"CONFIG: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def read(path: str, device: str) -> Config:
    """Return a config; on a CPU, CARAFE (CUDA only) becomes a deconvolution."""
    cfg = read_config(path)
    mask_head = cfg.model.get("roi_head", {}).get("mask_head", {})
    if device == "cpu" and "carafe" in str(mask_head.get("upsample_cfg")):
        mask_head.upsample_cfg = dict(type="deconv", scale_factor=2)
    return cfg


def compare(cfgs: dict[str, Config], args: argparse.Namespace) -> list[dict]:
    """Return a row of figures for each config, with ratios to the first."""
    options = args.batch, args.size, args.device, args.amp, args.backbone, []
    steps = [TrainingStep(cfg, *options) for cfg in cfgs.values()]
    saved = [saved_bytes(step.loss, step.model) for step in steps]
    times: list[list] = [[] for _ in steps]
    for number in range(args.rounds + 2):
        for step, pairs in zip(steps, times):
            pair = wall_and_host_seconds(step, args.device)
            pairs += [pair] * (number >= 2)  # the first rounds warm up
    rows = []
    for name, step, pairs, size in zip(cfgs, steps, times, saved):
        walls, hosts = zip(*pairs)
        peak = peak_bytes(step, args.device)
        launches, busy = gpu_work(step, args.device)
        if launches is None and find_spec("triton") is not None:
            step.model.zero_grad()  # nothing to accumulate into
            launches = count_launches(lambda step=step: step.loss().backward())
        row = dict(
            config=name,
            part="backbone" if args.backbone else "detector",
            ms=1e3 * median(walls),
            time_ratio=median_ratio(walls, [wall for wall, _ in times[0]]),
            host_ms=1e3 * median(hosts),
            gpu_busy_ms=busy and 1e3 * busy,
            gpu_launches=launches,
            saved_mib=size / _MIB,
            saved_ratio=size / saved[0],
            peak_mib=peak and peak / _MIB,
        )
        rows.append(row)
    return rows


def measure(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure the configs together, or each beside its twin; yield the rows so far."""
    paths = {f"{Path(p).resolve().parent.name}/{Path(p).stem}": p for p in args.configs}
    cfgs = {name: read(path, args.device) for name, path in paths.items()}
    if not args.relu_twin:
        yield compare(cfgs, args)
        return
    rows = []
    for name, cfg in cfgs.items():
        twin = copy.deepcopy(cfg)
        make_relu_twin(twin.model)
        twin_row, row = compare({"ReLU twin": twin, name: cfg}, args)
        rows.append(dict(row, twin=twin_row))
        yield rows
        gc.collect()  # detectors are part of reference cycles


def main() -> None:
    """Measure, write and print."""
    args = parse_args()
    torch.set_flush_denormal(True)  # as tools/train.py does
    facts = machine(args.device)
    about = {name: getattr(args, name) for name in ("batch", "size", "rounds", "amp")}
    path = args.out / f"{args.name}.json"
    for rows in measure(args):  # written even if a later config fails
        results = dict(machine=facts, **about, rows=rows)
        path.write_text(json.dumps(results, indent=1) + "\n")
    base = "each config's twin" if args.relu_twin else "the first config"
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(
        f"{args.batch} x 3 x {args.size[0]} x {args.size[1]}, {args.amp or 'fp32'}, "
        f"{rows[0]['part']}, ratios to {base}"
    )
    shown = [r for row in rows for r in (row.get("twin"), row) if r is not None]
    print(table("config", "config", _COLUMNS, shown))
    titles = {"time_ratio": "time of a step", "saved_ratio": "saved for backward"}
    panels = {
        f"{title}, {base} = 1": {row["config"]: [row[key]] for row in rows}
        for key, title in titles.items()
    }
    print(f"written: {path} and {bar_charts(panels, path.with_suffix('.png'))}")


if __name__ == "__main__":
    main()

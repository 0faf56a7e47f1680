"""Measure training steps of whole detectors in turn: time, and memory for backward.

    python tools/analysis_tools/benchmark_train_step.py CONFIG [CONFIG ...]
    python tools/analysis_tools/benchmark_train_step.py --relu-twin CONFIG [CONFIG ...]

Ratios are to the first config or, with --relu-twin, of each config to itself with ReLU
(GELU or SiLU where AGLU starts like these) for AGLU, a sigmoid for each APA gate and SE
without LayerNorm and Dropout. Weights are random, images and annotations made up; the
models that are compared take a step each, round after round in one process, and the
medians of the rounds' ratios count. With random weights two-stage detectors find
different proposals; all get those of the first, so that their heads do the same work.
Bytes saved are those of the distinct storages that autograd keeps, parameters and
buffers left out. Writes benchmark_train_step.json and .png.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import apa_mmdet  # noqa: F401  registers everything

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_activation import (  # noqa: E402
    hardware,
    ratio,
    saved_bytes,
    synchronize,
)


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(320, 320), help="height and width"
    )
    parser.add_argument("--rounds", type=int, default=7, help="medians of so many")
    parser.add_argument(
        "--backbone", action="store_true", help="measure the backbones alone"
    )
    parser.add_argument(
        "--relu-twin", action="store_true", help="compare each config with its twin"
    )
    parser.add_argument(
        "--name", default="benchmark_train_step", help="of the files written"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    for path in args.configs:
        if not os.path.isfile(path):
            parser.error(f"CONFIG {path}: no such file")
    for name in ("batch", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: expected at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def without_weights(cfg: object) -> None:
    """Drop every init_cfg that would read a file."""
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, (dict, list, tuple)):
            without_weights(value)
    if isinstance(cfg, dict):
        init = cfg.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            cfg["init_cfg"] = None


def relu_twin(cfg: object) -> None:
    """Put ReLU for AGLU, sigmoid for APA and SE's own form, in place."""
    values = cfg.values() if isinstance(cfg, dict) else cfg
    for value in list(values):
        if isinstance(value, (dict, list, tuple)):
            relu_twin(value)
    if not isinstance(cfg, dict):
        return
    kind = cfg.get("type")
    if kind == "APADetector":
        cfg["type"] = cfg.pop("base_type")
        for name in ("parts", "types", "activation", "init", "exclude", "gates"):
            cfg.pop(name, None)
    elif kind in ("AGLU", "APA"):
        stands_for = {"gelu": "GELU", "silu": "SiLU"}.get(cfg.get("init"), "ReLU")
        cfg.clear()
        cfg["type"] = stands_for if kind == "AGLU" else "Sigmoid"
    elif kind in ("APASELayer", "APACBAM"):
        cfg["gate_cfg"] = dict(type="Sigmoid")
    elif kind in ("APAResNet", "APAResNeXt"):
        cfg.setdefault("act_cfg", dict(type="ReLU"))


def share_proposals(rpn: nn.Module, shared: list) -> None:
    """Let a region proposal network hand on the proposals that came first."""
    own = rpn.loss_and_predict

    def loss_and_predict(*args, **kwargs):
        losses, proposals = own(*args, **kwargs)
        if not shared:
            shared.extend(found.clone() for found in proposals)
        return losses, [found.clone() for found in shared]

    rpn.loss_and_predict = loss_and_predict


class Step:
    """A detector, or its backbone, that takes training steps on one batch.

    Args:
        name: What the tables call it.
        cfg: The detector's config.
        args: The command line's.
        proposals: Empty, and the same list for all steps that are compared.
    """

    def __init__(
        self, name: str, cfg: Config, args: argparse.Namespace, proposals: list
    ) -> None:
        torch.manual_seed(0)
        self.name = name
        init_default_scope(cfg.get("default_scope", "mmdet"))
        without_weights(cfg.model)
        # All at one size; these ask the runner for the iteration's number.
        cfg.model.get("data_preprocessor", {}).pop("batch_augments", None)
        model = MODELS.build(cfg.model)
        for module in model.modules():
            if hasattr(module, "class_frequency"):
                module.class_frequency.fill_(0.01)
        model.init_weights()
        data = demo_mm_inputs(
            args.batch,
            [[3, *args.size]] * args.batch,
            num_classes=40,
            with_mask="mask_head" in {**cfg.model, **cfg.model.get("roi_head", {})},
        )
        model = model.to(args.device).train()
        if hasattr(model, "roi_head") and hasattr(model, "rpn_head"):
            share_proposals(model.rpn_head, proposals)
        self.data = model.data_preprocessor(data, True)
        self.model = model.backbone if args.backbone else model
        self.is_backbone = args.backbone

    def loss(self) -> Tensor:
        """Return the loss of one forward pass."""
        torch.manual_seed(1)  # the same proposals are sampled
        if self.is_backbone:
            return sum(level.mean() for level in self.model(self.data["inputs"]))
        losses = self.model(**self.data, mode="loss")
        return sum(
            part.mean()
            for name, value in losses.items()
            if "loss" in name
            for part in (value if isinstance(value, list) else [value])
        )

    def __call__(self) -> None:
        """Take a step, without an optimizer's update."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()

    def saved_bytes(self) -> int:
        """Return the bytes that autograd keeps for backward."""
        return saved_bytes(self.model, self.loss)


def peak_memory(step: Step, device: str) -> int | None:
    """Return the most memory held in a step: of the device, or of the process.

    The process holds all that is compared, and what its allocator keeps back.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))


def plot(rows: list[dict], path: Path, base: str) -> None:
    """Draw time and bytes as bars, what they are compared with as 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [row["config"] for row in rows]
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 1 + 0.45 * len(rows)), layout="constrained", sharey=True
    )
    for axis, key, title in zip(
        axes, ("time_ratio", "saved_ratio"), ("time of a step", "saved for backward")
    ):
        bars = axis.barh(names, [row[key] for row in rows])
        axis.bar_label(bars, fmt="%.3f", padding=2)
        axis.margins(x=0.15)
        axis.set(title=f"{title}, {base} = 1")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def compare(steps: list[Step], args: argparse.Namespace) -> list[dict]:
    """Return a row of figures for each step, ratios being to the first."""
    saved = [step.saved_bytes() for step in steps]
    times = [[] for _ in steps]
    for number in range(args.rounds + 2):
        for step, found in zip(steps, times):
            synchronize(args.device)
            start = time.perf_counter()
            step()
            synchronize(args.device)
            if number >= 2:  # the first rounds warm up
                found.append(time.perf_counter() - start)
    return [
        dict(
            config=step.name,
            part="backbone" if args.backbone else "detector",
            seconds=statistics.median(found),
            time_ratio=ratio(found, times[0]),
            saved_mib=kept / 2**20,
            saved_ratio=kept / saved[0],
            peak_mib=(peak_memory(step, args.device) or 0) / 2**20 or None,
        )
        for step, found, kept in zip(steps, times, saved)
    ]


def title(path: str) -> str:
    """Return a config's folder and name."""
    return f"{Path(path).resolve().parent.name}/{Path(path).stem}"


def read(path: str, device: str) -> Config:
    """Return a config; on a CPU, CARAFE (CUDA alone) becomes a deconvolution."""
    cfg = Config.fromfile(path)
    mask_head = cfg.model.get("roi_head", {}).get("mask_head", {})
    if device == "cpu" and "carafe" in str(mask_head.get("upsample_cfg")):
        mask_head.upsample_cfg = dict(type="deconv", scale_factor=2)
    return cfg


def measure(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure the configs together, or each beside its twin; yield rows so far."""
    if not args.relu_twin:
        shared = []
        steps = [
            Step(title(path), read(path, args.device), args, shared)
            for path in args.configs
        ]
        yield compare(steps, args)
        return
    rows = []
    for path in args.configs:
        twin, cfg, shared = read(path, args.device), read(path, args.device), []
        relu_twin(twin.model)
        steps = [
            Step(name, own, args, shared)
            for name, own in (("twin", twin), (title(path), cfg))
        ]
        before, after = compare(steps, args)
        after["twin"] = {key: before[key] for key in ("seconds", "saved_mib")}
        rows.append(after)
        yield rows
        del steps
        gc.collect()  # detectors hold themselves in cycles


def main() -> None:
    """Measure, write and print."""
    args = parse_args()
    what = dict(batch=args.batch, size=list(args.size), rounds=args.rounds)
    machine = hardware(args.device)
    path = args.out / f"{args.name}.json"
    for rows in measure(args):  # a later config that fails takes nothing with it
        found = dict(machine=machine, **what, rows=rows)
        path.write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, path.with_suffix(".png"), "ReLU twin" if args.relu_twin else "the first")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    base = "each config's twin" if args.relu_twin else "the first config"
    sizes = f"{args.batch} x 3 x {args.size[0]} x {args.size[1]}"
    print(f"{sizes}, {rows[0]['part']}, ratios to {base}")
    head = ("step s", "ratio", "saved MiB", "ratio", "peak MiB")
    print(f"{'config':44}" + "".join(f"{name:>11}" for name in head))
    for row in rows:
        peak = f"{row['peak_mib']:11.0f}" if row["peak_mib"] else f"{'-':>11}"
        print(
            f"{row['config']:44}{row['seconds']:11.3f}{row['time_ratio']:11.3f}"
            f"{row['saved_mib']:11.1f}{row['saved_ratio']:11.3f}{peak}"
        )
    print(f"written: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()

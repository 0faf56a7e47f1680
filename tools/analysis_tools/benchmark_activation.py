"""Measure AGLU and APA next to ReLU, SiLU, GELU and PReLU: time and memory.

    python tools/analysis_tools/benchmark_activation.py
    python tools/analysis_tools/benchmark_activation.py --dtypes float32 --out /tmp

Every activation is run right after SiLU in one process, round after round, and the
medians of the rounds' ratios to SiLU count: what slows the machine slows both. Bytes
saved are those of the storages that autograd keeps, in units of the input. GB/s
counts the forward pass's one read and one write, beside a copy of the same tensor.
Writes benchmark_activation.json and .png.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from apa_mmdet.layers.activation import AGLU, APA
from apa_mmdet.ops import use_implementation

SHAPES = ((8, 64, 128, 128), (2, 256, 200, 304), (8, 100, 1024))
UNIFORM = dict(lam=0.5, kappa=1.15)  # the middle of what training starts from


def shape(text: str) -> tuple[int, ...]:
    """Return the sizes that the command line gives as NxCxHxW or NxTxC.

    Raises:
        argparse.ArgumentTypeError: For anything else.
    """
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.split("x"))
    if len(sizes) not in (3, 4) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"{text}: expected sizes of at least 1 as NxCxHxW or NxTxC"
        )
    return sizes


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=["float32", "bfloat16", "float16"],
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        default=SHAPES,
        help="NxCxHxW or NxTxC, such as 8x64x128x128",
    )
    parser.add_argument("--rounds", type=int, default=15, help="medians of so many")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks"), help="folder to write to"
    )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: expected at least 1")
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {args.device}: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def contestants(channels: int, device: str) -> dict[str, tuple[nn.Module, str]]:
    """Return activations by name, each with the implementation to run it with."""
    fused = "compiled" if device == "cpu" else "triton"
    found = {
        "SiLU": (nn.SiLU(), "auto"),
        "ReLU": (nn.ReLU(), "auto"),
        "GELU": (nn.GELU(), "auto"),
        "PReLU": (nn.PReLU(), "auto"),
    }
    for name in (fused, "plain"):
        found[f"AGLU, {name}"] = AGLU(init=UNIFORM), name
        fixed = AGLU(init=UNIFORM, learnable=False)
        found[f"AGLU, {name}, fixed"] = fixed, name
        if name != "plain":
            found[f"AGLU, {name}, per channel"] = AGLU(channels, init=UNIFORM), name
        found[f"APA, {name}"] = APA(init=UNIFORM), name
    return found


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: str, repeats: int) -> float:
    """Return the time of one call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Return the bytes of distinct storages kept, parameters and buffers left out."""
    own = [*model.parameters(), *model.buffers()]
    seen = {tensor.untyped_storage().data_ptr(): None for tensor in own}

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # Kept alive, so that no address is used again.
        seen.setdefault(storage.data_ptr(), storage)
        # The tensor itself, kept by what made it, would never be freed.

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        forward()
    return sum(storage.nbytes() for storage in seen.values() if storage is not None)


def measure(sizes: tuple[int, ...], dtype: str, args: argparse.Namespace) -> list[dict]:
    """Return a row for each activation on tensors of one shape and dtype."""
    torch.manual_seed(0)
    options = dict(device=args.device, dtype=getattr(torch, dtype))
    x = torch.randn(sizes, **options).requires_grad_()
    grad = torch.randn(sizes, **options)
    channels = sizes[1] if len(sizes) == 4 else sizes[-1]
    repeats = min(max(2, 16_000_000 // x.numel()), 200)
    repeats *= 1 if args.device == "cpu" else 20
    rows, times = [], {}
    calls = {}
    for name, (module, implementation) in contestants(channels, args.device).items():
        module = module.to(args.device)
        if isinstance(module, nn.PReLU):
            module = module.to(x.dtype)

        def forward(module=module, implementation=implementation):
            with torch.no_grad(), use_implementation(implementation):
                return module(x)

        def both(module=module, implementation=implementation):
            with use_implementation(implementation):
                y = module(x)
            inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
            torch.autograd.grad(y, inputs, grad)

        calls[name] = forward, both
        times[name] = [], []
        with use_implementation(implementation):
            kept = saved_bytes(module, partial(module, x))
        rows.append(
            dict(
                activation=name,
                shape=list(sizes),
                dtype=dtype,
                saved_inputs=round(kept / (x.numel() * x.element_size()), 3),
            )
        )
    copies = []
    target = torch.empty_like(x)
    for number in range(args.rounds + 2):
        copy = seconds(lambda: target.detach().copy_(x.detach()), args.device, repeats)
        for name, pair in calls.items():
            for kind in (0, 1):
                before = seconds(calls["SiLU"][kind], args.device, repeats)
                own = seconds(pair[kind], args.device, repeats)
                if number >= 2:  # the first rounds warm up
                    times[name][kind].append((own, before))
        if number >= 2:
            copies.append(copy)
    moved = 2 * x.numel() * x.element_size() / 1e9
    for row in rows:
        (forward, silu), (both, silu_both) = (
            zip(*pairs) for pairs in times[row["activation"]]
        )
        row.update(
            forward_ms=1e3 * statistics.median(forward),
            both_ms=1e3 * statistics.median(both),
            forward_to_silu=ratio(forward, silu),
            both_to_silu=ratio(both, silu_both),
            forward_gb_s=moved / statistics.median(forward),
            copy_gb_s=moved / statistics.median(copies),
        )
    return rows


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median ratio of times measured in turn."""
    return statistics.median(a / b for a, b in zip(times, others))


def hardware(device: str) -> dict[str, str]:
    """Return what the figures were measured on."""
    found = dict(
        torch=torch.__version__,
        python=platform.python_version(),
        threads=str(torch.get_num_threads()),
        cpu=platform.processor() or platform.machine(),
    )
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if "model name" in line]
        if names:
            found["cpu"] = names[0].split(":", 1)[1].strip()
    if device != "cpu":
        import triton

        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
        found["triton"] = triton.__version__
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True)
        found["driver"] = answer.stdout.split("\n")[0]
    return found


def plot(rows: list[dict], path: Path) -> None:
    """Draw forward+backward over SiLU's as bars, a panel for each shape and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((tuple(r["shape"]), r["dtype"]) for r in rows))
    columns = len({shape for shape, _ in panels})
    figure, axes = plt.subplots(
        -(-len(panels) // columns),
        columns,
        figsize=(4.6 * columns, 3.4 * -(-len(panels) // columns)),
        layout="constrained",
        squeeze=False,
    )
    for axis, (shape, dtype) in zip(axes.flat, panels):
        own = [r for r in rows if (tuple(r["shape"]), r["dtype"]) == (shape, dtype)]
        names = [row["activation"] for row in own]
        bars = axis.barh(names, [row["both_to_silu"] for row in own])
        axis.bar_label(bars, fmt="%.2f", padding=2)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_xscale("log")  # plain torch takes 100 times SiLU's
        axis.margins(x=0.2)
        axis.set(
            title=f"{' x '.join(map(str, shape))}, {dtype}",
            xlabel="forward + backward, SiLU = 1, log scale",
        )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write and print."""
    args = parse_args()
    rows = []
    for dtype in args.dtypes:
        for sizes in args.shapes:
            rows += measure(sizes, dtype, args)
    machine = hardware(args.device)
    path = args.out / "benchmark_activation.json"
    path.write_text(json.dumps(dict(machine=machine, rows=rows), indent=1) + "\n")
    plot(rows, path.with_suffix(".png"))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    head = ("fwd ms", "f+b ms", "fwd/SiLU", "f+b/SiLU", "saved", "GB/s", "copy")
    previous = None
    for row in rows:
        title = f"{' x '.join(map(str, row['shape']))}, {row['dtype']}"
        if title != previous:
            print(f"\n{title:28}" + "".join(f"{name:>9}" for name in head))
            previous = title
        print(
            f"{row['activation']:28}{row['forward_ms']:9.2f}{row['both_ms']:9.2f}"
            f"{row['forward_to_silu']:9.2f}{row['both_to_silu']:9.2f}"
            f"{row['saved_inputs']:9.2f}{row['forward_gb_s']:9.1f}"
            f"{row['copy_gb_s']:9.1f}"
        )
    print(f"\nwritten: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()

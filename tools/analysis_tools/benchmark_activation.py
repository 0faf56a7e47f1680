"""Measure AGLU, APA and APALoss next to what they replace: time and memory.

    python tools/analysis_tools/benchmark_activation.py
    python tools/analysis_tools/benchmark_activation.py --dtypes float32 --out /tmp

Three tables:

- Activations on feature maps. Each runs right after SiLU in one process, round after
  round, and a ratio is the median of the rounds' ratios to SiLU, so that whatever slows
  the machine slows both. On a GPU each time is the median of calls timed by events. The
  bytes saved are those of the storages that autograd keeps, in units of the input. GB/s
  counts the one read and one write of the forward pass, next to a copy of the tensor.
- The host: the time until a call on a tiny tensor returns control, that is, what the
  CPU needs to issue the work: without gradients, forward, and forward with backward.
- Classification losses (if MMDetection is installed): forward and backward, and on a
  GPU the peak memory.

Writes benchmark_activation.json and .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from apa_mmdet.layers.activation import AGLU, APA
from apa_mmdet.ops import use_implementation
from apa_mmdet.testing.benchmark import bar_charts, benchmark_parser, positive, table
from apa_mmdet.testing.memory import peak_bytes, saved_bytes
from apa_mmdet.testing.timing import (
    device_seconds,
    is_gpu,
    machine,
    median_ratio,
    wall_and_host_seconds,
)

CPU_SHAPES = ((8, 64, 128, 128), (2, 256, 200, 304), (8, 100, 1024))
GPU_SHAPES = ((16, 256, 200, 336), (2, 256, 200, 336), (2, 64, 64, 64), (8, 4096, 1024))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
INIT = dict(lam=0.5, kappa=1.15)  # the middle of the usual starting values
CLASSES = 1203  # of LVIS
# Each loss with its number of logits.
LOSSES: dict[str, tuple[int, dict]] = {
    "softmax": (CLASSES + 1, dict(type="CrossEntropyLoss")),
    "Seesaw": (CLASSES + 2, dict(type="SeesawLoss", num_classes=CLASSES)),
}
_APA_LOSS = dict(type="APALoss", num_classes=CLASSES, rare_threshold=0.0011)
for learnable in (None, "shared", "class"):
    cfg = dict(_APA_LOSS, learnable=learnable)
    LOSSES[f"APALoss, {learnable or 'fixed'}"] = CLASSES, cfg
_COLUMNS = {
    "fwd ms": "{forward_ms:.3f}",
    "f+b ms": "{both_ms:.3f}",
    "fwd/SiLU": "{forward_to_silu:.2f}",
    "f+b/SiLU": "{both_to_silu:.2f}",
    "saved": "{saved_inputs:.2f}",
    "GB/s": "{forward_gb_s:.1f}",
    "copy GB/s": "{copy_gb_s:.1f}",
}
_HOST_COLUMNS = {
    "inference us": "{inference_us:.1f}",
    "forward us": "{forward_us:.1f}",
    "f+b us": "{both_us:.1f}",
}
_LOSS_COLUMNS = {"f+b ms": "{both_ms:.2f}", "peak MiB": "{peak_mib:.0f}"}


def shape(text: str) -> tuple[int, ...]:
    """Return the sizes that the command line gives as NxCxHxW or NxTxC."""
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split("x"))
    if len(sizes) not in (3, 4) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"{text}: expected sizes of at least 1 as NxCxHxW or NxTxC"
        )
    return sizes


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = benchmark_parser(__doc__, rounds=15)
    add = partial(parser.add_argument, nargs="+")
    dtypes = ["float32", "bfloat16", "float16"]
    add("--dtypes", choices=dtypes, help="default: float32 bfloat16, on a GPU all")
    add("--shapes", type=shape, help="NxCxHxW or NxTxC, such as 8x64x128x128")
    add("--layouts", choices=LAYOUTS, help="default: contiguous, on a GPU both")
    add("--rois", type=positive, nargs=None, default=1024, help="of the losses")
    args = parser.parse_args()
    gpu = is_gpu(args.device)
    args.dtypes = args.dtypes or dtypes[: 2 + gpu]
    args.layouts = args.layouts or list(LAYOUTS)[: 1 + gpu]
    args.shapes = args.shapes or (GPU_SHAPES if gpu else CPU_SHAPES)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def contestants(x: Tensor) -> dict[str, Callable]:
    """Return by activation a function that measures its calls on a tensor.

    The function takes the kind of call (``'inference'``, without gradients,
    ``'forward'`` or ``'both'``), what measures it, and further arguments of that.
    """
    channels = x.shape[-1 if x.dim() == 3 else 1]
    layers = {kind.__name__: kind() for kind in (nn.SiLU, nn.ReLU, nn.GELU)}
    layers["PReLU"] = nn.PReLU(dtype=x.dtype)
    layers["AGLU"] = AGLU(init=INIT)
    layers["AGLU, fixed"] = AGLU(init=INIT, learnable=False)
    layers["AGLU, per channel"] = AGLU(channels, init=INIT)
    layers["APA"] = APA(init=INIT)
    layers |= {f"{name}, plain": layers[name] for name in ("AGLU", "APA")}
    grad = torch.randn_like(x)

    def contestant(name: str, layer: nn.Module) -> Callable:
        forward = partial(layer.to(x.device), x)
        inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
        functions = dict(
            inference=forward,
            forward=forward,
            both=lambda: torch.autograd.grad(layer(x), inputs, grad),
        )
        implementation = "plain" if name.endswith("plain") else "auto"

        def measured(kind: str, measure: Callable, *args: object) -> Any:
            with torch.set_grad_enabled(kind != "inference"):
                with use_implementation(implementation):
                    return measure(functions[kind], *args)

        return measured

    return {
        name: contestant(name, layer.to(x.device)) for name, layer in layers.items()
    }


def measure(
    sizes: tuple[int, ...], dtype: str, layout: str, args: argparse.Namespace
) -> Iterator[dict]:
    """Yield a row for each activation on tensors of one shape, dtype and layout."""
    torch.manual_seed(0)
    x = torch.randn(sizes, device=args.device, dtype=getattr(torch, dtype))
    x = x.contiguous(memory_format=LAYOUTS[layout])
    copy = partial(torch.empty_like(x).copy_, x.clone())
    x.requires_grad_()
    # On a GPU enough for the host to run ahead of the device, if it can.
    repeats = 20 if is_gpu(args.device) else min(max(2, 16_000_000 // x.numel()), 200)
    measured = contestants(x)
    copies: list[float] = []
    times: dict = {
        (name, kind): [] for name in measured for kind in ("inference", "both")
    }
    for number in range(args.rounds + 2):
        is_warm = number >= 2
        copies += [device_seconds(copy, args.device, repeats)] * is_warm
        for (name, kind), pairs in times.items():
            timing = kind, device_seconds, args.device
            silu = measured["SiLU"](*timing, repeats)
            # Plain torch takes up to a hundred times as long.
            own = measured[name](*timing, 2 if "plain" in name else repeats)
            pairs += [(own, silu)] * is_warm
    size = x.numel() * x.element_size()
    for name in measured:
        forward, forward_silu = zip(*times[name, "inference"])
        both, both_silu = zip(*times[name, "both"])
        yield dict(
            activation=name,
            shape=list(sizes),
            dtype=dtype,
            layout=layout,
            saved_inputs=round(measured[name]("forward", saved_bytes) / size, 3),
            forward_ms=1e3 * median(forward),
            both_ms=1e3 * median(both),
            forward_to_silu=median_ratio(forward, forward_silu),
            both_to_silu=median_ratio(both, both_silu),
            forward_gb_s=2e-9 * size / median(forward),
            copy_gb_s=2e-9 * size / median(copies),
        )


def measure_host(args: argparse.Namespace) -> Iterator[dict]:
    """Yield for each activation the host time of calls on a tiny tensor."""
    sizes = (2, 64, 8, 8) if is_gpu(args.device) else (1, 16)
    x = torch.randn(sizes, device=args.device, requires_grad=True)
    for name, measured in contestants(x).items():
        row = dict(activation=name, shape=list(sizes))
        for kind in ("inference", "forward", "both"):
            timing = kind, wall_and_host_seconds, args.device, 100
            times = [measured(*timing)[1] for _ in range(args.rounds + 1)]
            row[f"{kind}_us"] = 1e6 * median(times[1:])  # the first warms up
        yield row


def measure_losses(args: argparse.Namespace) -> Iterator[dict]:
    """Yield for each classification loss its time and memory on LVIS's classes."""
    from mmdet.registry import MODELS

    for name, (columns, cfg) in LOSSES.items():
        torch.manual_seed(0)
        loss = MODELS.build(cfg).to(args.device)
        if hasattr(loss, "class_frequency"):
            loss.class_frequency.uniform_(0, 0.01)
        logits = torch.randn(args.rois, columns, device=args.device, requires_grad=True)
        labels = torch.randint(CLASSES + 1, (args.rois,), device=args.device)
        weights = torch.ones(args.rois, device=args.device)

        def both(loss=loss, logits=logits, labels=labels, weights=weights) -> None:
            value = loss(logits, labels, weights, avg_factor=args.rois)
            sum(value.values() if isinstance(value, dict) else [value]).backward()

        both()  # warms up
        peak = peak_bytes(both, args.device)
        yield dict(
            loss=name,
            shape=[args.rois, CLASSES],
            both_ms=1e3 * device_seconds(both, args.device, args.rounds),
            peak_mib=peak and peak / 2**20,
        )


def main() -> None:
    """Measure, write and print."""
    args = parse_args()
    maps = {}
    for dtype in args.dtypes:
        for sizes in args.shapes:
            for layout in args.layouts[: 1 if len(sizes) == 3 else None]:
                title = f"{' x '.join(map(str, sizes))}, {dtype}, {layout}"
                maps[title] = list(measure(sizes, dtype, layout, args))
    host = list(measure_host(args))
    losses = list(measure_losses(args)) if find_spec("mmdet") else []
    facts = machine(args.device)
    path = args.out / "benchmark_activation.json"
    results = dict(machine=facts, rows=sum(maps.values(), []), host=host, losses=losses)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for title, rows in maps.items():
        print(f"\n{table(title, 'activation', _COLUMNS, rows)}")
    title = f"host, {' x '.join(map(str, host[0]['shape']))}"
    print(f"\n{table(title, 'activation', _HOST_COLUMNS, host)}")
    if losses:
        title = f"loss, {args.rois} x {CLASSES}"
        print(f"\n{table(title, 'loss', _LOSS_COLUMNS, losses)}")
    panels = {
        f"{title}, forward+backward, SiLU = 1": {
            row["activation"]: [row["both_to_silu"]] for row in rows
        }
        for title, rows in maps.items()
    }
    print(f"\nwritten: {path} and {bar_charts(panels, path.with_suffix('.png'))}")


if __name__ == "__main__":
    main()

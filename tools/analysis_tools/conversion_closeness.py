"""Measure how close a converted detector starts to the unconverted one.

    python tools/analysis_tools/conversion_closeness.py \
        mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py \
        mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py

Weights are random with a fixed seed, batch norms have the statistics of the images, and
the images are made up; nothing is downloaded. Every output of backbone, neck and heads
is compared in eval mode, with the same proposals before and after. The columns:

- float32, float64: the largest difference over the largest element, for the worst
  output. In float64 rounding plays no part; how much float32 rounds the outputs of the
  unconverted detector stands above each table.
- backbone, neck, heads: float64, by section of the model.
- dlam, dkappa: the mean of |d AGLU/d lam| and |d AGLU/d kappa| over the inputs of a
  site, relative to AGLU(1, 1) on the same inputs, for the median site: how much of a
  change the two parameters can make, and how much of a gradient they get.
"""

from __future__ import annotations

import argparse
from collections import Counter

from mmengine.config import DictAction

from apa_mmdet.conversion.report import aligned
from apa_mmdet.testing.closeness import (
    KAPPAS,
    Closeness,
    Reference,
    pointwise_differences,
)
from apa_mmdet.testing.configs import read_config, remove_checkpoints
from apa_mmdet.testing.wiring import kind_of


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    configs_help = "config files, or MMDetection's as mmdet::rtmdet/NAME.py"
    add("configs", nargs="*", help=configs_help)
    kappas_help = "starting values of kappa to try for ReLUs besides init='auto'"
    add("--kappas", nargs="*", type=float, default=KAPPAS, help=kappas_help)
    add("--size", type=int, default=256, help="image size in pixels")
    add("--seed", type=int, default=0, help="of weights and images")
    gamma_help = "weight of norms that start at zero; differences depend on it"
    add("--gamma", type=float, default=1.0, help=gamma_help)
    options = dict(nargs="+", action=DictAction, default={})
    add("--cfg-options", help="settings of the configs to override", **options)
    return parser.parse_args()


def row(closeness: Closeness) -> list[str]:
    """Return a row of a detector's table."""
    worst = (max(each.values()) for each in (closeness.single, closeness.double))
    learnable = closeness.d_lam, closeness.d_kappa
    values = (*worst, *closeness.largest().values(), *learnable)
    return [closeness.start, *(f"{value:.2g}" for value in values)]


def main() -> None:
    """Print the tables."""
    args = parse_args()
    rows = [("activation", "start", "largest difference", "at")]
    for kind, (difference, where, start) in pointwise_differences().items():
        rows.append((kind, start, f"{difference:.3g}", f"{where:.3g}"))
    print("\n".join(aligned(rows)))
    for path in args.configs:
        try:
            model = read_config(path, args.cfg_options).model
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(f"error: {error}") from None
        remove_checkpoints(model)
        reference = Reference(model, args.size, args.seed, args.gamma)
        results, report = reference.compare_starts(args.kappas)
        kinds = Counter(map(kind_of, report.sites)).most_common()
        counts = ", ".join(f"{number} {kind}" for kind, number in kinds)
        rounding = max(reference.rounding.values())
        print(f"\n{path}: {counts}; float32 rounds the outputs by {rounding:.2g}")
        head = "start float32 float64 backbone neck heads dlam dkappa".split()
        print("\n".join(aligned([head, *map(row, results)])), flush=True)


if __name__ == "__main__":
    main()

"""Show what goes into a detector's activations, gates and classifiers.

The model computes its losses on images of the config's data, and normal, logistic,
Gumbel and APA distributions are fitted to what its activations and classifiers see.
Without a checkpoint, it is the model that training would start with.

    python tools/analysis_tools/analyze_activations.py \
        configs/mini_lvis/mask_rcnn_r18_apa.py \
        work_dirs/mask_rcnn_r18_apa/epoch_5.pth --sites roi_head
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist

from apa_mmdet.requirements import check_requirements

check_requirements()  # importing apa_mmdet checks nothing if mmengine is missing

from mmengine.dist import init_dist

from apa_mmdet.analysis.collect import Statistics
from apa_mmdet.analysis.plots import write_plots
from apa_mmdet.analysis.report import make_report, table, write_csv, write_json
from apa_mmdet.analysis.run import (
    build_dataset,
    build_model,
    class_groups,
    class_images,
    collect,
    parameters,
    prepare,
)
from apa_mmdet.analysis.sampling import ImageSampler
from apa_mmdet.datasets import class_frequency
from apa_mmdet.engine.launch import (
    add_common_arguments,
    exit_on_error,
    load_config,
)
from apa_mmdet.testing.benchmark import available, positive


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="path of the config file")
    add("checkpoint", nargs="?", help="path of the checkpoint")
    add("--data", choices=["train", "val"], default="train", help="data set")
    images_help = "number of images, chosen at random (%(default)s)"
    add("--images", type=positive, default=200, help=images_help)
    sites_help = "patterns of sites, such as backbone or '*.relu' (all)"
    add("--sites", nargs="+", default=["*"], metavar="PATTERN", help=sites_help)
    add("--seed", type=int, default=0, help="of everything random")
    replicates_help = "bootstrap replicates over images (%(default)s)"
    add("--replicates", type=positive, default=100, help=replicates_help)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device_help = "where to run the model (%(default)s)"
    add("--device", type=available, default=device, help=device_help)
    out_help = "folder to write to (WORK_DIR/activations)"
    add("--out", type=Path, help=out_help)
    add_common_arguments(parser)
    return parser.parse_args()


def analyse(args: argparse.Namespace) -> None:
    """Collect, fit, and write."""
    cfg = load_config(args, splits={"train", args.data})
    if args.launcher == "pytorch" and not torch.cuda.is_available():
        dist.init_process_group("gloo")  # MMEngine's own way asks for a GPU
    elif args.launcher != "none":
        init_dist(args.launcher)
    model, start = build_model(cfg, args.checkpoint, args.seed)
    dataset = build_dataset(cfg, "train")
    classes, images = class_images(dataset)
    is_trained = args.checkpoint is not None
    prepare(model, class_frequency(dataset, check=False), is_trained, args.seed)
    if args.data != "train":
        dataset = build_dataset(cfg, args.data)
    sampler = ImageSampler(num_replicates=args.replicates, seed=args.seed)
    statistics = Statistics(sampler, class_groups(images))
    collect(model.to(args.device), dataset, statistics, args.images, args.sites)
    if dist.is_initialized() and dist.get_rank():
        return
    report = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        data=args.data,
        seed=args.seed,
        replicates=args.replicates,
        **make_report(statistics, classes, images, start, parameters(model)),
    )
    print(table(report))
    out = args.out or Path(cfg.work_dir, "activations")
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "activations.json")
    write_csv(report, out / "activations.csv")
    names = ["activations.json", "activations.csv"]
    names += write_plots(statistics, report, out)
    print(f"{report['num_images']} images; written to {out}: {', '.join(names)}")


def main() -> None:
    """Analyse; end with exit code 2 if something is wrong with the input."""
    args = parse_args()
    with exit_on_error():
        analyse(args)


if __name__ == "__main__":
    main()

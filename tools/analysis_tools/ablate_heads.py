"""Train classification heads on one data set, with one budget, and compare them.

Each head of ``configs/lvis/mask_rcnn_r50_<head>_head.py`` (``apa`` is that of
``mask_rcnn_r50_apa.py``) replaces the head of the base config; everything else stays:
data, backbone, schedule, seeds. The same command continues after an interruption:
finished runs are not repeated, and an unfinished one resumes. Table and plot are
updated after each run.

    python tools/analysis_tools/ablate_heads.py --epochs 3
"""

from __future__ import annotations

import argparse
import json
import os
import os.path as osp
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from mmengine.config import Config

import apa_mmdet
from apa_mmdet.datasets import check_files
from apa_mmdet.testing.benchmark import bar_charts, markdown_table, positive

ROOT = Path(__file__).parents[2]
HEADS = ("softmax", "sigmoid", "seesaw", "eqlv2", "gumbel", "apa", "apa_per_class")
FIGURES = ("AP", "APr", "APc", "APf")
# The settings of a box head that make its classifier; others stay the base config's.
_CLASSIFIER = ("type", "prior", "loss_cls", "init_cfg", "cls_predictor_cfg")
Runs = dict[str, dict[int, dict[str, float]]]  # by head and seed, the figures by name


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    config = ROOT / "configs/mini_lvis/mask_rcnn_r18_apa.py"
    config_help = "base config with an APALoss and an LVIS metric (default: mini-LVIS)"
    add("--config", default=str(config), help=config_help)
    add("--heads", nargs="+", default=HEADS, choices=HEADS)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--epochs", type=positive, help="of each run (default: the config's)")
    add("--data-root", help="folder of the data set (default: the config's)")
    add("--work-dir", default="work_dirs/ablate_heads")
    add("--out", help="JSON and PNG without suffix (default: WORK_DIR/table)")
    args = parser.parse_args()
    if not osp.isfile(args.config):
        parser.error(f"--config {args.config}: no such file")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds {args.seeds}: expected different ones")
    return args


def shorten(cfg: Config, epochs: int) -> None:
    """Rescale an epoch-based schedule to a number of epochs, in place."""
    before = cfg.train_cfg.max_epochs
    for scheduler in cfg.param_scheduler:
        if scheduler.get("by_epoch", True):
            for key in {"begin", "end", "T_max"} & scheduler.keys():
                scheduler[key] = round(scheduler[key] * epochs / before)
            if "milestones" in scheduler:
                scheduler.milestones = [
                    max(round(at * epochs / before), 1) for at in scheduler.milestones
                ]
    cfg.train_cfg.max_epochs = epochs


def head_config(base: Config, head: str, seed: int) -> Config:
    """Return the base config with the classifier of another head, and a seed."""
    name = "mask_rcnn_r50_apa.py" if head == "apa" else f"mask_rcnn_r50_{head}_head.py"
    source = Config.fromfile(ROOT / "configs/lvis" / name).model.roi_head.bbox_head
    cfg = Config(base.to_dict())
    ours = cfg.model.roi_head.bbox_head
    threshold = ours.loss_cls.rare_threshold
    for key in _CLASSIFIER:
        ours.pop(key, None)
        if key in source:
            ours[key] = source[key]
    if "num_classes" in ours.loss_cls:
        ours.loss_cls.num_classes = ours.num_classes
    if "rare_threshold" in ours.loss_cls:
        ours.loss_cls.rare_threshold = threshold
    cfg.randomness = dict(seed=seed)
    # Only the final evaluation, by tools/test.py, is compared.
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs + 1
    return cfg


def call(tool: str, *arguments: str, log: Path) -> None:
    """Run train.py or test.py, appending to a log, whose end is the error's text."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / tool), *arguments]
    with log.open("a") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        end = log.read_text()[-3000:]
        raise SystemExit(f"{end}\n{tool} failed with exit code {code}, see {log}")


def run(cfg: Config, folder: Path) -> dict[str, float]:
    """Train and test one head, or return the figures of an earlier call."""
    folder.mkdir(parents=True, exist_ok=True)
    config, result = folder / "config.py", folder / "result.json"
    if config.exists() and Config.fromfile(config).to_dict() != cfg.to_dict():
        raise SystemExit(
            f"{folder} holds a run with other settings; remove it or choose another "
            "--work-dir"
        )
    if result.exists():
        return json.loads(result.read_text())
    cfg.dump(config)
    log = folder / "log.txt"
    work = folder / "train"  # not the folder: the runner writes its own config.py
    call("train.py", str(config), "--work-dir", str(work), "--resume", log=log)
    checkpoint = (work / "last_checkpoint").read_text().strip()
    work = folder / "test"
    call("test.py", str(config), checkpoint, "--work-dir", str(work), log=log)
    scalars = json.loads(max(work.glob("*/*.json")).read_text())
    figures = {
        f"{kind} {name}": 100 * scalars[f"lvis/{kind}_{name}"]
        for kind in ("bbox", "segm")
        if f"lvis/{kind}_AP" in scalars
        for name in FIGURES
    }
    unfinished = result.with_suffix(".tmp")
    unfinished.write_text(json.dumps(figures))
    os.replace(unfinished, result)
    return figures


def spread(values: list[float]) -> str:
    """Return ``mean ± standard deviation``, or the only value."""
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def figure_names(runs: Runs) -> list[str]:
    """Return the names of the figures, those of masks first."""
    first = next(iter(next(iter(runs.values())).values()))
    return sorted(first, key=lambda name: name.startswith("bbox"))


def summary(runs: Runs) -> str:
    """Return a table with one row per head: mean and spread over its seeds."""
    names = figure_names(runs)
    rows = (
        [head, str(len(seeds))]
        + [spread([run[name] for run in seeds.values()]) for name in names]
        for head, seeds in runs.items()
    )
    return markdown_table(["head", "seeds", *names], rows)


def plot(runs: Runs, path: Path) -> str:
    """Draw AP, APr, APc and APf, of masks if there are any; return what was written."""
    panels = {
        name.replace("segm", "mask").replace("bbox", "box"): {
            head: [run[name] for run in seeds.values()] for head, seeds in runs.items()
        }
        for name in figure_names(runs)[: len(FIGURES)]
    }
    return bar_charts(panels, path, ratios=False)


def main() -> None:
    """Do the runs that are missing; print, write and draw all results."""
    args = parse_args()
    base = Config.fromfile(args.config)
    if args.data_root:
        apa_mmdet.datasets.set_data_root(base, args.data_root)
    if args.epochs:
        shorten(base, args.epochs)
    try:
        check_files(base, ("train", "test"))
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from None
    out = Path(args.out or osp.join(args.work_dir, "table"))
    out.parent.mkdir(parents=True, exist_ok=True)
    path, runs = out.with_suffix(".json"), {}
    config, epochs = osp.relpath(args.config, ROOT), base.train_cfg.max_epochs
    for seed in args.seeds:
        for head in args.heads:
            cfg = head_config(base, head, seed)
            figures = run(cfg, Path(args.work_dir) / f"{head}-{seed}")
            runs.setdefault(head, {})[seed] = figures
            print(f"{head}, seed {seed}: {figures}", flush=True)
            results = dict(config=config, epochs=epochs, runs=runs)
            path.write_text(json.dumps(results, indent=1) + "\n")
            image = plot(runs, out.with_suffix(".png"))
    print(summary(runs))
    print(f"written: {path} and {image}")


if __name__ == "__main__":
    main()

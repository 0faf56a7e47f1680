"""What tools/train.py and tools/test.py share: options, config, runner."""

from __future__ import annotations

import argparse
import os
import os.path as osp
from collections.abc import Iterable
from pickle import UnpicklingError

import torch
import torch.distributed as dist
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..datasets import check_files, set_data_root
from ..models.published_checkpoints import weights_of
from .checkpoint import read_checkpoint


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing have in common."""
    parser.add_argument(
        "--work-dir", help="folder for logs and checkpoints (work_dirs/<config name>)"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="settings to override, as a.b=value; lists as a.b='[x,y]'. data_root=... "
        "changes the root of every data set and evaluator in the config",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="job launcher",
    )
    # torch.distributed.launch passes this option; torchrun sets the variable itself.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def load_config(args: argparse.Namespace, splits: Iterable[str]) -> Config:
    """Return the config with the options merged, after checking that its files exist.

    Args:
        args: Arguments from a parser with :func:`add_common_arguments`.
        splits: Data sets whose files must exist; without them it raises SystemExit.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if not osp.isfile(args.config):
        raise SystemExit(f"no such config file: {args.config}")
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    options = dict(args.cfg_options or {})
    if "data_root" in options:
        set_data_root(cfg, options.pop("data_root"))
    cfg.merge_from_dict(options)
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or osp.join("work_dirs", name)
    if "train" in splits:
        prepare_load_from(cfg)
    try:
        check_files(cfg, splits)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    return cfg


def is_backbone_checkpoint(path: str) -> bool:
    """Return whether a checkpoint contains only a backbone or a classifier.

    MMEngine finds none of a detector's keys in such a file and continues with random
    weights. Raises SystemExit if the file cannot be read or contains no weights.
    """
    try:
        weights, _ = weights_of(read_checkpoint(path, weights_only=None))
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise SystemExit(f"error: checkpoint {error}") from None
    except ValueError as error:
        raise SystemExit(f"error: checkpoint {path}: {error}") from None
    return any(key.startswith("layer1.") for key in weights)


def prepare_load_from(cfg: Config) -> None:
    """Check ``load_from`` before the data is read; a backbone becomes an ``init_cfg``.

    Raises SystemExit if the file is not a checkpoint, or the config cannot use it.
    """
    path = cfg.get("load_from")
    if not path or "://" in path:
        return
    path = osp.expanduser(path)
    if not is_backbone_checkpoint(path):
        return
    if cfg.get("resume") or "backbone" not in cfg.model:
        raise SystemExit(
            f"error: load_from={path!r} contains only a backbone, expected a detector; "
            f"set init_cfg=dict(type='Pretrained', checkpoint={path!r}) in the config "
            f"of the backbone, and do not resume"
        )
    cfg.load_from = None
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=path)
    print(f"load_from={path!r} contains only a backbone: it becomes its init_cfg")


def build_runner(cfg: Config) -> Runner:
    """Return the config's runner; without a GPU, several processes use gloo."""
    setup_cache_size_limit_of_dynamo()
    if cfg.launcher == "pytorch" and not torch.cuda.is_available():
        # What MMEngine's launcher does only for GPUs.
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        ddp = dict(type="MMDistributedDataParallel", device_ids=None)
        ddp["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
        cfg.setdefault("model_wrapper_cfg", dict(ddp, broadcast_buffers=False))
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)

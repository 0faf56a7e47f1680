"""What tools/train.py and tools/test.py share: options, config, runner, errors."""

from __future__ import annotations

import argparse
import contextlib
import dis
import os
import os.path as osp
import sys
from collections.abc import Iterable, Iterator
from pickle import UnpicklingError

import torch
import torch.distributed as dist
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..datasets import check_files, set_data_root
from .setup_check_hook import SetupCheckHook
from .weights import is_backbone, load_weights


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


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with exit code 2 if this package finds fault with its input.

    Such an error says what is wrong and what to do, and is printed without a traceback.
    All others propagate: those raised elsewhere, and those of a failing operation
    rather than a ``raise`` statement.
    """
    try:
        yield
    except (
        ImportError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        UnpicklingError,
        ValueError,
    ) as error:
        if not _is_raised_here(error):
            raise
        print(f"error: {error.args[0]}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_raised_here(error: Exception) -> bool:
    """Return whether a ``raise`` in this package or in the program raised it."""
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code, module = last.tb_frame.f_code, last.tb_frame.f_globals.get("__name__", "")
    is_raise = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and module.split(".")[0] in ("__main__", "apa_mmdet")


def load_config(args: argparse.Namespace, splits: Iterable[str]) -> Config:
    """Return the config with the options merged, after checking that its files exist.

    Args:
        args: Arguments from a parser with :func:`add_common_arguments`.
        splits: Data sets whose files must exist.

    Raises:
        FileNotFoundError: If a file does not exist.
        ImportError: If the config needs MMPretrain, and that cannot be used.
        ValueError: If an option or a file is unusable.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if not osp.isfile(args.config):
        raise FileNotFoundError(f"no such config file: {args.config}")
    cfg = _read_config(args.config)
    cfg.launcher = args.launcher
    options = dict(args.cfg_options or {})
    if "data_root" in options:
        set_data_root(cfg, options.pop("data_root"))
    cfg.merge_from_dict(options)
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or osp.join("work_dirs", name)
    # --resume replaces load_from.
    if "train" in splits and getattr(args, "resume", None) is None:
        prepare_load_from(cfg)
    check_files(cfg, splits)
    return cfg


def _read_config(path: str) -> Config:
    try:
        return Config.fromfile(path)
    except ImportError as error:
        # MMEngine only says that custom_imports failed, and to set PYTHONPATH.
        cause = error
        while not _is_raised_here(cause) and cause.__context__ is not None:
            cause = cause.__context__
        raise (cause if _is_raised_here(cause) else error) from None


def is_classifier(cfg: Config) -> bool:
    """Return whether a config is one of MMPretrain's, not of a detector."""
    return cfg.get("default_scope") == "mmpretrain"


def prepare_load_from(cfg: Config) -> None:
    """Check ``load_from`` before the data is read; a backbone becomes an ``init_cfg``.

    Raises:
        ValueError: If the file is not a checkpoint, or the config cannot use it.
    """
    path = cfg.get("load_from")
    if not path or "://" in path:
        return
    path = osp.expanduser(path)
    # A classifier takes a whole classification file, its head included.
    if not is_backbone(load_weights(path)) or is_classifier(cfg):
        return
    if cfg.get("resume") or "backbone" not in cfg.model:
        raise ValueError(
            f"load_from={path!r} contains only a backbone, expected a detector; "
            f"set init_cfg=dict(type='Pretrained', checkpoint={path!r}) in the config "
            f"of the backbone, and do not resume"
        )
    cfg.load_from = None
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=path)
    print(f"load_from={path!r} contains only a backbone: it becomes its init_cfg")


def build_runner(cfg: Config) -> Runner:
    """Return the config's runner, which checks its set-up before it runs.

    Without a GPU, several processes use gloo. On CPUs that support it, this process
    flushes denormal numbers to zero from now on: steep AGLUs give values so close to
    zero that results computed from them are denormal, which takes many times as long.
    """
    torch.set_flush_denormal(True)
    setup_cache_size_limit_of_dynamo()
    if cfg.launcher == "pytorch" and not torch.cuda.is_available():
        # What MMEngine's launcher does only for GPUs.
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        ddp = dict(type="MMDistributedDataParallel", device_ids=None)
        ddp["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
        cfg.setdefault("model_wrapper_cfg", dict(ddp, broadcast_buffers=False))
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    if not any(isinstance(hook, SetupCheckHook) for hook in runner.hooks):
        runner.register_hook(SetupCheckHook())
    return runner

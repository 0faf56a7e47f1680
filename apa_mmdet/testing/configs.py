"""Configs of detectors: reading and changing them, making a ReLU twin."""

from __future__ import annotations

import copy
import inspect
import os.path as osp
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.utils import get_installed_path

from ..conversion import convert_activations

CONVERSION_OPTIONS = tuple(inspect.signature(convert_activations).parameters)[1:]
# The settings of a box head that make its classifier.
_CLASSIFIER = ("type", "prior", "loss_cls", "init_cfg", "cls_predictor_cfg")


def read_config(path: str, options: Mapping | None = None) -> Config:
    """Return a detector's config.

    Args:
        path: A config file, or one of MMDetection's as ``mmdet::rtmdet/NAME.py``.
        options: Settings to override, as in ``--cfg-options``.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the config has no model.
    """
    file = str(path)
    if "::" in file:  # mmengine.hub.get_config does not take names such as gn+ws
        package, _, name = file.partition("::")
        file = osp.join(get_installed_path(package), ".mim/configs", name)
    if not osp.isfile(file):
        raise FileNotFoundError(f"no such config file: {path}")
    cfg = Config.fromfile(file)
    cfg.merge_from_dict(dict(options or {}))
    if "model" not in cfg:
        raise ValueError(f"{path} has no model; give the config of a detector")
    return cfg


def dicts(node: object) -> Iterator[dict]:
    """Yield every dict in a nested config, outer ones first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from dicts(value)


def init_cfgs(init_cfg: dict | list | None) -> list[dict]:
    """Return an ``init_cfg``, which may be one dict, several or None, as a list."""
    return list(init_cfg) if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]


def remove_checkpoints(model: dict) -> None:
    """Remove from a model's config, in place, whatever would load weights."""
    for cfg in dicts(model):
        cfg.pop("pretrained", None)
        if any("checkpoint" in init for init in init_cfgs(cfg.get("init_cfg"))):
            cfg.pop("init_cfg")


def split_conversion(model: dict) -> dict:
    """Turn an APADetector's config into its base's, in place; return its options."""
    options = {name: model.pop(name) for name in CONVERSION_OPTIONS if name in model}
    if model.get("type") == "APADetector":
        model["type"] = model.pop("base_type", None)
    return options


def make_relu_twin(model: dict) -> None:
    """Replace, in place, everything learnable by what it stands for.

    AGLU becomes GELU or SiLU where it starts like these and otherwise ReLU, an APA gate
    a sigmoid, APASELayer and APACBAM keep their form with sigmoid gates, and an
    APADetector becomes its base.
    """
    for cfg in list(dicts(model)):
        kind = cfg.get("type")
        if kind == "APADetector":
            split_conversion(cfg)
        elif kind in ("AGLU", "APA"):
            start = {"gelu": "GELU", "silu": "SiLU"}.get(str(cfg.get("init")), "ReLU")
            cfg.clear()
            cfg["type"] = start if kind == "AGLU" else "Sigmoid"
        elif kind in ("APASELayer", "APACBAM"):
            cfg["gate_cfg"] = dict(type="Sigmoid")
        elif kind in ("APAResNet", "APAResNeXt"):
            cfg.setdefault("act_cfg", dict(type="ReLU"))


def set_classifier(model: dict, source: dict) -> None:
    """Give a model's box head the classifier of another model's, in place.

    The number of classes stays, and so do, where both have them, ``prior`` and
    ``rare_threshold``: they depend on the data set.

    Raises:
        ValueError: If either model does not have exactly one box head.
    """
    heads = [cfg.get("roi_head", {}).get("bbox_head") for cfg in (model, source)]
    if not all(isinstance(head, dict) for head in heads):
        raise ValueError("expected a model.roi_head with one bbox_head")
    ours, other = heads
    kept = {key: ours.pop(key) for key in _CLASSIFIER if key in ours}
    ours.update({key: copy.deepcopy(other[key]) for key in _CLASSIFIER if key in other})
    if kept.get("prior") is not None and other.get("prior") is not None:
        ours["prior"] = kept["prior"]
    loss = ours["loss_cls"]
    if "num_classes" in loss:
        loss["num_classes"] = ours["num_classes"]
    if "rare_threshold" in loss:
        loss["rare_threshold"] = kept["loss_cls"].get("rare_threshold")


def set_epochs(cfg: Config, epochs: int) -> None:
    """Rescale an epoch-based schedule to a number of epochs, in place.

    Raises:
        ValueError: If the config counts iterations.
    """
    before = cfg.train_cfg.get("max_epochs")
    if before is None:
        raise ValueError("its train_cfg has no max_epochs to change")
    for scheduler in cfg.param_scheduler:
        if scheduler.get("by_epoch", True):
            for key in {"begin", "end", "T_max"} & scheduler.keys():
                scheduler[key] = round(scheduler[key] * epochs / before)
            if "milestones" in scheduler:
                scheduler.milestones = [
                    max(round(at * epochs / before), 1) for at in scheduler.milestones
                ]
    cfg.train_cfg.max_epochs = epochs

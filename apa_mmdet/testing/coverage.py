"""Whether the conversion of a detector is complete and the result trains."""

from __future__ import annotations

import copy
import gc
import math
import random
import time
import traceback
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from ..conversion import ConversionReport
from ..conversion.dry_run import UnlistedActivations
from .configs import dicts, read_config, remove_checkpoints
from .differences import gradient_differences, key_differences, neighbouring
from .families import GPU_ONLY, IMAGE_SIZES, PACKAGES, SEMANTIC_STRIDES
from .images import training_batch
from .models import fill_zero_weights, fitting_statistics, quiet_mmdet
from .wiring import original_activations

_REGIONS = 32  # proposals for the losses of RoI heads and RPNs


@dataclass
class Coverage:
    """What the checks of one config showed."""

    name: str
    report: ConversionReport | None = None  # None if building it failed
    added: int = 0  # new parameters that train
    frozen: int = 0  # new parameters in frozen stages
    losses: tuple[float, float] | None = None  # unconverted, converted; summed up
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0  # of CPU time


def check_family(name: str) -> Coverage:
    """Convert the detector of a config, train it one step on a CPU, and compare.

    - The keys, shapes and order of the base's weights stay, and which of them train;
      what is new is a λ or a κ.
    - With every site computing what it replaced, losses and gradients are bit for bit
      those of the unconverted detector.
    - The losses are finite, every λ and κ that trains has a finite gradient, and no
      fixed activation runs that the report does not list as left.

    Args:
        name: One of ``families.CONFIGS``.
    """
    start, coverage = time.process_time(), Coverage(name)
    with quiet_mmdet():
        try:
            _check(coverage)
        except Exception as error:  # reported, so that other configs still run
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            coverage.failures.append(f"{type(error).__name__}: {error} ({place})")
    gc.collect()
    coverage.seconds = time.process_time() - start
    return coverage


def _check(coverage: Coverage) -> None:
    name = coverage.name
    cfg = _config(name)
    torch.manual_seed(0)
    base = MODELS.build(copy.deepcopy(cfg.model))
    converted = {**cfg.model, "type": "APADetector", "base_type": cfg.model.type}
    model = MODELS.build(ConfigDict(converted))
    coverage.report = model.conversion_report
    _compare_parameters(coverage, base, model)

    module, package = PACKAGES.get(name, ("", ""))
    if name in GPU_ONLY:
        reason = f"mmcv has no CPU kernel of {GPU_ONLY[name]}"
        coverage.remarks.append(f"not trained: {reason}")
    elif module and find_spec(module) is None:
        coverage.remarks.append(f"not trained: its loss needs {package}")
    else:
        _train(coverage, base, model, _batch(name, cfg))


def _config(name: str) -> Config:
    cfg = read_config(f"mmdet::{name}.py")
    remove_checkpoints(cfg.model)
    for part in dicts(cfg.model):
        if "use_torchvision" in part:  # the same operation, without that package
            part["use_torchvision"] = False
        if "num" in (part.get("sampler") or {}):
            part["sampler"]["num"] = _REGIONS
        if "max_per_img" in (part.get("rpn_proposal") or {}):
            part["rpn_proposal"]["max_per_img"] = _REGIONS
    cfg.model.data_preprocessor.pop("batch_augments", None)  # they enlarge the images
    return cfg


def _batch(name: str, cfg: Config) -> dict:
    def loads(option: str) -> bool:
        return any(
            step.get(option, step.get("type") == "LoadPanopticAnnotations")
            for step in dicts(cfg.train_dataloader.dataset)
        )

    stride = SEMANTIC_STRIDES.get(name, 1) if loads("with_seg") else None
    return training_batch(IMAGE_SIZES.get(name, 128), loads("with_mask"), stride)


def _compare_parameters(coverage: Coverage, base: nn.Module, model: nn.Module) -> None:
    coverage.failures += key_differences(base, model)
    trains = {key: p.requires_grad for key, p in base.named_parameters()}
    for key, parameter in model.named_parameters():
        if key not in trains:
            coverage.added += parameter.requires_grad * parameter.numel()
            coverage.frozen += (not parameter.requires_grad) * parameter.numel()
        elif trains[key] != parameter.requires_grad:
            coverage.failures.append(f"{key} has a different requires_grad")


def _train(coverage: Coverage, base: nn.Module, model: nn.Module, batch: dict) -> None:
    base.init_weights()
    for module in base.modules():
        if type(module).__name__ == "TridentConv":  # mmdet leaves it uninitialised
            nn.init.kaiming_normal_(module.weight)
    fill_zero_weights(base)
    base.train()
    with fitting_statistics(base, momentum=1.0):
        _losses(base, batch)
    start = copy.deepcopy(base.state_dict())
    model.load_state_dict(start, strict=False)
    counter = "cls_num_pos_samples_per_level"  # DDOD counts from step to step
    counts = getattr(getattr(base, "bbox_head", None), counter, None)
    if counts is not None:
        setattr(model.bbox_head, counter, list(counts))
    loss_before, before = _step(base, batch)

    with original_activations(base, model, coverage.report):
        loss, after = _step(model, batch)
    if loss != loss_before:
        coverage.failures.append(f"rewired, the loss is {loss}, not {loss_before}")
    differences = gradient_differences(before, after)[:5]
    coverage.failures += [f"rewired, {text}" for text in differences]

    model.load_state_dict(start, strict=False)  # norms have gathered statistics
    with UnlistedActivations(model, coverage.report) as unlisted:
        coverage.losses = loss_before, _step(model, batch)[0]
    coverage.failures += sorted(unlisted.calls)
    if not all(map(math.isfinite, coverage.losses)):
        coverage.failures.append(f"the losses are {coverage.losses}")
    _check_gradients(coverage, model, before)


def _losses(model: nn.Module, batch: dict) -> dict:
    return model(**model.data_preprocessor(copy.deepcopy(batch), True), mode="loss")


def _step(model: nn.Module, batch: dict) -> tuple[float, dict[str, Tensor | None]]:
    """Run a training step up to the gradients; return the loss and the gradients."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model.train()
    model.zero_grad(set_to_none=True)
    loss, _ = model.parse_losses(_losses(model, batch))
    loss.backward()
    return loss.item(), {key: p.grad for key, p in model.named_parameters()}


def _check_gradients(
    coverage: Coverage, model: nn.Module, before: dict[str, Tensor | None]
) -> None:
    failures, remarks = coverage.failures, coverage.remarks
    for site in coverage.report.sites:
        path, parameters = site.path, list(model.get_submodule(site.path).parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        neighbours = neighbouring(path, before)
        if not any(parameter.requires_grad for parameter in parameters):
            if gradients:
                failures.append(f"{path} is frozen and has a gradient")
        elif len(gradients) < len(parameters):
            if neighbours:
                failures.append(f"{path} has no gradient")
            else:
                remarks.append(f"the config never runs the module of {path}")
        elif not all(gradient.isfinite().all() for gradient in gradients):
            failures.append(f"{path} has a gradient that is not finite")
        elif not any(map(torch.any, gradients)) and any(map(torch.any, neighbours)):
            # Far from 0, where ReLU and its stand-in are straight, it underflows.
            remarks.append(f"{path} has a gradient of zero")

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
from .configs import dicts, read_config, remove_checkpoints
from .families import GPU_ONLY, IMAGE_SIZES, PACKAGES, SEMANTIC_STRIDES
from .images import training_batch
from .models import fill_zero_weights, fitting_statistics, quiet_mmdet
from .wiring import UnlistedActivations, original_activations

_REGIONS = 32  # proposals for the losses of RoI heads and RPNs
_LEARNED = ("lambda_param", "kappa_param")


@dataclass
class Coverage:
    """What the checks of one config showed.

    Attributes:
        name: The config.
        report: What was converted and what was left; None if building it failed.
        added: Number of parameters that were added and train.
        frozen: Number of parameters that were added to frozen stages.
        losses: The sum of the losses, unconverted and converted; None without a step.
        remarks: What else there is to say.
        failures: What is wrong.
        seconds: CPU time of the checks.
    """

    name: str
    report: ConversionReport | None = None
    added: int = 0
    frozen: int = 0
    losses: tuple[float, float] | None = None
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


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
    cfg = _config(coverage.name)
    torch.manual_seed(0)
    base = MODELS.build(copy.deepcopy(cfg.model))
    converted = {**cfg.model, "type": "APADetector", "base_type": cfg.model.type}
    model = MODELS.build(ConfigDict(converted))
    coverage.report = model.conversion_report
    _compare_parameters(coverage, base, model)

    module, package = PACKAGES.get(coverage.name, ("", ""))
    if coverage.name in GPU_ONLY:
        kernel = GPU_ONLY[coverage.name]
        coverage.remarks.append(f"not trained: mmcv has no CPU kernel of {kernel}")
    elif module and find_spec(module) is None:
        coverage.remarks.append(f"not trained: its loss needs {package}")
    else:
        _train(coverage, base, model, _batch(coverage.name, cfg))


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
    before, after = base.state_dict(), model.state_dict()
    for key, value in before.items():
        if key not in after:
            coverage.failures.append(f"{key} is missing")
        elif after[key].shape != value.shape:
            coverage.failures.append(f"{key} has another shape")
    for key in after.keys() - before.keys():
        if not key.endswith(_LEARNED):
            coverage.failures.append(f"{key} is new")
    if list(before) != [key for key in after if key in before]:
        coverage.failures.append("the order of the keys has changed")

    trains = {key: p.requires_grad for key, p in base.named_parameters()}
    for key, parameter in model.named_parameters():
        if key not in trains:
            coverage.added += parameter.requires_grad * parameter.numel()
            coverage.frozen += (not parameter.requires_grad) * parameter.numel()
        elif trains[key] != parameter.requires_grad:
            coverage.failures.append(f"{key} has another requires_grad")


def _train(coverage: Coverage, base: nn.Module, model: nn.Module, batch: dict) -> None:
    base.init_weights()
    for module in base.modules():
        if type(module).__name__ == "TridentConv":  # mmdet leaves it uninitialised
            nn.init.kaiming_normal_(module.weight)
    fill_zero_weights(base)
    base.train()
    with fitting_statistics(base, momentum=1.0):
        base(**_preprocessed(base, batch), mode="loss")
    start = copy.deepcopy(base.state_dict())
    model.load_state_dict(start, strict=False)
    counter = "cls_num_pos_samples_per_level"  # DDOD counts from step to step
    counts = getattr(getattr(base, "bbox_head", None), counter, None)
    if counts is not None:
        setattr(model.bbox_head, counter, list(counts))
    loss_before = _step(base, batch)
    before = {key: p.grad for key, p in base.named_parameters()}

    with original_activations(base, model, coverage.report):
        loss = _step(model, batch)
    if loss != loss_before:
        coverage.failures.append(f"rewired, the loss is {loss}, not {loss_before}")
    after = {key: p.grad for key, p in model.named_parameters()}
    differences = gradient_differences(before, after)[:5]
    coverage.failures += [f"rewired, {text}" for text in differences]

    model.load_state_dict(start, strict=False)  # norms have gathered statistics
    with UnlistedActivations(model, coverage.report) as unlisted:
        coverage.losses = (loss_before, _step(model, batch))
    coverage.failures += sorted(unlisted.calls)
    if not all(map(math.isfinite, coverage.losses)):
        coverage.failures.append(f"the losses are {coverage.losses}")
    _check_gradients(coverage, model, before)


def _preprocessed(model: nn.Module, batch: dict) -> dict:
    return model.data_preprocessor(copy.deepcopy(batch), True)


def _step(model: nn.Module, batch: dict) -> float:
    """Run one training step up to the gradients; return the sum of the losses."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model.train()
    model.zero_grad(set_to_none=True)
    loss, _ = model.parse_losses(model(**_preprocessed(model, batch), mode="loss"))
    loss.backward()
    return loss.item()


def gradient_differences(
    before: dict[str, Tensor | None], after: dict[str, Tensor | None]
) -> list[str]:
    """Return a sentence for each gradient that is not bit for bit the same."""
    sentences = []
    for key, expected in before.items():
        value = after[key]
        if expected is None or value is None:
            if expected is not value:
                sentences.append(f"{key} has a gradient in one of the models only")
        elif not torch.equal(value, expected):
            off = (value - expected).abs().max() / expected.abs().max()
            sentences.append(
                f"the gradient of {key} differs by {off:.1g} of its largest element"
            )
    return sentences


def _check_gradients(
    coverage: Coverage, model: nn.Module, before: dict[str, Tensor | None]
) -> None:
    for site in coverage.report.sites:
        parameters = list(model.get_submodule(site.path).parameters())
        gradients = [parameter.grad for parameter in parameters]
        neighbours = _neighbouring(site.path, before)
        if not any(parameter.requires_grad for parameter in parameters):
            if any(gradient is not None for gradient in gradients):
                coverage.failures.append(f"{site.path} is frozen and has a gradient")
        elif any(gradient is None for gradient in gradients):
            if all(gradient is None for gradient in neighbours):
                coverage.remarks.append(
                    f"the config never runs the module of {site.path}"
                )
            else:
                coverage.failures.append(f"{site.path} has no gradient")
        elif not all(gradient.isfinite().all() for gradient in gradients):
            coverage.failures.append(f"{site.path} has a gradient that is not finite")
        elif not any(gradient.any() for gradient in gradients):
            if any(gradient is not None and gradient.any() for gradient in neighbours):
                # Far from 0, where ReLU and its stand-in are straight, it underflows.
                coverage.remarks.append(f"{site.path} has a gradient of zero")


def _neighbouring(path: str, gradients: dict) -> list[Tensor | None]:
    """Return the gradients of the nearest weights around an activation."""
    while path:
        path = path.rpartition(".")[0]
        nearest = [g for key, g in gradients.items() if key.startswith(f"{path}.")]
        if nearest:
            return nearest
    return []

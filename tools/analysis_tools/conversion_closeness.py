"""Measure how close a converted detector is to what it was, and how trainable.

    python tools/analysis_tools/conversion_closeness.py \
        mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py \
        mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py

The weights are random, drawn from a fixed seed, and the batch norms have the statistics
of the images, which are made up. Nothing is downloaded. What is compared, in eval mode:
every output of backbone, neck and heads; where a head works on proposals, they are the
same before and after. The columns:

- float32, float64: the largest difference of an output's elements over its largest
  element, for the worst output. In float64 rounding plays no part; what float32 makes
  of the unconverted detector's own outputs is printed above each table.
- backbone, neck, heads: float64 by part.
- dlam, dkappa: the mean of |d AGLU/d lam| and |d AGLU/d kappa| over the inputs of a
  site, relative to AGLU(1, 1) on the same inputs, for the median site: how much of a
  change the two parameters can make, and how much of a gradient they get.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os.path as osp
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from apa_mmdet.conversion import ConversionReport, Site, convert_activations
from apa_mmdet.conversion.kinds import KINDS
from apa_mmdet.ops.formula import aglu_grads

KAPPAS = (10.0, 20.0, 50.0, 100.0, 1000.0)
_RELUS = ("ReLU", "ReLU6", "LeakyReLU")
_SAMPLE = 4096  # elements of a site's input that the derivatives are taken at


# ------------------------------------------------------------------ models and images
def load(path: str, options: Mapping | None = None) -> dict:
    """Return the model of a config, without anything pretrained in it.

    Args:
        path: A config file, or one of MMDetection's as ``mmdet::rtmdet/NAME.py``.
        options: Settings to override, as in ``--cfg-options``.
    """
    if "::" not in path and not osp.isfile(path):
        raise SystemExit(f"no such config file: {path}")
    try:
        cfg = get_config(path) if "::" in path else Config.fromfile(path)
    except FileNotFoundError as error:
        raise SystemExit(f"{path}: {error}") from None
    cfg.merge_from_dict(dict(options or {}))
    if "model" not in cfg:
        raise SystemExit(f"{path} has no model; give a detector's config")
    for part in _dicts(cfg.model):
        part.pop("pretrained", None)
        if any("checkpoint" in init for init in _inits(part.get("init_cfg"))):
            part.pop("init_cfg")
    return cfg.model


def _dicts(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for part in node:
            yield from _dicts(part)


def _inits(init_cfg: dict | list | None) -> list[dict]:
    return list(init_cfg) if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]


def images(count: int, size: int, seed: int) -> list[Tensor]:
    """Return made-up images: smooth patches, rectangles and discs, and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    made = []
    for _ in range(count):
        coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 6)))
        image = F.interpolate(coarse, (size, size), mode="bicubic")[0].numpy()
        for number in range(12):
            y, x = rng.uniform(0, size, 2)
            height, width = rng.uniform(size / 20, size / 3, 2)
            dy, dx = (rows - y) / height, (columns - x) / width
            inside = dy**2 + dx**2 < 1 if number % 2 else abs(dy) + abs(dx) < 1
            image[:, inside] = rng.uniform(0, 255, (3, 1))
        image += rng.normal(0, 12, image.shape)
        made.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)))
    return made


def batch(model: nn.Module, count: int, size: int, seed: int) -> tuple:
    """Return images and their samples as the model's preprocessor hands them on."""
    shares = torch.tensor([(5, 10, 40, 45), (35, 25, 90, 85), (2, 5, 98, 95)]) / 100
    samples = []
    for _ in range(count):
        shape = dict(img_shape=(size, size), ori_shape=(size, size))
        sample = DetDataSample(metainfo=dict(**shape, scale_factor=(1.0, 1.0)))
        sample.proposals = InstanceData(bboxes=shares * size)
        samples.append(sample)
    data = dict(inputs=images(count, size, seed), data_samples=samples)
    data = model.data_preprocessor(data, False)
    return data["inputs"], data["data_samples"]


@torch.no_grad()
def build(
    cfg: dict, size: int, seed: int = 0, gamma: float = 1.0
) -> tuple[nn.Module, tuple]:
    """Return the detector of a model's config, ready to compare, and a batch for it.

    Args:
        cfg: The model's config.
        size: Pixels of the images.
        seed: Of the weights and the images.
        gamma: Given to norms whose weight is initialised to zero, as is that of the
            last norm of a residual branch: zero would hide what happens in the branch.

    Raises:
        ValueError: If something in the model would load a checkpoint.
    """
    torch.manual_seed(seed)
    with _quiet(), DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(copy.deepcopy(cfg))
        for name, module in model.named_modules():
            if any("checkpoint" in i for i in _inits(getattr(module, "init_cfg", 0))):
                raise ValueError(f"{name} would load a checkpoint: {module.init_cfg}")
        model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.any():
            if parameter.dim() == 1:
                parameter.fill_(gamma)
            else:
                parameter.normal_(0.0, 0.01)
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the passes
    for number in range(3):
        outputs(model, *batch(model, 4, size, seed + 1 + number))
    model.eval()
    return model, batch(model, 2, size, seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out how each weight was initialised."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


# ------------------------------------------------------------------------- comparing
@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor, samples: list) -> dict[str, Tensor]:
    """Return every output of backbone, neck and heads by name."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        return lambda module, given, result: found.update(_flat(name, result))

    parts = ("backbone", "neck")
    hooks = [
        getattr(model, part).register_forward_hook(keep(part))
        for part in parts
        if isinstance(getattr(model, part, None), nn.Module)
    ]
    if isinstance(model, TwoStageDetector):
        features = model.extract_feat(inputs)
        if model.with_rpn:
            found.update(_flat("rpn_head", model.rpn_head(features)))
        proposals = [
            InstanceData(bboxes=sample.proposals.bboxes.to(inputs))
            for sample in samples
        ]
        result = model.roi_head.forward(features, proposals, samples)
        found.update(_flat("roi_head", result))
    else:
        found.update(_flat("head", model(inputs, samples, mode="tensor")))
    for hook in hooks:
        hook.remove()
    return found


def _flat(name: str, result: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Tensor):
        if result.is_floating_point() and result.numel():
            yield name, result.clone()  # activations may work in place later
        return
    if isinstance(result, Mapping):
        parts: Iterable = result.items()
    elif isinstance(result, (list, tuple)):
        parts = enumerate(result)
    else:
        return
    for key, part in parts:
        yield from _flat(f"{name}.{key}", part)


def apart(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict:
    """Return, by output, the largest difference over the largest element."""
    found = {}
    for name, wanted in before.items():
        difference = (after[name] - wanted).abs().max() / wanted.abs().max()
        found[name] = float(difference) if difference.isfinite() else float("inf")
    return found


@dataclass
class Figures:
    """What one start gives; see the top of this file.

    Attributes:
        start: The start in words.
        single: Relative difference of each output in float32.
        double: The same in float64.
        d_lam: How much lam can change, relative to AGLU(1, 1).
        d_kappa: The same of kappa.
    """

    start: str
    single: dict[str, float]
    double: dict[str, float]
    d_lam: float
    d_kappa: float

    def row(self) -> list[str]:
        """Return the row of the table."""
        parts: dict[str, float] = {"backbone": 0.0, "neck": 0.0, "heads": 0.0}
        for name, value in self.double.items():
            part = name.partition(".")[0]
            part = part if part in parts else "heads"
            parts[part] = max(parts[part], value)
        largest = max(self.single.values()), max(self.double.values())
        values = (*largest, *parts.values(), self.d_lam, self.d_kappa)
        return [self.start, *(f"{value:.2g}" for value in values)]


class Subject:
    """A detector before its conversion, with what it returns.

    Args:
        cfg: The model's config.
        size: Pixels of the images.
        seed: Of the weights and the images.
        gamma: As in :func:`build`.

    Attributes:
        rounding: Relative difference of each output in float32 from the same in
            float64: what float32 leaves of the detector's outputs as it is.
    """

    def __init__(self, cfg: dict, size: int, seed: int = 0, gamma: float = 1.0) -> None:
        self.model, (self.inputs, self.samples) = build(cfg, size, seed, gamma)
        self._single = outputs(self.model, self.inputs, self.samples)
        double = copy.deepcopy(self.model).double()
        self._double = outputs(double, self.inputs.double(), self.samples)
        self.rounding = apart(self._double, self._single)

    def converted(
        self, kappa: float | None = None, types: Sequence[str] | None = None
    ) -> tuple[Figures, ConversionReport]:
        """Convert a copy of the detector and compare.

        Args:
            kappa: Where what was a kind of ReLU starts; by default as ``init='auto'``.
            types: As in ``convert_activations``.
        """
        model = copy.deepcopy(self.model)
        init: str | dict = "auto"
        if kappa is not None:
            init = {kind: dict(lam=1.0, kappa=kappa) for kind in _RELUS}
        report = convert_activations(model, init=init, types=types)
        single = apart(self._single, outputs(model, self.inputs, self.samples))
        model.double()
        shares: dict[str, tuple[float, float]] = {}
        hooks = [
            model.get_submodule(site.path).register_forward_hook(
                lambda act, given, _, path=site.path: shares.update(
                    {path: _shares(given[0], act.lambda_param, act.kappa_param)}
                )
            )
            for site in report.sites
        ]
        double = outputs(model, self.inputs.double(), self.samples)
        for hook in hooks:
            hook.remove()
        d_lam, d_kappa = (median(column) for column in zip(*shares.values()))
        start = "auto" if kappa is None else f"kappa {kappa:g}"
        double = apart(self._double, double)
        return Figures(start, single, double, d_lam, d_kappa), report


def _kind(site: Site) -> str:
    return site.was.split(",")[0]


def _shares(x: Tensor, lam: Tensor, kappa: Tensor) -> tuple[float, float]:
    x = x.flatten()
    x = x[:: max(1, x.numel() // _SAMPLE)]
    one = torch.ones_like(lam)
    found = []
    for here, there in zip(aglu_grads(x, lam, kappa)[1:], aglu_grads(x, one, one)[1:]):
        found.append(float(here.abs().mean() / there.abs().mean()))
    return found[0], found[1]


def compare(
    subject: Subject,
    kappas: Iterable[float] = KAPPAS,
    types: Sequence[str] | None = None,
) -> tuple[list[Figures], ConversionReport]:
    """Return the figures of one model for each start, and what was converted.

    The kappas are tried where most sites were a kind of ReLU.
    """
    figures, report = subject.converted(types=types)
    found = [figures]
    if sum(_kind(site) in _RELUS for site in report.sites) * 2 > len(report.sites):
        found += [subject.converted(kappa, types)[0] for kappa in kappas]
    return found, report


@torch.no_grad()
def pointwise() -> dict[str, tuple[float, float, str]]:
    """Return each kind's largest difference on [-20, 20], where it is, and the start.

    It is that of ``init='auto'``, in float64.
    """
    z = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    found = {}
    for kind in KINDS:
        model = nn.Sequential(KINDS[kind].module()).double()
        wanted = model(z)
        report = convert_activations(model, types=[kind])
        difference = (model.double()(z) - wanted).abs()
        where = float(z[difference.argmax()])
        found[kind] = float(difference.max()), where, report.sites[0].start
    return found


# ------------------------------------------------------------------------- the tables
def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with their columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    )


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "configs",
        nargs="*",
        help="config files, or MMDetection's as mmdet::rtmdet/NAME.py; without any, "
        "only the table of the activations themselves is printed",
    )
    parser.add_argument(
        "--kappas",
        nargs="*",
        type=float,
        default=KAPPAS,
        help="values of kappa to start ReLUs with, besides init='auto'",
    )
    parser.add_argument("--types", nargs="+", help="activation types to convert")
    parser.add_argument("--size", type=int, default=256, help="pixels of the images")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument(
        "--gamma",
        type=float,
        default=1.0,
        help="weight of norms that are initialised to zero, which differences hinge on",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        help="settings of the configs to override",
    )
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    args = parse_args()
    rows = [("activation", "start", "largest difference", "at")]
    for kind, (difference, where, start) in pointwise().items():
        rows.append((kind, start, f"{difference:.3g}", f"{where:.3g}"))
    print(table(rows))
    for path in args.configs:
        cfg = load(path, args.cfg_options)
        subject = Subject(cfg, args.size, args.seed, args.gamma)
        figures, report = compare(subject, args.kappas, args.types)
        was = Counter(map(_kind, report.sites))
        counts = ", ".join(f"{number} {kind}" for kind, number in was.most_common())
        rounding = max(subject.rounding.values())
        print(f"\n{path}: {counts}; float32 rounds the outputs by {rounding:.2g}")
        head = "start float32 float64 backbone neck heads dlam dkappa".split()
        print(table([head, *(one.row() for one in figures)]), flush=True)


if __name__ == "__main__":
    main()

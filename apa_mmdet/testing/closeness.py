"""How close a converted detector starts to the unconverted one, and how trainable."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..conversion import ConversionReport, convert_activations
from ..conversion.kinds import KINDS
from ..ops.formula import aglu_grads
from .configs import init_cfgs
from .differences import flatten, relative_differences
from .images import inference_batch
from .models import fill_zero_weights, fitting_statistics, quiet_mmdet
from .wiring import kind_of

KAPPAS = (10.0, 20.0, 50.0, 100.0, 1000.0)
_FEATURES = ("backbone", "neck")
_RELUS = ("ReLU", "ReLU6", "LeakyReLU")
_SAMPLE = 4096  # elements of a site's input at which the derivatives are evaluated


def build(
    cfg: dict, size: int, seed: int = 0, gamma: float = 1.0
) -> tuple[nn.Module, tuple[Tensor, list]]:
    """Return the detector of a model's config in eval mode, and inputs and samples.

    Its weights are random, and its batch norms have the statistics of such images.

    The arguments are those of :class:`Reference`.

    Raises:
        ValueError: If something in the model would load a checkpoint.
    """
    torch.manual_seed(seed)
    with quiet_mmdet():
        model = MODELS.build(copy.deepcopy(cfg))
        for name, module in model.named_modules():
            init_cfg = getattr(module, "init_cfg", None)
            if any("checkpoint" in init for init in init_cfgs(init_cfg)):
                raise ValueError(f"{name} would load a checkpoint: {init_cfg}")
        model.init_weights()
    fill_zero_weights(model, gamma)
    model.eval()
    with fitting_statistics(model):
        for number in range(3):
            outputs(model, *_batch(model, 4, size, seed + 1 + number))
    return model, _batch(model, 2, size, seed)


def _batch(model: nn.Module, count: int, size: int, seed: int) -> tuple[Tensor, list]:
    batch = model.data_preprocessor(inference_batch(count, size, seed), False)
    return batch["inputs"], batch["data_samples"]


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor, samples: list) -> dict[str, Tensor]:
    """Return every output of backbone, neck and heads by name.

    RoI heads work on the samples' proposals.
    """
    tensors: dict[str, Tensor] = {}

    def record(name: str, result: object) -> None:
        tensors.update(flatten(name, result))

    hooks = [
        module.register_forward_hook(lambda *call, name=name: record(name, call[-1]))
        for name, module in model.named_children()
        if name in _FEATURES
    ]
    if isinstance(model, TwoStageDetector):
        features = model.extract_feat(inputs)
        if model.with_rpn:
            record("rpn_head", model.rpn_head(features))
        boxes = [sample.proposals.bboxes.to(inputs) for sample in samples]
        proposals = [InstanceData(bboxes=each) for each in boxes]
        record("roi_head", model.roi_head.forward(features, proposals, samples))
    else:
        record("head", model(inputs, samples, mode="tensor"))
    for hook in hooks:
        hook.remove()
    return tensors


@dataclass
class Closeness:
    """How close one choice of starting values is, and how much it leaves to learn.

    ``d_lam`` is the mean of |∂AGLU/∂λ| over the inputs of a site, relative to
    AGLU(1, 1) on the same inputs, for the median site: how much λ can change and how
    much gradient it gets. ``d_kappa`` is the same for κ.
    """

    start: str  # the starting values in words
    single: dict[str, float]  # relative difference of each output in float32
    double: dict[str, float]  # the same in float64, where rounding plays no part
    d_lam: float
    d_kappa: float

    def largest(self) -> dict[str, float]:
        """Return the largest difference in float64 of backbone, neck and heads."""
        sections = {"backbone": 0.0, "neck": 0.0, "heads": 0.0}
        for name, value in self.double.items():
            section = name.partition(".")[0] if name.startswith(_FEATURES) else "heads"
            sections[section] = max(sections[section], value)
        return sections


class Reference:
    """An unconverted detector and its outputs, to compare conversions with.

    Args:
        cfg: The model's config.
        size: Height and width of the images in pixels.
        seed: Of weights and images.
        gamma: See :func:`.models.fill_zero_weights`.

    Attributes:
        rounding: Relative difference of each output in float32 from float64, without
            any conversion.
    """

    def __init__(self, cfg: dict, size: int, seed: int = 0, gamma: float = 1.0) -> None:
        self.model, (self._inputs, self._samples) = build(cfg, size, seed, gamma)
        self._single, self._double = self._outputs(copy.deepcopy(self.model))
        self.rounding = relative_differences(self._double, self._single)

    def _outputs(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Yield a model's outputs in float32, then those in float64."""
        yield outputs(model, self._inputs, self._samples)
        yield outputs(model.double(), self._inputs.double(), self._samples)

    def compare(self, kappa: float | None = None) -> tuple[Closeness, ConversionReport]:
        """Convert a copy of the detector and compare its outputs.

        Sites that were a kind of ReLU start at λ = 1 and ``kappa``; without it, all
        start as with ``init='auto'``.
        """
        model = copy.deepcopy(self.model)
        init: str | dict = "auto"
        if kappa is not None:
            init = {kind: dict(lam=1.0, kappa=kappa) for kind in _RELUS}
        report = convert_activations(model, init=init)
        ratios: dict[str, tuple[float, float]] = {}  # by site, of its last call
        for path in (site.path for site in report.sites):
            model.get_submodule(path).register_forward_hook(
                lambda aglu, args, _, path=path: ratios.update(
                    {path: _derivative_ratios(args[0], aglu)}
                )
            )
        single, double = self._outputs(model)
        closeness = Closeness(
            "auto" if kappa is None else f"kappa {kappa:g}",
            relative_differences(self._single, single),
            relative_differences(self._double, double),
            *map(median, zip(*ratios.values())),
        )
        return closeness, report

    def compare_starts(
        self, kappas: Iterable[float] = KAPPAS
    ) -> tuple[list[Closeness], ConversionReport]:
        """Compare ``init='auto'`` and, where most sites were ReLUs, these kappas."""
        closeness, report = self.compare()
        results = [closeness]
        relus = sum(kind_of(site) in _RELUS for site in report.sites)
        if relus * 2 > len(report.sites):
            results += [self.compare(kappa)[0] for kappa in kappas]
        return results, report


def _derivative_ratios(x: Tensor, aglu: nn.Module) -> tuple[float, float]:
    """Return by λ and by κ the mean derivative relative to that of AGLU(1, 1)."""
    x = x.flatten()[:: max(1, x.numel() // _SAMPLE)]
    one = torch.ones_like(aglu.lambda_param)
    own = aglu_grads(x, aglu.lambda_param, aglu.kappa_param)[1:]
    d_lam, d_kappa = (
        float(grad.abs().mean() / unit.abs().mean())
        for grad, unit in zip(own, aglu_grads(x, one, one)[1:])
    )
    return d_lam, d_kappa


@torch.no_grad()
def pointwise_differences() -> dict[str, tuple[float, float, str]]:
    """Return by activation how far AGLU is from it with ``init='auto'``.

    Returns:
        The largest difference on [-20, 20] in float64, where it is, and the start.
    """
    z = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    largest = {}
    for kind, entry in KINDS.items():
        model = nn.Sequential(entry.module()).double()
        expected = model(z)
        report = convert_activations(model, types=[kind])
        difference = (model.double()(z) - expected).abs()
        where = float(z[difference.argmax()])
        largest[kind] = float(difference.max()), where, report.sites[0].start
    return largest

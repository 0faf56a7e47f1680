"""Whether models of other libraries convert completely and can be trained."""

from __future__ import annotations

import copy
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..conversion import ConversionReport, convert_activations
from ..conversion.dry_run import UnlistedActivations
from ..optim.groups import NAMES
from .differences import (
    flatten,
    key_differences,
    neighbouring,
    relative_differences,
)
from .library_models import LibraryModel
from .models import fill_zero_weights, fitting_statistics
from .wiring import original_activations


@dataclass
class LibraryCoverage:
    """What the checks of one model showed.

    Attributes:
        model: The model.
        report: Of its conversion; None if that or the model failed.
        difference: Of the outputs before and after the conversion, the largest relative
            to the largest value of the same output.
        idle: The sites whose λ and κ get no gradient, like the weights around them.
        failures: What is not as it should be, a sentence each.
        seconds: Of CPU time.
    """

    model: LibraryModel
    report: ConversionReport | None = None
    difference: float | None = None
    idle: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def check_model(model: LibraryModel) -> LibraryCoverage:
    """Build a model, convert it, run it before and after, and compute its gradients.

    - The keys, shapes and order of its weights stay; what is new is a λ or a κ.
    - With every site computing what it replaced, the outputs are bit for bit those of
      the unconverted model.
    - No fixed activation runs that the report does not list as left.
    - Every λ and κ gets a finite gradient in training mode, unless the weights around
      it get none either.
    """
    start, coverage = time.process_time(), LibraryCoverage(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that weights are random
            _check(coverage)
    except Exception as error:  # reported, so that other models still run
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        coverage.failures.append(f"{type(error).__name__}: {error} ({place})")
    coverage.seconds = time.process_time() - start
    return coverage


def _check(coverage: LibraryCoverage) -> None:
    torch.manual_seed(0)
    entry = coverage.model
    base = entry.build()
    inputs, training = entry.arguments(), entry.arguments(training=True)
    fill_zero_weights(base)
    with fitting_statistics(base, momentum=1.0):
        _outputs(base, inputs)
    model = copy.deepcopy(base)
    coverage.report = report = convert_activations(model, example_inputs=inputs)
    coverage.failures += key_differences(base, model)

    # A detector's boxes after suppression cannot be compared; its losses can.
    compared = training if entry.training else inputs
    for each in (base, model):
        each.train(bool(entry.training))
    with torch.no_grad():
        expected = _outputs(base, compared)
        with original_activations(base, model, report):
            rewired = _outputs(model, compared)
        actual = _outputs(model, compared)
    coverage.failures += [
        f"rewired, the output {name} is different"
        for name, value in expected.items()
        if not torch.equal(rewired[name], value)
    ]
    coverage.difference = max(relative_differences(expected, actual).values())

    model.train()
    with UnlistedActivations(model, report) as unlisted:
        values = _outputs(model, training).values()
        sum(value.square().sum() for value in values if value.requires_grad).backward()
    unlisted_before = [text for text in report.disagreements if "neither" in text]
    coverage.failures += sorted({*unlisted.calls, *unlisted_before})
    _check_gradients(coverage, model)


def _outputs(model: nn.Module, arguments: dict) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(flatten("output", model(**arguments)))


def _check_gradients(coverage: LibraryCoverage, model: nn.Module) -> None:
    gradients = {key: p.grad for key, p in model.named_parameters()}
    others = {key: g for key, g in gradients.items() if not key.endswith(NAMES)}
    for site in coverage.report.sites:
        own = [p.grad for p in model.get_submodule(site.path).parameters()]
        if any(gradient is None for gradient in own):
            if neighbouring(site.path, others):
                coverage.failures.append(f"{site.path} has no gradient")
            else:
                coverage.idle.append(site.path)
        elif not all(gradient.isfinite().all() for gradient in own):
            coverage.failures.append(f"{site.path} has a gradient that is not finite")

"""What the examples share: options, the seeds, and the table of the comparison."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from apa_mmdet.layers import AGLU
from apa_mmdet.testing.benchmark import markdown_table, positive

# 97.5 % quantiles of Student's t distribution, by the number of seeds. The last also
# serves for more than ten: the interval is then slightly too wide.
_T = (math.nan, math.nan, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

RULE = (
    "± is the standard deviation over the seeds, [ ] the 95 % t interval of the "
    "difference, which is paired: one seed gives both variants the same initial "
    "weights and the same data in the same order. The difference is called lower or "
    "higher if the interval excludes 0."
)


@dataclass
class Run:
    """One variant, trained with one seed.

    Attributes:
        model: The trained model.
        figures: What was measured on held-out data, by name.
        starts: lambda and kappa of each AGLU before the training.
        start_difference: Of the model's output from that of the unconverted model,
            before the training: the largest, relative to the largest output.
    """

    model: nn.Module
    figures: Mapping[str, float]
    starts: list[tuple[float, float]]
    start_difference: float

    @property
    def reached(self) -> list[tuple[float, float]]:
        """Lambda and kappa of each AGLU after the training."""
        return _pairs(self.model)


def make_parser(description: str, steps: int) -> argparse.ArgumentParser:
    """Return a parser with the options of all examples, and their default steps."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=positive, default=steps, help="of each training (%(default)s)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings")
    add("--threads", type=positive, help="of torch (default: one for each core)")
    return parser


def compare(
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], Mapping[str, float]],
    variants: Mapping[str, Callable[[nn.Module], object] | None],
    output: Callable[[nn.Module], Tensor],
    seeds: Sequence[int],
) -> dict[str, list[Run]]:
    """Train every variant with every seed, and print the table.

    torch's seed is set before ``build`` and again before ``train``. Whatever these draw
    at random from torch is therefore the same for all variants.

    Args:
        build: Returns the untrained, unconverted model.
        train: Trains a model and returns its figures on held-out data, by name.
        variants: By name, what makes the variant of a model in place, such as
            ``convert_activations``. The first is the baseline, with None for a model
            that stays as it is.
        output: Returns what a model computes for some fixed input.
        seeds: One for each training of a variant.

    Returns:
        The runs of each variant, in the order of the seeds.
    """
    seeds = list(dict.fromkeys(seeds))  # a seed given twice has no spread
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for seed in seeds:
        for name, convert in variants.items():
            torch.manual_seed(seed)
            model = build()
            difference = 0.0
            if convert is not None:
                before = _evaluated(output, model)
                convert(model)
                after = _evaluated(output, model)
                difference = ((after - before).abs().max() / before.abs().max()).item()
            starts = _pairs(model)
            torch.manual_seed(seed)
            run = Run(model, train(model), starts, difference)
            runs[name].append(run)
            figures = ", ".join(f"{key} {run.figures[key]:.4f}" for key in run.figures)
            print(f"{name}, seed {seed}: {figures}", file=sys.stderr, flush=True)
    print(_report(runs, seeds))
    return runs


def _pairs(model: nn.Module) -> list[tuple[float, float]]:
    return [
        (act.lambda_param.item(), act.kappa_param.item())
        for act in model.modules()
        if isinstance(act, AGLU)
    ]


@torch.no_grad()
def _evaluated(output: Callable[[nn.Module], Tensor], model: nn.Module) -> Tensor:
    model.eval()
    result = output(model)
    model.train()
    return result


def _report(runs: Mapping[str, Sequence[Run]], seeds: Sequence[int]) -> str:
    """Return the table, and a sentence on each converted variant."""
    baseline, *others = runs
    names = list(runs[baseline][0].figures)

    def values(variant: str, name: str) -> list[float]:
        return [run.figures[name] for run in runs[variant]]

    rows = [[v, *(_mean_and_std(values(v, name)) for name in names)] for v in runs]
    sentences = []
    for other in others:
        pairs = {n: zip(values(other, n), values(baseline, n)) for n in names}
        paired = {n: [new - old for new, old in pairs[n]] for n in names}
        title = f"{other} − {baseline}"
        for i, seed in enumerate(seeds):
            cells = [f"{paired[name][i]:+.4f}" for name in names]
            rows.append([f"{title}, seed {seed}", *cells])
        rows.append([title, *(_interval(paired[name]) for name in names)])
        sentences += ["", _course(other, baseline, runs[other])]
    table = markdown_table(["on held-out data", *names], rows)
    return "\n".join([table, "", RULE, *sentences])


def _mean_and_std(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def _interval(differences: Sequence[float]) -> str:
    """Return the mean of paired differences, its interval, and what that means."""
    middle, count = mean(differences), len(differences)
    if count < 2:
        return f"{middle:+.4f}; one seed shows no spread"
    half = _T[min(count, len(_T) - 1)] * stdev(differences) / math.sqrt(count)
    verdict = "no difference beyond the spread of the seeds"
    if abs(middle) > half:
        verdict = "lower" if middle < 0 else "higher"
    return f"{middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}]: {verdict}"


def _course(variant: str, baseline: str, runs: Sequence[Run]) -> str:
    """Return where lambda and kappa started and what they reached."""
    reached: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for run in runs:
        for start, end in zip(run.starts, run.reached):
            reached.setdefault(start, []).append(end)
    courses = []
    for (lam, kappa), ends in reached.items():
        lams, kappas = zip(*ends)
        courses.append(
            f"λ from {lam:.4g} to {min(lams):.2f} ... {max(lams):.2f} and κ from "
            f"{kappa:.4g} to {min(kappas):.2f} ... {max(kappas):.2f} "
            f"({len(ends) // len(runs)} in each model)"
        )
    difference = max(run.start_difference for run in runs)
    return (
        f"{variant} starts within {difference:.0e} of {baseline} (relative to the "
        f"largest output). Trained: {'; '.join(courses)}."
    )

"""Results for people: tables, a CSV file and a plot of the long tail."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .core.bootstrap import Difference
from .core.evaluate import LVISResult
from .core.params import FREQUENCIES

_GROUP_NAMES = ("rare", "common", "frequent")
# A class is rare up to 10 training images, common up to 100.
_GROUP_BOUNDS = (10, 100)


def _percent(value: float) -> str:
    """Return a figure in per cent, '-' if it is undefined."""
    return f"{100 * value:.2f}" if value >= 0 else "-"


def summary_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return figures as a table, in per cent.

    Args:
        figures: For each row its name and its figures, the same in all rows.
    """
    names = list(next(iter(figures.values())))
    widths = [max(len(name), 6) + 2 for name in names]
    first = max(len(row) for row in figures)
    lines = [" " * first + "".join(f"{n:>{w}}" for n, w in zip(names, widths))]
    for row, values in figures.items():
        cells = (f"{_percent(values[n]):>{w}}" for n, w in zip(names, widths))
        lines.append(f"{row:{first}}" + "".join(cells))
    return "\n".join(lines)


def difference_table(
    differences: Mapping[str, Difference], confidence_level: float = 0.95
) -> str:
    """Return the comparison of two results as a table, in per cent."""
    interval = f"{100 * confidence_level:g} % interval"
    lines = [f"{'':6}{'A':>8}{'B':>8}{'B - A':>9}{interval:>20}{'B > A':>8}"]
    for name, each in differences.items():
        bounds = f"{100 * each.low:+.2f} .. {100 * each.high:+.2f}"
        lines.append(
            f"{name:6}{_percent(each.first):>8}{_percent(each.second):>8}"
            f"{100 * each.value:+9.2f}{bounds:>20}{each.share_above:8.0%}"
            f"  {'' if each.excludes_zero else 'could be chance'}".rstrip()
        )
    return "\n".join(lines)


def class_table(result: LVISResult, columns: int = 3) -> str:
    """Return AP of all annotated classes in per cent, lowest first."""
    truth, ap = result.truth, result.class_ap()
    order = [i for i in np.argsort(ap, kind="stable") if np.isfinite(ap[i])]
    if not order:
        return "no class is annotated"
    width = min(max(len(truth.class_names[i]) for i in order), 32)
    cells = [
        f"{truth.class_names[i][:width]:{width}} {FREQUENCIES[truth.frequency[i]]}"
        f"{_percent(ap[i]):>7}"
        for i in order
    ]
    rows = -(-len(cells) // columns)
    return "\n".join("   ".join(cells[row::rows]) for row in range(rows))


def write_class_csv(
    path: str | os.PathLike[str], results: Mapping[str, LVISResult]
) -> None:
    """Write AP of each class to a CSV file, a row for each class.

    Columns: id, name, frequency (r, c, f), training images, annotations that count, and
    ``AP``, with several results one ``AP <name>`` for each: AP at full precision as a
    fraction of 1, empty where nothing is annotated.

    Args:
        path: The file to write.
        results: The results by name, of the same annotations.
    """
    first = next(iter(results.values()))
    truth = first.truth
    columns = {
        "category_id": truth.class_ids.tolist(),
        "name": truth.class_names,
        "frequency": [FREQUENCIES[index] for index in truth.frequency],
        "image_count": ["" if n < 0 else n for n in truth.image_counts.tolist()],
        "annotations": first.ranked.num_annotations[:, 0].tolist(),
    }
    for name, result in results.items():
        ap = result.class_ap().tolist()
        head = "AP" if len(results) == 1 else f"AP {name}"
        columns[head] = ["" if np.isnan(value) else value for value in ap]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values())])


def plot_long_tail(
    path: str | os.PathLike[str], results: Mapping[str, LVISResult]
) -> None:
    """Plot AP of each class against the number of training images that show it.

    A point is a class, a line the mean over classes with about as many images, a short
    bar the mean over a group. Dashed lines separate rare, common and frequent classes.

    Args:
        path: The picture to write.
        results: The results by name, of the same annotations, each in its own colour.

    Raises:
        ValueError: If the annotation file does not say how many images show a class.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    truth = next(iter(results.values())).truth
    if (truth.image_counts < 0).all():
        raise ValueError(
            "the annotation file's categories have no image_count to plot AP against; "
            "use one that has it, such as LVIS v1's"
        )
    if len(results) <= 10:
        colours = colormaps["tab10"](np.arange(len(results)))
    else:
        colours = colormaps["turbo"](np.linspace(0, 1, len(results)))
    figure = Figure(figsize=(9, 5 + len(results) / 8), layout="constrained")
    axis = figure.subplots()
    for colour, (name, result) in zip(colours, results.items()):
        _plot_result(axis, result, name, colour)
    right = 1.25 * max(float(truth.image_counts.max()), 2.0 * _GROUP_BOUNDS[1])
    edges = (0.8, *(bound + 0.5 for bound in _GROUP_BOUNDS), right)
    axis.set(xscale="log", xlim=(0.8, right), ylim=(-3, 103))
    for edge in edges[1:-1]:
        axis.axvline(edge, color="0.4", linestyle="--", linewidth=1)
    is_annotated = np.isfinite(result.class_ap())
    for index, name in enumerate(_GROUP_NAMES):
        middle = np.sqrt(edges[index] * edges[index + 1])
        number = (is_annotated & (truth.frequency == index)).sum()
        label = f"{name} ({number} classes)"
        axis.text(middle, 100, label, ha="center", va="top", color="0.3")
    axis.set(xlabel="training images that show the class", ylabel="AP of the class (%)")
    figure.legend(loc="outside lower center", ncols=2)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=130)


def _plot_result(axis: Any, result: LVISResult, name: str, colour: Any) -> None:
    ap, count = 100 * result.class_ap(), result.truth.image_counts
    is_shown = np.isfinite(ap) & (count > 0)
    ap, count = ap[is_shown], count[is_shown]
    frequency = result.truth.frequency[is_shown]
    means = [f"{np.mean(ap) if len(ap) else np.nan:.1f}"]
    for index, group in enumerate(FREQUENCIES):
        in_group = frequency == index
        if in_group.any():
            mean, counts = ap[in_group].mean(), count[in_group]
            means.append(f"{group} {mean:.1f}")
            ends = counts.min(), counts.max()
            axis.plot(ends, [mean] * 2, color=colour, linewidth=4, alpha=0.3)
    axis.plot(count, ap, ".", color=colour, alpha=0.35, markersize=5)
    order = np.argsort(count, kind="stable")
    window = max(len(order) // 15, 1)
    x, y = [], []  # too few classes for a line still need a legend
    if len(order) > window:
        kernel = np.ones(window) / window
        x = np.exp(np.convolve(np.log(count[order]), kernel, "valid"))
        y = np.convolve(ap[order], kernel, "valid")
    label = f"{name}: AP {', '.join(means)}"
    axis.plot(x, y, color=colour, linewidth=1.5, label=label)

"""Results for people: tables, a CSV and a plot of the long tail."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bootstrap import Difference
from .ground_truth import FREQUENCIES
from .lvis_eval import LVISResult

GROUP_NAMES = dict(zip(FREQUENCIES, ("rare", "common", "frequent")))
# LVIS calls a class rare that up to 10 training images show, common up to 100.
_BOUNDS = (10, 100)
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def _shown(value: float) -> str:
    """Return a figure in per cent, '-' where there is none."""
    return "-" if not np.isfinite(value) or value < 0 else f"{100 * value:.2f}"


def summary_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return figures as a table, in per cent.

    Args:
        figures: For each row its name and its figures; the rows have the same.
    """
    names = list(next(iter(figures.values())))
    widths = [max(len(name), 6) + 2 for name in names]
    first = max(len(row) for row in figures)
    lines = [" " * first + "".join(f"{n:>{w}}" for n, w in zip(names, widths))]
    for row, values in figures.items():
        cells = (f"{_shown(values[n]):>{w}}" for n, w in zip(names, widths))
        lines.append(f"{row:{first}}" + "".join(cells))
    return "\n".join(lines)


def difference_table(
    differences: Mapping[str, Difference], confidence: float = 0.95
) -> str:
    """Return the comparison of two results as a table, in per cent."""
    interval = f"{100 * confidence:g} % interval"
    lines = [f"{'':6}{'A':>8}{'B':>8}{'B - A':>9}{interval:>20}{'B > A':>8}"]
    for name, each in differences.items():
        bounds = f"{100 * each.low:+.2f} .. {100 * each.high:+.2f}"
        is_clear = each.low > 0 or each.high < 0
        lines.append(
            f"{name:6}{_shown(each.first):>8}{_shown(each.second):>8}"
            f"{100 * each.value:+9.2f}{bounds:>20}{each.share_above:8.0%}"
            f"  {'' if is_clear else 'could be chance'}".rstrip()
        )
    return "\n".join(lines)


def class_table(result: LVISResult, columns: int = 3) -> str:
    """Return AP of all annotated classes in per cent, worst first."""
    truth, ap = result.truth, result.class_ap()
    order = [i for i in np.argsort(ap, kind="stable") if np.isfinite(ap[i])]
    if not order:
        return "no class is annotated"
    width = min(max(len(truth.names[i]) for i in order), 32)
    cells = [
        f"{truth.names[i][:width]:{width}} {FREQUENCIES[truth.frequency[i]]}"
        f"{_shown(ap[i]):>7}"
        for i in order
    ]
    rows = -(-len(cells) // columns)
    return "\n".join("   ".join(cells[row::rows]) for row in range(rows))


def write_class_csv(
    path: str | os.PathLike[str], results: Sequence[LVISResult]
) -> None:
    """Write a line for each class; several results get columns of their own.

    Columns: id, name, group (r, c, f), training images, annotations that count, AP at
    full precision as a fraction of 1, empty where nothing is annotated.
    """
    truth = results[0].truth
    heads = ["AP"] if len(results) == 1 else [f"AP_{_letter(i)}" for i in range(9)]
    columns = [result.class_ap() for result in results]
    counts = results[0].ranking.num_truth[:, 0]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["category_id", "name", "frequency", "image_count", "annotations"]
        writer.writerow(head + heads[: len(results)])
        for index, name in enumerate(truth.names):
            count = int(truth.image_count[index])
            writer.writerow(
                [
                    int(truth.class_ids[index]),
                    name,
                    FREQUENCIES[truth.frequency[index]],
                    "" if count < 0 else count,
                    int(counts[index]),
                    *(
                        "" if np.isnan(ap[index]) else repr(float(ap[index]))
                        for ap in columns
                    ),
                ]
            )


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def plot_long_tail(
    path: str | os.PathLike[str], results: Mapping[str, LVISResult]
) -> None:
    """Plot AP of each class against the number of training images that show it.

    A point is a class, a line the mean over the classes with about as many images, and
    a short bar the mean over a group. The bounds of rare, common and frequent are
    drawn.

    Args:
        path: The picture to write.
        results: For each its name.

    Raises:
        ValueError: If the annotation file does not say how many images show a class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    truth = next(iter(results.values())).truth
    if (truth.image_count < 0).all():
        raise ValueError(
            "the annotation file's categories have no image_count, so AP cannot be "
            "plotted against it; LVIS v1's have"
        )
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for colour, (name, result) in zip(_COLOURS, results.items()):
        _plot_one(axis, result, name, colour)
    most = max(float(truth.image_count.max()), 2.0 * _BOUNDS[1])
    axis.set_xscale("log")
    axis.set_xlim(0.8, most * 1.25)
    axis.set_ylim(-3, 103)
    edges = (0.8, *(bound + 0.5 for bound in _BOUNDS), most * 1.25)
    for edge in edges[1:-1]:
        axis.axvline(edge, color="0.4", linestyle="--", linewidth=1)
    for index, group in enumerate(FREQUENCIES):
        middle = np.sqrt(edges[index] * edges[index + 1])
        number = int(np.isfinite(_class_ap_of(result, group)).sum())
        axis.text(
            middle, 100, f"{GROUP_NAMES[group]} ({number} classes)", ha="center",
            va="top", color="0.3",
        )  # fmt: skip
    axis.set_xlabel("training images that show the class")
    axis.set_ylabel("AP of the class (%)")
    axis.legend(loc="upper left", bbox_to_anchor=(0, 0.94))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=130)


def _class_ap_of(result: LVISResult, group: str) -> np.ndarray:
    return result.class_ap()[result.truth.frequency == FREQUENCIES.index(group)]


def _plot_one(axis: Any, result: LVISResult, name: str, colour: str) -> None:
    ap, count = 100 * result.class_ap(), result.truth.image_count
    is_shown = np.isfinite(ap) & (count > 0)
    ap, count = ap[is_shown], count[is_shown]
    frequency = result.truth.frequency[is_shown]
    figures = [f"{np.mean(ap) if len(ap) else np.nan:.1f}"]
    for index, group in enumerate(FREQUENCIES):
        of_group = ap[frequency == index]
        if len(of_group):
            figures.append(f"{group} {of_group.mean():.1f}")
            ends = count[frequency == index].min(), count[frequency == index].max()
            axis.plot(ends, [of_group.mean()] * 2, color=colour, linewidth=4, alpha=0.3)
    label = f"{name}: AP {', '.join(figures)}"
    axis.plot(count, ap, ".", color=colour, alpha=0.35, markersize=5)
    order = np.argsort(count, kind="stable")
    window = max(len(order) // 15, 1)
    smooth = np.ones(window) / window
    if len(order) > window:
        middle = np.exp(np.convolve(np.log(count[order]), smooth, "valid"))
        axis.plot(
            middle,
            np.convolve(ap[order], smooth, "valid"),
            color=colour,
            linewidth=1.5,
            label=label,
        )
    else:
        axis.plot([], [], color=colour, label=label)

"""Pictures of an analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .classifier import ROLES
from .collect import Statistics
from .compare import DISTRIBUTIONS, best_of
from .fit import APAFit, NormalFit
from .report import ordered
from .statistics import Histogram

_COLORS = dict(zip(DISTRIBUTIONS, ("tab:green", "tab:blue", "tab:orange", "tab:red")))
_STYLES = dict(zip(DISTRIBUTIONS, (":", "--", "-.", "-")))
_GROUP_COLORS = {"r": "tab:red", "c": "tab:orange", "f": "tab:blue", "all": "0.4"}
_COLUMNS, _ROWS = 4, 3
_MAX_BARS = 60
_LAM_TICKS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 1000.0)


def write_plots(
    statistics: Statistics, report: Mapping[str, Any], folder: Path
) -> list[str]:
    """Draw everything there is; return the names of the files."""
    drawn: dict[str, Figure] = {}
    sites = list(zip(report["sites"], statistics.sites.values()))
    size = _COLUMNS * _ROWS
    for first in range(0, len(sites), size):
        page = sites[first : first + size]
        figure = _panels(-(-len(page) // _COLUMNS), _COLUMNS)
        for axis, (record, site) in zip(figure.axes, page):
            _draw_fits(axis, site.histogram, record, record["site"])
        drawn[f"sites_{first // size + 1}.png"] = _finished(figure)
    remaining = iter(report["classifiers"])
    for head, classifier in statistics.classifiers.items():
        keys = ordered(classifier)
        groups = list(dict.fromkeys(group for _, group in keys))
        figure = _panels(len(ROLES), len(groups))
        axes = np.array(figure.axes).reshape(len(ROLES), len(groups))
        for (role, group), record in zip(keys, remaining):
            axis = axes[ROLES.index(role), groups.index(group)]
            title = f"{role}, {group}"
            _draw_fits(axis, classifier.histograms[role, group], record, title)
        figure.suptitle(f"logits of {head}")
        drawn[f"classifier_{head}.png"] = _finished(figure)
    if report["sites"]:
        drawn["depth.png"] = _draw_depth(report["sites"])
    heads = dict.fromkeys(record["site"] for record in report["classes"])
    for head in heads:
        of_head = [each for each in report["classes"] if each["site"] == head]
        drawn[f"classes_{head}.png"] = _draw_classes(of_head, head)
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=100)
    return list(drawn)


def _panels(rows: int, columns: int) -> Figure:
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    figure.subplots(rows, columns)
    return figure


def _finished(figure: Figure) -> Figure:
    """Remove empty panels and add a legend."""
    for axis in figure.axes:
        if not axis.has_data():
            axis.set_axis_off()
    handles, labels = max(
        (axis.get_legend_handles_labels() for axis in figure.axes),
        key=lambda pair: len(pair[1]),
    )
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_fits(
    axis: Axes, histogram: Histogram, record: Mapping[str, Any], title: str
) -> None:
    """Draw a histogram between its extreme quantiles, and the fitted densities."""
    axis.set_title(title, fontsize=8, loc="left")
    axis.tick_params(labelsize=7)
    if not histogram.total:
        return
    low, high = histogram.quantiles(np.array([0.001, 0.999]))
    if low == high:
        low, high = low - 0.5, high + 0.5
    num_bars = int(np.clip(2 * histogram.total ** (1 / 3), 10, _MAX_BARS))
    edges = np.linspace(low, high, num_bars + 1)
    heights = np.diff(histogram.shares(edges)) / np.diff(edges)
    axis.stairs(heights, edges, fill=True, color="0.8", label="data")
    # A value that occurs very often, such as the 0 of a ReLU, is cut off.
    fits = record.get("fits", {})
    top = np.quantile(heights, 0.95) if fits else heights.max()
    z = np.linspace(low, high, 300)
    for name, figures in fits.items():
        density = np.exp(_fit_of(figures).log_pdf(z))
        top = max(top, density.max())
        axis.plot(z, density, _STYLES[name], color=_COLORS[name], lw=1.2, label=name)
    axis.set_ylim(0, 1.4 * top)
    note = "\n".join(wrap(record.get("too_few", ""), 32))
    if fits:
        apa, best = fits["apa"], best_of(record)
        note = (
            f"best {best}, KS {fits[best]['ks']:.3f}\n"
            f"$\\lambda$ {apa['lam']:.2g}, $\\kappa$ {apa['kappa']:.2g}"
        )
    axis.text(
        0.98, 0.96, note, transform=axis.transAxes, ha="right", va="top", fontsize=7
    )


def _fit_of(figures: Mapping[str, float]) -> APAFit | NormalFit:
    if "sigma" in figures:
        return NormalFit(figures["mu"], figures["sigma"], 0.0, 0.0)
    return APAFit(figures["mu"], figures["lam"], figures["kappa"], 0.0, 0.0)


def _shape(lam: Iterable[float]) -> np.ndarray:
    """Return lambda on an axis from 0, Gumbel, by 1/2, logistic, to 1."""
    lam = np.array(list(lam), np.float64)
    return lam / (1 + lam)


def _set_lam_axis(axis: Axes) -> None:
    ticks = _shape(_LAM_TICKS)
    labels = [f"{lam:g}" for lam in _LAM_TICKS]
    labels[0], labels[3] = "0 Gumbel", "1 logistic"
    axis.set_yticks(ticks, labels)
    axis.set_ylim(-0.03, 1.03)
    for at in (0.0, 0.5):
        axis.axhline(at, color="0.85", lw=1, zorder=0)
    axis.set_ylabel(r"$\lambda$")


def _draw_depth(sites: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw lambda and kappa of each site, in the order in which they run."""
    figure = Figure(figsize=(max(7, 0.28 * len(sites) + 2), 7.5), layout="constrained")
    for axis, name in zip(figure.subplots(2, 1, sharex=True), ("lam", "kappa")):
        as_drawn = _shape if name == "lam" else np.array
        fitted = [
            (x, site["fits"]["apa"]) for x, site in enumerate(sites) if "fits" in site
        ]
        if fitted:
            x, fits = zip(*fitted)
            middle = as_drawn([fit[name] for fit in fits])
            axis.plot(x, middle, "o", color=_COLORS["apa"], ms=4, label="fitted")
            ends = [
                as_drawn([fit.get(f"{name}_{end}", fit[name]) for fit in fits])
                for end in ("low", "high")
            ]
            axis.vlines(x, *ends, color=_COLORS["apa"], lw=1)
        for key, style, label in (
            (f"start_{name}", dict(marker="o", color="0.5", mfc="none"), "start"),
            (name, dict(marker="x", color="black"), "now"),
        ):
            known = [(x, s[key]) for x, s in enumerate(sites) if s[key] is not None]
            if known:
                x, values = zip(*known)
                axis.plot(x, as_drawn(values), ls="", ms=6, label=label, **style)
        axis.grid(axis="x", color="0.93")
    first, second = figure.axes
    _set_lam_axis(first)
    first.legend(fontsize=8, loc="upper right")
    second.set_ylabel(r"$\kappa$")
    is_positive = min(line.get_ydata().min() for line in second.lines) > 0
    second.set_yscale("log" if is_positive else "symlog")
    second.margins(y=0.1)
    second.set_xticks(
        range(len(sites)), [site["site"] for site in sites], rotation=90, fontsize=6
    )
    return figure


def _draw_classes(records: Sequence[Mapping[str, Any]], head: str) -> Figure:
    """Draw the fitted lambda of each class against its number of training images."""
    figure = Figure(figsize=(3.9 * len(ROLES), 4), layout="constrained")
    axes = figure.subplots(1, len(ROLES), sharex=True, sharey=True)
    for axis, role in zip(axes, ROLES):
        of_role = [record for record in records if record["role"] == role]
        axis.set_title(f"{role} ({len(of_role)} classes)", fontsize=9)
        for group, color in _GROUP_COLORS.items():
            points = [
                (max(each["training_images"], 0.8), each["fits"]["apa"]["lam"])
                for each in of_role
                if each["group"] == group
            ]
            if points:
                x, lam = zip(*points)
                y = _shape(lam)
                axis.plot(x, y, "o", ms=4, color=color, alpha=0.7, label=group)
        axis.set_xscale("log")
        axis.set_xlabel("training images")
        axis.grid(color="0.95")
        if of_role:
            axis.legend(fontsize=8)
        _set_lam_axis(axis)
    figure.suptitle(f"fitted lambda of each class, logits of {head}")
    return figure

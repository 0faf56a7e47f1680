"""What tools that measure share: options, tables and charts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import torch

from ..conversion.report import aligned


def positive(text: str) -> int:
    """Return an option's value as an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return int(text)


def available(device: str) -> str:
    """Return an option's value if it is a device that torch can use."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{device}: {error}") from None
    return device


def benchmark_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks, and their default rounds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add, out = parser.add_argument, Path("docs/benchmarks")
    add("--device", type=available, default=device)
    add("--rounds", type=positive, default=rounds, help="measurements per figure")
    add("--out", type=Path, default=out, help="folder to write to")
    return parser


def table(title: str, key: str, columns: Mapping[str, str], rows: Sequence) -> str:
    """Return figures as an aligned table.

    Args:
        title: Head of the first column.
        key: Of the first column's values in the rows.
        columns: By head, a format string such as ``'{seconds:.3f}'`` for each row.
        rows: Dicts of figures; a figure that is None is shown as a dash.
    """

    def cell(template: str, row: Mapping) -> str:
        try:
            return template.format(**row)
        except TypeError:
            return "-"

    lines = [[row[key], *(cell(c, row) for c in columns.values())] for row in rows]
    return "\n".join(aligned([[title, *columns], *lines]))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bar_charts(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
    columns: int = 2,
    ratios: bool = True,
) -> str:
    """Write horizontal bar charts, if matplotlib is installed.

    Args:
        panels: By title, the values of each bar by its label; the bar shows their mean
            and, of several values, each one as a point.
        path: The image to write.
        columns: Panels side by side.
        ratios: Whether the axes are logarithmic, with a line at 1.

    Returns:
        A phrase to print: the file's name, or why there is none.
    """
    if find_spec("matplotlib") is None:
        return "no plot, because matplotlib is not installed"
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    size = 5.2 * columns, (1.2 + 0.3 * max(map(len, panels.values()))) * rows
    figure = Figure(figsize=size, layout="constrained")
    for number, (title, bars) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(rows, columns, number, title=title)
        drawn = axis.barh(list(bars), list(map(mean, bars.values())), color="0.75")
        # In the middle, where no point is, or after the bar.
        place = dict(padding=2) if ratios else dict(label_type="center")
        axis.bar_label(drawn, fmt="%.3g", **place)
        for label, values in bars.items():
            if len(values) > 1:
                axis.plot(values, [label] * len(values), "k.", markersize=5)
        if ratios:
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set_xscale("log")
        axis.invert_yaxis()
        axis.margins(x=0.2)
    figure.savefig(path, dpi=110)
    return path.name

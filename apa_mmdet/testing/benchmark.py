"""What benchmark tools share: options, tables and charts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from ..conversion.report import aligned


def benchmark_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have.

    Args:
        description: Of the tool, shown as it is.
        rounds: How many measurements to take the medians of by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add, out = parser.add_argument, Path("docs/benchmarks")
    add("--device", default=device)
    add("--rounds", type=int, default=rounds, help="measurements per figure")
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


def bar_charts(
    panels: Mapping[str, Mapping[str, float]], path: Path, columns: int = 2
) -> str:
    """Write horizontal bar charts on a logarithmic axis, if matplotlib is installed.

    Args:
        panels: By title, the value of each bar by its label.
        path: The image to write.
        columns: Panels side by side.

    Returns:
        What became of it, as a phrase to print.
    """
    if find_spec("matplotlib") is None:
        return "no plot, because matplotlib is not installed"
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(panels) // columns)
    size = 5.2 * columns, (1.2 + 0.3 * max(map(len, panels.values()))) * rows
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False
    )
    for axis, (title, values) in zip(axes.flat, panels.items()):
        axis.bar_label(axis.barh(*zip(*values.items())), fmt="%.3g", padding=2)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set(title=title, xscale="log")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path.name

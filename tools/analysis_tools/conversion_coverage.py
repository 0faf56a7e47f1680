"""Convert a detector of every family, train each one step, and write a table.

    python tools/analysis_tools/conversion_coverage.py
    python tools/analysis_tools/conversion_coverage.py --configs yolox rtmdet

The models are whole and their weights random; images and annotations are made up.
Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
import platform
import resource
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from apa_mmdet.testing.benchmark import markdown_table
from apa_mmdet.testing.coverage import Coverage, check_family
from apa_mmdet.testing.families import CONFIGS, LEFT_OUT

_REPO = Path(__file__).parents[2]
_HEADER = ("Config", "Sites", "Added", "Frozen", "Left", "Loss", "Result")
_PAGE = """# Coverage

One config of each detector family in MMDetection, converted by `APADetector` with its
default options. Written by `python tools/analysis_tools/conversion_coverage.py` with
{versions}, in {minutes} minutes of CPU time on one core. {trained} of {configs} were
trained for one step on a CPU, with two made-up images, from random weights.

- Sites: activations that became AGLU; shared: reached more than once by design, such as
  once for each level of a pyramid.
- Added: new parameters that train, a λ and a κ for each site; Frozen: new parameters in
  frozen stages.
- Left: activations that stay as they are, by reason (below).
- Loss: the sum of the losses in the first step, before and after the conversion.
- One step: the losses are finite, every λ and κ that trains has a finite gradient, and
  every fixed activation that runs is listed as left. With every site computing what it
  replaced, losses and gradients are bit for bit those of the unconverted detector.

In every config the keys, shapes and order of the unconverted detector's weights are
unchanged, and the same ones train; all new keys end in `lambda_param` or `kappa_param`.

{table}

Left:

{left}

Not in the table, because they need a download or another package:

{left_out}
"""


def line(row: Coverage) -> str:
    """Return what is printed for a config as soon as it is checked."""
    text = f"{row.name}: "
    if row.report is not None:
        text += f"{len(row.report.sites)} sites, {len(row.report.left)} left, "
        text += f"{row.added + row.frozen} parameters, "
    text += f"{row.seconds:.1f} s"
    return "\n    ".join([text, *row.remarks, *(f"FAILED: {f}" for f in row.failures)])


def cells(row: Coverage, letters: dict[str, str]) -> list[str]:
    """Return a row of the table; its first five cells are the same on any machine.

    ``letters`` has the letter of each reason to leave an activation, and gets new ones.
    """
    if row.report is None:
        return [row.name, "", "", "", "", "", "failed"]
    reasons = Counter(left.reason for left in row.report.left)
    for reason in reasons:
        letters.setdefault(reason, chr(ord("a") + len(letters)))
    left = sorted(f"{n} {letters[reason]}" for reason, n in reasons.items())
    shared = sum(bool(site.shared) for site in row.report.sites)
    result = "one step" if row.losses is not None else "converted"
    return [
        row.name,
        f"{len(row.report.sites)}" + (f", {shared} shared" if shared else ""),
        str(row.added),
        str(row.frozen or ""),
        ", ".join(left),
        "{:.4g} → {:.4g}".format(*row.losses) if row.losses is not None else "",
        "; ".join(["failed" if row.failures else result, *row.remarks]),
    ]


def page(rows: list[Coverage]) -> str:
    """Return the page in Markdown."""
    letters: dict[str, str] = {}
    stack = ("mmdet", "mmcv", "mmengine", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in stack)
    return _PAGE.format(
        versions=f"Python {platform.python_version()}, {versions}",
        configs=len(rows),
        trained=sum(row.losses is not None and not row.failures for row in rows),
        minutes=math.ceil(sum(row.seconds for row in rows) / 60),
        table=markdown_table(_HEADER, [cells(row, letters) for row in rows]),
        left="\n".join(f"- {letter}: {reason}" for reason, letter in letters.items()),
        left_out="\n".join(f"- {names}: {why}" for names, why in LEFT_OUT.items()),
    )


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    configs_help = "check only configs whose name contains one of these"
    out_help = "page to write; docs/coverage.md if all configs are checked"
    parser.add_argument("--configs", nargs="+", metavar="NAME", help=configs_help)
    parser.add_argument("--out", type=Path, help=out_help)
    return parser.parse_args()


def main() -> int:
    """Check the configs and write the table; return 1 if one failed."""
    args = parse_args()
    for text in args.configs or ():
        if not any(text in name for name in CONFIGS):
            raise SystemExit(
                f"--configs {text}: no config of apa_mmdet.testing.families contains it"
            )
    rows = []
    for name in CONFIGS:
        if not args.configs or any(text in name for text in args.configs):
            rows.append(check_family(name))
            print(line(rows[-1]), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    failed = sum(bool(row.failures) for row in rows)
    print(
        f"{len(rows)} configs, {failed} failed, {sum(r.seconds for r in rows):.0f} s "
        f"of CPU time, {peak:.1f} GiB at most"
    )
    out = args.out or (None if args.configs else _REPO / "docs/coverage.md")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(rows), encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

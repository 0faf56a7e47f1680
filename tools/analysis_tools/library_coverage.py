"""Convert models of transformers, diffusers, timm and torchvision, and write a table.

    python tools/analysis_tools/library_coverage.py
    python tools/analysis_tools/library_coverage.py --libraries timm --models swin vit

The models are small and their weights random. Nothing is downloaded. It needs the
libraries and torch, and no MMDetection.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from apa_mmdet.testing.benchmark import markdown_table
from apa_mmdet.testing.library_coverage import LibraryCoverage, check_model
from apa_mmdet.testing.library_models import MODELS
from apa_mmdet.testing.wiring import kind_of

_REPO = Path(__file__).parents[2]
LIBRARIES = list(dict.fromkeys(model.library for model in MODELS))
_HEADER = ("sites", "left", "difference", "gradients")
_PAGE = """# Coverage outside MMDetection

{models} models with random weights, {counts}, converted by
`convert_activations(model, example_inputs=...)` with its default options. Written by
`python tools/analysis_tools/library_coverage.py` with {versions},
in float32 on a CPU, in {minutes} minutes of CPU time on one core.

- Sites: the activations that became AGLU, by what they were; inline: called as a
  function.
- Left: activations that stay as they are, by reason (below).
- Difference: of the outputs before and after the conversion, the largest relative to
  the largest value of the same output, in eval mode; for detectors, of the losses.
  Weights that are initialised to zero are filled first, and batch norms take the
  statistics of the input.
- Gradients: in training mode. "All" if every λ and κ gets a finite one. The others are
  of modules that did not run, or none of whose weights get a gradient.

In {passed} of {models}, the keys, shapes and order of the unconverted weights are
unchanged, all new keys end in `lambda_param` or `kappa_param`, and no fixed activation
ran that the report does not mention. With every site computing what it replaced, the
outputs are bit for bit those of the unconverted model.

{tables}

Left:

{left}
"""


def sites(row: LibraryCoverage) -> str:
    """Return the number of sites by the activation they replaced."""
    counts = Counter(map(kind_of, row.report.sites)).most_common()
    inline = sum("inline" in site.was for site in row.report.sites)
    text = ", ".join(f"{number} {kind}" for kind, number in counts) or "none"
    return text + (f" ({inline} inline)" if inline else "")


def gradients(row: LibraryCoverage) -> str:
    """Return whether every λ and κ gets a gradient."""
    if not row.report.sites:
        return ""
    return f"all but {2 * len(row.idle)}" if row.idle else "all"


def cells(row: LibraryCoverage, letters: dict[str, str]) -> list[str]:
    """Return a row of the table.

    ``letters`` has the letter of each reason to leave an activation, and gets new ones.
    """
    if row.failures or row.report is None:
        return [row.model.title, "failed", "", "", ""]
    reasons = Counter(left.reason for left in row.report.left)
    for reason in reasons:
        letters.setdefault(reason, chr(ord("a") + len(letters)))
    left = ", ".join(sorted(f"{n} {letters[reason]}" for reason, n in reasons.items()))
    small = row.difference < 1e-5
    difference = "< 1e-5" if small else f"{row.difference:.1g}"
    if not row.report.sites:
        difference = ""
    return [row.model.title, sites(row), left, difference, gradients(row)]


def line(row: LibraryCoverage) -> str:
    """Return what is printed for a model as soon as it is checked."""
    text = f"{row.model.library} {row.model.title}: "
    if row.report is not None:
        text += f"{sites(row)}, {len(row.report.left)} left, "
    text += f"{row.seconds:.1f} s"
    return "\n    ".join([text, *(f"FAILED: {failure}" for failure in row.failures)])


def page(rows: Sequence[LibraryCoverage]) -> str:
    """Return the page in Markdown."""
    letters: dict[str, str] = {}
    libraries = list(dict.fromkeys(row.model.library for row in rows))
    own = {name: [r for r in rows if r.model.library == name] for name in libraries}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *libraries))
    tables = [
        markdown_table((name, *_HEADER), [cells(row, letters) for row in own[name]])
        for name in libraries
    ]
    return _PAGE.format(
        models=len(rows),
        counts=", ".join(f"{len(own[name])} of {name}" for name in libraries),
        versions=f"Python {platform.python_version()}, {versions}",
        minutes=math.ceil(sum(row.seconds for row in rows) / 60),
        passed=sum(not row.failures for row in rows),
        tables="\n\n".join(tables),
        left="\n".join(f"- {letter}: {reason}" for reason, letter in letters.items()),
    )


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    libraries_help = f"of {', '.join(LIBRARIES)}; all by default"
    options = dict(nargs="+", choices=LIBRARIES, default=LIBRARIES, metavar="NAME")
    add("--libraries", help=libraries_help, **options)
    models_help = "check only models whose name contains one of these"
    add("--models", nargs="+", metavar="NAME", help=models_help)
    out_help = "page to write; docs/library_coverage.md if all models are checked"
    add("--out", type=Path, help=out_help)
    args = parser.parse_args()
    known = [model for model in MODELS if model.library in args.libraries]
    for text in args.models or ():
        if not any(text in model.name for model in known):
            parser.error(f"--models {text}: no model of apa_mmdet.testing contains it")
    args.chosen = [
        model
        for model in known
        if not args.models or any(text in model.name for text in args.models)
    ]
    for name in dict.fromkeys(model.library for model in args.chosen):
        if find_spec(name) is None:
            parser.error(
                f"{name} is not installed: pip install {name}, or name the others in "
                f"--libraries"
            )
    return args


def main() -> int:
    """Check the models and write the page; return 1 if one failed."""
    args = parse_args()
    rows = []
    for model in args.chosen:
        rows.append(check_model(model))
        print(line(rows[-1]), flush=True)
    failed = sum(bool(row.failures) for row in rows)
    print(f"{len(rows)} models, {failed} failed")
    out = args.out
    if out is None and len(rows) == len(MODELS):
        out = _REPO / "docs/library_coverage.md"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(rows), encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

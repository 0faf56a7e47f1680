r"""Train variations of a config with several seeds, test them and compare them.

    python tools/analysis_tools/ablate.py \
        --config configs/mini_lvis/mask_rcnn_r18_apa.py --epochs 3 --jobs 2 \
        --variation apa --variation softmax head=softmax \
        --test-variation strict=softmax model.test_cfg.rcnn.score_thr=0.3

A variation is NAME[=CONFIG] and settings as in --cfg-options; without CONFIG it varies
--config. head=HEAD takes the classifier of configs/lvis/mask_rcnn_r50_HEAD_head.py, or
of another config if HEAD is a path. A test variation is NAME=VARIATION and settings
with which the weights of that variation are tested again. A VALUE with braces is a
Python literal, such as {'type': 'NORCAL'}. Options can also come from a file, written
as on the command line:

    python tools/analysis_tools/ablate.py @docs/benchmarks/mini_lvis_heads.txt --jobs 2

The same command continues after an interruption: what is complete is not repeated, and
a training resumes from its last checkpoint. A run that fails does not stop the others.

The table has mean and standard deviation over the seeds and, between any two
variations, the difference with its 95 % interval: a bootstrap over the validation
images, pooled over the seeds. A difference is marked if its interval excludes 0, and
still does when the seeds are resampled as well; a figure, if it is so much better than
that of every other variation. The figures are those of the config's test_evaluator, an
LVISFastMetric or, for image classifiers, a LongTailAccuracy. Exit code: 1 if the table
lacks a run, 2 for unusable options.
"""

from __future__ import annotations

import argparse
import ast
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import DictAction

from apa_mmdet.conversion.report import aligned
from apa_mmdet.datasets import check_files
from apa_mmdet.testing.ablation.jobs import run_jobs
from apa_mmdet.testing.ablation.report import (
    Evaluation,
    Measured,
    as_json,
    compare_variations,
    figures,
    make_evaluation,
    make_tables,
)
from apa_mmdet.testing.ablation.run import Run, find_evaluator
from apa_mmdet.testing.ablation.variations import Variation, make_runs
from apa_mmdet.testing.benchmark import bar_charts, markdown_table, positive

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments, and those of the files it names."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [@FILE] [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
    )
    parser.convert_arg_line_to_args = lambda line: shlex.split(line, comments=True)
    add = parser.add_argument
    add("--config", help="what variations without a config of their own vary")
    name, setting = "NAME[=CONFIG]", "KEY=VALUE"
    variation = dict(nargs="+", action="append", default=[])
    add("--variation", metavar=(name, setting), help="to train and test", **variation)
    name = "NAME=VARIATION"
    test_help = "to test on the weights of another variation"
    add("--test-variation", metavar=(name, setting), help=test_help, **variation)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings")
    add("--epochs", type=positive, help="of each training (default: the config's)")
    common_help = "settings of all variations, also data_root"
    options = dict(nargs="+", action="extend", metavar=setting, default=[])
    add("--cfg-options", help=common_help, **options)
    add("--jobs", type=positive, default=1, help="runs at a time")
    add("--work-dir", type=Path, default=Path("work_dirs/ablate"))
    add("--out", type=Path, help="of JSON, .md and .png (default: WORK_DIR/table)")
    add("--report-only", action="store_true", help="run nothing")
    number_help = "of the bootstrap (%(default)s)"
    add("--num-resamples", type=positive, default=1000, help=number_help)
    args = parser.parse_args()
    if not args.variation:
        parser.error("expected at least one --variation")
    return args


def parse_variation(option: str, words: list[str], default: str | None) -> Variation:
    """Return the variation that an option's words describe.

    Raises:
        ValueError: If a setting is unusable, or nothing says what to vary.
    """
    name, _, source = words[0].partition("=")
    source = source or default
    if not source and option == "--variation":
        raise ValueError(
            f"{option} {name}: no config; expected {name}=CONFIG, or --config"
        )
    if not source:
        raise ValueError(
            f"{option} {name}: no variation; expected {name}=VARIATION, whose weights "
            "to test"
        )
    settings = parse_settings(f"{option} {name}", words[1:])
    if "head" in settings:
        settings["head"] = head_config(f"{option} {name}", str(settings["head"]))
    return Variation(name, source, settings)


def parse_settings(option: str, words: list[str]) -> dict[str, object]:
    """Return settings as --cfg-options does; a value with braces is a Python literal.

    Raises:
        ValueError: If a word is not KEY=VALUE, or not a literal.
    """
    settings: dict[str, object] = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            if "{" in value:
                settings[key] = ast.literal_eval(value)
                continue
            parsed = argparse.Namespace()
            DictAction([], "settings")(argparse.ArgumentParser(), parsed, [word])
            settings.update(parsed.settings)
        except (ValueError, SyntaxError, AssertionError):
            raise ValueError(f"{option}: {word}: expected KEY=VALUE") from None
    return settings


def head_config(option: str, head: str) -> str:
    """Return the path of the config that has a head, given its name or the path."""
    if head.endswith(".py"):
        return head
    folder, start = ROOT / "configs/lvis", "mask_rcnn_r50_"
    paths = {
        path.stem[len(start) : -len("_head")]: path
        for path in sorted(folder.glob(f"{start}*_head.py"))
    }
    paths["apa"] = folder / f"{start}apa.py"
    if head not in paths:
        raise ValueError(
            f"{option}: head={head}: expected a config, or one of {', '.join(paths)}"
        )
    return str(paths[head])


def prepare(args: argparse.Namespace) -> tuple[list[Run], Evaluation]:
    """Return the runs and their evaluation, after checking everything they need."""
    common = parse_settings("--cfg-options", args.cfg_options)
    variations = []
    for words in args.variation:
        each = parse_variation("--variation", words, args.config)
        variations.append(each._replace(settings={**common, **each.settings}))
    tests = [
        parse_variation("--test-variation", words, None)
        for words in args.test_variation
    ]
    runs = make_runs(variations, tests, args.seeds, args.work_dir, args.epochs)
    configs = [cfg for run in runs for cfg in run.tests.values()]
    if not args.report_only:
        for cfg in configs[: len(configs) // len(args.seeds)]:  # of the first seed
            check_files(cfg, ("train", "test"))
    return runs, make_evaluation(find_evaluator(configs[0])[1])


def measure(
    runs: list[Run], evaluation: Evaluation, num_resamples: int
) -> tuple[Measured, list[str]]:
    """Return the figures of all tests by variation and seed, and what is missing."""
    measured: dict[str, dict] = {name: {} for run in runs for name in run.tests}
    missing = []
    for run in runs:
        for test in run.tests:
            name = f"{test}, seed {run.seed}"
            if not run.is_tested(test):
                missing.append(name)
                continue
            try:
                predictions = run.predictions(test)
                found = evaluation.measure(predictions, num_resamples)
                measured[test][run.seed] = found
            except (OSError, ValueError) as error:
                missing.append(f"{name}: {error}")
    return {name: seeds for name, seeds in measured.items() if seeds}, missing


def report(measured: Measured, missing: list[str], args: argparse.Namespace) -> None:
    """Print the tables, and write them as JSON, Markdown and a plot."""
    out = args.out or args.work_dir / "table"
    out.parent.mkdir(parents=True, exist_ok=True)
    runs, compared = figures(measured), compare_variations(measured)
    legend = (
        "In per cent: mean ± standard deviation over the seeds; differences with 95 % "
        f"intervals over the validation images ({args.num_resamples:,} resamples), "
        "pooled over the seeds; {} if the interval excludes 0, also with seeds "
        "resampled, and the difference is not shown as 0.0."
    )
    tables = make_tables(runs, compared, "{} *".format)
    text = ["\n".join(aligned(rows)) for rows in tables]
    print("", *text, legend.format("*"), sep="\n\n")
    tables = make_tables(runs, compared, "**{}**".format)
    text = [markdown_table(rows[0], rows[1:]) for rows in tables]
    page = "\n\n".join([*text, legend.format("bold")])
    Path(f"{out}.md").write_text(f"{page}\n", encoding="utf-8")
    results = dict(
        command=shlex.join(sys.argv[1:]),
        config=args.config,
        epochs=args.epochs,
        runs=runs,
        differences=as_json(compared),
        missing=missing,
    )
    text = json.dumps(results, indent=1, ensure_ascii=False)
    Path(f"{out}.json").write_text(f"{text}\n", encoding="utf-8")
    panels: dict[str, dict[str, list[float]]] = {}
    for variation, seeds in runs.items():
        for run in seeds.values():
            for name in list(run)[:4]:
                title = name.replace("segm", "mask").replace("bbox", "box")
                panels.setdefault(title, {}).setdefault(variation, []).append(run[name])
    image = bar_charts(panels, Path(f"{out}.png"), ratios=False)
    print(f"written: {out}.json, {out.name}.md, {image}")


def end(number: int, frame: object) -> NoReturn:
    """End this process by an exception, which ends the runs too."""
    sys.exit(128 + number)


def main() -> None:
    """Run what is missing, then report everything."""
    args = parse_args()
    try:
        runs, evaluation = prepare(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    failures = []
    if not args.report_only:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, end)
        num_threads = max(torch.get_num_threads() // args.jobs, 1)
        failures = run_jobs([run.job(TOOLS) for run in runs], args.jobs, num_threads)
    measured, missing = measure(runs, evaluation, args.num_resamples)
    if measured:
        report(measured, missing, args)
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    for name in missing:
        print(f"missing: {name}", file=sys.stderr)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()

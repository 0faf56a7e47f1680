"""One run of an ablation: a training and the tests of its weights, in one folder."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from .jobs import Job, Step


@dataclass
class Run:
    """One training and the tests of its weights.

    Attributes:
        name: Of the variation.
        seed: Of the training.
        folder: See the package's docstring.
        tests: The configs by the names of the variations; its own has the training too.
    """

    name: str
    seed: int
    folder: Path
    tests: dict[str, Config]

    def predictions(self, test: str) -> dict[str, Path]:
        """Return the results files of a test by metric, see :func:`judged_metrics`."""
        return {
            metric: self.folder / test / f"predictions.{metric}.json.gz"
            for metric in judged_metrics(find_evaluator(self.tests[test])[1])
        }

    def is_tested(self, test: str) -> bool:
        """Return whether the predictions of a test are complete."""
        return all(path.exists() for path in self.predictions(test).values())

    def checkpoint(self) -> Path | None:
        """Return the last checkpoint, None if there is none."""
        pointer = self.folder / "train/last_checkpoint"
        if not pointer.exists():
            return None
        # It has the path on the machine that wrote it. The file is missing if the
        # training was cut after removing an old checkpoint, before saving the next.
        path = pointer.parent / Path(pointer.read_text().strip()).name
        return path if path.exists() else None

    def check_settings(self) -> None:
        """Check that what is in the folder was made with the same settings.

        Raises:
            ValueError: If it was not, with the first setting that differs.
        """
        for step in ("train", *self.tests):
            path, settings = self._config_path(step), self._settings(step).to_dict()
            if path.exists():
                found = first_difference(Config.fromfile(path).to_dict(), settings)
                if found:
                    stale = self.folder if step == "train" else self.folder / step
                    raise ValueError(
                        f"{path}: made with other settings, {found}; choose another "
                        f"--work-dir, or remove this file and {stale}"
                    )

    def job(self, tools: Path) -> Job:
        """Return what is missing, as a job for :func:`.jobs.run_jobs`.

        Args:
            tools: The folder of train.py and test.py.
        """
        name = f"{self.name}, seed {self.seed}"
        return Job(name, self.folder / "log.txt", self._steps(tools), self._progress)

    def _steps(self, tools: Path) -> Generator[Step, int, None]:
        missing = [test for test in self.tests if not self.is_tested(test)]
        if missing and not self._trained.exists():
            checkpoint = self.checkpoint()
            args = ["--resume", str(checkpoint)] if checkpoint else []
            if (yield self._step("train", tools / "train.py", args)):
                return
            self._trained.touch()
        for test in missing:
            place, _ = find_evaluator(self.tests[test])
            prefix = self.folder / test / "predictions"
            args = [str(self.checkpoint()), "--cfg-options"]
            args.append(f"{place}.outfile_prefix={prefix}")
            if not (yield self._step(test, tools / "test.py", args)):
                for path in self.predictions(test).values():
                    _compress(path)

    def _step(self, step: str, tool: Path, args: Sequence[str]) -> Step:
        path = self._config_path(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name("unfinished.py")
        self._settings(step).dump(unfinished)
        os.replace(unfinished, path)
        # Not the folder itself: the runner writes its own copy of the config.
        work_dir = ["--work-dir", str(self.folder / step)]
        command = [sys.executable, "-W", "ignore", str(tool), str(path), *work_dir]
        label = "training" if step == "train" else f"test {step}"
        return Step(label, [*command, *args])

    def _settings(self, step: str) -> Config:
        """Return the config of a step; that of the training says nothing about tests.

        Otherwise a change of the evaluation would make the training look outdated.
        """
        if step != "train":
            return self.tests[step]
        cfg = Config(self.tests[self.name].to_dict())
        cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
        return cfg

    def _config_path(self, step: str) -> Path:
        return self.folder / f"{step}.config.py"

    @property
    def _trained(self) -> Path:
        return self.folder / "train/complete"

    def _progress(self) -> str:
        """Return how far the training is, according to its log."""
        logs = sorted((self.folder / "train").glob("*/vis_data/scalars.json"))
        if self._trained.exists() or not logs:
            return ""
        iterations = re.findall(r'"step": (\d+)', logs[-1].read_text())
        return f"iteration {iterations[-1]}" if iterations else ""


def find_evaluator(cfg: Config) -> tuple[str, dict]:
    """Return the metric that keeps the predictions, after its place in the config.

    It is an LVISFastMetric or a LongTailAccuracy.

    Raises:
        ValueError: If there is none.
    """
    evaluators = cfg.get("test_evaluator") or []
    if isinstance(evaluators, dict):
        places = {"test_evaluator": evaluators}
    else:
        places = {f"test_evaluator.{i}": each for i, each in enumerate(evaluators)}
    for place, evaluator in places.items():
        if is_accuracy(evaluator) or "LVISFastMetric" in str(evaluator.get("type")):
            return place, evaluator
    raise ValueError(
        "no LVISFastMetric in test_evaluator, which keeps the predictions; set "
        "test_evaluator=dict(type='LVISFastMetric', ann_file=...), or for a classifier "
        "dict(type='LongTailAccuracy')"
    )


def is_accuracy(evaluator: Mapping[str, object]) -> bool:
    """Return whether an evaluator's config is that of a LongTailAccuracy."""
    return "LongTailAccuracy" in str(evaluator.get("type"))


def judged_metrics(evaluator: dict) -> list[str]:
    """Return which of ``'segm'``, ``'bbox'`` and ``'top1'`` an evaluator has."""
    if is_accuracy(evaluator):
        return ["top1"]
    given = evaluator.get("metric", "bbox")
    given = [given] if isinstance(given, str) else given
    return [metric for metric in ("segm", "bbox") if metric in given]


def first_difference(first: object, second: object, place: str = "") -> str:
    """Return the first difference of two nested settings, empty if there is none."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted({*first, *second}, key=str):
            at = f"{place}.{key}" if place else str(key)
            found = first_difference(first.get(key), second.get(key), at)
            if found:
                return found
        return ""
    return "" if first == second else f"{place} {first!r:.60} and {second!r:.60}"


def _compress(path: Path) -> None:
    """Compress a file to ``path``, which exists only when it is complete."""
    plain, unfinished = path.with_suffix(""), path.with_suffix(".unfinished")
    with plain.open("rb") as source, gzip.open(unfinished, "wb", 5) as target:
        shutil.copyfileobj(source, target)
    os.replace(unfinished, path)
    plain.unlink()

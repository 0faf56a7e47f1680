"""The examples run with tiny settings, and train lambda and kappa."""

import math
import re
import sys
from importlib import import_module
from statistics import mean

import pytest
import torch

# By script: the libraries it needs, and each set of options to run it with.
EXAMPLES = {
    "language_model": (
        ["transformers"],
        [f"--model {name} --documents 12 --steps 2" for name in ("llama", "gpt2")],
    ),
    "vision_language": (["transformers", "PIL"], ["--scenes 20 --steps 2"]),
    "image_generation": (
        ["diffusers", "sklearn", "matplotlib"],
        ["--samples 10 --steps 2"],
    ),
    "image_classification": (
        ["transformers", "sklearn"],
        [f"--models {name} --steps 2" for name in ("vit", "resnet")],
    ),
}
CASES = [
    pytest.param(script, libraries, options.split(), id=f"{script}-{number}")
    for script, (libraries, runs) in EXAMPLES.items()
    for number, options in enumerate(runs)
]


@pytest.fixture
def load_example(repo, monkeypatch):
    """The function that imports a script of examples/, which import each other."""
    monkeypatch.syspath_prepend(repo / "examples")
    threads = torch.get_num_threads()
    yield import_module
    torch.set_num_threads(threads)
    for path in (repo / "examples").glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("script, libraries, options", CASES)
def test_example(
    script, libraries, options, load_example, capsys, monkeypatch, tmp_path
):
    for library in libraries:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)  # some draw pictures
    runs = load_example(script).main([*options, "--seeds", "0", "--threads", "1"])
    printed = capsys.readouterr().out
    baseline, *converted = runs
    assert converted
    for variant in runs:
        assert f"| {variant} |" in printed
    for run in (run for variant in runs.values() for run in variant):
        assert run.figures and all(map(math.isfinite, run.figures.values()))
    assert all(not run.reached for run in runs[baseline])
    for run in (run for variant in converted for run in runs[variant]):
        assert run.starts and len(run.reached) == len(run.starts)
        assert all(a != b for a, b in zip(run.starts, run.reached))
        assert run.start_difference < 0.1


@pytest.mark.parametrize("count", [2, 3, 10])
def test_interval_is_that_of_scipy(count, load_example):
    stats = pytest.importorskip("scipy.stats")
    differences = [0.03 + 0.01 * math.sin(i) for i in range(count)]
    text = load_example("comparison")._interval(differences)
    numbers = re.findall(r"[+-]\d\.\d+", text)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    expected = [mean(differences), interval.low, interval.high]
    assert [*map(float, numbers)] == pytest.approx(expected, abs=2e-4)
    assert text.endswith("higher") == (interval.low > 0)

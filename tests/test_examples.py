"""The examples run with tiny settings, and train lambda and kappa."""

import math
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

# By script: the libraries it needs, and each set of options to run it with.
EXAMPLES = {}
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

    def load(script):
        spec = spec_from_file_location(script, repo / "examples" / f"{script}.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    torch.set_num_threads(threads)
    sys.modules.pop("comparison", None)


@pytest.mark.parametrize("script, libraries, options", CASES)
def test_example(script, libraries, options, load_example, capsys):
    for library in libraries:
        pytest.importorskip(library)
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

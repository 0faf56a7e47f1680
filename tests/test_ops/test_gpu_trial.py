"""The trial of the GPU kernels: what it compares, and what is made of its result."""

import sys

import pytest
import torch

from apa_mmdet.ops import extension, gpu_trial, gpu_variants
from apa_mmdet.testing import gpu_stand_in

LIBRARY = "operators.so"
WORKS = "import sys; sys.exit(0)"
CRASHES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
IS_FULL = "import sys; print('out of memory', file=sys.stderr); sys.exit(3)"
# The way is the trial's last argument.
WORKS_FROM_PYTHON = f"import sys\nif sys.argv[-1] == 'cpp': {CRASHES}"


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Connect with a trial that runs a script; return the result and the ways tried."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")

    def connect(script):
        connected, ways = [], []
        run = gpu_trial._run
        monkeypatch.setattr(gpu_trial, "_TRIAL", script)
        monkeypatch.setattr(
            gpu_trial, "_run", lambda *args: ways.append(args[1]) or run(*args)
        )
        monkeypatch.setattr(
            gpu_variants,
            "connect",
            lambda path, from_cpp: connected.append("cpp" if from_cpp else "python"),
        )
        reason = gpu_trial.connect(tmp_path / LIBRARY)
        monkeypatch.setattr(gpu_trial, "_run", run)
        return reason, connected, ways

    return connect


def test_a_combination_is_tried_once(outcome):
    assert outcome(WORKS) == (None, ["cpp"], ["cpp"])
    assert outcome(CRASHES) == (None, ["cpp"], [])


def test_python_launches_where_cpp_crashes(outcome):
    for tried in (["cpp", "python"], []):
        with pytest.warns(UserWarning, match="from Python"):
            assert outcome(WORKS_FROM_PYTHON) == (None, ["python"], tried)


def test_plain_torch_where_both_crash(outcome):
    for tried in (["cpp", "python"], []):
        reason, connected, ways = outcome(CRASHES)
        assert "failed their test (exit status -11" in reason
        assert "remove " in reason
        assert (connected, ways) == ([], tried)


def test_a_trial_that_hangs_is_ended(outcome, monkeypatch):
    monkeypatch.setattr(gpu_trial, "_SECONDS", 0.5)
    reason, connected, _ = outcome("import time; time.sleep(60)")
    assert "no answer within" in reason and not connected


def test_a_full_gpu_is_tried_again_another_time(outcome):
    for _ in range(2):
        reason, connected, ways = outcome(IS_FULL)
        assert "could not be tested (exit status 3: out of memory)" in reason
        assert (connected, ways) == ([], ["cpp"])
    assert outcome(WORKS) == (None, ["cpp"], ["cpp"])


def test_a_folder_that_cannot_be_written_keeps_nothing(outcome, monkeypatch):
    def refuse(*_):
        raise OSError("read-only")

    monkeypatch.setattr(gpu_trial, "_read_or_try", refuse)
    for _ in range(2):
        assert outcome(WORKS) == (None, ["cpp"], ["cpp"])


def test_the_trial_does_not_load_mmdetection(outcome):
    check = "assert not {'mmdet', 'mmengine'} & set(sys.modules)"
    script = gpu_trial._TRIAL.replace("gpu_trial.main(*sys.argv[2:])", check)
    assert check in script
    assert outcome(script) == (None, ["cpp"], ["cpp"])


def test_the_kernels_of_this_processor_pass():
    extension.load()
    for dtype in (torch.float32, torch.bfloat16):
        gpu_trial.compare("cpu", dtype, channels_last=True)


def test_a_wrong_result_fails(monkeypatch):
    class Silent(gpu_stand_in.Recorder):
        """Leaves every result as it was allocated."""

    with gpu_stand_in.connected(Silent()), pytest.raises(RuntimeError, match="differ"):
        gpu_trial.compare("cpu", torch.float32, False)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["cpp", "python"])
def test_the_kernels_of_this_gpu_pass(way):
    assert gpu_trial._run(extension.load(), way)[1] == 0
    assert sys.modules.get("triton")

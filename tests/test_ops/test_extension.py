"""Building the native operators: once, and what happens where that fails."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, warnings, torch
sys.modules["mmengine"] = None  # which is slow to import
from apa_mmdet.ops import aglu
from apa_mmdet.ops.implementation import is_native
x, one = torch.randn(2, 3), torch.ones(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = aglu(x, one, one)
        aglu(x.to("meta"), one.to("meta"), one.to("meta"))
torch.testing.assert_close(y, torch.nn.functional.silu(x))
try:
    aglu(x, torch.ones(5), one)
except ValueError as error:
    assert "lam has shape (5,)" in str(error)
print(len(caught), is_native(x, one, one), *(str(w.message) for w in caught))
"""


def start(tmp_path, monkeypatch, **environment):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*args, **environment):
    process = start(*args, **environment)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


@pytest.mark.slow
def test_processes_that_start_together_build_it_once(tmp_path, monkeypatch):
    # It does not optimize, and links its own C++ library where no other is linked:
    # the streams of two such libraries in one process do not get along.
    compiler = tmp_path / "other-c++"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -O0 -static-libstdc++\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    processes = [start(tmp_path, monkeypatch) for _ in range(4)]
    outputs = [process.communicate() for process in processes]
    assert [stdout.strip() for stdout, _ in outputs] == ["0 True"] * 4, outputs
    assert sum("building its C++ operators" in stderr for _, stderr in outputs) == 1
    (library,) = (tmp_path / "apa_mmdet").glob("*.so")
    built = library.stat().st_mtime_ns
    _, stdout, stderr = run(tmp_path, monkeypatch)
    assert stdout.strip() == "0 True" and "building" not in stderr
    assert library.stat().st_mtime_ns == built


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("/nowhere/c++", "no C++ compiler found (CXX='/nowhere/c++'); install one"),
        ("false", "false could not compile apa_mmdet's"),
    ],
)
def test_without_a_compiler(tmp_path, monkeypatch, compiler, message):
    _, stdout, _ = run(tmp_path, monkeypatch, CXX=compiler)
    assert stdout.split()[:2] == ["1", "False"], stdout  # said once
    assert message in stdout
    code, _, stderr = run(tmp_path, monkeypatch, CXX=compiler, APA_MMDET_IMPL="native")
    assert code and message in stderr


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "apa_mmdet").write_text("a file where the folder should be")
    _, stdout, _ = run(tmp_path, monkeypatch)
    assert stdout.split()[:2] == ["1", "False"], stdout
    assert "set XDG_CACHE_HOME to a writable folder" in stdout


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_the_environment_chooses(tmp_path, monkeypatch, name):
    code, stdout, stderr = run(tmp_path, monkeypatch, APA_MMDET_IMPL=name)
    if name == "plain":
        assert stdout.strip() == "0 False"
    else:
        assert code and "APA_MMDET_IMPL='fast', expected one of auto" in stderr

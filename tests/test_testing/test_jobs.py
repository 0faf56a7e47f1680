"""Jobs side by side: how many at a time, failures, logs, and an end in between."""

import os
import sys
import time
from pathlib import Path

import pytest

from apa_mmdet.testing.ablation import jobs
from apa_mmdet.testing.ablation.jobs import Job, Step, run_jobs

# Waits until another job has left its mark, or gives up.
MEET = """
import pathlib, sys, time
mark = pathlib.Path(sys.argv[1])
mark.touch()
for _ in range(200):
    if len(list(mark.parent.iterdir())) == 2:
        sys.exit()
    time.sleep(0.05)
sys.exit("nobody came")
"""


@pytest.fixture(autouse=True)
def poll_often(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.01)


def python(code, *args, label="step"):
    return Step(label, [sys.executable, "-c", code, *map(str, args)])


def job(tmp_path, name, *steps):
    """Return a job that goes on after failures, and the list of its exit codes."""
    codes = []

    def work():
        for step in steps:
            codes.append((yield step))

    return Job(name, tmp_path / f"{name}.txt", work()), codes


def test_jobs_run_side_by_side(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    pair = [job(tmp_path, name, python(MEET, marks / name)) for name in ("a", "b")]
    assert run_jobs([each for each, _ in pair], 2, 1) == []
    assert [codes for _, codes in pair] == [[0], [0]]


def test_no_more_jobs_at_a_time_than_asked_for(tmp_path):
    alone = (
        "import os, sys, time; os.mkdir(sys.argv[1]); time.sleep(0.05);"
        "os.rmdir(sys.argv[1])"
    )
    three = [
        job(tmp_path, f"job{i}", *[python(alone, tmp_path / "one")] * 2)
        for i in range(3)
    ]
    assert run_jobs([each for each, _ in three], 1, 1) == []
    assert [codes for _, codes in three] == [[0, 0]] * 3


def test_a_failure_is_listed_and_the_others_go_on(tmp_path, capsys):
    fails = python("print('this\\nis why\\n'); raise SystemExit(3)", label="training")
    bad, bad_codes = job(tmp_path, "bad", fails, python("print('more')"))
    good, good_codes = job(tmp_path, "good", python("pass"))
    (line,) = run_jobs([bad, good], 1, 1)
    assert line == (
        f"bad: training failed with exit code 3, see {tmp_path / 'bad.txt'}: is why"
    )
    assert (bad_codes, good_codes) == ([3, 0], [0])
    assert (tmp_path / "bad.txt").read_text() == "this\nis why\n\nmore\n"
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "[0/2] bad: training started"
    assert shown[1] == "[0/2] bad: training failed after 0.0 min"
    assert shown[-1] == "[1/2] good: step finished after 0.0 min"


def test_threads_are_divided(tmp_path):
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    asks, _ = job(tmp_path, "asks", python(code))
    run_jobs([asks], 1, 7)
    assert (tmp_path / "asks.txt").read_text() == "7\n"


def test_a_log_that_another_call_writes_is_left_alone(tmp_path):
    first, _ = job(tmp_path, "first", python("pass"))
    second, codes = job(tmp_path, "second", python("pass"))
    second = second._replace(log=first.log)
    inner = []

    def nested():
        yield python("print('first')")
        inner.extend(run_jobs([second], 1, 1))

    assert run_jobs([first._replace(steps=nested())], 1, 1) == []
    assert inner[0].startswith(f"second: another process is writing {first.log}; ")
    assert codes == [] and first.log.read_text() == "first\n"


# Starts a process that does not end when asked, and waits, or fails if told so.
PARENT = """
import os, pathlib, signal, subprocess, sys, time
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
child = subprocess.Popen([sys.executable, "-c", f"{ignore}; time.sleep(60)"])
pids = pathlib.Path(sys.argv[1])
pids.with_suffix(".unfinished").write_text(f"{os.getpid()} {child.pid}")
pids.with_suffix(".unfinished").rename(pids)
if len(sys.argv) > 2:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


def wait_until_gone(pid):
    for _ in range(500):
        try:
            os.kill(pid, 0)
            # A zombie, if its parent is a process that does not wait for it.
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


@pytest.mark.parametrize("is_killed", [False, True])
def test_nothing_is_left_running(tmp_path, is_killed):
    pids = tmp_path / "pids"
    started, _ = job(tmp_path, "job", python(PARENT, pids, *["kill"] * is_killed))

    def stop():
        if pids.exists():
            raise KeyboardInterrupt
        return ""

    if is_killed:
        (line,) = run_jobs([started], 1, 1)
        assert "step failed with exit code -9" in line
    else:
        with pytest.raises(KeyboardInterrupt):
            run_jobs([started._replace(status=stop)], 1, 1)
    for pid in map(int, pids.read_text().split()):
        wait_until_gone(pid)

"""Work spread over processes."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from apa_mmdet.evaluation.processes import count_workers, spread


def add(shared, part):
    return int(shared.sum()) + part, os.getpid()


def die(shared, part):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 3])
def test_spread_keeps_the_order(workers):
    results = list(spread(add, np.arange(5), range(20), workers))
    assert [value for value, _ in results] == [10 + part for part in range(20)]
    here = {pid for _, pid in results} == {os.getpid()}
    assert here == (workers == 1)


def test_a_killed_worker_is_an_error():
    with pytest.raises(BrokenProcessPool):
        list(spread(die, None, range(4), 2))


def test_count_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    assert count_workers(None, seconds=0.1, num_parts=50) == 1
    assert count_workers(None, seconds=60, num_parts=50) == 4
    assert count_workers(None, seconds=60, num_parts=3) == 3
    assert count_workers(2, seconds=0.1, num_parts=50) == 2
    assert count_workers(8, seconds=60, num_parts=0) == 1
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert count_workers(None, seconds=60, num_parts=50) == 1

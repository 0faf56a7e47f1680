"""Work shared among processes."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from apa_mmdet.evaluation.core.workers import choose_num_workers, map_chunks


def add(shared, chunk):
    return int(shared.sum()) + chunk, os.getpid()


def die(shared, chunk):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_chunks(workers):
    results = list(map_chunks(add, np.arange(5), range(20), workers))
    assert [value for value, _ in results] == [10 + chunk for chunk in range(20)]
    is_here = {pid for _, pid in results} == {os.getpid()}
    assert is_here == (workers == 1)


def test_a_killed_worker_raises():
    with pytest.raises(BrokenProcessPool):
        list(map_chunks(die, None, range(4), 2))


def test_choose_num_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    assert choose_num_workers(None, seconds=0.1, num_chunks=50) == 1
    assert choose_num_workers(None, seconds=60, num_chunks=50) == 4
    assert choose_num_workers(None, seconds=60, num_chunks=3) == 3
    assert choose_num_workers(2, seconds=0.1, num_chunks=50) == 2
    assert choose_num_workers(8, seconds=60, num_chunks=0) == 1
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert choose_num_workers(None, seconds=60, num_chunks=50) == 1

"""Work spread over processes that read the same arrays."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_MOST = 16
_SECONDS_WORTH_IT = 2.0


def count_workers(wanted: int | None, seconds: float, num_parts: int) -> int:
    """Return how many processes to use.

    Args:
        wanted: What the user asked for; None for one for each core, if it pays.
        seconds: How long one process would take, roughly.
        num_parts: Into how many parts the work is cut.

    Raises:
        ValueError: If `wanted` is less than 1.
    """
    if wanted is None:
        if seconds < _SECONDS_WORTH_IT:
            return 1
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        wanted = min(cores, _MOST)
    elif wanted < 1:
        raise ValueError(f"num_workers={wanted}: expected at least 1, or None")
    if "fork" not in multiprocessing.get_all_start_methods():
        return 1
    return max(1, min(wanted, num_parts))


def spread(
    function: Callable[[Any, Any], Any],
    shared: Any,
    parts: Sequence[Any],
    num_workers: int,
) -> Iterator[Any]:
    """Yield ``function(shared, part)`` for each part, in their order.

    The processes are forked, as those of a DataLoader are: `shared` is inherited where
    it lies and never copied. `function` may use neither CUDA nor torch.

    Args:
        function: A function of a module.
        shared: What all parts need.
        parts: What differs.
        num_workers: Processes; with 1 it all happens here.

    Raises:
        BrokenProcessPool: If a process was killed.
    """
    if num_workers == 1:
        for part in parts:
            yield function(shared, part)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_workers, context, _start, (function, shared)) as pool:
        yield from pool.map(_work, parts)


_job: tuple[Callable, Any] | None = None  # in a worker process


def _start(function: Callable, shared: Any) -> None:
    global _job
    _job = function, shared


def _work(part: Any) -> Any:
    function, shared = _job
    return function(shared, part)

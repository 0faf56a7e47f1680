"""Work shared among forked processes that read the same arrays."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_MAX_WORKERS = 16
_MIN_SECONDS = 2.0  # work shorter than this is not worth starting processes


def choose_num_workers(num_workers: int | None, seconds: float, num_chunks: int) -> int:
    """Return how many processes to use for so many chunks; 1 means this one.

    ``num_workers`` is what the user asked for: None is one process per core, if a
    single one would take long enough (``seconds``).

    Raises:
        ValueError: If ``num_workers`` is less than 1.
    """
    if num_workers is None:
        if seconds < _MIN_SECONDS:
            return 1
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        num_workers = min(cores, _MAX_WORKERS)
    elif num_workers < 1:
        raise ValueError(f"num_workers={num_workers}: expected at least 1, or None")
    if "fork" not in multiprocessing.get_all_start_methods():
        return 1
    return max(1, min(num_workers, num_chunks))


def map_chunks(
    function: Callable[[Any, Any], Any],
    shared: Any,
    chunks: Sequence[Any],
    num_workers: int,
) -> Iterator[Any]:
    """Yield ``function(shared, chunk)`` for each chunk, in their order.

    With several processes they are forked, as those of a DataLoader are: they inherit
    ``shared`` without copying it. ``function``, of a module, must then use neither CUDA
    nor torch.

    Raises:
        BrokenProcessPool: If a process was killed.
    """
    if num_workers == 1:
        for chunk in chunks:
            yield function(shared, chunk)
        return
    context = multiprocessing.get_context("fork")
    job = function, shared
    with ProcessPoolExecutor(num_workers, context, _set_job, job) as pool:
        yield from pool.map(_run_chunk, chunks)


_job: tuple[Callable, Any] | None = None  # set in the worker processes


def _set_job(*job: Any) -> None:
    global _job
    _job = job


def _run_chunk(chunk: Any) -> Any:
    function, shared = _job
    return function(shared, chunk)


def progress_bar(description: str, unit: str, **options: Any) -> Any:
    """Return a tqdm bar, with tqdm's options, that appears on a terminal after 2 s."""
    from tqdm import tqdm

    return tqdm(
        desc=description,
        unit=f" {unit}",
        unit_scale=True,
        delay=2,
        leave=False,
        disable=None,  # shows it only on a terminal
        **options,
    )

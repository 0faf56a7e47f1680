"""Time of a call on the device and on the host, its GPU launches, and the machine."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

_FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU


def is_gpu(device: str) -> bool:
    """Return whether a device is a GPU."""
    return torch.device(device).type == "cuda"


def wall_and_host_seconds(
    function: Callable[[], object], device: str, repeats: int = 1
) -> tuple[float, float]:
    """Return the mean time of a call until the device is done, and until it returns.

    The latter is what the host needs to issue the work, as long as few launches are
    pending: a full launch queue blocks the host.
    """
    synchronize = torch.cuda.synchronize if is_gpu(device) else lambda device: None
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    host = time.perf_counter() - start
    synchronize(device)
    return (time.perf_counter() - start) / repeats, host / repeats


def device_seconds(function: Callable[[], object], device: str, repeats: int) -> float:
    """Return the time of a call on the device.

    On a GPU it is the median of calls timed by events, each starting with a cold L2
    cache; on a CPU the mean of calls in a row.
    """
    if not is_gpu(device):
        return wall_and_host_seconds(function, device, repeats)[0]
    events = []
    with torch.cuda.device(device):
        flushed = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
        for _ in range(repeats):
            flushed.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
    return median(start.elapsed_time(end) for start, end in events) / 1e3


def gpu_work(
    function: Callable[[], object], device: str
) -> tuple[int, float] | tuple[None, None]:
    """Return how many kernels, copies and fills a call launches, and their seconds.

    Both are None on a CPU.
    """
    if not is_gpu(device):
        return None, None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize(device)
    on_gpu = torch.autograd.DeviceType.CUDA
    work = [e for e in profile.key_averages() if e.device_type == on_gpu]
    busy = sum(event.self_device_time_total for event in work)
    return sum(event.count for event in work), busy / 1e6


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median ratio of times that were measured in turn."""
    return median(a / b for a, b in zip(times, others))


def machine(device: str) -> dict[str, str]:
    """Return what the figures were measured on: hardware and versions."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    facts = dict(
        torch=torch.__version__,
        python=platform.python_version(),
        threads=str(torch.get_num_threads()),
        cpu=cpu[1] if cpu else platform.processor() or platform.machine(),
    )
    if is_gpu(device):
        import triton

        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True).stdout
        except OSError as error:
            driver = f"unknown ({error})"
        facts.update(
            gpu=torch.cuda.get_device_name(device),
            driver=driver.split("\n")[0],
            cuda=str(torch.version.cuda),
            triton=triton.__version__,
        )
    return facts

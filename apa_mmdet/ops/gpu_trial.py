"""Tests the GPU kernels in a subprocess before they are used on a new machine.

Launching from C++ bypasses the checks of torch and Triton: if their versions and the
driver are incompatible, the process may crash. So each new combination of library,
Triton, GPU and driver is tested once in a subprocess, where :func:`main` compares the
kernels with plain torch. The result is stored next to the library, in a file of one
line: ``cpp``, ``python`` (launch from Python instead) or the reason why neither works.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from . import gpu_variants

_PACKAGE = Path(__file__).parents[1]
_SECONDS = 180
_COULD_NOT_TRY = 3  # the exit status if the GPU's memory is full
# Imports apa_mmdet.ops without apa_mmdet/__init__.py, which would load MMDetection.
_TRIAL = """
import sys, types
package = types.ModuleType("apa_mmdet")
package.__path__ = [sys.argv[1]]
sys.modules["apa_mmdet"] = package
from apa_mmdet.ops import gpu_trial
gpu_trial.main(*sys.argv[2:])
"""


def connect(library: Path) -> str | None:
    """Connect the kernels and return None, or return why they do not work here."""
    stamp = library.parent / f"gpu-{_combination(library)}.txt"
    try:
        outcome = _read_or_try(library, stamp)
    except OSError:  # the folder is read-only, so the result cannot be stored
        outcome, _ = _try(library)
    if outcome not in ("cpp", "python"):
        return f"{outcome}; to test again, remove {stamp}"
    if outcome == "python":
        warnings.warn(
            f"apa_mmdet launches its GPU kernels from Python, which is slower, because "
            f"launching from C++ failed on this machine; to test again, remove {stamp}",
            stacklevel=6,
        )
    gpu_variants.connect(library, from_cpp=outcome == "cpp")
    return None


def _combination(library: Path) -> str:
    import triton

    parts = (
        library.name,
        triton.__version__,
        torch.cuda.get_device_name(),
        _driver_version(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _driver_version() -> int | None:
    """Return the version of CUDA that the driver supports; None on ROCm."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value


def _read_or_try(library: Path, stamp: Path) -> str:
    if stamp.exists():
        return stamp.read_text()
    with open(stamp.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists():
            return stamp.read_text()  # another process has just tested
        outcome, is_final = _try(library)
        if is_final:
            stamp.write_text(outcome)
    return outcome


def _try(library: Path) -> tuple[str, bool]:
    """Return the first way that works, or why none does, and whether to store it."""
    print(
        "apa_mmdet: testing its GPU kernels on this machine; this takes about half a "
        "minute, once",
        file=sys.stderr,
        flush=True,
    )
    output = ""
    for way in ("cpp", "python"):
        output, status = _run(library, way)
        if status == 0:
            return way, True
        if status == _COULD_NOT_TRY:
            return f"the GPU kernels could not be tested ({output})", False
    return f"the GPU kernels failed their test ({output})", True


def _run(library: Path, way: str) -> tuple[str, int]:
    """Run the test; return its last line of output and its exit status."""
    command = [sys.executable, "-c", _TRIAL, str(_PACKAGE), str(library), way]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_SECONDS} seconds", -1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "no output"
    return f"exit status {done.returncode}: {last}", done.returncode


def main(library: str, way: str) -> None:
    """Compare the kernels with plain torch; the exit status is the result."""
    try:
        torch.zeros(1 << 20, device="cuda").sum().item()
        torch.ops.load_library(library)
        gpu_variants.connect(library, from_cpp=way == "cpp")
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for channels_last in (False, True):
                compare("cuda", dtype, channels_last)
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(_COULD_NOT_TRY)


def compare(device: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Compare values and every gradient of each operator with plain torch in float64.

    Raises:
        RuntimeError: If they differ by more than rounding errors.
    """
    from . import cross_entropy, plain

    operators = torch.ops.apa_mmdet
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, low=False):
        tensor = torch.rand(shape, generator=generator) + 0.3
        return tensor.to(device, dtype if low else torch.float32)

    x, residual = (10 * draw(2, 40, 9, 31, low=True) - 8 for _ in range(2))
    if channels_last:
        x, residual = (t.to(memory_format=torch.channels_last) for t in (x, residual))
    lam, kappa, each = draw(1), draw(1), draw(40)
    small = [draw(40) for _ in range(8)]
    labels = torch.arange(78, device=device) - 1
    logits = 10 * draw(78, 60, low=True) - 8
    rare = torch.arange(60, device=device) % 3 == 0
    seed = torch.full((1,), 123456789012345, device=device)

    def norm(function, x, lam, kappa, weight, bias, gate, residual, *other):
        constant = (
            small[4:] if x.dtype != torch.float64 else [t.double() for t in small[4:]]
        )
        return function(
            x, weight, bias, *constant[:2], 1e-5, lam, kappa, gate, residual, *other,
            *constant[2:], 1e-5, 0.1, 2.0, False, False,
        )  # fmt: skip

    def loss(function, logits, lam, kappa):
        return function(logits, labels, lam, kappa, None, rare, seed, 20.0)

    for native, true, tensors in (
        (
            operators.aglu,
            lambda *t: plain.activation("aglu", *t, None),
            (x, lam, kappa),
        ),
        (operators.apa, lambda *t: plain.activation("apa", *t, None), (x, each, kappa)),
        (
            lambda *t: norm(operators.norm_aglu, *t),
            lambda *t: norm(plain.norm_aglu, *t),
            (x, lam, each, *small[:2], draw(2, 40, low=True), residual, *small[2:4]),
        ),
        (
            lambda *t: loss(lambda *own: operators.cross_entropy(*own, False), *t),
            lambda *t: loss(cross_entropy._CrossEntropy.apply, *t),
            (logits, draw(60), kappa),
        ),
    ):
        for one, exact in zip(_all_of(native, tensors), _all_of(true, tensors, True)):
            tolerance = 1e-4 if one.dtype == torch.float32 else 2e-2
            error = (one.double() - exact).abs().max() / exact.abs().max()
            if not error < tolerance:
                raise RuntimeError(f"results differ from plain torch by {error:.1e}")


def _all_of(function, tensors, double=False):
    own = [(t.double() if double else t.detach()).requires_grad_() for t in tensors]
    y = function(*own)
    return y, *torch.autograd.grad(y, own, torch.ones_like(y))

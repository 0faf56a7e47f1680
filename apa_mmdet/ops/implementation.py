"""Which implementation of the activation runs: chosen by the tensor, or by name.

- ``'auto'``: the kernels for the tensor's device where they apply, else plain torch;
- ``'plain'``: plain torch, whatever the tensor, and backbones leave their norms apart;
- ``'compiled'``: the kernels of :mod:`apa_mmdet.ops.cpu_kernels`, and an error where
  they cannot be had;
- ``'triton'``: those of :mod:`apa_mmdet.ops.triton_kernels`, likewise.

The environment variable ``APA_MMDET_IMPL`` sets it for a program,
:func:`use_implementation` for a part of one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from . import cpu_kernels

try:
    if not (
        torch.version.cuda or torch.version.hip or os.environ.get("TRITON_INTERPRET")
    ):
        raise ImportError("this torch is built for the CPU")
    from . import triton_kernels

    _no_triton = None
except ImportError as error:
    triton_kernels, _no_triton = None, str(error)

_NAMES = ("auto", "plain", "compiled", "triton")
KERNELS = {"compiled": cpu_kernels, "triton": triton_kernels}
_forced: str | None = None


def _checked(name: str, source: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{source}={name!r}, expected one of {', '.join(_NAMES)}")
    return name


@contextlib.contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Choose the implementation within a ``with`` block, for every thread.

    A backward pass uses that of its forward pass.

    Args:
        name: ``'auto'``, ``'plain'``, ``'compiled'`` or ``'triton'``.

    Raises:
        ValueError: If it is none of these.
        RuntimeError: If ``'compiled'`` or ``'triton'`` is not available here.
    """
    global _forced
    _require(_checked(name, "name"))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _require(name: str) -> None:
    if name == "compiled":
        cpu_kernels.library()
    if name == "triton" and triton_kernels is None:
        raise RuntimeError(
            f"implementation 'triton' was asked for and cannot be had: {_no_triton}. "
            f"Install a torch built for CUDA, which brings Triton, or use 'auto'"
        )


def wanted() -> str:
    """Return the implementation that was asked for, ``'auto'`` if none was.

    Raises:
        ValueError: If ``APA_MMDET_IMPL`` names nothing that exists.
    """
    if _forced is not None:
        return _forced
    return _checked(os.environ.get("APA_MMDET_IMPL", "auto"), "APA_MMDET_IMPL")


@functools.lru_cache(maxsize=1)
def _is_available() -> bool:
    try:
        cpu_kernels.library()
    except RuntimeError as error:
        warnings.warn(
            f"AGLU runs without compiled kernels, several times slower: {error}",
            stacklevel=2,
        )
        return False
    return True


def _require_fit(name: str, x: Tensor) -> None:
    dtypes, device = KERNELS[name].DTYPES, "cpu"
    if name == "triton" and not triton_kernels.INTERPRETED:
        device = "cuda"
    if x.device.type != device or x.dtype not in dtypes:
        known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise RuntimeError(
            f"implementation {name!r} was asked for, but x is {x.dtype} on {x.device}, "
            f"expected {known} on {device}; use 'auto'"
        )


def chosen(x: Tensor, lam: Tensor, kappa: Tensor) -> str:
    """Return ``'plain'``, or which of ``KERNELS`` is to compute these tensors.

    Raises:
        RuntimeError: If kernels were asked for by name and cannot be had.
        ValueError: If ``APA_MMDET_IMPL`` names nothing that exists.
    """
    name = wanted()
    if name == "plain" or torch.jit.is_tracing():
        return "plain"
    if name != "auto":
        _require(name)
        _require_fit(name, x)
    if name != "compiled" and triton_kernels is not None:
        if triton_kernels.applies(x, lam, kappa):
            return "triton"
    if name == "triton" or torch.compiler.is_compiling():
        return "plain"
    if cpu_kernels.applies(x, lam, kappa) and _is_available():
        return "compiled"
    return "plain"

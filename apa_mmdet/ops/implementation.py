"""Which implementation of the activation runs: chosen by the tensor, or by name.

- ``'auto'``: the compiled kernels where they apply, otherwise plain torch;
- ``'plain'``: plain torch, whatever the tensor;
- ``'compiled'``: the kernels of :mod:`apa_mmdet.ops.cpu_kernels`, and an error where
  they cannot be had.

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

_NAMES = ("auto", "plain", "compiled")
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
        name: ``'auto'``, ``'plain'`` or ``'compiled'``.

    Raises:
        ValueError: If it is none of these.
        RuntimeError: If ``'compiled'`` is not available here.
    """
    global _forced
    if _checked(name, "name") == "compiled":
        cpu_kernels.library()
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _wanted() -> str:
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


def is_compiled(x: Tensor, lam: Tensor, kappa: Tensor) -> bool:
    """Tell whether the compiled kernels are to compute AGLU of these tensors.

    Raises:
        RuntimeError: If they were asked for by name and cannot be had.
        ValueError: If ``APA_MMDET_IMPL`` names nothing that exists.
    """
    wanted = _wanted()
    if wanted == "plain" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if wanted == "compiled":
        cpu_kernels.library()
        if x.device.type != "cpu" or x.dtype not in cpu_kernels.DTYPES:
            raise RuntimeError(
                f"implementation 'compiled' was asked for, but x is {x.dtype} on "
                f"{x.device}, expected float32 or bfloat16 on the CPU; use 'auto'"
            )
    return cpu_kernels.applies(x, lam, kappa) and _is_available()

"""Which implementation of the activations runs: chosen by the tensor, or by name.

- ``'auto'``: the native operators where they apply, else plain torch;
- ``'plain'``: plain torch, whatever the tensor, and norms are not fused with
  activations;
- ``'native'``: the native operators, and an error where they are unavailable.

The environment variable ``APA_MMDET_IMPL`` sets it for a program,
:func:`use_implementation` for a part of one.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from . import extension, gpu_trial, gpu_variants
from .plain import is_exporting_to_onnx

_NAMES = ("auto", "plain", "native")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "cuda", "meta")


def _checked(name: str, source: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{source}={name!r}, expected one of {', '.join(_NAMES)}")
    return name


_wanted = os.environ.get("APA_MMDET_IMPL", "auto")
_available: dict[str, bool] = {}  # by device type
_reasons: set[str] = set()  # already warned about


@contextlib.contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Choose the implementation within a ``with`` block, for every thread.

    A backward pass uses that of its forward pass.

    Args:
        name: ``'auto'``, ``'plain'`` or ``'native'``.

    Raises:
        ValueError: If it is none of these.
        RuntimeError: If ``'native'`` is unavailable here.
    """
    global _wanted
    if _checked(name, "name") == "native":
        reason = _why_unavailable("cpu")
        if reason:
            _refuse(reason)
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before


def wanted() -> str:
    """Return the implementation that was requested, ``'auto'`` if none was."""
    return _wanted


def is_native(x: Tensor, lam: Tensor, kappa: Tensor) -> bool:
    """Return whether the native operators are to compute these tensors.

    Raises:
        RuntimeError: If they were requested by name and cannot.
    """
    if _wanted == "plain" or not (
        isinstance(x, Tensor) and isinstance(lam, Tensor) and isinstance(kappa, Tensor)
    ):
        return False
    if _is_available(x.device.type) and x.dtype in _DTYPES:
        return not is_exporting_to_onnx()
    if _wanted == "native" and x.is_floating_point():
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        _refuse(f"x is {x.dtype} on {x.device}, expected {dtypes} on cpu or cuda")
    return False


def _is_available(device: str) -> bool:
    available = _available.get(device)
    if available is None or (_wanted == "native" and not available):
        return _look_up(device)  # raises with the reason if native was requested
    return available


# torch.compile runs it while tracing and takes its result as a constant.
_is_available._dynamo_marked_constant = True


def _look_up(device: str) -> bool:
    _checked(_wanted, "APA_MMDET_IMPL")
    reason = _why_unavailable(device)
    if reason and _wanted == "native":
        _refuse(reason)
    if reason and device in _DEVICES and reason not in _reasons:
        _reasons.add(reason)
        warnings.warn(
            f"apa_mmdet falls back to plain PyTorch, which is several times slower: "
            f"{reason}",
            stacklevel=5,
        )
    _available[device] = not reason
    return not reason


def _why_unavailable(device: str) -> str | None:
    if device not in _DEVICES:
        return f"there are native operators for {', '.join(_DEVICES)}, not {device}"
    try:
        library = extension.load()
    except RuntimeError as error:
        return str(error)
    if device == "cuda":
        reason = gpu_variants.why_unavailable()
        if reason is not None:
            return reason
        return gpu_trial.connect(library)
    return None


def _refuse(reason: str) -> NoReturn:
    raise RuntimeError(
        f"implementation 'native' was requested and is unavailable: {reason}; or use "
        f"'auto'"
    )

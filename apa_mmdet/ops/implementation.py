"""Which implementation of the activations runs: chosen by the tensor, or by name.

- ``'auto'``: the native operators where they apply, else plain torch;
- ``'plain'``: plain torch, whatever the tensor, and backbones compute norms and
  activations apart;
- ``'native'``: the native operators, and an error where they are unavailable.

The environment variable ``APA_MMDET_IMPL`` sets it for a program,
:func:`use_implementation` for a part of one.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from . import extension
from .plain import is_exporting_to_onnx

_NAMES = ("auto", "plain", "native")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "cuda", "meta")


def _checked(name: str, source: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{source}={name!r}, expected one of {', '.join(_NAMES)}")
    return name


_wanted = _checked(os.environ.get("APA_MMDET_IMPL", "auto"), "APA_MMDET_IMPL")
_available: dict[str, bool] = {}  # by device type


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
        extension.load()
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before


def wanted() -> str:
    """Return the implementation that was asked for, ``'auto'`` if none was."""
    return _wanted


def is_native(x: Tensor, lam: Tensor, kappa: Tensor) -> bool:
    """Return whether the native operators are to compute these tensors.

    Raises:
        RuntimeError: If they were asked for by name and cannot.
    """
    if _wanted == "plain" or not (
        isinstance(x, Tensor) and isinstance(lam, Tensor) and isinstance(kappa, Tensor)
    ):
        return False
    device = x.device.type
    available = _available.get(device)
    if available is None:
        available = _look_up(device)
    if available and x.dtype in _DTYPES:
        return not is_exporting_to_onnx()
    if _wanted == "native" and x.is_floating_point():
        _explain(x)
    return False


def _look_up(device: str) -> bool:
    if device not in _DEVICES:
        _available[device] = False
    else:
        try:
            extension.load()
            _available[device] = True
        except RuntimeError as error:
            if _wanted == "native":
                raise
            _available.update(dict.fromkeys(_DEVICES, False))
            warnings.warn(
                f"apa_mmdet computes AGLU in plain torch, several times slower: "
                f"{error}",
                stacklevel=4,
            )
    return _available[device]


# torch.compile runs it while tracing and takes its result as a constant.
_look_up._dynamo_marked_constant = True


def _explain(x: Tensor) -> None:
    extension.load()
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
    raise RuntimeError(
        f"implementation 'native' was asked for, but x is {x.dtype} on {x.device}, "
        f"expected {dtypes} on cpu or cuda; use 'auto'"
    )

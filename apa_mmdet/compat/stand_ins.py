"""Stand-ins for what MMEngine's checkpoints contain, safe to load from any file.

``torch.load(weights_only=True)`` calls a listed object with whatever arguments the file
gives. The originals trust their arguments; each stand-in accepts data only and raises
``UnpicklingError`` otherwise.
"""

from __future__ import annotations

import argparse
import math
import re
from pickle import UnpicklingError
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

_NUMBER = re.compile(r"[biufc]\d{1,2}")
_STATISTICS = ("current", "max", "mean", "min")


class SafeDtype:
    """Stand-in for ``numpy.dtype``: bool and numbers only.

    ``numpy.dtype.__setstate__`` trusts the flags in the file. An object dtype whose
    flags deny that it holds objects turns bytes of the file into pointers.
    """

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise UnpicklingError(f"numpy dtype {name!r}: expected bool or a number")
        self._dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags); for a
        # number, only the byte order matters.
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise UnpicklingError(f"numpy byte order {order!r}: expected <, >, | or =")
        self._dtype = self._dtype.newbyteorder(order)

    def for_data(self, shape: tuple, data: bytes) -> np.dtype:
        """Return the numpy dtype, after checking that `data` fills `shape`."""
        if not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise UnpicklingError("numpy array: expected a tuple of sizes and bytes")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise UnpicklingError(f"numpy array: shape {shape!r}, expected sizes >= 0")
        if math.prod(shape) * self._dtype.itemsize != len(data):
            raise UnpicklingError(
                f"numpy array: got {len(data)} bytes, shape {shape} of {self._dtype} "
                f"needs {math.prod(shape) * self._dtype.itemsize}"
            )
        return self._dtype


class SafeArray(np.ndarray):
    """Stand-in for ``numpy.ndarray``: an array of numbers.

    It keeps this class after loading, behaves like any array, and is saved as a plain
    one.
    """

    def __new__(cls, *args: Any) -> SafeArray:  # noqa: D102
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if type(dtype) is not SafeDtype:
            raise UnpicklingError(
                f"numpy array: expected a dtype, got {type(dtype).__name__}"
            )
        dtype = dtype.for_data(shape, data)
        super().__setstate__((1, shape, dtype, bool(fortran), data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def safe_reconstruct(*args: Any) -> SafeArray:
    """Stand-in for numpy's ``_reconstruct``, which creates an array to be filled."""
    return SafeArray()


def safe_scalar(dtype: SafeDtype, data: bytes) -> np.generic:
    """Stand-in for numpy's ``scalar``, which creates a number."""
    if type(dtype) is not SafeDtype:
        raise UnpicklingError(f"numpy scalar: expected a dtype, got {type(dtype)}")
    return np.ndarray((), dtype.for_data((), data), data)[()]


class SafeHistoryBuffer(HistoryBuffer):
    """Stand-in for ``HistoryBuffer``; it becomes one when it is loaded.

    ``HistoryBuffer.__setstate__`` adds any callable that the file names to the
    statistics of every buffer in the process. Here a statistic must be the one already
    registered under its name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise UnpicklingError("HistoryBuffer: expected its state, not a call")

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        self._set_default_statistics()
        known = self._statistics_methods
        for name, method in state.pop("statistics_methods", {}).items():
            if method != name and known.get(name) is not method:
                raise UnpicklingError(
                    f"HistoryBuffer statistic {name!r}: it is not registered here; "
                    "call HistoryBuffer.register_statistics before loading"
                )
        types = {name: type(value) for name, value in state.items()}
        expected = dict(
            max_length=int, _log_history=SafeArray, _count_history=SafeArray
        )
        if types != expected:
            raise UnpicklingError(f"HistoryBuffer with {types}, expected {expected}")
        for name in ("_log_history", "_count_history"):
            state[name] = state[name].view(np.ndarray)
        vars(self).update(state)
        self.__class__ = HistoryBuffer


def safe_getattr(owner: Any, name: Any) -> str:
    """Stand-in for ``getattr``: the name of a HistoryBuffer statistic.

    Python's own ``getattr`` would reach the globals of any function. This one returns
    the name, not the function, because a file can make torch call whatever it contains
    through ``torch._tensor._rebuild_from_type_v2``.
    """
    if owner is not SafeHistoryBuffer or name not in _STATISTICS:
        raise UnpicklingError(
            f"getattr({owner!r}, {name!r}): only the statistics of a HistoryBuffer "
            f"({', '.join(_STATISTICS)}) are allowed"
        )
    return name


class SafeNamespace(argparse.Namespace):
    """Stand-in for ``argparse.Namespace``; it becomes one when it is loaded.

    With arbitrary attributes an object can pass for another: numpy would read memory
    at an address given in ``__array_interface__``, and torch would call a method. So
    names must be public and values must not be callable.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise UnpicklingError("argparse.Namespace: expected its state, not a call")

    def __setstate__(self, state: dict) -> None:
        for name, value in dict(state).items():
            if not isinstance(name, str) or name.startswith("_") or callable(value):
                raise UnpicklingError(
                    f"argparse.Namespace with {name!r}: {value!r}; only public names "
                    f"and values that are not callable are allowed"
                )
        vars(self).update(state)
        self.__class__ = argparse.Namespace


# Name in a checkpoint to stand-in. `bytes` is needed because an empty array is pickled
# as a call of it. numpy 1 and 2 have different names for one module.
STAND_INS = {
    "argparse.Namespace": SafeNamespace,
    "builtins.bytes": bytes,
    "builtins.getattr": safe_getattr,
    "mmengine.logging.history_buffer.HistoryBuffer": SafeHistoryBuffer,
    "numpy.dtype": SafeDtype,
    "numpy.ndarray": SafeArray,
    "numpy.core.multiarray._reconstruct": safe_reconstruct,
    "numpy.core.multiarray.scalar": safe_scalar,
    "numpy._core.multiarray._reconstruct": safe_reconstruct,
    "numpy._core.multiarray.scalar": safe_scalar,
}

"""Repairs that MMEngine, its forks and lvis need beside current torch and numpy.

Importing ``apa_mmdet`` applies them all, so ``custom_imports`` is enough. Each one
names its upstream report and the version that makes it unnecessary.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_NUMBER = re.compile(r"[biufc]\d{1,2}")
_STATISTICS = ("current", "max", "mean", "min")


class _Dtype:
    """Stand-in for ``numpy.dtype`` in a checkpoint: bool and numbers only.

    ``numpy.dtype.__setstate__`` itself believes the flags it is given. An object
    dtype whose flags deny that it holds objects turns bytes of the file into
    pointers, so numpy's own dtype must not be on torch's list.
    """

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise UnpicklingError(f"numpy dtype {name!r}: expected bool or a number")
        self._dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags): of
        # these a number has the byte order only.
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise UnpicklingError(f"numpy byte order {order!r}")
        self._dtype = self._dtype.newbyteorder(order)

    def for_data(self, shape: tuple, data: bytes) -> np.dtype:
        """The dtype itself, once it is certain that `data` fills `shape`."""
        if not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise UnpicklingError("numpy array: expected a tuple of sizes and bytes")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise UnpicklingError(f"numpy array: shape {shape!r}")
        if math.prod(shape) * self._dtype.itemsize != len(data):
            raise UnpicklingError(
                f"numpy array: {len(data)} bytes for {shape} of {self._dtype}"
            )
        return self._dtype


class _Array(np.ndarray):
    """Stand-in for ``numpy.ndarray`` in a checkpoint: an array of numbers.

    It stays what it is after loading, behaves like any array, and is saved again as
    a plain one.
    """

    def __new__(cls, *args: Any) -> _Array:
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if type(dtype) is not _Dtype:
            raise UnpicklingError(f"numpy array: {type(dtype).__name__} for a dtype")
        dtype = dtype.for_data(shape, data)
        super().__setstate__((1, shape, dtype, bool(fortran), data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _reconstruct(*args: Any) -> _Array:
    """Stand-in for numpy's function of that name, which opens a pickled array."""
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    """Stand-in for numpy's function of that name, which makes a number."""
    if type(dtype) is not _Dtype:
        raise UnpicklingError(f"numpy scalar: {type(dtype).__name__} for a dtype")
    return np.ndarray((), dtype.for_data((), data), data)[()]


class _HistoryBuffer(HistoryBuffer):
    """Stand-in for ``HistoryBuffer`` in a checkpoint; it becomes one on loading.

    ``HistoryBuffer.__setstate__`` itself puts any callable that the file can name
    among the statistics of every buffer in the process. Here a statistic must be
    the one already registered under its name.
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
        kinds = {name: type(value) for name, value in state.items()}
        if kinds != dict(max_length=int, _log_history=_Array, _count_history=_Array):
            raise UnpicklingError(f"HistoryBuffer with {kinds}")
        for name in ("_log_history", "_count_history"):
            state[name] = state[name].view(np.ndarray)
        vars(self).update(state)
        self.__class__ = HistoryBuffer


def _statistic(owner: Any, name: Any) -> str:
    """Stand-in for ``getattr`` in a checkpoint: names a HistoryBuffer statistic.

    Python's own ``getattr`` would reach the globals of any function. This one gives
    the name back, since torch lets a file call what it holds by way of
    ``torch._tensor._rebuild_from_type_v2``.
    """
    if owner is not _HistoryBuffer or name not in _STATISTICS:
        raise UnpicklingError(
            f"getattr({owner!r}, {name!r}): only the statistics of a HistoryBuffer "
            f"({', '.join(_STATISTICS)}) may be named"
        )
    return name


class _Namespace(argparse.Namespace):
    """Stand-in for ``argparse.Namespace`` in a checkpoint; it becomes one on loading.

    With any attribute it likes, an object passes for another: numpy would read
    memory at an address given in ``__array_interface__``, and torch would call a
    method. So names are public and values are data.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise UnpicklingError("argparse.Namespace: expected its state, not a call")

    def __setstate__(self, state: dict) -> None:
        for name, value in dict(state).items():
            if not isinstance(name, str) or name.startswith("_") or callable(value):
                raise UnpicklingError(f"argparse.Namespace with {name!r}: {value!r}")
        vars(self).update(state)
        self.__class__ = argparse.Namespace


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read what MMEngine's checkpoints hold.

    Since torch 2.6, where ``weights_only`` became the default, resuming and testing
    raise ``UnpicklingError``: the message hub holds HistoryBuffer, numpy scalars and
    arrays, and a pickled ``getattr``. Third-party checkpoints often carry the
    ``argparse.Namespace`` of their training run as well. What goes on torch's list
    are stand-ins that check their input, and ``bytes``, which is how an empty array
    is written.

    Numpy's own functions must not be put on torch's list beside these: which of two
    entries of one name counts is undefined.

    Below torch 2.6 nothing is done. There ``torch.load`` trusts the file unless told
    otherwise, and its list takes no pairs of object and name
    (pytorch/pytorch#142153).

    Upstream: open-mmlab/mmengine#1655. Unnecessary from: none yet (0.10.7 is the
    last release).
    """
    if torch.__version__ < (2, 6):
        return
    named = {
        "argparse.Namespace": _Namespace,
        "builtins.bytes": bytes,
        "builtins.getattr": _statistic,
        "mmengine.logging.history_buffer.HistoryBuffer": _HistoryBuffer,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": _Array,
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        named[f"{core}._reconstruct"] = _reconstruct
        named[f"{core}.scalar"] = _scalar
    torch.serialization.add_safe_globals([(obj, name) for name, obj in named.items()])


def _torch_load(file: Any, map_location: Any = None, weights_only: Any = None) -> Any:
    """``torch.load`` with torch's own default for ``weights_only``."""
    return torch.load(file, map_location=map_location, weights_only=weights_only)


def refuse_untrusted_checkpoints() -> None:
    """Stop OneDL's MMEngine from reading a refused checkpoint after all.

    Its ``_safe_torch_load`` puts Python's own ``getattr`` on torch's list, and when
    torch refuses a file it reads that file again with ``weights_only=False``, which
    runs whatever code the file carries. OpenMMLab's releases have no such function.

    Upstream: open-mmlab/mmengine#1654, which proposed the function that OneDL ships.
    Unnecessary from: none yet (onedl-mmengine 0.10.12 has it).
    """
    from mmengine.runner import checkpoint

    if hasattr(checkpoint, "_safe_torch_load"):
        checkpoint._safe_torch_load = _torch_load


def refuse_untrusted_downloads() -> None:
    """Let MMEngine read what it downloads as it reads local files.

    ``torch.hub.load_state_dict_from_url``, which it calls for URLs, runs whatever code
    the file carries unless told otherwise, in current torch as well.

    Below torch 2.6 nothing is done, as in :func:`allow_mmengine_checkpoints`.

    Upstream: no report known. Unnecessary from: none yet (0.10.7 is the last release).
    """
    from mmengine.runner import checkpoint

    if torch.__version__ >= (2, 6):
        checkpoint.load_url = functools.partial(
            torch.hub.load_state_dict_from_url, weights_only=True
        )


class _NumpyWithFloat(ModuleType):
    """Numpy as it was before 1.24, for one module: ``np.float`` is ``float``."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def give_lvis_its_float() -> None:
    """Give ``lvis.eval`` the ``np.float`` that it asks for, and nobody else.

    Without it, LVIS evaluation ends in ``AttributeError`` on numpy 1.24 and later,
    once all predictions have been made.

    Upstream: lvis-dataset/lvis-api#37, mended by its #42 in the repository.
    Unnecessary from: the first release after 0.5.3 (none yet).
    """
    import lvis.eval

    if not hasattr(lvis.eval.np, "float"):
        lvis.eval.np = _NumpyWithFloat("numpy")


def apply() -> None:
    """Apply every repair; a second call changes nothing."""
    allow_mmengine_checkpoints()
    refuse_untrusted_checkpoints()
    refuse_untrusted_downloads()
    give_lvis_its_float()

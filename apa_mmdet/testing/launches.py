"""Counting without a GPU the kernels that a training step would launch on one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .gpu_stand_in import Recorder, connected

_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_NO_LAUNCH |= {"resize_", "set_", "_has_same_storage_numel", "promote_types"}


class _Counter(TorchDispatchMode):
    """Counts operations that compute; of native ones, what they launch on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "apa_mmdet":
            with connected(Recorder()) as recorder:  # computes nothing
                function(*args, **kwargs)
            self.launches += len(recorder.launches)
        elif not function.is_view and function._opname not in _NO_LAUNCH:
            self.launches += 1
        return function(*args, **kwargs)


class _FusedDropout(TorchFunctionMode):
    """Computes dropout in one operation, as torch does only on a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.dropout:
            return _dropout(*args, **kwargs)
        return function(*args, **kwargs)


def _dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return torch.native_dropout(input, p, training)[0] if training else input


def count_launches(function: Callable[[], object]) -> int:
    """Return how many kernels a call on CPU tensors would launch on a GPU.

    An operation of torch that computes or copies counts as one kernel; it may launch
    more, as convolutions and sorts do. Native operators count what they launch.
    """
    with _Counter() as counter, _FusedDropout():
        function()
    return counter.launches

"""Memory that a model needs: bytes saved for backward, and peaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def saved_bytes(
    forward: Callable[[], object], excluded: nn.Module | Iterable[Tensor] = ()
) -> int:
    """Return the bytes that autograd saves for the backward pass of a call.

    Each storage counts once and in full, however many tensors view it.

    Args:
        forward: Computes something that requires a gradient.
        excluded: Tensors whose storages do not count; of a module, its parameters and
            buffers.
    """
    if isinstance(excluded, nn.Module):
        excluded = [*excluded.parameters(), *excluded.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): None for tensor in excluded}

    def pack(tensor: Tensor) -> None:
        # Keeping the storage alive prevents the reuse of its address. Keeping the
        # tensor instead would make a cycle with the graph that saves it.
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        forward()
    return sum(storage.nbytes() for storage in storages.values() if storage is not None)


def peak_bytes(function: Callable[[], object], device: str) -> int | None:
    """Return the most that a call allocates on a GPU at a time; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before

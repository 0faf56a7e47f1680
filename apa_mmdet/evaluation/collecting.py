"""Bringing the processes of an evaluation together, or noticing that one is gone."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist


class _Share(NamedTuple):
    """What a process tells the first of its predictions."""

    folder: str
    num_images: int
    host: str


class Collector:
    """Folders for the processes' predictions, and one result for all of them.

    The processes talk over gloo, whatever the model uses: it needs no GPU, and a
    connection to a process that dies is closed, where NCCL would wait for minutes. The
    connections are made when predictions begin. The first process talks to each of the
    others apart, so that it knows which is gone and can tell those that are left.

    Args:
        collect_dir: Where to make the folders; None for the system's temporary one.
        timeout: Seconds to wait for another process.
    """

    def __init__(self, collect_dir: str | None, timeout: float) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}: expected a number of seconds above 0")
        self._collect_dir = collect_dir
        self._timeout = timeout
        self._group: Any = None
        self._folder: tempfile.TemporaryDirectory | None = None

    def open(self) -> str:
        """Return an empty folder, this process's own.

        Raises:
            RuntimeError: If another process does not come within the timeout.
        """
        self._connect()
        if self._collect_dir is not None:
            os.makedirs(self._collect_dir, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(
            prefix="lvis_predictions_", dir=self._collect_dir
        )
        return self._folder.name

    def reduce(self, num_images: int, compute: Callable[[list[str], int], Any]) -> Any:
        """Compute something in the first process from the folders of all.

        The folder that :meth:`open` returned is removed.

        Args:
            num_images: How many images are in this process's folder.
            compute: Called in the first process with all folders and the sum of the
                numbers.

        Returns:
            What `compute` returned, in every process.

        Raises:
            RuntimeError: If a process died or did not come within the timeout, or in
                the others, if `compute` failed in the first.
        """
        mine = _Share(self._folder.name, num_images, socket.gethostname())
        try:
            if self._group is not None and dist.get_rank() > 0:
                return self._follow(mine)
            return self._lead(mine, compute)
        finally:
            self._folder.cleanup()
            self._folder = None

    def _connect(self) -> None:
        """Make the group of all processes, once."""
        is_several = dist.is_available() and dist.is_initialized()
        if self._group is None and is_several and dist.get_world_size() > 1:
            timeout = timedelta(seconds=self._timeout)
            try:
                self._group = dist.new_group(backend="gloo", timeout=timeout)
            except RuntimeError as error:
                raise self._lost("another process", error) from error

    def _lead(self, mine: _Share, compute: Callable[[list[str], int], Any]) -> Any:
        """Do the first process's part."""
        shares, lost = [mine], {}
        others = range(1, dist.get_world_size() if self._group is not None else 1)
        for rank in others:
            received = [None]
            try:
                dist.recv_object_list(received, src=rank, group=self._group)
                shares.append(received[0])
            except RuntimeError as error:
                lost[rank] = error
        result, failure = None, None
        try:
            if lost:
                names = " and ".join(f"process {rank}" for rank in lost)
                raise self._lost(names, next(iter(lost.values())))
            _check_visible(shares)
            number = sum(share.num_images for share in shares)
            result = compute([share.folder for share in shares], number)
        except Exception as error:  # the others must not wait for a result
            failure = error
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        for rank in others:
            if rank not in lost:
                with suppress(RuntimeError):  # gone, but all that it found is here
                    dist.send_object_list([result, told], dst=rank, group=self._group)
        if failure is not None:
            raise failure
        return result

    def _follow(self, mine: _Share) -> Any:
        """Do the part of another process."""
        received = [None, None]
        try:
            dist.send_object_list([mine], dst=0, group=self._group)
            dist.recv_object_list(received, src=0, group=self._group)
        except RuntimeError as error:
            raise self._lost("process 0", error) from error
        result, failure = received
        if failure is not None:
            raise RuntimeError(f"the evaluation failed in process 0: {failure}")
        return result

    def _lost(self, who: str, error: Exception) -> RuntimeError:
        reason = str(error).strip().partition("\n")[0]
        return RuntimeError(
            f"LVIS evaluation: {who} died, or did not come within {self._timeout:g} s. "
            "Look for its own error above, and test again from the checkpoint. "
            f"Process {dist.get_rank()} saw: {reason}"
        )


def _check_visible(shares: list[_Share]) -> None:
    for rank, share in enumerate(shares):
        if not os.path.isdir(share.folder):
            raise FileNotFoundError(
                f"process {rank} on {share.host} keeps its predictions in "
                f"{share.folder}, which {socket.gethostname()} does not see; set the "
                "evaluator's collect_dir to a folder that all machines share"
            )

"""Coordinating the processes (ranks) of an evaluation, and noticing when one died."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist


class RankCoordinator:
    """Gives each rank a folder for its predictions, and all ranks one result.

    The ranks communicate over gloo, whatever backend the model uses. It needs no GPU,
    and it closes the connection to a process that dies, where NCCL would wait for
    minutes. Rank 0 talks to each of the others separately, so that it knows which one
    is lost and can tell those that remain.

    Args:
        collect_dir: Where to make the folders; None for the system's temporary folder.
        timeout: Seconds to wait for another rank.

    Raises:
        ValueError: If ``timeout`` is not positive.
    """

    def __init__(self, collect_dir: str | None, timeout: float) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}: expected a number of seconds above 0")
        self._collect_dir = collect_dir
        self._timeout = timeout
        self._group: Any = None
        self._folder: tempfile.TemporaryDirectory | None = None

    def make_folder(self) -> str:
        """Return a new empty folder for this rank; the first call connects the ranks.

        Raises:
            RuntimeError: If another rank does not call this within the timeout.
        """
        is_initialized = dist.is_available() and dist.is_initialized()
        if self._group is None and is_initialized and dist.get_world_size() > 1:
            timeout = timedelta(seconds=self._timeout)
            try:
                self._group = dist.new_group(backend="gloo", timeout=timeout)
            except RuntimeError as error:
                raise self._lost("another process", error) from error
        if self._collect_dir is not None:
            os.makedirs(self._collect_dir, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(
            prefix="lvis_predictions_", dir=self._collect_dir
        )
        return self._folder.name

    def run_on_first(
        self, num_images: int, compute: Callable[[list[str], int], Any]
    ) -> Any:
        """Return what rank 0 computes from the folders of all ranks, in every rank.

        The folder that :meth:`make_folder` returned is deleted afterwards.

        Args:
            num_images: How many images are in this rank's folder.
            compute: Called in rank 0 with all folders and the sum of the numbers.

        Raises:
            RuntimeError: If a rank died or did not answer within the timeout, or, in
                the other ranks, if ``compute`` failed in rank 0.
        """
        mine = self._folder.name, num_images, socket.gethostname()
        try:
            if self._group is not None and dist.get_rank() > 0:
                return self._follow(mine)
            return self._lead(mine, compute)
        finally:
            self._folder.cleanup()
            self._folder = None

    def _lead(self, mine: tuple, compute: Callable[[list[str], int], Any]) -> Any:
        """Do rank 0's part."""
        contributions, lost = [mine], {}
        others = range(1, dist.get_world_size() if self._group is not None else 1)
        for rank in others:
            received = [None]
            try:
                dist.recv_object_list(received, src=rank, group=self._group)
                contributions.append(received[0])
            except RuntimeError as error:
                lost[rank] = error
        result, failure = None, None
        try:
            if lost:
                names = " and ".join(f"process {rank}" for rank in lost)
                raise self._lost(names, next(iter(lost.values())))
            folders, numbers, hosts = zip(*contributions)
            _check_visible(folders, hosts)
            result = compute([*folders], sum(numbers))
        except Exception as error:  # the others must not wait for a result
            failure = error
        message = None if failure is None else f"{type(failure).__name__}: {failure}"
        for rank in others:
            if rank not in lost:
                with suppress(RuntimeError):  # it died, but its predictions are here
                    dist.send_object_list(
                        [result, message], dst=rank, group=self._group
                    )
        if failure is not None:
            raise failure
        return result

    def _follow(self, mine: tuple) -> Any:
        """Do the part of every other rank."""
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
            f"LVIS evaluation: {who} died, or did not answer within {self._timeout:g} "
            "s. Look for its own error above, and test again from the checkpoint. "
            f"Process {dist.get_rank()} saw: {reason}"
        )


def _check_visible(folders: Sequence[str], hosts: Sequence[str]) -> None:
    for rank, (folder, host) in enumerate(zip(folders, hosts)):
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f"process {rank} on {host} keeps its predictions in {folder}, which "
                f"{socket.gethostname()} does not see; set the evaluator's collect_dir "
                "to a folder that all machines share"
            )

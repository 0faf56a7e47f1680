"""Jobs side by side: each a series of commands with one log, one process at a time."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10  # for a process that is asked to end


class Step(NamedTuple):
    """One command of a job."""

    label: str
    command: Sequence[str]


class Job(NamedTuple):
    """A series of commands.

    Attributes:
        name: For people.
        log: The file to which all of its commands append what they print.
        steps: Yields the commands; it is sent the exit code of each.
        status: Returns how far the current command is, in a few words.
    """

    name: str
    log: Path
    steps: Generator[Step, int, None]
    status: Callable[[], str] = str


def run_jobs(jobs: Sequence[Job], limit: int, num_threads: int) -> list[str]:
    """Run jobs, several at a time, starting them in the order given.

    A command that fails ends neither the other jobs nor its own, which decides itself.
    If this function is left by an exception, such as Ctrl-C, it ends what it started.

    Args:
        jobs: What to run.
        limit: How many at a time.
        num_threads: ``OMP_NUM_THREADS`` of each command.

    Returns:
        A line for each command that failed.
    """
    env = dict(os.environ, OMP_NUM_THREADS=str(num_threads))
    everything = [_Active(job, env) for job in jobs]
    waiting, running, failures = everything[:], [], []
    num_done = 0
    line = "{n_fmt} of {total_fmt} runs after {elapsed}{postfix}"
    # Only on a terminal.
    options = dict(bar_format=line, leave=False, disable=None)
    with tqdm(total=len(jobs), **options) as bar:

        def say(active: _Active, what: str) -> None:
            step = f"{active.job.name}: {active.step.label} {what}"
            bar.write(f"[{num_done}/{len(jobs)}] {step}")
            sys.stdout.flush()  # it may be a file that is watched

        try:
            while waiting or running:
                free = waiting[: limit - len(running)]
                del waiting[: len(free)]
                for active in free + [a for a in running if a.has_ended()]:
                    if active in running:
                        running.remove(active)
                        say(active, active.result())
                        failures += active.failures()
                    try:
                        has_next = active.start_next()
                    except OSError as error:
                        failures.append(f"{active.job.name}: {error}")
                        has_next = False
                    if has_next:
                        running.append(active)
                        say(active, "started")
                    else:
                        active.close()
                        num_done += 1
                        bar.update()
                states = (f"{a.job.name} {a.job.status()}".strip() for a in running)
                bar.set_postfix_str("; ".join(states))
                if running:
                    time.sleep(_POLL_SECONDS)
        finally:
            for active in everything:
                active.end()
    return failures


class _Active:
    """A job, its current step and that one's process."""

    def __init__(self, job: Job, env: dict[str, str]) -> None:
        self.job = job
        self._env = env
        self._code: int | None = None
        self._log = None
        self._process: subprocess.Popen | None = None

    def start_next(self) -> bool:
        """Start the next command; return whether there was one.

        The log is locked as long as this process or a command's lives, so that no
        other call works in the same place.

        Raises:
            OSError: If the log is locked, or anything cannot be read or written.
        """
        try:
            self.step = self.job.steps.send(self._code)
        except StopIteration:
            return False
        if self._log is None:
            self.job.log.parent.mkdir(parents=True, exist_ok=True)
            self._log = self.job.log.open("a")
            try:
                fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(
                    f"another process is writing {self.job.log}; wait for it, or find "
                    f"it with fuser {self.job.log}"
                ) from None
        self._since = time.monotonic()
        self._process = subprocess.Popen(
            self.step.command,
            env=self._env,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all its processes can be ended
        )
        return True

    def has_ended(self) -> bool:
        self._code = self._process.poll()
        if self._code is None:
            return False
        # A worker of a data loader whose parent was killed can wait forever.
        self._signal(signal.SIGKILL)
        return True

    def _signal(self, number: int) -> None:
        """Send a signal to the command's process and those that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def result(self) -> str:
        minutes = (time.monotonic() - self._since) / 60
        return f"{'failed' if self._code else 'finished'} after {minutes:.1f} min"

    def failures(self) -> list[str]:
        """Return a line if the command failed: where, and the last line it printed."""
        if not self._code:
            return []
        lines = self.job.log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return [
            f"{self.job.name}: {self.step.label} failed with exit code {self._code}, "
            f"see {self.job.log}: {last}"
        ]

    def end(self) -> None:
        """End the command if it runs, by force if it does not end when asked."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
            self._signal(signal.SIGKILL)
            self._process.wait()
        self.close()

    def close(self) -> None:
        """Unlock the log."""
        if self._log is not None:
            self._log.close()

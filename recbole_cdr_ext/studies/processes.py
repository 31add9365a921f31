"""Processes side by side: started, followed to their ends, and ended with the one that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from recbole_cdr_ext.files import hold, make_folder

POLL = 0.05  # seconds
GRACE = 5.0  # seconds that a process has to end by itself
TAIL = 8000  # bytes of output that are kept


@dataclass(frozen=True)
class Job:
    """Something to be done in a process of its own.

    Attributes:
        command: asked when it is its turn, for the words; None: it need not be done any more.
        folder: held meanwhile, so that no other study does the same at the same time; None: nothing is.
    """

    name: str
    command: Callable[[], Sequence[str] | None]
    folder: Path | None = None
    tag: Any = None


@dataclass(frozen=True)
class Ended:
    """A job that has ended, with the end of what it printed; status 0 is success, -9 killed by signal 9."""

    job: Job
    status: int
    output: str
    seconds: float

    def reason(self) -> str:
        """Returns why it failed, in one line."""
        lines = self.lines()
        if self.status < 0:
            name = signal.Signals(-self.status).name
            memory = "; there may have been too little memory" if name == "SIGKILL" else ""
            return f"killed by {name}{memory}"
        last = lines[-1].strip() if lines else f"exit status {self.status}"
        return last.removeprefix("recbole-cdr: ")

    def lines(self) -> list[str]:
        """Returns the lines that it printed last, without empty ones."""
        return [line.rstrip() for line in self.output.splitlines() if line.strip()]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    output: IO[bytes]
    started: float
    resources: ExitStack

    def end(self) -> Ended:
        size = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, size - TAIL))
        text = self.output.read().decode(errors="replace")
        self.resources.close()
        return Ended(self.job, self.process.returncode, text, time.monotonic() - self.started)


def run_all(jobs: Sequence[Job], at_once: int, threads: int) -> Generator[Ended, None, None]:
    """Does jobs and yields each as it ends; whatever ends the iteration ends those that are running.

    A job whose folder another process holds is put off until it is free.

    Args:
        threads: of each process's libraries.
    """
    waiting, running = deque(jobs), list[_Running]()
    number = str(threads)
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), number)}
    try:
        while waiting or running:
            for _ in range(len(waiting) if len(running) < at_once else 0):
                job = waiting.popleft()
                begun = _begin(job, environment)
                if begun is None:
                    waiting.append(job)
                elif isinstance(begun, Ended):
                    yield begun
                else:
                    running.append(begun)
                if len(running) == at_once:
                    break
            ended = [one for one in running if one.process.poll() is not None]
            running = [one for one in running if one not in ended]
            for one in ended:
                yield one.end()
            if not ended:
                time.sleep(POLL)
    finally:
        _end(running)


def _begin(job: Job, environment: dict[str, str]) -> _Running | Ended | None:
    resources = ExitStack()
    descriptors: list[int] = []
    if job.folder is not None:
        descriptor = os.open(make_folder(job.folder), os.O_RDONLY)
        resources.callback(os.close, descriptor)
        if not hold(descriptor):
            resources.close()
            return None
        descriptors.append(
            descriptor
        )  # so that the folder is held until the process has ended, however this one does
    command = job.command()
    if command is None:
        resources.close()
        return Ended(job, 0, "", 0.0)
    output = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
        pass_fds=descriptors, start_new_session=True,
    )  # fmt: skip
    return _Running(job, process, output, time.monotonic(), resources)


def _end(running: Sequence[_Running]) -> None:
    """Ends processes and whatever they have started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.process.pid, number)
        deadline = time.monotonic() + GRACE
        while any(one.process.poll() is None for one in running) and time.monotonic() < deadline:
            time.sleep(POLL)
    for one in running:
        one.process.wait()
        one.resources.close()


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM what Ctrl-C is; outside of the main thread it stays what it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Worker processes: hired from a clean process, fed through pipes, replaced when they die."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lth.stage import Stage

# glibc's malloc, told to keep what a step frees for the next one: ResNet-20's would else be 20,000 page faults each
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def _context() -> Any:
    """Where workers start from: a forkserver, a clean process of one thread that has imported what they need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    start = multiprocessing.get_context("forkserver")
    # torch.optim imports torch._dynamo on its first use, a second's work: once here, instead of once a worker
    start.set_forkserver_preload(["lth.execute", "torch._dynamo"])
    # It imports by its own path, the working directory first (until Python 3.13): show it the lth that is running here
    ours, theirs = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
    settings = {"PYTHONPATH": os.pathsep.join(filter(None, [ours, theirs])), "PYTHONSAFEPATH": "1"} | KEEP
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, text in before.items():
            os.environ.pop(name) if text is None else os.environ.update({name: text})
    return start


def warm() -> None:
    """Begin to start what workers are forked from: it imports while this process goes on. Done once however often."""
    _context()


class Pool:
    """`size` worker processes that run work(pipe, number, *arguments), each with its own pipe and number, from 0 on.

    A worker takes (names, units) from its pipe and answers with (names, event, ...), the last event "done" or "failed".
    One that dies is reported as (names, "died", how) and replaced by another of its number.
    """

    def __init__(self, size: int, work: Callable[..., None], arguments: tuple):
        self._start: Any = _context()
        self._work, self._arguments = work, arguments
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[list[str], Any]] = {}  # pipe -> (names of its units, process)
        self._processes: dict[Any, Any] = {}
        self._numbers: dict[Any, int] = {}
        for number in range(size):
            self._hire(number)

    def _hire(self, number: int) -> None:
        ours, theirs = self._start.Pipe()
        process = self._start.Process(target=self._work, args=(theirs, number, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        self._processes[ours], self._numbers[ours] = process, number
        self.idle.append(ours)

    def start(self, names: list[str], units: list[list[Stage]]) -> None:
        """Give units to an idle worker."""
        pipe = self.idle.pop(0)
        self.busy[pipe] = (names, self._processes[pipe])
        with contextlib.suppress(OSError):  # where it died idle, events() finds out
            pipe.send((names, units))

    def events(self, seconds: float) -> list[tuple]:
        """What the workers said since, waiting up to some seconds for the first word."""
        found = []
        if not self.busy:
            time.sleep(seconds)
        for pipe in multiprocessing.connection.wait(list(self.busy), timeout=seconds):
            names, process = self.busy[pipe]
            try:
                message = pipe.recv()  # type: ignore[union-attr]
            except (EOFError, OSError):
                process.join()
                del self.busy[pipe], self._processes[pipe]
                pipe.close()  # type: ignore[union-attr]
                self._hire(self._numbers.pop(pipe))
                code = process.exitcode
                found.append((names, "died", f"signal {-code}" if code and code < 0 else f"exit code {code}"))
                continue
            found.append(message)
            if message[1] in ("done", "failed"):
                del self.busy[pipe]
                self.idle.append(pipe)
        return found

    def close(self) -> None:
        """End all workers, in the middle of their work where they have some."""
        for pipe, process in self._processes.items():
            if pipe in self.busy:
                process.kill()  # what is committed stays; checkpoints keep the rest
            pipe.close()
        for process in self._processes.values():
            process.join()

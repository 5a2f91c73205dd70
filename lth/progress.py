"""What a person at a terminal sees while a plan is executed: a rich progress line on a tty, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts finished trainings of `total`; `names` says by result key what each one is."""

    def __init__(self, total: int, names: dict[str, str], every: float = 5.0):
        self._total, self._names, self._every = total, names, every
        self._done, self._failed = 0, 0
        self._running: dict[str, float] = {}
        self._started = self._printed = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            columns = [BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
            self._bar = Bar(*columns, TextColumn("{task.description}"), console=Console())
            self._task = self._bar.add_task("starting", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._line("")

    def tell(self, event: str, *rest: Any) -> None:
        """Take an event of lth.execute.execute."""
        if event == "point":
            key, point, fraction = rest
            self._running[key] = fraction
            accuracy = point["val_accuracy"]
            shown = "diverged" if accuracy is None else f"step {point['step']}, validation {accuracy:.1%}"
            self._show(f"{self._names.get(key, key[:12])}: {shown}")
        elif "run" in rest[0][0].inputs:
            for stage in rest[0]:
                self._running.pop(stage.key, None)
            self._done += 1
            self._failed += event == "failed"
            self._show("")

    def _show(self, what: str) -> None:
        done = self._done + sum(self._running.values())
        if self._bar:
            self._bar.update(self._task, completed=done, description=what or None)
        elif what and time.monotonic() - self._printed >= self._every:
            self._line(what)

    def _line(self, what: str) -> None:
        self._printed = now = time.monotonic()
        elapsed = now - self._started
        done = self._done + sum(self._running.values())
        left = f", about {elapsed / done * (self._total - done):.0f} s left" if 0 < done < self._total else ""
        failed = f" ({self._failed} failed)" if self._failed else ""
        print(
            f"{self._done}/{self._total} trainings{failed}, {elapsed:.0f} s{left}{'; ' + what if what else ''}",
            flush=True,
        )

"""Run the missing stages of a graph: as many units side by side as there are workers, each value committed as soon as
it is there. What fails takes with it only what is built on it.

Any number of processes may execute on one store at once, also the same plan. A unit in work is leased there; what
another process has leased waits until there is nothing else to do, and is then found done, or taken over from a dead
owner.

Under torchrun rank 0 executes; the other ranks `follow` it into each run, which all train together.
"""

import contextlib
import heapq
import math
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from lth import parallel
from lth.data import Data
from lth.device import of_worker
from lth.engine.choice import Choice
from lth.perform import Context, Tell, perform
from lth.plan import Plan
from lth.stage import Stage, substitute
from lth.store import Store
from lth.workers import Pool

LOOK_SECONDS = 1.0  # between looks at what other processes have leased


@dataclass(frozen=True)
class Failure:
    """Why a unit has no value: one line, and the traceback where there was an exception."""

    cause: str
    traceback: str = ""


class Board:
    """The units of a plan: which are ready, in work here or elsewhere, done or failed. Tells of the last two.

    Earlier levels go first: a chain is the longest path of a study, and what hangs from it fills the other workers.
    """

    def __init__(self, todo: Plan, store: Store, tell: Tell, choices: Mapping[str, Choice]):
        self._todo, self._store, self._tell = todo, store, tell
        self._group: dict[str, str] = {}  # unit -> what it shares with those that may be trained beside it
        self._width: dict[str, int] = {}  # how many that may be
        for run in todo.trainings:
            if (width := choices.get(run.shape, Choice()).width) > 1:
                self._group[run.unit], self._width[run.unit] = run.group, width
        self._waiting = {unit: set(needs) for unit, needs in todo.needs.items()}
        self._consumers: dict[str, list[str]] = {unit: [] for unit in todo.units}
        for unit, needs in todo.needs.items():
            for need in needs:
                self._consumers[need].append(unit)
        self._order = {unit: (depth, index) for index, (unit, depth) in enumerate(_depths(todo).items())}
        self._ready: list[tuple[tuple[int, int], str]] = []
        self._elsewhere: list[str] = []
        self._looked = time.monotonic()
        self._leases: dict[str, SoftFileLease] = {}  # a lease that is not ours must be asked again, not made anew
        self._failed: set[str] = set()
        self._alone: set[str] = set()
        self.failures: dict[str, Failure] = {}  # by stage key
        for unit, needs in self._waiting.items():
            if not needs:
                self._push(unit)

    @property
    def open(self) -> bool:
        """True while something is ready, or in work elsewhere."""
        return bool(self._ready or self._elsewhere)

    def _push(self, unit: str) -> None:
        heapq.heappush(self._ready, (self._order[unit], unit))

    def take(self, idle: int = 1) -> list[str]:
        """The next ready unit, leased, and beside it what can be trained with it, as `idle` workers would share that;
        [] where there is none. What another process has done is done."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            while self._elsewhere:
                self._push(self._elsewhere.pop())
        taken: list[str] = []
        while self._ready and not taken:
            taken += self._lease(heapq.heappop(self._ready)[1])
        if taken and (group := self._group.get(taken[0])) and taken[0] not in self._alone:
            beside = sorted(e for e in self._ready if self._group.get(e[1]) == group and e[1] not in self._alone)
            most = min(self._width[taken[0]], math.ceil((1 + len(beside)) / idle))
            for entry in beside:
                if len(taken) == most:
                    break
                self._ready.remove(entry)
                taken += self._lease(entry[1])
            heapq.heapify(self._ready)
        return taken

    def _lease(self, unit: str) -> list[str]:
        """[unit], if it is ours to do; else [], and it is in work elsewhere, or done."""
        if unit not in self._leases:
            self._leases[unit] = self._store.lease(unit)
        try:
            self._leases[unit].acquire(blocking=False)
        except Timeout:
            self._elsewhere.append(unit)
            return []
        if self.holds(unit):
            self.done(unit, "served")
            return []
        return [unit]

    def holds(self, unit: str) -> bool:
        """True if the store has all that is asked of a unit."""
        return all(self._store.present(s.key) and self._store.holds(s.key) for s in self._todo.units[unit])

    def done(self, unit: str, how: str = "done") -> None:
        """A unit is committed, here (done) or elsewhere (served)."""
        self._release(unit)
        self._tell(how, self._todo.units[unit])
        for consumer in self._consumers[unit]:
            self._waiting[consumer].discard(unit)
            if not self._waiting[consumer] and consumer not in self._failed:
                self._push(consumer)

    def fail(self, unit: str, failure: Failure) -> None:
        """A unit has no value, and nothing that is built on it will have one."""
        self._release(unit)
        path = [unit]
        while path:
            unit = path.pop()
            if unit in self._failed:
                continue
            self._failed.add(unit)
            self.failures.update({stage.key: failure for stage in self._todo.units[unit]})
            self._tell("failed", self._todo.units[unit], failure)
            path += self._consumers[unit]

    def again(self, unit: str) -> None:
        """A unit that was taken is ready once more, now by itself."""
        self._alone.add(unit)
        self._release(unit)
        self._push(unit)

    def _release(self, unit: str) -> None:
        self._leases.pop(unit).release()

    def close(self) -> None:
        """Give up what is leased."""
        for lease in self._leases.values():
            lease.release()


def execute(
    todo: Plan, store: Store, context: Context, workers: int, tell: Tell, checkpoint_seconds: float = 30.0
) -> dict[str, Failure]:
    """Compute every unit of a plan, side by side in `workers` processes (0: in this one).

    tell("point", result key, point, fraction of the run) as runs are evaluated; tell("done", stages) as units are
    committed; tell("served", stages) as another process is found to have committed them; tell("failed", stages,
    failure). Returns the failures by stage key: of units that raised, of units whose worker died twice, and of all that
    is built on them. The rest is done nevertheless. Raises RankError where it was a run that other ranks are in.
    """

    def failed(taken: list[str], failure: Failure) -> None:
        """Of units side by side one has failed: each is tried by itself."""
        for unit in taken:
            board.again(unit) if len(taken) > 1 else board.fail(unit, failure)

    with contextlib.closing(Board(todo, store, tell, context.choices)) as board:
        if workers == 0:
            sent: set[str] = set()
            while board.open:
                if not (taken := board.take()):
                    time.sleep(LOOK_SECONDS if board.open else 0)
                    continue
                stages = todo.units[taken[0]]
                joint = parallel.num_ranks() > 1 and "run" in stages[0].inputs
                if joint:
                    run = stages[0].inputs["run"]
                    news = {run.data.digest: context.raw[run.data.digest]} if run.data.digest not in sent else {}
                    sent.update(news)
                    parallel.tell((store.root.absolute(), run.device, news, [_shallow(stage) for stage in stages]))
                try:
                    with parallel.together() if joint else contextlib.nullcontext():
                        perform([todo.units[unit] for unit in taken], store, context, tell, checkpoint_seconds)
                except Exception as error:
                    if parallel.world()[1] > 1:
                        raise parallel.RankError(f"rank 0 left a training: {_one_line(error)}") from error
                    failed(taken, Failure(_one_line(error), traceback.format_exc()))
                else:
                    for unit in taken:
                        board.done(unit)
            return board.failures

        arguments = (store.root, context.raw, context.device, context.choices, checkpoint_seconds)
        deaths: dict[str, int] = {}
        with contextlib.closing(Pool(min(workers, len(todo.units)), _work, arguments)) as pool:
            while board.open or pool.busy:
                while pool.idle and (taken := board.take(len(pool.idle))):
                    pool.start(taken, [[_shallow(stage) for stage in todo.units[unit]] for unit in taken])
                for taken, event, *rest in pool.events(LOOK_SECONDS):
                    if event == "done":
                        for unit in taken:
                            board.done(unit)
                    elif event == "failed":
                        failed(taken, Failure(*rest))
                    elif event == "died":
                        for unit in taken:
                            deaths[unit] = deaths.get(unit, 0) + 1
                            if board.holds(unit):  # it died with its work done
                                board.done(unit)
                            elif deaths[unit] > 1:  # once may be the machine's doing, twice is the work's
                                board.fail(unit, Failure(f"its worker process died twice ({rest[0]})"))
                            else:
                                board.again(unit)
                    else:
                        tell(event, *rest)
    return board.failures


def _depths(todo: Plan) -> dict[str, int]:
    """Trainings on the longest path of missing units up to each unit. `todo.units` lists inputs before consumers."""
    depths: dict[str, int] = {}
    for unit, stages in todo.units.items():
        before = max((depths[need] for need in todo.needs[unit] if need in depths), default=0)
        depths[unit] = before + ("run" in stages[0].inputs)
    return depths


def _shallow(stage: Stage) -> Stage:
    """A stage with its stored inputs by name alone: what a worker needs, whatever the depth of the graph."""
    return Stage(stage.task, substitute(stage.inputs, lambda s: s.bare() if s.task.stored else _shallow(s)))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _work(
    pipe: Any, number: int, root: Path, raw: dict[str, Data], device: str, choices: dict[str, Choice], every: float
) -> None:
    """A worker's life: units in, events out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    store, context = Store(root), Context(of_worker(number, device), raw, choices=choices)
    # The parent closes the pipe when it is done with us; where it was killed, there is nobody left to tell
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            taken, units = pipe.recv()
            try:
                perform(units, store, context, lambda *event: pipe.send((taken, *event)), every)  # noqa: B023
            except (Exception, SystemExit) as error:
                pipe.send((taken, "failed", _one_line(error), traceback.format_exc()))
            else:
                pipe.send((taken, "done"))


class _ReadOnly(Store):
    """The store as ranks other than 0 see it: what they compute, rank 0 writes."""

    def commit(self, stage: Stage, value: Any, about: dict) -> None:
        pass

    def checkpoint(self, key: str, step: int, parts: tuple[dict, dict]) -> None:
        pass

    def finished(self, key: str) -> None:
        pass


def follow() -> None:
    """The life of a rank other than 0: the runs that rank 0 announces, with the data they need, until it ends."""
    raw: dict[str, Data] = {}
    contexts: dict[str, Context] = {}  # by class of device
    while (told := parallel.tell()) is not None:
        root, kind, news, stages = told
        raw.update(news)
        name = f"{kind}:{parallel.local_rank()}" if kind == "cuda" else kind
        context = contexts.setdefault(kind, Context(name, raw))
        with contextlib.suppress(parallel.MismatchError), parallel.together():
            perform([stages], _ReadOnly(root), context, lambda *event: None, math.inf)

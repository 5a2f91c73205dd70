"""Plan and run the missing stages of a graph.

plan() asks the store what is there and what must be computed; a stage whose consumers are all stored is not needed.
execute() runs what is missing: the stages of one run in one pass, as many passes side by side as there are workers,
each value committed as soon as it is there. What fails takes with it only what is built on it.
"""

import contextlib
import heapq
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lth.data import Data, Source
from lth.mask import Mask
from lth.stage import Diverged, Stage, describe, digest, substitute
from lth.store import Store
from lth.train import History, Run, TrainState, measure, train
from lth.workers import Pool

Tell = Callable[..., None]


# Where stages are computed


@dataclass
class Context:
    """Where a stage is computed; no part of any key. raw: the data sets in use, by digest."""

    device: str = "cpu"
    raw: dict[str, Data] = field(default_factory=dict)
    _resident: dict[str, Data] = field(default_factory=dict)

    def data(self, source: Source) -> Data:
        """The data set, normalised, resident on the device from its first use."""
        if source.digest not in self._resident:
            self._resident[source.digest] = self.raw[source.digest].normalised(self.device)
        return self._resident[source.digest]

    def model(self, model: Any, source: Source) -> nn.Module:
        """A network of the configured model on the device. The global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            return model(source.input_shape, source.num_classes).to(self.device)


class _DivergedError(Exception):
    """An input of a stage is Diverged, and so is the stage."""


def compute(stage: Stage, store: Store, context: Context) -> Any:
    """The value of a stage, computed from its inputs' values."""
    return stage.task.function(context, **substitute(stage.inputs, lambda parent: value(parent, store, context)))


def value(stage: Stage, store: Store, context: Context) -> Any:
    """The value of an input: read from the store, or computed on the way where it is not stored."""
    found = store.read(stage) if stage.task.stored else compute(stage, store, context)
    if isinstance(found, Diverged):
        raise _DivergedError(found.step)
    return found


def perform(stages: list[Stage], store: Store, context: Context, tell: Tell, checkpoint_seconds: float = 30.0) -> None:
    """Compute and commit the stages of one unit: all the missing ones of one run, or one other stage."""
    torch.set_num_threads(1)  # bits must not depend on how many threads a machine would take
    started = time.perf_counter()
    about = {"versions": {"torch": torch.__version__, "python": platform.python_version()}, "device": context.device}
    try:
        if "run" in stages[0].inputs:
            _pursue(stages, store, context, tell, checkpoint_seconds, about)
        else:
            value = compute(stages[0], store, context)
            store.commit(stages[0], value, about | {"seconds": time.perf_counter() - started})
    except _DivergedError as upstream:
        for stage in stages:
            store.commit(stage, Diverged(upstream.args[0]), about | {"seconds": 0.0})


def _pursue(stages: list[Stage], store: Store, context: Context, tell: Tell, every: float, about: dict) -> None:
    """One pass over a run that commits its states asked for as they come, and its result at the end."""
    named: Run = stages[0].inputs["run"]
    run: Any = substitute(named, lambda stage: value(stage, store, context))
    wanted = {stage.inputs["step"]: stage for stage in stages if "step" in stage.inputs}
    results = [stage for stage in stages if "step" not in stage.inputs]
    data, model = context.data(run.data), context.model(run.model, run.data)
    start, before, spent, first = run.start, History(), 0.0, run.start.step
    stop = first + (run.num_steps if results else max(wanted))
    resumed = store.resume(unit_of(stages[0]))
    # A checkpoint is of use unless a state asked for lies before it
    if resumed and all(first + step > resumed[1]["step"] for step in wanted):
        start, before, spent = _unpack(*resumed)
        for point in before.points:
            tell("point", named.result.key, point, (point["step"] - first) / run.num_steps)
    started = saved = time.perf_counter()
    stops = {first + step for step in wanted}
    history = before
    for step, state, history in train(model, start, run.mask, run.recipe, data, run.order, stop, stops, before):
        seconds = spent + time.perf_counter() - started
        evaluated = history.points and history.points[-1]["step"] == step
        if evaluated:
            tell("point", named.result.key, history.points[-1], (step - first) / run.num_steps)
        if history.diverged_step is not None:
            break
        if step - first in wanted:
            store.commit(wanted.pop(step - first), state(), about | {"seconds": seconds})
        if evaluated and step < stop and time.perf_counter() - saved >= every:
            store.checkpoint(unit_of(stages[0]), step, _pack(state(), history, seconds))
            saved = time.perf_counter()
    for stage in wanted.values():
        store.commit(stage, Diverged(history.diverged_step or 0), about | {"seconds": 0.0})
    for stage in results:
        numbers = measure(model, run.mask, history, data, first)
        store.commit(stage, numbers, about | {"seconds": spent + time.perf_counter() - started})
    store.finished(unit_of(stages[0]))


def _pack(state: TrainState, history: History, seconds: float) -> tuple[dict, dict]:
    tensors, meta = state.pack()
    best = {f"best:{name}": tensor for name, tensor in history.best.items()}
    return tensors | best, meta | {"points": history.points, "best_step": history.best_step, "seconds": seconds}


def _unpack(tensors: dict, meta: dict) -> tuple[TrainState, History, float]:
    best = {name.removeprefix("best:"): tensor for name, tensor in tensors.items() if name.startswith("best:")}
    state = TrainState.unpack({n: t for n, t in tensors.items() if not n.startswith("best:")}, meta)
    return state, History(meta["points"], meta["best_step"], best), meta["seconds"]


# The plan


def unit_of(stage: Stage) -> str:
    """Name of the unit of work that a stage belongs to: all stages of one run are one unit, any other is its own."""
    return digest(describe(stage.inputs["run"])) if "run" in stage.inputs else stage.key


@dataclass
class Plan:
    """What is missing. units: name -> its missing stages; needs: name -> the missing units that it waits for."""

    units: dict[str, list[Stage]] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    asked: int = 0
    unique: int = 0
    stored: int = 0

    @property
    def trainings(self) -> list[Run]:
        """The runs to train, in the order of the plan."""
        return [stages[0].inputs["run"] for stages in self.units.values() if "run" in stages[0].inputs]

    @property
    def num_states(self) -> int:
        """Number of states that will be written."""
        return sum(stage.task.value is TrainState for stages in self.units.values() for stage in stages)

    def __str__(self) -> str:
        shared = self.asked - self.unique
        return f"{self.asked} trainings asked, {len(self.trainings)} to do, {shared} shared, {self.stored} stored"


def plan(cells: Iterable[Iterable[Run]], store: Store, also: Iterable[Stage] = (), along: Iterable[Stage] = ()) -> Plan:
    """What must be computed for the results of every run of every cell, and for the stages of `also`.

    A stage that is stored (and found good) is not opened up: what lies behind it is not needed. `along`: states that
    are worth keeping if their runs are trained anyway, so that a later study can go on from them.
    """
    result, runs = Plan(), [run for cell in cells for run in cell]
    result.asked = len(runs)
    targets = {run.result.key: run.result for run in runs}
    result.unique = len(targets)
    unit_names: dict[str, str | None] = {}  # stage key -> its unit, None where nothing is missing

    def visit(target: Stage) -> None:
        # depth first without recursion: a chain of a hundred levels is deeper than Python's stack likes
        path = [target]
        while path:
            stage = path[-1]
            if stage.key in unit_names:
                path.pop()
                continue
            if stage.task.stored and store.holds(stage.key):
                unit_names[stage.key] = None
                continue
            waiting = [parent for parent in stage.parents() if parent.key not in unit_names]
            if waiting:
                path += waiting
                continue
            if stage.task.stored:
                unit = unit_of(stage)
                result.units.setdefault(unit, []).append(stage)
                result.needs.setdefault(unit, set()).update(_missing(stage, unit_names) - {unit})
                unit_names[stage.key] = unit
            else:
                unit_names[stage.key] = None

    for stage in [*targets.values(), *also]:
        visit(stage)
    for stage in along:
        if stage.key not in unit_names and unit_of(stage) in result.units:
            visit(stage)
    result.stored = sum(unit_names[key] is None for key in targets)
    return result


def _missing(stage: Stage, unit_names: dict[str, str | None]) -> set[str]:
    """Units that a stage waits for: those of its inputs, seen through the ones that are not stored."""
    units = set()
    for parent in stage.parents():
        if not parent.task.stored:
            units |= _missing(parent, unit_names)
        elif (unit := unit_names[parent.key]) is not None:
            units.add(unit)
    return units


def measure_step(run: Run, context: Context) -> tuple[float, int]:
    """(seconds a step, bytes of a state) of a run's kind, measured on a fresh network: what the plan estimates with."""
    torch.set_num_threads(1)
    data, model = context.data(run.data), context.model(run.model, run.data)
    mask = Mask.dense(model)
    start, state = TrainState.of(model), None
    for num_steps in (3, 10):  # the first ones warm up
        started = time.perf_counter()
        for _, state, _ in train(model, start, mask, run.recipe, data, 0, num_steps):
            pass
        seconds = (time.perf_counter() - started) / num_steps
    tensors = state().pack()[0] if state else {}
    return seconds, sum(tensor.nbytes for tensor in tensors.values())


# Running it


@dataclass(frozen=True)
class Failure:
    """Why a unit has no value: one line, and the traceback where there was an exception."""

    cause: str
    traceback: str = ""


def execute(
    todo: Plan, store: Store, context: Context, workers: int, tell: Tell, checkpoint_seconds: float = 30.0
) -> dict[str, Failure]:
    """Compute every unit of a plan, side by side in `workers` processes (0: in this one).

    tell("point", result key, point, fraction of the run) as runs are evaluated; tell("done", stages) as units are
    committed; tell("failed", stages, failure). Returns the failures by stage key: of units that raised, of units whose
    worker died twice, and of all that is built on them. The rest is done nevertheless.
    """
    waiting = {unit: set(needs) for unit, needs in todo.needs.items()}
    consumers: dict[str, list[str]] = {unit: [] for unit in todo.units}
    for unit, needs in todo.needs.items():
        for need in needs:
            consumers[need].append(unit)
    order = {unit: (depth, index) for index, (unit, depth) in enumerate(_depths(todo).items())}
    ready = [(order[unit], unit) for unit, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    failures: dict[str, Failure] = {}
    failed: set[str] = set()

    def done(unit: str) -> None:
        tell("done", todo.units[unit])
        for consumer in consumers[unit]:
            waiting[consumer].discard(unit)
            if not waiting[consumer] and consumer not in failed:
                heapq.heappush(ready, (order[consumer], consumer))

    def fail(unit: str, failure: Failure) -> None:
        path = [(unit, failure)]
        while path:
            unit, failure = path.pop()
            if unit in failed:
                continue
            failed.add(unit)
            failures.update({stage.key: failure for stage in todo.units[unit]})
            tell("failed", todo.units[unit], failure)
            path += [(consumer, failure) for consumer in consumers[unit]]

    if workers == 0:
        while ready:
            unit = heapq.heappop(ready)[1]
            try:
                perform(todo.units[unit], store, context, tell, checkpoint_seconds)
            except Exception as error:
                fail(unit, Failure(_one_line(error), traceback.format_exc()))
            else:
                done(unit)
        return failures

    pool = Pool(min(workers, len(todo.units)), _work, (store.root, context.raw, context.device, checkpoint_seconds))
    deaths: dict[str, int] = {}
    try:
        while ready or pool.busy:
            while ready and pool.idle:
                unit = heapq.heappop(ready)[1]
                pool.start(unit, [_shallow(stage) for stage in todo.units[unit]])
            for unit, event, *rest in pool.events():
                if event == "done":
                    done(unit)
                elif event == "failed":
                    fail(unit, Failure(*rest))
                elif event == "died":
                    deaths[unit] = deaths.get(unit, 0) + 1
                    if deaths[unit] > 1:  # once may be the machine's doing, twice is the work's
                        fail(unit, Failure(f"its worker process died twice ({rest[0]})"))
                    else:
                        heapq.heappush(ready, (order[unit], unit))
                else:
                    tell(event, *rest)
    finally:
        pool.close()
    return failures


def _depths(todo: Plan) -> dict[str, int]:
    """Trainings on the longest path of missing units up to each unit. Earlier levels go first: a chain is the longest
    path of a study, and what hangs from it fills the other workers. `todo.units` lists inputs before consumers."""
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


def _work(pipe: Any, root: Path, raw: dict[str, Data], device: str, checkpoint_seconds: float) -> None:
    """A worker's life: units in, events out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    store, context = Store(root), Context(device, raw)
    # The parent closes the pipe when it is done with us; where it was killed, there is nobody left to tell
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            unit, stages = pipe.recv()
            try:
                perform(stages, store, context, lambda *event: pipe.send((unit, *event)), checkpoint_seconds)  # noqa: B023
            except (Exception, SystemExit) as error:
                pipe.send((unit, "failed", _one_line(error), traceback.format_exc()))
            else:
                pipe.send((unit, "done"))

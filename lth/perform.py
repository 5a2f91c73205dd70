"""Compute and commit one unit of work: the stages of one run in one pass, or one other stage."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lth.data import Data, Source
from lth.engine.choice import Choice
from lth.mask import prunable
from lth.numerics import applied, computing, gemm_of
from lth.parallel import num_ranks
from lth.stage import Diverged, Stage, Tensors, substitute
from lth.state import History, Lane, TrainState
from lth.store import Store
from lth.train import measure, movement, result, train_together, unit_of

Tell = Callable[..., None]


@dataclass
class Context:
    """Where and by what a stage is computed; no part of any key. raw: the data sets in use, by digest. engine: as
    device.engine names it. choices: the engines of runs by their shape, sequential where there is none."""

    device: str = "cpu"
    raw: dict[str, Data] = field(default_factory=dict)
    engine: str = "sequential"
    choices: dict[str, Choice] = field(default_factory=dict)
    _resident: dict[str, Data] = field(default_factory=dict)

    def data(self, source: Source) -> Data:
        """The data set, normalised, resident on the device from its first use."""
        if source.digest not in self._resident:
            self._resident[source.digest] = self.raw[source.digest].normalised(self.device)
        return self._resident[source.digest]

    def model(self, model: Any, source: Source, numerics: str = "reference") -> nn.Module:
        """A network of the configured model on the device. The global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            network: Any = model(source.input_shape, source.num_classes).to(self.device)
        network.input_shape = source.input_shape
        return applied(network, numerics)


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


def perform(
    units: Sequence[list[Stage]], store: Store, context: Context, tell: Tell, checkpoint_seconds: float = 30.0
) -> None:
    """Compute and commit the missing stages of units of work: of several runs of one shape, or of one other unit."""
    torch.set_num_threads(1)  # bits must not depend on how many threads a machine would take
    about = {"versions": {"torch": torch.__version__, "python": platform.python_version()}, "device": context.device}
    courses = []
    for stages in units:
        started = time.perf_counter()
        try:
            with computing():  # what is not training
                if "run" in stages[0].inputs:
                    courses.append(_Course(stages, store, context))
                else:
                    found = compute(stages[0], store, context)
                    store.commit(stages[0], found, about | {"seconds": time.perf_counter() - started})
        except _DivergedError as upstream:
            for stage in stages:
                store.commit(stage, Diverged(upstream.args[0]), about | {"seconds": 0.0})
    together: dict[tuple, list[_Course]] = {}
    for course in courses:
        together.setdefault(course.alike, []).append(course)
    for group in together.values():
        width, numerics = group[0].width, group[0].run.numerics
        gemm = gemm_of(numerics, context.device, store.root)
        with computing(numerics, gemm):
            for first in range(0, len(group), width):
                said = about | ({"gemm": gemm} if gemm else {})
                _pursue(group[first : first + width], store, context, tell, checkpoint_seconds, said)


class _Course:
    """One pass over a run: from where it stands, with what is asked of it."""

    def __init__(self, stages: list[Stage], store: Store, context: Context):
        self.stages, self.named = stages, stages[0].inputs["run"]
        self.run: Any = substitute(self.named, lambda stage: value(stage, store, context))
        self.first = self.run.start.step
        self.wanted = {self.first + stage.inputs["step"]: stage for stage in stages if "step" in stage.inputs}
        self.results, self.movements = ([s for s in stages if s.task is task] for task in (result, movement))
        self.stop = self.first + self.run.num_steps if self.results or self.movements else max(self.wanted)
        self.model = context.model(self.run.model, self.run.data, self.run.numerics)
        weights = prunable(self.model) if self.movements else {}
        self.moved = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.start, self.history, self.spent = self.run.start, History(), 0.0
        engine = ""
        resumed = store.resume(unit_of(stages[0]))
        carried = _movement(resumed[0]) if resumed else {}
        # A checkpoint is of use unless a state asked for lies before it, or it has not summed the movement asked for
        if resumed and all(step > resumed[1]["step"] for step in self.wanted) and self.moved.keys() <= carried.keys():
            self.start, self.history, self.spent, engine = _unpack(*resumed)
            self.moved = {name: carried[name].to(context.device) for name in self.moved}
        alone = bool(self.moved) or num_ranks() > 1
        choice = Choice() if alone else context.choices.get(self.named.shape, Choice())
        self.engine, self.width = choice.of(self.model, self.run.recipe, self.run.mask, engine)

    @property
    def alike(self) -> tuple:
        """Equal where runs can be trained side by side: of one shape, from one step on, with moments of one age."""
        ages = tuple((key, t.item() if t.ndim == 0 else None) for key, t in sorted(self.start.optimizer.items()))
        return self.engine, self.named.group, self.start.step, self.stop, ages

    @property
    def lane(self) -> Lane:
        return Lane(self.start, self.run.mask, self.run.order, tuple(self.wanted), self.history, self.moved)


def _pursue(courses: Sequence[_Course], store: Store, context: Context, tell: Tell, every: float, about: dict) -> None:
    """One pass over runs side by side: states asked for are committed as they come, movement and result at the end."""
    lead, began = courses[0], time.perf_counter()
    saved = dict.fromkeys(range(len(courses)), began)
    for course in courses:
        for point in course.history.points:
            tell("point", course.named.result.key, point, (point["step"] - course.first) / course.run.num_steps)
    lanes, data = [course.lane for course in courses], context.data(lead.run.data)
    for reached in train_together(lead.model, lanes, lead.run.recipe, data, lead.stop, lead.engine):
        course, step, history = courses[reached.index], reached.step, reached.history
        seconds = course.spent + (time.perf_counter() - began) / len(courses)
        evaluated = history.points and history.points[-1]["step"] == step
        if evaluated:
            done = (step - course.first) / course.run.num_steps
            tell("point", course.named.result.key, history.points[-1], done)
        if history.diverged_step is not None:
            for stage in (*course.wanted.values(), *course.movements):
                store.commit(stage, Diverged(history.diverged_step), about | {"seconds": 0.0})
        elif step in course.wanted:
            store.commit(course.wanted.pop(step), reached.state(), about | {"seconds": seconds})
        if history.diverged_step is None and step < course.stop:
            if evaluated and time.perf_counter() - saved[reached.index] >= every:
                parts = _pack(reached.state(), history, seconds, course.moved, lead.engine.name)
                store.checkpoint(unit_of(course.stages[0]), step, parts)
                saved[reached.index] = time.perf_counter()
            continue
        if history.diverged_step is None:
            reached.show()
            for stage in course.movements:
                summed = Tensors({name: tensor.cpu() for name, tensor in course.moved.items()})
                store.commit(stage, summed, about | {"seconds": seconds})
        for stage in course.results:
            before = time.perf_counter()
            numbers = measure(lead.model, course.run.mask, history, data, course.first)
            seconds += time.perf_counter() - before
            store.commit(stage, numbers, about | {"seconds": seconds, "engine": lead.engine.name})
        store.finished(unit_of(course.stages[0]))


def _pack(
    state: TrainState, history: History, seconds: float, moved: dict[str, Tensor], engine: str
) -> tuple[dict, dict]:
    tensors, meta = state.pack()
    beside = {f"best:{name}": tensor for name, tensor in history.best.items()}
    beside |= {f"movement:{name}": tensor.cpu() for name, tensor in moved.items()}
    meta |= {"points": history.points, "best_step": history.best_step, "seconds": seconds, "engine": engine}
    return tensors | beside, meta


def _movement(tensors: dict) -> dict[str, Tensor]:
    return {name.removeprefix("movement:"): t for name, t in tensors.items() if name.startswith("movement:")}


def _unpack(tensors: dict, meta: dict) -> tuple[TrainState, History, float, str]:
    best = {name.removeprefix("best:"): tensor for name, tensor in tensors.items() if name.startswith("best:")}
    state = TrainState.unpack({n: t for n, t in tensors.items() if not n.startswith(("best:", "movement:"))}, meta)
    return state, History(meta["points"], meta["best_step"], best), meta["seconds"], meta.get("engine", "sequential")

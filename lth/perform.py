"""Compute and commit one unit of work: the stages of one run in one pass, or one other stage."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lth.data import Data, Source
from lth.mask import prunable
from lth.numerics import applied
from lth.stage import Diverged, Stage, Tensors, substitute
from lth.state import History, TrainState
from lth.store import Store
from lth.train import Run, measure, movement, result, train, unit_of

Tell = Callable[..., None]


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
    """One pass over a run that commits its states asked for as they come, its movement and its result at the end."""
    named: Run = stages[0].inputs["run"]
    run: Any = substitute(named, lambda stage: value(stage, store, context))
    wanted = {stage.inputs["step"]: stage for stage in stages if "step" in stage.inputs}
    results, movements = ([s for s in stages if s.task is task] for task in (result, movement))
    data, model = context.data(run.data), context.model(run.model, run.data, run.numerics)
    start, before, spent, first = run.start, History(), 0.0, run.start.step
    stop = first + (run.num_steps if results or movements else max(wanted))
    moved = {name: torch.zeros_like(weight) for name, weight in prunable(model).items()} if movements else {}
    resumed = store.resume(unit_of(stages[0]))
    carried = _movement(resumed[0]) if resumed else {}
    # A checkpoint is of use unless a state asked for lies before it, or it has not summed the movement asked for
    if resumed and all(first + step > resumed[1]["step"] for step in wanted) and moved.keys() <= carried.keys():
        start, before, spent = _unpack(*resumed)
        moved = {name: carried[name].to(context.device) for name in moved}
        for point in before.points:
            tell("point", named.result.key, point, (point["step"] - first) / run.num_steps)
    started = saved = time.perf_counter()
    stops = {first + step for step in wanted}
    history = before
    for step, state, history in train(model, start, run.mask, run.recipe, data, run.order, stop, stops, before, moved):
        seconds = spent + time.perf_counter() - started
        evaluated = history.points and history.points[-1]["step"] == step
        if evaluated:
            tell("point", named.result.key, history.points[-1], (step - first) / run.num_steps)
        if history.diverged_step is not None:
            break
        if step - first in wanted:
            store.commit(wanted.pop(step - first), state(), about | {"seconds": seconds})
        if evaluated and step < stop and time.perf_counter() - saved >= every:
            store.checkpoint(unit_of(stages[0]), step, _pack(state(), history, seconds, moved))
            saved = time.perf_counter()
    diverged = history.diverged_step is not None
    for stage in [*wanted.values(), *(movements if diverged else ())]:
        store.commit(stage, Diverged(history.diverged_step or 0), about | {"seconds": 0.0})
    for stage in movements if not diverged else ():
        summed = Tensors({name: tensor.cpu() for name, tensor in moved.items()})
        store.commit(stage, summed, about | {"seconds": spent + time.perf_counter() - started})
    for stage in results:
        numbers = measure(model, run.mask, history, data, first)
        store.commit(stage, numbers, about | {"seconds": spent + time.perf_counter() - started})
    store.finished(unit_of(stages[0]))


def _pack(state: TrainState, history: History, seconds: float, moved: dict[str, Tensor]) -> tuple[dict, dict]:
    tensors, meta = state.pack()
    beside = {f"best:{name}": tensor for name, tensor in history.best.items()}
    beside |= {f"movement:{name}": tensor.cpu() for name, tensor in moved.items()}
    return tensors | beside, meta | {"points": history.points, "best_step": history.best_step, "seconds": seconds}


def _movement(tensors: dict) -> dict[str, Tensor]:
    return {name.removeprefix("movement:"): t for name, t in tensors.items() if name.startswith("movement:")}


def _unpack(tensors: dict, meta: dict) -> tuple[TrainState, History, float]:
    best = {name.removeprefix("best:"): tensor for name, tensor in tensors.items() if name.startswith("best:")}
    state = TrainState.unpack({n: t for n, t in tensors.items() if not n.startswith(("best:", "movement:"))}, meta)
    return state, History(meta["points"], meta["best_step"], best), meta["seconds"]

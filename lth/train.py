"""Training: the hot loop, and a training run as a graph of stages.

The loop minimises cross-entropy over minibatches with the removed weights held at zero. Zero they stay because they
start at zero and so do their moments, and each step multiplies their gradients by zero: then momentum, weight decay and
Adam all leave them there (law 2), and nothing is paid in the forward pass. How a step is computed is the engine's
(lth/engine).

A run is named by where it starts and what acts on it; its state at a step and what was measured on the way are stages
of that run. One pass over the run yields all of them that are missing.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lth import parallel
from lth.data import Data, Source
from lth.engine import Engine
from lth.engine.sequential import Sequential
from lth.mask import Mask
from lth.recipe import Recipe
from lth.stage import Numbers, Stage, Tensors, describe, digest, task
from lth.state import History, Lane, TrainState, evaluate, load


class Reached(NamedTuple):
    """A run in training, at a step. state() copies its state; show() makes the model hold its weights, or with
    recipe.ema their averages, and is the end of its training."""

    index: int
    step: int
    history: History
    state: Callable[[], TrainState]
    show: Callable[[], None]


def train_together(
    model: nn.Module, lanes: Sequence[Lane], recipe: Recipe, data: Data, stop: int, engine: type[Engine] = Sequential
) -> Iterator[Reached]:
    """Train runs side by side from the step they start at to step `stop`.

    model and data (normalised) are on the device where it happens. Yields each run after each evaluation (every
    recipe.eval_every steps and at the end) and at each of its `stops`. A start with its `history` goes on as if it had
    never stopped (law 1); such a start lies on an evaluation step. A loss that is not finite ends a run:
    history.diverged_step is the step after which it was seen.
    Within parallel.together all ranks train one network, each on its share of every batch.
    """
    first = lanes[0].start.step
    live = set(range(len(lanes)))
    going = engine(model, lanes, recipe)
    orders = [data.batches(lane.order, recipe.batch_size, first) for lane in lanes]
    losses = torch.empty(min(int(recipe.eval_every), max(1, stop - first)), len(lanes), device=data.train.y.device)
    measured = step = first
    while step < stop and live:
        losses[step - measured] = going.step([next(order) for order in orders], recipe.rate(step))
        step += 1
        evaluated = (step - first) % int(recipe.eval_every) == 0 or step == stop
        if evaluated:
            since = losses[: step - measured]
            parallel.average_([since])
            for index, (train_losses, found) in enumerate(zip(since.T.tolist(), going.evaluate(data.val), strict=True)):
                if index in live and _note(lanes[index].history, step, measured, train_losses, found):
                    lanes[index].history.best = going.weights(index)
            measured = step
        for index in sorted(live):
            history = lanes[index].history
            if evaluated or step in lanes[index].stops:
                yield Reached(index, step, history, partial(going.state, index, step), partial(going.show, index))
            if history.diverged_step is not None:
                live.discard(index)


def _note(history: History, step: int, since: int, train_losses: list[float], found: tuple[float, float]) -> bool:
    """Write down an evaluation, and the losses of the steps since the last one; True where it is the best so far."""
    val_loss, val_accuracy = found
    bad = [i for i, number in enumerate(train_losses) if not math.isfinite(number)]
    if bad or not math.isfinite(val_loss):
        history.diverged_step = since + bad[0] if bad else step
        history.points.append({"step": step, "train_loss": None, "val_loss": None, "val_accuracy": None})
        return False
    best = history.best_step < 0 or val_loss < min(p["val_loss"] for p in history.points)  # type: ignore[type-var]
    train_loss = math.fsum(train_losses) / len(train_losses)
    point = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
    history.points.append(point)
    history.best_step = step if best else history.best_step
    return best


def train(
    model: nn.Module,
    start: TrainState,
    mask: Mask | None,
    recipe: Recipe,
    data: Data,
    order_seed: int,
    stop: int,
    stops: Collection[int] = (),
    history: History | None = None,
    movement: Mapping[str, Tensor] | None = None,
    engine: type[Engine] = Sequential,
) -> Iterator[tuple[int, Callable[[], TrainState], History]]:
    """`train_together` of one run: yields (step, state, history). At the end the model is shown."""
    lane = Lane(start, mask, order_seed, stops, History() if history is None else history, movement)
    for reached in train_together(model, [lane], recipe, data, stop, engine):
        yield reached.step, reached.state, reached.history
        if reached.step == stop and reached.history.diverged_step is None:
            reached.show()


def measure(model: nn.Module, mask: Mask | None, history: History, data: Data, start_step: int) -> Numbers:
    """What a trained network is worth: the one place that reads the test split (law 8).

    The model holds the end of training; the network at the early stop (lowest validation loss) is tested beside it.
    early_stop_step counts the steps of this training, from its start. A diverged run has None for its numbers.
    """
    names = ("test_accuracy", "test_loss", "val_accuracy", "val_loss", "early_stop_step", "early_stop_test_accuracy")
    numbers: dict[str, Any] = dict.fromkeys(names)
    if history.diverged_step is None:
        numbers["test_loss"], numbers["test_accuracy"] = evaluate(model, data.test)
        numbers["val_loss"], numbers["val_accuracy"] = (history.points[-1][n] for n in ("val_loss", "val_accuracy"))
        load(model, history.best, history.best)
        numbers["early_stop_step"] = history.best_step - start_step
        numbers["early_stop_test_accuracy"] = evaluate(model, data.test)[1]
    mask = mask or Mask.dense(model)
    counts = {"num_kept": mask.num_kept, "num_total": mask.num_total}
    return Numbers(counts, **numbers, diverged_step=history.diverged_step, curve=history.points)


# A run as a graph of stages


@task(version=2, value=TrainState)
def state_at(context: Any, run: "Run", step: int) -> TrainState:
    """The state of a run after `step` of its steps. execute.py computes a run's stages in one pass over it."""
    raise NotImplementedError


@task(version=2, value=Tensors)
def movement(context: Any, run: "Run") -> Tensors:
    """-sum over the steps of a run of w * dL/dw, by prunable weight. execute.py computes a run's stages in one pass."""
    raise NotImplementedError


@task(version=2, value=Numbers)
def result(context: Any, run: "Run") -> Numbers:
    """What `measure` says of a run at its end, and its curve. execute.py computes a run's stages in one pass."""
    raise NotImplementedError


@dataclass(frozen=True)
class Run:
    """A training run, named by where it starts and what acts on it.

    start: stage of a TrainState. mask: stage of a Mask, or None for the dense network. model: configured model.
    order: seed of the data order. num_steps: how far it goes. device: the class of device ("cpu", "cuda", "mps"), since
    bits are equal only within one; so are numerics (lth/numerics.py).
    """

    start: Stage
    mask: Stage | None
    model: Any
    data: Source
    recipe: Recipe
    order: int
    num_steps: int
    device: str
    numerics: str = "reference"

    @cached_property
    def unit(self) -> str:
        """Name of the unit of work that all of this run's stages are."""
        return digest(describe(self))

    @property
    def kind(self) -> list:
        """What the cost of a step depends on: the network, the data, the size of a batch."""
        recipe = self.recipe
        factors = [recipe.optimizer, recipe.batch_size, recipe.accumulate]
        return [self.model, self.data, factors, self.device, self.numerics]

    @cached_property
    def shape(self) -> str:
        """Equal for runs of one kind."""
        return digest(describe(self.kind))

    @cached_property
    def group(self) -> str:
        """Equal for runs that can be trained side by side."""
        return digest(describe([self.kind, self.recipe, self.num_steps]))

    def at(self, step: int) -> Stage:
        """Stage of the TrainState after `step` of this run's steps; 0 is the start itself."""
        return self.start if step == 0 else state_at(run=self, step=step)

    @cached_property
    def end(self) -> Stage:
        """Stage of the TrainState at the end of training."""
        return self.at(self.num_steps)

    @cached_property
    def result(self) -> Stage:
        """Stage of Numbers: test accuracy at the end and at the early stop, validation, the curve."""
        return result(run=self)

    @cached_property
    def movement(self) -> Stage:
        """Stage of Tensors: how far the run moved each weight away from zero, see `train`."""
        return movement(run=self)


def unit_of(stage: Stage) -> str:
    """Name of the unit of work that a stage belongs to: all stages of one run are one unit, any other is its own."""
    return stage.inputs["run"].unit if "run" in stage.inputs else stage.key

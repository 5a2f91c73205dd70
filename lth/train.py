"""Training: the state that the next step reads, the hot loop, and a training run as a graph of stages.

The loop minimises cross-entropy over minibatches with the removed weights held at zero. Zero they stay because they
start at zero and so do their moments, and each step multiplies their gradients by zero: then momentum, weight decay and
Adam all leave them there (law 2), and nothing is paid in the forward pass.

A run is named by where it starts and what acts on it; its state at a step and what was measured on the way are stages
of that run. One pass over the run yields all of them that are missing.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lth import parallel
from lth.data import Data, Source, Split
from lth.mask import Mask
from lth.numerics import loss_scaler
from lth.recipe import Recipe
from lth.stage import Numbers, Stage, Tensors, describe, digest, task


@dataclass(frozen=True)
class TrainState:
    """All that the next step reads; a rewind point is just a TrainState.

    step: the number of steps behind it. params, buffers: by name, as the model names them.
    optimizer: "<parameter>/<moment>" -> tensor; empty before the first step and after a reset. So are averages of
    weights and buffers (recipe.ema), "<name>/ema", and the loss scale of fp16, "/scale".
    """

    step: int
    params: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, Tensor], dict]:
        parts = {"params": self.params, "buffers": self.buffers, "optimizer": self.optimizer}
        return {f"{part}:{n}": t for part, named in parts.items() for n, t in named.items()}, {"step": self.step}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> "TrainState":
        parts: dict[str, dict[str, Tensor]] = {"params": {}, "buffers": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(":")
            parts[part][rest] = tensor
        return cls(meta["step"], **parts)

    @classmethod
    def of(cls, model: nn.Module, step: int = 0) -> "TrainState":
        """The state of a model that has no optimiser yet, copied to the CPU."""
        return cls(step, _copies(model.named_parameters()), _copies(model.named_buffers()))


@dataclass
class History:
    """What was measured on the way: points {step, train_loss (mean since the last one), val_loss, val_accuracy}, and
    the network at the lowest validation loss so far, the first one of equals."""

    points: list[dict[str, float | int | None]] = field(default_factory=list)
    best_step: int = -1
    best: dict[str, Tensor] = field(default_factory=dict)
    diverged_step: int | None = None


def _copies(named: Any) -> dict[str, Tensor]:
    # a true copy even where the tensor is on the CPU already
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in named}


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch_size: int = 4096) -> tuple[float, float]:
    """(mean cross-entropy in nats, accuracy in [0, 1]) of a model in eval mode over a whole split, in large batches."""
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.y.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.y.device)
    for x, y in split.batches(batch_size):
        logits = model(x)
        loss += cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    model.train(training)
    return parallel.sum_(loss).item() / len(split.y), parallel.sum_(correct).item() / len(split.y)


def load(model: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Copy a state into a model, in place. Raises KeyError or RuntimeError where names or shapes differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(params[name])
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


OURS = "/ema", "/scale"  # what a state keeps beside the moments of its optimiser


class Average:
    """Exponential moving averages of a network's weights and floating-point buffers, those of removed weights zero.

    decay: 0 averages nothing. start: the averages to go on from, "<name>/ema"; the network itself where there are none.
    """

    def __init__(self, model: nn.Module, decay: float, mask: Mask | None, start: Mapping[str, Tensor]):
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())} if decay else {}
        self._live = {name: tensor.detach() for name, tensor in named.items() if tensor.is_floating_point()}
        self._averages = {name: tensor.clone() for name, tensor in self._live.items()}
        self._decay = decay
        for name, tensor in self._averages.items():
            tensor.copy_(start.get(f"{name}/ema", tensor))
        if mask is not None and decay:
            mask.apply_(self._averages)

    def update(self) -> None:
        if self._live:
            torch._foreach_lerp_(list(self._averages.values()), list(self._live.values()), 1 - self._decay)  # type: ignore

    def state(self) -> dict[str, Tensor]:
        return {f"{name}/ema": tensor for name, tensor in self._averages.items()}

    def exchange(self) -> None:
        """The network's weights for the averages, and the other way round."""
        for live, average in zip(self._live.values(), self._averages.values(), strict=True):
            before = live.clone()
            live.copy_(average)
            average.copy_(before)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network holds the averages meanwhile."""
        self.exchange()
        yield
        self.exchange()


def _restore(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], mask: Mask | None, moments: Mapping[str, Tensor]
) -> None:
    """Give an optimiser the moments of a TrainState, those of removed weights set to zero."""
    moments = {key: tensor for key, tensor in moments.items() if not key.endswith(OURS)}
    if not moments:
        return
    state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(params))}
    for key, tensor in moments.items():
        name, _, moment = key.rpartition("/")
        kept = tensor.clone()
        if tensor.shape == params[name].shape:
            kept = torch.empty_like(params[name], device="cpu").copy_(tensor)  # laid out as the weight is
            if mask is not None and name in mask:
                kept.masked_fill_(~mask[name], 0)
        state[list(params).index(name)][moment] = kept
    # torch's own loader, since it knows which moments live on which device
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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
) -> Iterator[tuple[int, Callable[[], TrainState], History]]:
    """Train `model` from `start` to step `stop` under `mask`.

    model and data (normalised) are on the device where it happens. Yields (step, state, history) after each evaluation
    (every recipe.eval_every steps and at the end) and at each of `stops`; state() copies the state as it is there.
    A start with its `history` goes on as if it had never stopped (law 1); such a start lies on an evaluation step.
    A loss that is not finite ends the run: history.diverged_step is the step after which it was seen.
    With recipe.ema the model holds the averages after the last step, and while it is evaluated; the states are of the
    weights themselves.
    movement: tensors by the names of weights, on the device, from which each step takes w * dL/dw in place (Sanh et al.
    2020, https://arxiv.org/abs/2005.07683); what they were at the start goes on (law 1).
    Within parallel.together all ranks train one network, each on its share of every batch.
    """
    history = history if history is not None else History()
    parallel.join(model, mask or {}, start.pack()[0])
    load(model, start.params, start.buffers)
    params = dict(model.named_parameters())
    optimizer = recipe.build(list(params.values()))
    if mask is not None:
        mask.apply_(params)
    _restore(optimizer, params, mask, start.optimizer)
    average = Average(model, recipe.ema, mask, start.optimizer)
    scaler = loss_scaler(model, start.optimizer.get("/scale"))

    def state() -> TrainState:
        kept = {
            f"{name}/{moment}": tensor
            for name, parameter in params.items()
            for moment, tensor in optimizer.state[parameter].items()
            if isinstance(tensor, Tensor)
        }
        kept |= average.state()
        if scaler.is_enabled():
            found = scaler.state_dict()
            kept["/scale"] = torch.tensor([found["scale"], found["_growth_tracker"]])
        return dataclasses.replace(TrainState.of(model, step), optimizer=_copies(kept.items()))

    pruned = list(mask) if mask is not None and mask.sparsity > 0 else []
    masked = [params[name] for name in pruned]
    masks = [torch.empty_like(params[name]).copy_(mask[name]) for name in pruned] if mask is not None else []
    moving = [params[name] for name in movement or ()]
    losses = torch.empty(min(int(recipe.eval_every), max(1, stop - start.step)), device=data.train.y.device)
    measured = start.step
    step = start.step
    model.train()
    for x, y in data.batches(order_seed, recipe.batch_size, start.step):
        if step >= stop:
            break
        loss = _backward(model, x, y, recipe, scaler)
        parallel.average_(weight.grad for weight in params.values())
        scaler.unscale_(optimizer)
        if masked:
            torch._foreach_mul_([weight.grad for weight in masked], masks)  # type: ignore
        if movement:
            with torch.no_grad():
                slopes = [weight.grad for weight in moving]
                torch._foreach_addcmul_(list(movement.values()), moving, slopes, value=-1)  # type: ignore
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(params.values(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        average.update()
        losses[step - measured] = loss
        step += 1
        evaluated = (step - start.step) % int(recipe.eval_every) == 0 or step == stop
        if evaluated:
            parallel.average_([losses[: step - measured]])
            train_losses = losses[: step - measured].tolist()
            with average.shown():
                val_loss, val_accuracy = evaluate(model, data.val)
            bad = [i for i, number in enumerate(train_losses) if not math.isfinite(number)]
            if bad or not math.isfinite(val_loss):
                history.diverged_step = measured + bad[0] if bad else step
                history.points.append({"step": step, "train_loss": None, "val_loss": None, "val_accuracy": None})
            else:
                train_loss = math.fsum(train_losses) / len(train_losses)
                point = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
                if history.best_step < 0 or val_loss < min(p["val_loss"] for p in history.points):  # type: ignore[type-var]
                    with average.shown():
                        history.best_step, history.best = step, _copies([*params.items(), *model.named_buffers()])
                history.points.append(point)
            measured = step
        if evaluated or step in stops:
            yield step, state, history
        if history.diverged_step is not None:
            return
    average.exchange()


def _backward(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, scaler: Any) -> Tensor:
    """The mean loss of a batch; its gradient is added to that of the model's weights, a part of the batch at a time."""
    losses = []
    for part, labels in zip(x.chunk(recipe.accumulate), y.chunk(recipe.accumulate), strict=True):
        loss = cross_entropy(model(part), labels, label_smoothing=recipe.label_smoothing)
        scaler.scale(loss if recipe.accumulate == 1 else loss / recipe.accumulate).backward()
        losses.append(loss.detach())
    return losses[0] if recipe.accumulate == 1 else torch.stack(losses).mean()


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


@task(version=1, value=TrainState)
def state_at(context: Any, run: "Run", step: int) -> TrainState:
    """The state of a run after `step` of its steps. execute.py computes a run's stages in one pass over it."""
    raise NotImplementedError


@task(version=1, value=Tensors)
def movement(context: Any, run: "Run") -> Tensors:
    """-sum over the steps of a run of w * dL/dw, by prunable weight. execute.py computes a run's stages in one pass."""
    raise NotImplementedError


@task(version=1, value=Numbers)
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

"""Recipe: optimiser, learning rate and its schedule, steps, batch size. Everything that changes training, nothing else.

Numbers of steps are whole numbers of minibatches; "500it" and "2ep" (epochs of the training split, the last incomplete
batch dropped) are accepted and resolved before anything is named by them.

    rate(step) = lr * schedule(step / steps) * min(1, (step + 1) / warmup)

What is minimised is the cross-entropy of labels of which `label_smoothing` is spread evenly over all classes (Szegedy
et al. 2016, https://arxiv.org/abs/1512.00567).
"""

import dataclasses
import inspect
import math
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

import torch

from lth.parallel import num_ranks


class Schedule(Protocol):
    """Multiplier of the learning rate in [0, 1] at `step` of `steps`."""

    def __call__(self, step: int, steps: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """1, always."""

    def __call__(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Step:
    """gamma^(number of `drops` at or before the step): the piecewise constant schedule of He et al. 2016."""

    drops: list[int | str]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not (isinstance(self.gamma, int | float) and 0 <= self.gamma <= 1):
            raise ValueError(f"recipe.schedule.gamma={self.gamma} must be in [0, 1]")

    def __call__(self, step: int, steps: int) -> float:
        return self.gamma ** sum(step >= int(drop) for drop in self.drops)


@dataclass(frozen=True)
class Cosine:
    """(1 + cos(pi * step / steps)) / 2 (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, no restarts)."""

    def __call__(self, step: int, steps: int) -> float:
        return (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class OneCycle:
    """Linear from `start` up to 1 at the fraction `peak` of training, linear down to `end` (Smith & Topin 2018,
    https://arxiv.org/abs/1708.07120, without its cycle of the momentum)."""

    start: float
    peak: float
    end: float

    def __post_init__(self) -> None:
        for name in ("start", "peak", "end"):
            if not (isinstance(getattr(self, name), int | float) and 0 <= getattr(self, name) <= 1):
                raise ValueError(f"recipe.schedule.{name}={getattr(self, name)} must be in [0, 1]")

    def __call__(self, step: int, steps: int) -> float:
        top = self.peak * steps
        if step < top:
            return self.start + (1 - self.start) * step / top
        return 1 - (1 - self.end) * (step - top) / (steps - top)


def num_steps(text: int | str, per_epoch: int, name: str) -> int:
    """Whole steps of "500it", "2ep" or 500. Raises ValueError naming `name` for anything else."""
    match = re.fullmatch(r"(\d+)(it|ep)?", str(text))
    if not match:
        raise ValueError(f"{name}={text} is not a number of steps; write 500it, 2ep or 500")
    return int(match[1]) * (per_epoch if match[2] == "ep" else 1)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    optimizer: a class of torch.optim; options: its arguments beside lr (momentum, weight_decay, ...).
    lr: > 0. batch_size: 1 to the size of the training split, of all ranks together. steps: >= 1.
    warmup: 0 to steps, linear. eval_every: steps between evaluations on the validation split, among which early
    stopping chooses.
    label_smoothing: in [0, 1), 0 is none. clip: > 0, the largest L2 norm of the gradient of the survivors, a longer one
    is scaled down to it (Pascanu et al. 2013, https://arxiv.org/abs/1211.5063); null is none.
    ema: in [0, 1), the decay of an exponential moving average of weights and batch norm statistics, a <- ema * a +
    (1 - ema) * w after each step. The average is what is evaluated; training, masks and rewinding go by the weights
    themselves. 0 is none. accumulate: parts that a batch is worked on in, one after another, for want of memory; it
    divides batch_size. Batch norm then sees a part at a time, else the step is the same.
    per_epoch: steps of an epoch, set by `on`.
    """

    optimizer: str
    lr: float
    batch_size: int
    steps: int | str
    eval_every: int | str
    schedule: Schedule = field(default_factory=Constant)
    warmup: int | str = 0
    options: dict[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.0
    clip: float | None = None
    ema: float = 0.0
    accumulate: int = 1
    per_epoch: int = 0

    def on(self, num_train: int) -> "Recipe":
        """This recipe with every number of steps resolved for a training split of `num_train` examples.

        Raises ValueError, one line, for a value that cannot train.
        """
        if not isinstance(self.batch_size, int) or not 1 <= self.batch_size <= num_train:
            raise ValueError(f"recipe.batch_size={self.batch_size} must be 1 to {num_train} (the training split)")
        if self.batch_size % num_ranks():
            raise ValueError(
                f"recipe.batch_size={self.batch_size} must be a multiple of the world size {num_ranks()}: each rank of "
                "torchrun takes an equal share of every batch"
            )
        per_epoch = num_train // self.batch_size
        if not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise ValueError(f"recipe.lr={self.lr} must be a number above 0")
        steps, warmup, eval_every = (
            num_steps(getattr(self, name), per_epoch, f"recipe.{name}") for name in ("steps", "warmup", "eval_every")
        )
        if steps < 1 or eval_every < 1:
            raise ValueError(f"recipe.steps={self.steps} and recipe.eval_every={self.eval_every} must be at least 1it")
        if warmup > steps:
            raise ValueError(f"recipe.warmup={self.warmup} is past the end of training (recipe.steps={steps})")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"recipe.{name}={getattr(self, name)} must be in [0, 1)")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"recipe.clip={self.clip} must be above 0, or null for no clipping")
        if self.accumulate < 1 or self.batch_size % (self.accumulate * num_ranks()):
            of = f"of each of {num_ranks()} ranks" if num_ranks() > 1 else ""
            raise ValueError(
                f"recipe.accumulate={self.accumulate} must divide recipe.batch_size={self.batch_size} {of}"
            )
        schedule = self.schedule
        if isinstance(schedule, Step):
            drops = [num_steps(drop, per_epoch, "recipe.schedule.drops") for drop in schedule.drops]
            schedule = dataclasses.replace(schedule, drops=drops)
        recipe = dataclasses.replace(
            self, lr=float(self.lr), steps=steps, warmup=warmup, eval_every=eval_every, schedule=schedule,
            per_epoch=per_epoch,
        )  # fmt: skip
        recipe._optimizer()
        return recipe

    def check_optimizer(self) -> None:
        """Raises ValueError unless the optimiser takes its options and can take a plain step (L-BFGS cannot)."""
        params = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(2, 2), (2,)]]  # a weight and a bias
        for parameter in params:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = self.build(params)  # this imports torch._dynamo, which takes a second: not where nothing trains
        try:
            optimizer.step()
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"recipe.optimizer={self.optimizer} cannot train here: {error}") from error

    def rate(self, step: int) -> float:
        """Learning rate of one step; past the end of training (fine-tuning) the last one stays."""
        steps = int(self.steps)
        step = min(step, steps - 1)
        warm = min(1.0, (step + 1) / int(self.warmup)) if self.warmup else 1.0
        return self.lr * warm * self.schedule(step, steps)

    def build(self, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over `params`, fused where torch has a fused kernel for it."""
        kind = self._optimizer()
        fused = {"fused": True} if "fused" in inspect.signature(kind).parameters else {}
        try:
            return kind(params, lr=self.lr, **fused, **self.options)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ValueError(f"recipe.options={self.options} does not fit {self.optimizer}: {error}") from error

    def _optimizer(self) -> Any:
        """The class of torch.optim. Raises ValueError where there is none, or it does not know one of the options."""
        kind = getattr(torch.optim, str(self.optimizer), None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            names = {name.lower(): name for name in dir(torch.optim)}
            near = ", ".join(names[n] for n in get_close_matches(str(self.optimizer).lower(), names)) or "Adam, SGD"
            raise ValueError(f"recipe.optimizer={self.optimizer} is no optimiser of torch.optim, such as {near}")
        known = [name for name in inspect.signature(kind).parameters if name not in ("params", "lr", "fused")]
        for name in self.options:
            if name not in known:
                has = ", ".join(known)
                raise ValueError(f"recipe.options.{name} is no option of {self.optimizer}, which has {has}")
        return kind

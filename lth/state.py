"""States: all of a network that is kept and gone on from, and what a network is worth."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lth import parallel
from lth.data import Split
from lth.mask import Mask

BATCH = 4096  # images that are judged at once


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
        return cls(step, copies(model.named_parameters()), copies(model.named_buffers()))


@dataclass
class History:
    """What was measured on the way: points {step, train_loss (mean since the last one), val_loss, val_accuracy}, and
    the network at the lowest validation loss so far, the first one of equals."""

    points: list[dict[str, float | int | None]] = field(default_factory=list)
    best_step: int = -1
    best: dict[str, Tensor] = field(default_factory=dict)
    diverged_step: int | None = None


@dataclass
class Lane:
    """One of the runs that are trained side by side.

    start, mask: where it starts, and what is removed there. order: seed of its data order. stops: steps at which its
    state is asked for, beside those at which it is evaluated. history: what was measured before its start; it grows.
    movement: tensors by the names of weights, on the device, from which each step takes w * dL/dw in place (Sanh et al.
    2020, https://arxiv.org/abs/2005.07683); what they were at the start goes on (law 1).
    """

    start: TrainState
    mask: Mask | None
    order: int
    stops: Collection[int] = ()
    history: History = field(default_factory=History)
    movement: Mapping[str, Tensor] | None = None


def copies(named: Any) -> dict[str, Tensor]:
    """Tensors on the CPU, by name: true copies even where they are there already."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in named}


def evaluate(model: nn.Module, split: Split, batch_size: int = BATCH) -> tuple[float, float]:
    """(mean cross-entropy in nats, accuracy in [0, 1]) of a model in eval mode over a whole split, in large batches."""
    training = model.training
    model.eval()
    found = score(model, split, batch_size)
    model.train(training)
    return found


@torch.no_grad()
def score(logits_of: Callable[[Tensor], Tensor], split: Split, batch_size: int = BATCH) -> tuple[float, float]:
    """`evaluate` of whatever gives logits [n, classes] of images [n, ...]."""
    loss = torch.zeros((), dtype=torch.float64, device=split.y.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.y.device)
    for x, y in split.batches(batch_size):
        logits = logits_of(x)
        loss += cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    return parallel.sum_(loss).item() / len(split.y), parallel.sum_(correct).item() / len(split.y)


def load(model: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Copy a state into a model, in place. Raises KeyError or RuntimeError where names or shapes differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(params[name])
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

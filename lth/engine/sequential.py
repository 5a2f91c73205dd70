"""`sequential`: one run at a time, in torch's own modules, autograd and optimiser. What all other engines equal."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lth import parallel
from lth.data import Split
from lth.mask import Mask
from lth.numerics import loss_scaler
from lth.recipe import Recipe
from lth.state import Lane, TrainState, copies, evaluate, load

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


class Sequential:
    """The engine that takes every network, recipe and device."""

    name: ClassVar[str] = "sequential"

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe):
        (lane,) = lanes
        start, mask = lane.start, lane.mask
        self._model, self._recipe = model, recipe
        parallel.join(model, mask or {}, start.pack()[0])
        load(model, start.params, start.buffers)
        self._params = dict(model.named_parameters())
        self.optimizer = recipe.build(list(self._params.values()))
        if mask is not None:
            mask.apply_(self._params)
        _restore(self.optimizer, self._params, mask, start.optimizer)
        self._average = Average(model, recipe.ema, mask, start.optimizer)
        self._scaler = loss_scaler(model, start.optimizer.get("/scale"))
        pruned = list(mask) if mask is not None and mask.sparsity > 0 else []
        self._masked = [self._params[name] for name in pruned]
        masks = mask or {}
        self._masks = [torch.empty_like(self._params[name]).copy_(masks[name]) for name in pruned]
        self._movement = list((lane.movement or {}).values())
        self._moving = [self._params[name] for name in lane.movement or ()]
        model.train()

    def step(self, batches: Sequence[Split], rate: float) -> Tensor:
        """One step of each run, each on its batch, at a learning rate; returns their losses, [runs]."""
        ((x, y),) = batches
        loss = self._backward(x, y)
        parallel.average_(weight.grad for weight in self._params.values())
        self._scaler.unscale_(self.optimizer)
        if self._masked:
            torch._foreach_mul_([weight.grad for weight in self._masked], self._masks)  # type: ignore
        if self._moving:
            with torch.no_grad():
                slopes = [weight.grad for weight in self._moving]
                torch._foreach_addcmul_(self._movement, self._moving, slopes, value=-1)  # type: ignore
        if self._recipe.clip is not None:
            nn.utils.clip_grad_norm_(self._params.values(), self._recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self._average.update()
        return loss

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch; its gradient is added to that of the weights, a part of the batch at a time."""
        losses, parts, smoothing = [], self._recipe.accumulate, self._recipe.label_smoothing
        for part, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = cross_entropy(self._model(part), labels, label_smoothing=smoothing)
            self._scaler.scale(loss if parts == 1 else loss / parts).backward()
            losses.append(loss.detach())
        return losses[0] if parts == 1 else torch.stack(losses).mean()

    def tensors(self) -> list[Tensor]:
        """What a step changes in place, beside the moments of the optimiser."""
        return [*self._params.values(), *self._model.buffers(), *self._average.state().values()]

    def evaluate(self, split: Split) -> list[tuple[float, float]]:
        """(loss, accuracy) of each run's network, or of its averages, on a split."""
        with self._average.shown():
            return [evaluate(self._model, split)]

    def weights(self, index: int) -> dict[str, Tensor]:
        """Copies of what `evaluate` judges: weights and buffers of a run."""
        with self._average.shown():
            return copies([*self._params.items(), *self._model.named_buffers()])

    def state(self, index: int, step: int) -> TrainState:
        """A copy of the state of a run, `step` steps behind it."""
        kept = {
            f"{name}/{moment}": tensor
            for name, parameter in self._params.items()
            for moment, tensor in self.optimizer.state[parameter].items()
            if isinstance(tensor, Tensor)
        }
        kept |= self._average.state()
        if self._scaler.is_enabled():
            found = self._scaler.state_dict()
            kept["/scale"] = torch.tensor([found["scale"], found["_growth_tracker"]])
        return replace(TrainState.of(self._model, step), optimizer=copies(kept.items()))

    def show(self, index: int) -> None:
        """The model holds what `evaluate` judges of a run. Nothing is trained or copied after that."""
        self._average.exchange()

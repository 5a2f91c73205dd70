"""`lockstep`: runs of one shape stacked, every tensor [runs, ...], and stepped together.

A step of a small network is mostly the starting of its operations; together the runs pay for that once. A network of
any kind goes through torch.vmap, a multilayer perceptron through products of its own (lth/engine/perceptrons.py).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, vmap
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lth.data import Split
from lth.engine.sequential import OURS
from lth.mask import Mask
from lth.recipe import Recipe
from lth.state import Lane, TrainState, copies, evaluate, load

# of torch.optim, those in whose step every weight stands by itself
ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop")

# Numbers. torch's fused optimisers round the last ones of a tensor, fewer than two of the longest vectors hold, other
# than the rest, and whose they are would depend on how many runs there are (law 9).
ALIGNED = 32


class Lockstep:
    """Networks without dropout, whose random numbers would depend on how many runs there are.

    The lanes start at one step, with moments of one age, or none of them with any.
    """

    name: ClassVar[str] = "lockstep"

    @staticmethod
    def fits(model: nn.Module, recipe: Recipe) -> bool:
        """Whether this engine can train such a network by such a recipe."""
        drops = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
        one = len({parameter.dtype for parameter in model.parameters()}) == 1
        plain = one and recipe.optimizer in ELEMENTWISE and recipe.accumulate == 1
        return plain and not drops and getattr(model, "numerics", "reference") != "fp16"

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe):
        self._model, self._recipe = model, recipe
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._device, starts = next(model.parameters()).device, [lane.start for lane in lanes]
        self._kept = [lane.mask or Mask.dense(model) for lane in lanes]
        self._places: dict[str, tuple[int, torch.Size]] = {}
        weights = self._flat({name: self._stacked(name, [s.params[name] for s in starts]) for name in self._shapes})
        self._buffers = {name: self._stacked(name, [s.buffers[name] for s in starts]) for name in starts[0].buffers}
        self._whole = nn.Parameter(weights)  # one tensor for the optimiser, all weights of all runs
        self._whole.grad = torch.zeros_like(weights)
        self._params, self._slopes = self._views(weights), self._views(self._whole.grad)
        self.optimizer = recipe.build([self._whole])
        self._resume([start.optimizer for start in starts])
        self._live = [weights, *(t for t in self._buffers.values() if t.is_floating_point())] if recipe.ema else []
        self._averages = [tensor.clone() for tensor in self._live]
        if recipe.ema and any(key.endswith("/ema") for key in starts[0].optimizer):
            for name, average in self._averaged().items():
                average.copy_(self._stacked(name, [start.optimizer[f"{name}/ema"] for start in starts]))
        self._mask = self._masks() if any(kept.sparsity for kept in self._kept) else None
        self._model.train()

    def _flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Tensors by the names of weights in the memory of one, each from a place on that suits matrix products."""
        size = 0
        for name, tensor in named.items():
            self._places[name] = size, tensor.shape
            size += math.ceil(tensor.numel() / ALIGNED) * ALIGNED
        flat = next(iter(named.values())).new_zeros(size)
        for name, view in self._views(flat).items():
            view.copy_(named[name])
        return flat

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors that a flat one is made of, in its memory."""
        return {name: flat[at : at + shape.numel()].view(shape) for name, (at, shape) in self._places.items()}

    def _masks(self) -> Tensor | None:
        """1 where a weight is kept, 0 where it is removed, flat."""
        mask = torch.ones_like(self._whole)
        for name, view in self._views(mask.detach()).items():
            if name in self._kept[0]:
                view.copy_(self._stacked(name, [kept[name].float() for kept in self._kept]))
        return mask

    def _stacked(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """A weight, a moment or a buffer of all runs, those of removed weights zero."""
        squeezed = [self._squeeze(name, tensor, kept) for tensor, kept in zip(tensors, self._kept, strict=True)]
        return torch.stack(squeezed).to(self._device)

    def _squeeze(self, name: str, tensor: Tensor, kept: Mask) -> Tensor:
        return tensor.masked_fill(~kept[name], 0) if name in kept and tensor.shape == self._shapes[name] else tensor

    def _spread(self, name: str, tensor: Tensor, index: int) -> Tensor:
        """What `_squeeze` made of a run's tensor, as it was."""
        return tensor

    def _resume(self, moments: Sequence[Mapping[str, Tensor]]) -> None:
        """Give the optimiser the moments of the runs, flat; the number of steps, where it counts them, is of all."""
        state: dict[str, Tensor] = {}
        for key, tensor in moments[0].items():
            name, _, moment = key.rpartition("/")
            if key.endswith(OURS):
                continue
            if tensor.shape != self._shapes[name]:
                state[moment] = tensor.clone()
                continue
            flat = state.setdefault(moment, torch.zeros_like(self._whole))
            self._views(flat)[name].copy_(self._stacked(name, [of[key] for of in moments]))
        if state:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})

    def step(self, batches: Sequence[Split], rate: float) -> Tensor:
        if len(batches) == 1:
            losses = self._backward(batches[0].x[None], batches[0].y[None])
        else:
            losses = self._backward(torch.stack([b.x for b in batches]), torch.stack([b.y for b in batches]))
        if self._mask is not None and self._whole.grad is not None:
            self._whole.grad.mul_(self._mask)
        if self._recipe.clip is not None:
            self._clip(self._recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self._live:
            torch._foreach_lerp_(self._averages, self._live, 1 - self._recipe.ema)  # type: ignore
        return losses

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of each run's batch, [runs]; its slopes are left with the weights."""

        def loss(params: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
            logits = functional_call(self._model, (params, buffers), (x,))
            return cross_entropy(logits, y, label_smoothing=self._recipe.label_smoothing)

        leaves = {name: view.detach().requires_grad_() for name, view in self._params.items()}
        losses = vmap(loss)(leaves, self._buffers, x, y)
        slopes = torch.autograd.grad(losses.sum(), list(leaves.values()))
        torch._foreach_copy_(list(self._slopes.values()), slopes)  # type: ignore
        return losses.detach()

    def _clip(self, most: float) -> None:
        slopes = list(self._slopes.values())
        # one after another: the order in which torch sums over a stack depends on how many runs there are (law 9)
        norms = functools.reduce(torch.add, [slope.flatten(1).square().sum(1) for slope in slopes]).sqrt()
        for slope in slopes:
            slope.mul_((most / (norms + 1e-6)).clamp(max=1).view(-1, *[1] * (slope.ndim - 1)))

    def _averaged(self) -> dict[str, Tensor]:
        """The averages by name."""
        if not self._averages:
            return {}
        floats = [name for name, tensor in self._buffers.items() if tensor.is_floating_point()]
        return {**self._views(self._averages[0]), **dict(zip(floats, self._averages[1:], strict=True))}

    def _of(self, index: int, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of one run."""
        return {name: self._spread(name, tensor[index], index) for name, tensor in named.items()}

    def tensors(self) -> list[Tensor]:
        return [self._whole, *self._buffers.values(), *self._averages]

    def evaluate(self, split: Split) -> list[tuple[float, float]]:
        found = []
        for index in range(len(self._kept)):
            self.show(index)
            found.append(evaluate(self._model, split))
        return found

    def _shown(self, index: int) -> dict[str, Tensor]:
        return self._of(index, {**self._params, **self._buffers, **self._averaged()})

    def weights(self, index: int) -> dict[str, Tensor]:
        return copies(self._shown(index).items())

    def state(self, index: int, step: int) -> TrainState:
        kept: dict[str, Tensor] = {}
        for moment, tensor in self.optimizer.state[self._whole].items():
            if isinstance(tensor, Tensor):
                flat = tensor.shape == self._whole.shape
                each = self._of(index, self._views(tensor)) if flat else dict.fromkeys(self._params, tensor)
                kept |= {f"{name}/{moment}": of for name, of in each.items()}
        kept |= {f"{name}/ema": tensor for name, tensor in self._of(index, self._averaged()).items()}
        params, buffers = (copies(self._of(index, named).items()) for named in (self._params, self._buffers))
        return TrainState(step, params, buffers, copies(kept.items()))

    def show(self, index: int) -> None:
        shown = self._shown(index)
        load(self._model, shown, shown)

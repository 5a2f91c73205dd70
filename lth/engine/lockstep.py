"""`lockstep`: runs of one shape stacked, every tensor [runs, ...], and stepped together.

A step of a small network is mostly the starting of its operations; together the runs pay for that once. A network of
any kind goes through torch.vmap; a multilayer perceptron through its own forward and backward pass in batched products,
which cost less than autograd's for a single run already.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, vmap
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lth.data import Split
from lth.engine.sequential import OURS
from lth.mask import Mask
from lth.model import Residual
from lth.numerics import KINDS
from lth.recipe import Recipe
from lth.state import Lane, TrainState, copies, evaluate, load

# of torch.optim, those in whose step every weight stands by itself
ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop")


class Lockstep:
    """Networks without dropout, whose random numbers would depend on how many runs there are.

    The lanes start at one step, with the same moments or none of them with any, see `alike`.
    """

    name: ClassVar[str] = "lockstep"

    @staticmethod
    def fits(model: nn.Module, recipe: Recipe) -> bool:
        """Whether this engine can train such a network by such a recipe."""
        drops = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
        plain = recipe.optimizer in ELEMENTWISE and recipe.accumulate == 1
        return plain and not drops and getattr(model, "numerics", "reference") != "fp16"

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe):
        self._model, self._recipe = model, recipe
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._device, starts = next(model.parameters()).device, [lane.start for lane in lanes]
        self._kept = [lane.mask or Mask.dense(model) for lane in lanes]
        stack = self._stacked
        self._params = {name: nn.Parameter(stack(name, [s.params[name] for s in starts])) for name in self._shapes}
        self._buffers = {name: stack(name, [s.buffers[name] for s in starts]) for name in starts[0].buffers}
        self.optimizer = recipe.build(list(self._params.values()))
        self._resume([start.optimizer for start in starts])
        live = {**self._params, **self._buffers} if recipe.ema else {}
        self._live = {name: tensor.detach() for name, tensor in live.items() if tensor.is_floating_point()}
        self._averages = {name: tensor.clone() for name, tensor in self._live.items()}
        for name in self._live if any(key.endswith("/ema") for key in starts[0].optimizer) else ():
            self._averages[name] = stack(name, [start.optimizer[f"{name}/ema"] for start in starts])
        pruned = [name for name in self._kept[0] if any(not kept[name].all() for kept in self._kept)]
        self._masks = [stack(name, [kept[name].float() for kept in self._kept]) for name in pruned]
        self._masked = [self._params[name] for name in pruned]
        self._model.train()

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
        state: dict[int, dict[str, Tensor]] = {}
        for key in moments[0]:
            name, _, moment = key.rpartition("/")
            if not key.endswith(OURS):
                each = [of[key] for of in moments]
                one = each[0].shape != self._shapes[name]  # the number of steps
                index = list(self._params).index(name)
                state.setdefault(index, {})[moment] = each[0].clone() if one else self._stacked(name, each)
        if state:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def step(self, batches: Sequence[Split], rate: float) -> Tensor:
        losses = self._backward(torch.stack([b.x for b in batches]), torch.stack([b.y for b in batches]))
        if self._masked:
            torch._foreach_mul_([weight.grad for weight in self._masked], self._masks)  # type: ignore
        if self._recipe.clip is not None:
            self._clip(self._recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self._live:
            averages, live = list(self._averages.values()), list(self._live.values())
            torch._foreach_lerp_(averages, live, 1 - self._recipe.ema)  # type: ignore
        return losses

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of each run's batch, [runs]; the gradients are left with the weights."""

        def loss(params: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
            logits = functional_call(self._model, (params, buffers), (x,))
            return cross_entropy(logits, y, label_smoothing=self._recipe.label_smoothing)

        self.optimizer.zero_grad()
        losses = vmap(loss)(self._params, self._buffers, x, y)
        losses.sum().backward()
        return losses.detach()

    def _clip(self, most: float) -> None:
        slopes = [weight.grad for weight in self._params.values() if weight.grad is not None]
        norms = torch.stack([slope.flatten(1).square().sum(1) for slope in slopes]).sum(0).sqrt()
        for slope in slopes:
            slope.mul_((most / (norms + 1e-6)).clamp(max=1).view(-1, *[1] * (slope.ndim - 1)))

    def _shown(self, index: int) -> dict[str, Tensor]:
        tensors = {**self._params, **self._buffers, **self._averages}
        return {name: self._spread(name, tensor[index].detach(), index) for name, tensor in tensors.items()}

    def tensors(self) -> list[Tensor]:
        return [*self._params.values(), *self._buffers.values(), *self._averages.values()]

    def evaluate(self, split: Split) -> list[tuple[float, float]]:
        found = []
        for index in range(len(self._kept)):
            self.show(index)
            found.append(evaluate(self._model, split))
        return found

    def weights(self, index: int) -> dict[str, Tensor]:
        return copies(self._shown(index).items())

    def state(self, index: int, step: int) -> TrainState:
        def of(name: str, tensor: Tensor, like: Tensor) -> Tensor:
            return self._spread(name, tensor[index].detach(), index) if tensor.shape == like.shape else tensor

        moments = {
            f"{name}/{moment}": of(name, tensor, parameter)
            for name, parameter in self._params.items()
            for moment, tensor in self.optimizer.state[parameter].items()
            if isinstance(tensor, Tensor)
        }
        moments |= {f"{name}/ema": of(name, tensor, tensor) for name, tensor in self._averages.items()}
        params, buffers = (
            copies((name, of(name, t, t)) for name, t in named.items()) for named in (self._params, self._buffers)
        )
        return TrainState(step, params, buffers, copies(moments.items()))

    def show(self, index: int) -> None:
        shown = self._shown(index)
        load(self._model, shown, shown)


class Layer:
    """A layer of a perceptron: z = W h + b, then relu(z), the last one without, h + relu(z) where it is residual."""

    def __init__(self, name: str, linear: nn.Linear, residual: bool):
        self.weight, self.bias, self.residual = f"{name}.weight", f"{name}.bias", residual
        self.plain = linear.bias is not None


def layers(model: nn.Module) -> list[Layer]:
    """The layers of a multilayer perceptron, Sequential(Flatten, Linear, ReLU, ..., Linear), with Residual(Linear,
    ReLU) among them; [] where the network is anything else."""
    if type(model) is not nn.Sequential or len(model) < 2 or not isinstance(model[0], nn.Flatten):
        return []
    found, children = [], list(model.named_children())[1:]
    if not isinstance(children[-1][1], nn.Linear):
        return []
    while children:
        name, module = children.pop(0)
        residual = isinstance(module, Residual) and isinstance(module.shortcut, nn.Identity)
        if residual:
            inside = list(module.layers)  # type: ignore[arg-type]
            if len(inside) != 2 or not isinstance(inside[0], nn.Linear) or not isinstance(inside[1], nn.ReLU):
                return []
            found.append(Layer(f"{name}.layers.0", inside[0], True))
        elif isinstance(module, nn.Linear):
            found.append(Layer(name, module, False))
            if children and not isinstance(children.pop(0)[1], nn.ReLU):
                return []
        else:
            return []
    return found if all(layer.plain for layer in found) else []


class Perceptrons(Lockstep):
    """Multilayer perceptrons in batched products. With h_0 = x, z_l = W_l h_(l-1) + b_l, h_l = relu(z_l), and T the
    one-hot labels, smoothed:

        L = -1/n sum T log softmax(z_last)        d_last = (softmax(z_last) - T) / n
        dW_l = d_l^T h_(l-1),  db_l = sum d_l,    d_(l-1) = (d_l W_l) * [h_(l-1) > 0]

    A residual layer is h_l = h_(l-1) + relu(z_l). A run's bits do not depend on how many run beside it.
    """

    @staticmethod
    def fits(model: nn.Module, recipe: Recipe) -> bool:
        return Lockstep.fits(model, recipe) and bool(layers(model))

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe):
        super().__init__(model, lanes, recipe)
        self._layers = layers(model)
        kind = KINDS[getattr(model, "numerics", "reference")]
        self._kind = next(model.parameters()).dtype if kind == torch.float32 else kind
        self._slopes = {name: torch.empty_like(parameter) for name, parameter in self._params.items()}
        for name, parameter in self._params.items():
            parameter.grad = self._slopes[name]

    def _affine(self, layer: Layer, h: Tensor) -> Tensor:
        weight, bias = self._params[layer.weight].mT, self._params[layer.bias][:, None]
        return torch.baddbmm(*(t.to(self._kind) for t in (bias, h, weight))).to(h.dtype)

    def _product(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        if self._kind == a.dtype:
            return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
        found = torch.bmm(a.to(self._kind), b.to(self._kind))
        return found.to(a.dtype) if out is None else out.copy_(found)

    @torch.no_grad()
    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x.flatten(2)
        inputs, rectified = [], []
        for layer in self._layers:
            inputs.append(h)
            z = self._affine(layer, h)
            if layer is not self._layers[-1]:
                rectified.append(z.relu_())
                h = h + z if layer.residual else z
        losses, d = slope_of_cross_entropy(z, y, self._recipe.label_smoothing)
        for layer, h in zip(reversed(self._layers), reversed(inputs), strict=True):
            if layer is not self._layers[-1]:
                through, d = d, torch.ops.aten.threshold_backward(d, rectified.pop(), 0)
            weight = self._params[layer.weight]
            self._product(d.mT, h, out=self._slopes[layer.weight])
            torch.sum(d, 1, out=self._slopes[layer.bias])
            if layer is not self._layers[0]:
                d = self._product(d, weight)
                d = d + through if layer.residual else d
        return losses


def slope_of_cross_entropy(z: Tensor, y: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Of logits [runs, n, classes] and labels [runs, n]: the mean cross-entropy by run, and its slope by logit."""
    _, n, classes = z.shape
    targets = torch.full_like(z, -smoothing / classes / n)
    targets.scatter_add_(2, y[..., None], torch.full_like(z[..., :1], (smoothing - 1) / n))
    logs = torch.log_softmax(z, 2)
    if z.device.type == "cpu":  # run by run as `sequential` sums, bit for bit; on a GPU that is too many small kernels
        losses = torch.stack([cross_entropy(*one, label_smoothing=smoothing) for one in zip(z, y, strict=True)])
    else:
        losses = (logs * targets).sum((1, 2))
    return losses, torch.ops.aten._log_softmax_backward_data(targets, logs, 2, z.dtype)

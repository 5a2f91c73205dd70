"""Multilayer perceptrons in `lockstep`: a forward and a backward pass of their own in batched products, which cost less
than autograd's for a single run already.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss, pad

from lth.engine.lockstep import Lockstep
from lth.mask import Mask
from lth.model import Residual
from lth.numerics import KINDS
from lth.recipe import Recipe
from lth.state import Lane


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

    A residual layer is h_l = h_(l-1) + relu(z_l). A run's bits do not depend on how many run beside it. MKL's products
    depend on where they lie in memory; so layers are widened by units whose weights are zero and stay so, until the
    matrices of all runs begin at multiples of 64 bytes.
    """

    @staticmethod
    def fits(model: nn.Module, recipe: Recipe) -> bool:
        return Lockstep.fits(model, recipe) and bool(layers(model))

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe):
        # widths are multiples of this: then batch * width and width * width are multiples of 16 numbers, 64 bytes
        self._unit = max(4, 16 // math.gcd(16, recipe.batch_size))
        super().__init__(model, lanes, recipe)
        self._layers = layers(model)
        (self._num_classes,) = self._shapes[self._layers[-1].bias]
        kind = KINDS[getattr(model, "numerics", "reference")]
        self._kind = next(model.parameters()).dtype if kind == torch.float32 else kind

    def _widened(self, tensor: Tensor, dims: int) -> Tensor:
        """Its last `dims` dimensions as long as multiples of the unit, with zeros."""
        extra = [-size % self._unit for size in reversed(tensor.shape[-dims:])]
        return pad(tensor, [n for more in extra for n in (0, more)]) if any(extra) else tensor

    def _squeeze(self, name: str, tensor: Tensor, kept: Mask) -> Tensor:
        return self._widened(super()._squeeze(name, tensor, kept), tensor.ndim)

    def _spread(self, name: str, tensor: Tensor, index: int) -> Tensor:
        return tensor[tuple(slice(size) for size in self._shapes[name])]

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
        h = self._widened(x.flatten(2), 1)
        inputs, rectified = [], []
        for layer in self._layers:
            inputs.append(h)
            z = self._affine(layer, h)
            if layer is not self._layers[-1]:
                rectified.append(z.relu_())
                h = h + z if layer.residual else z
        logits = z[..., : self._num_classes].contiguous()
        losses, d = slope_of_cross_entropy(logits, y, self._recipe.label_smoothing)
        d = self._widened(d, 1)
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
    other = smoothing / classes / n  # -T / n of a wrong class, and of the right one
    targets = torch.full_like(z, -other).scatter_(2, y[..., None], (smoothing - 1) / n - other)
    logs = torch.log_softmax(z, 2)
    if z.device.type == "cpu" and not smoothing:  # run by run, as `sequential` sums; on a GPU too many small kernels
        losses = torch.stack([nll_loss(*one) for one in zip(logs, y, strict=True)])
    else:
        losses = (logs * targets).sum((1, 2))
    return losses, torch.ops.aten._log_softmax_backward_data(targets, logs, 2, z.dtype)

"""`sparse`: a multilayer perceptron's kept weights alone, in compressed rows (CSR), on a CPU.

Values are [features, batch], so that a row of weights meets contiguous rows. With W_l the kept weights,

    z_l = W_l h_(l-1) + b_l        d_(l-1) = (W_l^T d_l) * [h_(l-1) > 0]        dW_l = (d_l h_(l-1)^T) where W_l is kept

cost what is kept, and so does the optimiser. A unit without fan-in has an empty row: it gives relu(bias) and costs its
bias; one without fan-out costs no product. So nothing need be taken out of the network, and weight decay and momentum
act on such units as they do in `sequential`.
"""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lth.data import Split
from lth.engine.lockstep import Perceptrons, slope_of_cross_entropy
from lth.mask import Mask
from lth.recipe import Recipe
from lth.state import Lane, score


class Sparse(Perceptrons):
    """Multilayer perceptrons in float32 on a CPU, one run at a time."""

    name: ClassVar[str] = "sparse"

    @staticmethod
    def fits(model: nn.Module, recipe: Recipe) -> bool:
        plain = getattr(model, "numerics", "reference") in ("reference", "fast")
        return plain and next(model.parameters()).device.type == "cpu" and Perceptrons.fits(model, recipe)

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe):
        super().__init__(model, lanes, recipe)
        (kept,) = self._kept
        self._rows = {layer.weight: _Rows(kept[layer.weight]) for layer in self._layers}
        with warnings.catch_warnings():  # torch says once that such tensors are in beta state
            warnings.simplefilter("ignore", UserWarning)
            self._weights = {name: rows.matrix(self._params[name]) for name, rows in self._rows.items()}
        self._sampled = {name: rows.matrix(self._slopes[name]) for name, rows in self._rows.items()}

    def _masks(self) -> Tensor | None:
        return None  # what is removed is not there

    def _squeeze(self, name: str, tensor: Tensor, kept: Mask) -> Tensor:
        return tensor[kept[name]] if name in kept and tensor.shape == self._shapes[name] else tensor

    def _spread(self, name: str, tensor: Tensor, index: int) -> Tensor:
        if name not in self._kept[index]:
            return tensor
        return tensor.new_zeros(self._shapes[name]).masked_scatter_(self._kept[index][name], tensor)

    @torch.no_grad()
    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x[0].flatten(1).t().contiguous()
        inputs, rectified = [], []
        for layer in self._layers:
            inputs.append(h)
            z = torch.addmm(self._params[layer.bias][0, :, None], self._weights[layer.weight], h)
            if layer is not self._layers[-1]:
                rectified.append(z.relu_())
                h = h + z if layer.residual else z
        losses, slope = slope_of_cross_entropy(z.t()[None], y, self._recipe.label_smoothing)
        d = slope[0].t().contiguous()
        for layer, h in zip(reversed(self._layers), reversed(inputs), strict=True):
            if layer is not self._layers[-1]:
                through, d = d, torch.ops.aten.threshold_backward(d, rectified.pop(), 0)
            sampled = self._sampled[layer.weight]
            torch.sparse.sampled_addmm(sampled, d, h.t(), beta=0.0, out=sampled)
            torch.sum(d, 1, out=self._slopes[layer.bias][0])
            if layer is not self._layers[0]:
                d = torch.mm(self._rows[layer.weight].transposed(self._params[layer.weight]), d)
                d = d + through if layer.residual else d
        return losses

    def evaluate(self, split: Split) -> list[tuple[float, float]]:
        shown = {**self._params, **self._averaged()}
        weights = {name: rows.matrix(shown[name]) for name, rows in self._rows.items()}

        def logits(x: Tensor) -> Tensor:
            h = x.flatten(1).t().contiguous()
            for layer in self._layers:
                z = torch.addmm(shown[layer.bias][0, :, None], weights[layer.weight], h)
                h = h + z.relu_() if layer.residual else z if layer is self._layers[-1] else z.relu_()
            return h.t()

        return [score(logits, split)]


class _Rows:
    """Where the weights of a layer stand, by row and by column. kept: bool [rows, columns]."""

    def __init__(self, kept: Tensor):
        self._shape = kept.shape
        self._ends, self._columns = _compressed(kept)
        self._ends_t, self._columns_t = _compressed(kept.t())
        order = torch.zeros(kept.shape, dtype=torch.int64).masked_scatter_(kept, torch.arange(int(kept.sum())))
        self._order = order.t()[kept.t()]

    def matrix(self, values: Tensor) -> Tensor:
        """The layer's matrix of values [1, kept], whose memory it shares."""
        return _csr(self._ends, self._columns, values[0], self._shape)

    def transposed(self, values: Tensor) -> Tensor:
        """That matrix's transpose, of copies."""
        return _csr(self._ends_t, self._columns_t, values[0].index_select(0, self._order), self._shape[::-1])


def _csr(ends: Tensor, columns: Tensor, values: Tensor, shape: Any) -> Tensor:
    return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=False)


def _compressed(kept: Tensor) -> tuple[Tensor, Tensor]:
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    return ends.int(), kept.nonzero()[:, 1].int()

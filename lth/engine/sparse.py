"""`sparse`: a multilayer perceptron's kept weights alone, in compressed rows (CSR), on a CPU.

Values are [features, batch], so that a row of weights meets contiguous rows. With W_l the kept weights,

    z_l = W_l h_(l-1) + b_l        d_(l-1) = (W_l^T d_l) * [h_(l-1) > 0]        dW_l = (d_l h_(l-1)^T) where W_l is kept

cost what is kept, and so does the optimiser. A unit without fan-in has an empty row: it gives relu(bias) and costs its
bias; one without fan-out costs no product. So nothing need be taken out of the network, and weight decay and momentum
act on such units as they do in `sequential`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lth.data import Split
from lth.engine.lockstep import Lockstep
from lth.engine.perceptrons import Perceptrons, slope_of_cross_entropy
from lth.mask import Mask
from lth.recipe import Recipe
from lth.state import Lane, score

SMALL = 10_000  # weights: the products of a smaller layer are dense, setting up a sparse one takes longer


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
        self._rows = {name: _Rows(kept[name]) for name in kept if self._shapes[name].numel() >= SMALL}
        with warnings.catch_warnings():  # torch says once that such tensors are in beta state
            warnings.simplefilter("ignore", UserWarning)
            self._matrices, self._sampled = self._made(self._params), self._made(self._slopes)
        self._transposed = {name: rows.transpose(self._whole.dtype) for name, rows in self._rows.items()}

    def _made(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the run, weights as matrices, in their memory; biases as columns."""
        columns = {name: tensor[0] if tensor.ndim > 2 else tensor[0, :, None] for name, tensor in named.items()}
        return columns | {name: rows.matrix(named[name]) for name, rows in self._rows.items()}

    def _squeeze(self, name: str, tensor: Tensor, kept: Mask) -> Tensor:
        if name in kept and tensor.shape == self._shapes[name] and tensor.numel() >= SMALL:
            return tensor[kept[name]]
        return Lockstep._squeeze(self, name, tensor, kept)  # as wide as it is

    def _spread(self, name: str, tensor: Tensor, index: int) -> Tensor:
        if name not in self._rows:
            return tensor
        return tensor.new_zeros(self._shapes[name]).masked_scatter_(self._kept[index][name], tensor)

    @torch.no_grad()
    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x[0].flatten(1).t().contiguous()
        inputs, rectified = [], []
        for layer in self._layers:
            inputs.append(h)
            z = torch.addmm(self._matrices[layer.bias], self._matrices[layer.weight], h)
            if layer is not self._layers[-1]:
                rectified.append(z.relu_())
                h = h + z if layer.residual else z
        losses, slope = slope_of_cross_entropy(z.t()[None], y, self._recipe.label_smoothing)
        d = slope[0].t().contiguous()
        for layer, h in zip(reversed(self._layers), reversed(inputs), strict=True):
            if layer is not self._layers[-1]:
                through, d = d, torch.ops.aten.threshold_backward(d, rectified.pop(), 0)
            sampled = self._sampled[layer.weight]
            if layer.weight in self._rows:
                torch.sparse.sampled_addmm(sampled, d, h.t(), beta=0.0, out=sampled)
            else:
                torch.mm(d, h.t(), out=sampled)
            torch.sum(d, 1, True, out=self._sampled[layer.bias])
            if layer is not self._layers[0]:
                d = torch.mm(self._turned(layer.weight), d)
                d = d + through if layer.residual else d
        return losses

    def _turned(self, name: str) -> Tensor:
        """The transpose of a weight."""
        if name not in self._rows:
            return self._matrices[name].t()
        matrix, values = self._transposed[name]
        torch.index_select(self._params[name][0], 0, self._rows[name].order, out=values)
        return matrix

    def evaluate(self, split: Split) -> list[tuple[float, float]]:
        matrices = self._made(self._params | self._averaged())

        def logits(x: Tensor) -> Tensor:
            h = x.flatten(1).t().contiguous()
            for layer in self._layers:
                z = torch.addmm(matrices[layer.bias], matrices[layer.weight], h)
                h = h + z.relu_() if layer.residual else z if layer is self._layers[-1] else z.relu_()
            return h.t()

        return [score(logits, split)]


class _Rows:
    """Where the weights of a layer stand, by row and by column. kept: bool [rows, columns]. order: of the values by
    row, those by column."""

    def __init__(self, kept: Tensor):
        self._shape = kept.shape
        self._ends, self._columns = _compressed(kept)
        self._ends_t, self._columns_t = _compressed(kept.t())
        places = torch.zeros(kept.shape, dtype=torch.int64).masked_scatter_(kept, torch.arange(int(kept.sum())))
        self.order = places.t()[kept.t()]

    def matrix(self, values: Tensor) -> Tensor:
        """The layer's matrix of values [1, kept], in their memory."""
        return _csr(self._ends, self._columns, values[0], self._shape)

    def transpose(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(the matrix's transpose, its values by column, to be written to)."""
        values = torch.zeros(len(self.order), dtype=dtype)
        return _csr(self._ends_t, self._columns_t, values, self._shape[::-1]), values


def _csr(ends: Tensor, columns: Tensor, values: Tensor, shape: Any) -> Tensor:
    return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=False)


def _compressed(kept: Tensor) -> tuple[Tensor, Tensor]:
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    return ends.int(), kept.nonzero()[:, 1].int()

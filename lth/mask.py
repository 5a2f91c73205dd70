"""Mask: which weights are kept, and the exact selection that draws one (design law 3).

A mask keeps exactly the number of weights it is asked to, ties broken by position, and lies inside the mask it was
drawn from. Threshold pruning, the field's habit, does neither: with equal scores it removes them all.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of every linear and convolutional layer, in module order; the last one is the output layer.

    Biases and normalisation parameters are not prunable (Frankle & Carbin 2019, appendix G).
    """
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return {f"{name}.weight".lstrip("."): m.weight for name, m in model.named_modules() if isinstance(m, layers)}


class Mask(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of its shape, True = kept. Immutable: what is given is copied, on the CPU."""

    def __init__(self, kept: Mapping[str, Tensor]):
        self._kept = {name: tensor.detach().to("cpu", torch.bool, copy=True) for name, tensor in kept.items()}
        self.num_total = sum(tensor.numel() for tensor in self._kept.values())
        self.num_kept = sum(int(tensor.sum()) for tensor in self._kept.values())
        if self.num_kept < 1:
            raise ValueError(f"a mask keeps at least 1 weight; this one keeps {self.num_kept} of {self.num_total}")

    @classmethod
    def dense(cls, model: nn.Module) -> "Mask":
        """Every prunable weight kept: level 0."""
        return cls({name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in prunable(model).items()})

    @classmethod
    def of_pruned(cls, model: nn.Module) -> "Mask":
        """What torch.nn.utils.prune has removed of a model: its weight_mask where a layer has one, else all kept."""
        masks = dict(model.named_buffers())
        return cls({
            name: masks.get(f"{name}_mask", torch.ones(weight.shape)) for name, weight in prunable(model).items()
        })  # fmt: skip

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.num_kept == other.num_kept and self.inside(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def sparsity(self) -> float:
        """Fraction of prunable weights that are zero, in [0, 1)."""
        return 1 - self.num_kept / self.num_total

    def counts(self) -> dict[str, int]:
        """Number of kept weights by parameter name."""
        return {name: int(tensor.sum()) for name, tensor in self._kept.items()}

    def inside(self, other: "Mask") -> bool:
        """True if both speak of the same parameters and every weight kept here is kept in `other`."""
        return list(self) == list(other) and all(
            tensor.shape == other._kept[name].shape and bool((~tensor | other._kept[name]).all())
            for name, tensor in self._kept.items()
        )

    @torch.no_grad()
    def apply_(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the removed weights of `tensors` to zero, in place. A copy, not a product: NaN * 0 is not 0."""
        for name, kept in self._kept.items():
            tensors[name].masked_fill_(~kept.to(tensors[name].device), 0)

    def export_(self, model: nn.Module) -> None:
        """Put the mask on a model as torch.nn.utils.prune does: weight_orig and weight_mask, which make weight.
        What was removed there before stays removed. Raises AttributeError where the model lacks a layer."""
        for name, kept in self._kept.items():
            layer: Any = model.get_submodule(name.removesuffix("weight").removesuffix("."))
            prune.custom_from_mask(layer, "weight", kept.to(layer.weight.device))

    def pack(self) -> tuple[dict[str, Tensor], dict]:
        """One bit a weight, shapes beside them."""
        bits = {name: torch.from_numpy(np.packbits(tensor.numpy().reshape(-1))) for name, tensor in self._kept.items()}
        return bits, {"shapes": [[name, list(tensor.shape)] for name, tensor in self._kept.items()]}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> "Mask":
        def bits(name: str, shape: list[int]) -> Tensor:
            count = int(np.prod(shape))
            return torch.from_numpy(np.unpackbits(tensors[name].numpy(), count=count).astype(bool)).reshape(shape)

        return cls({name: bits(name, shape) for name, shape in meta["shapes"]})


def num_kept(sparsity: float, num_total: int) -> int:
    """round((1 - sparsity) * num_total), at least 1. sparsity in [0, 1): 0 keeps all."""
    return max(1, round((1 - sparsity) * num_total))


def top_k(scores: Tensor, kept: Tensor, k: int) -> Tensor:
    """Bool mask of the k highest of `scores` among `kept`; of equal scores the one that stands first survives.

    scores: float [n], finite where kept. kept: bool [n]. 0 <= k <= kept.sum(). Linear time: the k-th highest score is
    found by selection, all above it stay, and of those equal to it the first ones fill the count.
    """
    values, here = scores.numpy(), kept.numpy()
    candidates = values[here]
    if not 0 <= k <= candidates.size:
        raise ValueError(f"cannot keep {k} weights of {candidates.size}; choose 0 to {candidates.size}")
    if k == 0:
        return torch.zeros_like(kept)
    candidates.partition(candidates.size - k)
    threshold = candidates[candidates.size - k]
    del candidates  # of 25 million weights these are 100 MB, and the positions below may be as many
    chosen = (values > threshold) & here
    chosen[np.flatnonzero((values == threshold) & here)[: k - np.count_nonzero(chosen)]] = True
    return torch.from_numpy(chosen)

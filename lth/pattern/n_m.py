"""N:M: at most n of every m consecutive weights of a row are kept, as sparse tensor cores want it (n=2, m=4; Mishra et
al. 2021, https://arxiv.org/abs/2104.08378; trained from the start: Zhou et al. 2021, https://arxiv.org/abs/2102.04010).

A row is what makes one output, flattened as PyTorch keeps it: in * kh * kw of a convolution, the order of its matrix
product after unfolding, weight.flatten(1), which torch.sparse.to_sparse_semi_structured takes. NVIDIA's ASP groups a
convolution along its input channels instead. Layers whose row length m does not divide (a first convolution of
3 * 3 * 3, say), and transposed convolutions, are left as they are.

sparsity is a fraction of the layers that hold the pattern: of their weights exactly round((1 - sparsity) * size),
at least 1, are kept, ranked together. Below 1 - n/m every group keeps its best n, and the best of the others fill the
number; from 1 - n/m on, where each group has exactly n, the best of those are kept, so that no group has more.

Deviation: the papers go to n:m in one step; here it is the point of a ladder that passes through it.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lth.mask import Mask, num_kept, prunable, top_k


@dataclass(frozen=True)
class NofM:
    """n: kept of each group, 1 to m. m: weights of a group, at least 2."""

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if self.m < 2:
            raise ValueError(f"pattern.m={self.m} must be at least 2")
        if not 1 <= self.n <= self.m:
            raise ValueError(f"pattern.n={self.n} must be in 1 to pattern.m={self.m}")

    def __call__(self, scores, mask, sparsity, model):
        """The mask inside `mask` that keeps exactly round((1 - sparsity) * size) of the layers that m divides."""
        held, _ = self._layers(model)
        flat = torch.cat([scores[name].reshape(-1, self.m) for name in held])
        kept = torch.cat([mask[name].reshape(-1, self.m) for name in held])
        # Stable: of equal scores the first survives. What is removed already comes last
        ranks = flat.masked_fill(~kept, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        best, count = ((ranks < self.n) & kept).reshape(-1), num_kept(sparsity, flat.numel())
        flat, kept, full = flat.reshape(-1), kept.reshape(-1), len(flat) * self.n
        if count <= full:
            chosen = top_k(flat, best, count)
        else:
            chosen = best | top_k(flat, kept & ~best, count - int(best.sum()))
        parts = chosen.split([mask[name].numel() for name in held])
        drawn = {name: part.reshape(mask[name].shape) for name, part in zip(held, parts, strict=True)}
        return Mask({name: drawn[name] if name in drawn else mask[name] for name in mask})

    def note(self, model: nn.Module) -> str:
        """What a user is told before anything trains: the layers that stay dense; "" where there are none."""
        spared = self._layers(model)[1]
        return f"pattern.m={self.m} does not divide the rows of {', '.join(spared)}: left dense" if spared else ""

    def _layers(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """(names of the weights that hold the pattern, the others and how long their rows are). Raises ValueError."""
        transposed = {f"{name}.weight" for name, m in model.named_modules() if getattr(m, "transposed", False)}
        lengths = {name: weight[0].numel() for name, weight in prunable(model).items()}
        held = [name for name, length in lengths.items() if length % self.m == 0 and name not in transposed]
        if not held:
            rows = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"pattern.m={self.m} divides the rows of no layer; they are {rows}")
        return held, [f"{name} ({length})" for name, length in lengths.items() if name not in held]

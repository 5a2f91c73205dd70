"""Unstructured: any single weight may go.

scope=global ranks all prunable weights together. scope=layerwise removes the same fraction p of every layer's
survivors, and p * output of the output layer's, as Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635, figure 2)
do with output=0.5 ("output layer at half the rate of the rest").

Deviation: the paper fixes p (20%) and lets the total follow (51.28% remain after three levels of LeNet-300-100, not
51.20%); here the total is exact, so p comes out slightly above the prune rate where the output layer lags behind.
"""

import math
from dataclasses import dataclass

import torch

from lth.mask import Mask, num_kept, top_k


@dataclass(frozen=True)
class Unstructured:
    """scope: global or layerwise. output: prune rate of the output layer relative to the others, in [0, 1];
    1 treats it like the others, 0 leaves it as it is. Only layerwise reads it."""

    scope: str = "layerwise"
    output: float = 0.5

    def __post_init__(self) -> None:
        if self.scope not in ("global", "layerwise"):
            raise ValueError(f"pattern.scope={self.scope} is not one of: global, layerwise")
        if not (isinstance(self.output, int | float) and 0 <= self.output <= 1):
            raise ValueError(f"pattern.output={self.output} must be in [0, 1]")

    def __call__(self, scores, mask, sparsity):
        """The mask inside `mask` that keeps exactly round((1 - sparsity) * total) weights, at least 1 (a layer)."""
        total = num_kept(sparsity, mask.num_total)
        if self.scope == "global":
            flat = torch.cat([scores[name].reshape(-1) for name in mask])
            chosen = top_k(flat, torch.cat([kept.reshape(-1) for kept in mask.values()]), total)
            parts = chosen.split([kept.numel() for kept in mask.values()])
            return Mask({name: part.reshape(mask[name].shape) for name, part in zip(mask, parts, strict=True)})
        counts = quotas(list(mask.counts().values()), total, [1.0] * (len(mask) - 1) + [float(self.output)])
        return Mask({
            name: top_k(scores[name].reshape(-1), kept.reshape(-1), count).reshape(kept.shape)
            for (name, kept), count in zip(mask.items(), counts, strict=True)
        })  # fmt: skip


def quotas(survivors: list[int], total: int, rates: list[float]) -> list[int]:
    """How many of its `survivors` each layer keeps so that exactly `total` remain.

    Layer i keeps survivors_i * (1 - p * rates_i), with the one p that makes the sum `total`; rounded by largest
    remainder, ties to the first layer, at least 1 each. Where p * rates_i would pass 1, that layer keeps 1. Layers of
    rate 0 give way only when all others are down to 1.
    Raises ValueError where `total` is less than one weight a layer or more than the survivors.
    """
    floors = [min(1, n) for n in survivors]
    if not sum(floors) <= total <= sum(survivors):
        raise ValueError(
            f"cannot keep {total} of {sum(survivors)} weights in {sum(floors)} layers; each keeps at least 1"
        )

    def keep(p: float) -> list[float]:
        parts = zip(survivors, rates, floors, strict=True)
        return [max(float(floor), n * (1 - min(1.0, p * rate))) for n, rate, floor in parts]

    # sum(keep(p)) falls from sum(survivors) as p grows. Bisection, since the floor of 1 makes it piecewise linear.
    low, high = 0.0, 1.0 / min((rate for rate in rates if rate > 0), default=1.0)
    if sum(keep(high)) > total:
        spared = [i for i, rate in enumerate(rates) if rate == 0]
        others = sum(floor for i, floor in enumerate(floors) if i not in spared)
        counts = iter(quotas([survivors[i] for i in spared], total - others, [1.0] * len(spared)))
        return [next(counts) if i in spared else floor for i, floor in enumerate(floors)]
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(keep(middle)) > total else (low, middle)
    ideal = keep(high)
    counts = [max(floor, math.floor(x)) for floor, x in zip(floors, ideal, strict=True)]
    by_remainder = sorted(range(len(ideal)), key=lambda i: counts[i] - ideal[i])
    for i in [i for i in by_remainder if counts[i] < survivors[i]] * 2:
        if sum(counts) == total:
            break
        counts[i] += counts[i] < survivors[i]
    return counts

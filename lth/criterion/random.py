"""Random: score ~ U[0, 1), the same for every state. What any other criterion must beat."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Random:
    def __call__(self, model, state, mask, data, rng):
        # float64: 2^53 values, so that ties, which fall to the first positions, are rare in millions of weights
        return {name: torch.rand(kept.shape, generator=rng, dtype=torch.float64) for name, kept in mask.items()}

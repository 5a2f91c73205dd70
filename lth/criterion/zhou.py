"""Mask criteria of Zhou et al. 2019 (https://arxiv.org/abs/1905.01067, section 2), of a weight where dense training
began (w_i) and where this level's ended (w_f): RULES, by the paper's names. Its large_final is `magnitude` here, its
large_init `magnitude_at_init`, its movement `movement_abs`, since `movement` is Sanh's.

In min(a |w_f|, |w_i|) and -max(a |w_f|, |w_i|) a puts both thresholds at one percentile of the layer, as the authors'
code does. That is the min of two ranks among the layer's survivors, which keeps the same weights at every count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def _smaller_rank(one: Tensor, other: Tensor, kept: Tensor) -> Tensor:
    """min of both ranks in (0, 1] among those kept; 0 elsewhere."""
    ranks = [values[kept].argsort(stable=True).argsort() + 1 for values in (one, other)]
    return torch.zeros(kept.shape, dtype=torch.float64).masked_scatter(
        kept, torch.minimum(*ranks) / kept.sum().double()
    )


RULES = {
    "small_final": lambda w_f, w_i, kept: -w_f.abs(),
    "small_init": lambda w_f, w_i, kept: -w_i.abs(),
    "large_init_large_final": lambda w_f, w_i, kept: _smaller_rank(w_f.abs(), w_i.abs(), kept),
    "small_init_small_final": lambda w_f, w_i, kept: _smaller_rank(-w_f.abs(), -w_i.abs(), kept),
    "magnitude_increase": lambda w_f, w_i, kept: w_f.abs() - w_i.abs(),
    "movement_abs": lambda w_f, w_i, kept: (w_f - w_i).abs(),
}


@dataclass(frozen=True)
class Zhou:
    """name: one of RULES."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ValueError(f"criterion.name={self.name} is not one of: {', '.join(RULES)}")

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.name == "small_final" else ("origin",)

    @property
    def needs_training(self) -> bool:
        return self.name not in ("small_final", "small_init")

    def __call__(self, model, state, mask, data, rng, origin=None):
        w_f, w_i = state.params, (origin or state).params
        return {name: RULES[self.name](w_f[name], w_i[name], kept) for name, kept in mask.items()}

"""Sign flip: the ticket's mask and the magnitudes of its start, each weight's sign flipped by chance (the treatments of
Zhou et al. 2019, https://arxiv.org/abs/1905.01067, that draw signs at random): is it the magnitudes alone?

    w'_i = -w_i with `probability`, else w_i, independently

Biases and buffers are the ticket's; optimiser moments are reset, since they belong to other weights. Drawn anew for
each level."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from lth.mask import Mask
from lth.seeds import generator
from lth.stage import task
from lth.state import TrainState


@task(version=1, value=TrainState, stored=False)
def flipped(context: Any, state: TrainState, mask: Mask, probability: float, seed: int) -> TrainState:
    """`state` with the weights of the mask's layers negated with `probability`, and no moments."""
    rng = generator(seed)
    draws = {name: torch.rand(kept.shape, generator=rng, dtype=torch.float64) for name, kept in mask.items()}
    params = {name: torch.where(u < probability, -state.params[name], state.params[name]) for name, u in draws.items()}
    return replace(state, params=state.params | params, optimizer={})


@dataclass(frozen=True)
class SignFlip:
    """probability: in [0, 1]; 0 flips none, 0.5 makes the signs random, 1 flips all."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        p = self.probability
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ValueError(f"branch.sign_flip.probability={p} must be in [0, 1]")

    def __call__(self, ticket, lab):
        seed = lab.seed("sign_flip", ticket.level)
        start = flipped(state=ticket.start, mask=ticket.mask, probability=self.probability, seed=seed)
        return lab.run(start, ticket.mask, ticket.num_steps)

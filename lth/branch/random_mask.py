"""Random mask: the ticket's start, as many weights in each layer as the ticket, at random positions (Frankle & Carbin
2019, https://arxiv.org/abs/1803.03635): is it the sparsity alone? Drawn anew for each level, so not nested."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from lth.mask import Mask, top_k
from lth.seeds import generator
from lth.stage import task


def scattered(shape: tuple[int, ...], count: int, rng: Generator) -> Tensor:
    """Bool [shape] that keeps `count` positions, uniform among all such tensors."""
    total = math.prod(shape)
    scores = torch.rand(total, generator=rng, dtype=torch.float64)
    return top_k(scores, torch.ones(total, dtype=torch.bool), count).reshape(shape)


@task(version=1, value=Mask)
def shuffled(context: Any, mask: Mask, seed: int) -> Mask:
    """A mask with the counts of `mask` by layer, uniform among all such masks."""
    rng = generator(seed)
    return Mask({name: scattered(kept.shape, int(kept.sum()), rng) for name, kept in mask.items()})


@dataclass(frozen=True)
class RandomMask:
    def __call__(self, ticket, lab):
        mask = shuffled(mask=ticket.mask, seed=lab.seed("random_mask", ticket.level))
        return lab.run(ticket.start, mask, ticket.num_steps)

"""Random mask: the ticket's start, as many weights in each layer as the ticket, at random positions (Frankle & Carbin
2019, https://arxiv.org/abs/1803.03635): is it the sparsity alone? Drawn anew for each level, so not nested."""

from dataclasses import dataclass
from typing import Any

import torch

from lth.mask import Mask, top_k
from lth.seeds import generator
from lth.stage import task


@task(version=1, value=Mask)
def shuffled(context: Any, mask: Mask, seed: int) -> Mask:
    """A mask with the counts of `mask` by layer, uniform among all such masks."""
    rng = generator(seed)
    return Mask({
        name: top_k(torch.rand(kept.numel(), generator=rng, dtype=torch.float64),
                    torch.ones(kept.numel(), dtype=torch.bool), int(kept.sum())).reshape(kept.shape)
        for name, kept in mask.items()
    })  # fmt: skip


@dataclass(frozen=True)
class RandomMask:
    def __call__(self, ticket, lab):
        mask = shuffled(mask=ticket.mask, seed=lab.seed("random_mask", ticket.level))
        return lab.run(ticket.start, mask, ticket.num_steps)

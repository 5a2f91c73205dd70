"""Random mask, global: the ticket's start, as many weights in all as the ticket, uniform over all prunable positions of
the network together. Beside random_mask: is it the counts of the layers, to which Frankle et al. 2021
(https://arxiv.org/abs/2009.08576) reduce much of what pruning methods find? A layer loses its own count, and has

    E[kept_l] = size_l * num_kept / num_total

weights, perhaps none, when nothing but its bias reaches the next one. Drawn anew for each level, so not nested."""

from dataclasses import dataclass
from typing import Any

from lth.branch.random_mask import scattered
from lth.mask import Mask
from lth.seeds import generator
from lth.stage import task


@task(version=1, value=Mask)
def shuffled_globally(context: Any, mask: Mask, seed: int) -> Mask:
    """A mask that keeps as many weights in all as `mask`, uniform among all such masks."""
    flat = scattered((mask.num_total,), mask.num_kept, generator(seed))
    parts = flat.split([kept.numel() for kept in mask.values()])
    return Mask({name: part.reshape(mask[name].shape) for name, part in zip(mask, parts, strict=True)})


@dataclass(frozen=True)
class RandomMaskGlobal:
    def __call__(self, ticket, lab):
        mask = shuffled_globally(mask=ticket.mask, seed=lab.seed("random_mask_global", ticket.level))
        return lab.run(ticket.start, mask, ticket.num_steps)

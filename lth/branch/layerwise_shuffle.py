"""Layerwise shuffle: in each layer the ticket's mask and its start weights are permuted together, so that the surviving
values are the ticket's own and only their positions change: is it the distribution of the values by layer alone?

    m'_l = m_l[pi_l],   theta'_l = theta_l[pi_l],   pi_l uniform among all permutations of layer l's positions

Shuffling the mask alone (Frankle et al. 2021, https://arxiv.org/abs/2009.08576; Su et al. 2020,
https://arxiv.org/abs/2009.11094) has the distribution of random_mask, which is here under that name; this one carries
the weights along. So it does with the optimiser moments that have the shape of the weights; others (Adam's count of
steps, Adafactor's rows and columns) stay, as do biases and buffers. Drawn anew for each level, so not nested."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lth.mask import Mask
from lth.seeds import generator
from lth.stage import task
from lth.state import TrainState


def permuted(tensors: dict[str, Tensor], mask: Mask, seed: int) -> dict[str, Tensor]:
    """`tensors`, named by a layer of `mask` or as its moment ("<name>/<moment>"), in the order that `seed` draws for
    that layer. Those of other names or shapes are left as they are."""
    rng = generator(seed)
    orders = {name: torch.randperm(kept.numel(), generator=rng) for name, kept in mask.items()}

    def moved(key: str, tensor: Tensor) -> Tensor:
        name = key.rpartition("/")[0] or key
        same = name in mask and tensor.shape == mask[name].shape
        return tensor.reshape(-1)[orders[name]].reshape(tensor.shape) if same else tensor

    return {key: moved(key, tensor) for key, tensor in tensors.items()}


@task(version=1, value=Mask, stored=False)
def shuffled_mask(context: Any, mask: Mask, seed: int) -> Mask:
    """`mask` with its positions permuted in each layer."""
    return Mask(permuted(dict(mask), mask, seed))


@task(version=1, value=TrainState, stored=False)
def shuffled_state(context: Any, state: TrainState, mask: Mask, seed: int) -> TrainState:
    """`state` with the weights of the mask's layers, and their moments, permuted as `shuffled_mask` does the mask."""
    params, optimizer = (permuted(tensors, mask, seed) for tensors in (state.params, state.optimizer))
    return replace(state, params=params, optimizer=optimizer)


@dataclass(frozen=True)
class LayerwiseShuffle:
    def __call__(self, ticket, lab):
        seed = lab.seed("layerwise_shuffle", ticket.level)
        start = shuffled_state(state=ticket.start, mask=ticket.mask, seed=seed)
        return lab.run(start, shuffled_mask(mask=ticket.mask, seed=seed), ticket.num_steps)

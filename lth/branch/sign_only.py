"""Sign only: of the ticket's start weights nothing but their signs (Zhou et al. 2019, https://arxiv.org/abs/1905.01067,
a constant that keeps the sign): is it the signs alone?

    w'_i = sign(w_i) * c_l,   sign(0) = +1,   c_l = sqrt(mean((w - mean(w))^2)) over all prunable weights of layer l

Deviation: the paper's c is the standard deviation of the distribution that the layer's initialiser draws from; this one
is that of the layer's start weights, kept and removed (these are zero where the start is a trained state), so that it
needs no initialiser and stays right after a rewind to k > 0. Biases and buffers are the ticket's; optimiser moments are
reset, since they belong to other weights."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lth.mask import Mask
from lth.stage import task
from lth.state import TrainState


@task(version=1, value=TrainState, stored=False)
def signs(context: Any, state: TrainState, mask: Mask) -> TrainState:
    """`state` with each weight w of the mask's layers at c if w >= 0, else at -c, and no moments."""

    def constant(w: Tensor) -> Tensor:
        c = w.double().std(correction=0).to(w.dtype)
        return torch.where(w >= 0, c, -c)

    return replace(state, params=state.params | {name: constant(state.params[name]) for name in mask}, optimizer={})


@dataclass(frozen=True)
class SignOnly:
    def __call__(self, ticket, lab):
        return lab.run(signs(state=ticket.start, mask=ticket.mask), ticket.mask, ticket.num_steps)

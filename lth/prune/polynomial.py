"""Polynomial: large steps first, small ones near the target (Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878).

    sparsity_t = sparsity * (1 - (1 - t / n)^3),   t = 1 .. n

With rewind=gradual this is their gradual pruning during one training. Deviation: it starts from sparsity 0 and prunes
every level, as the paper's equation 1 with s_i = 0.
"""

from dataclasses import dataclass

from lth.prune import ladder
from lth.prune.rounds import Rounds


@dataclass(frozen=True)
class Polynomial(Rounds):
    """sparsity: target in [0, 1); 0 is the dense network alone. num_rounds: levels, at least 1."""

    num_rounds: int = 10

    def __call__(self) -> list[float]:
        return ladder(self.sparsity, self.num_rounds, lambda t: self.sparsity * (1 - (1 - t) ** 3))

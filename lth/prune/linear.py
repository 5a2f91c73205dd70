"""Linear: as many weights at each level, sparsity_l = sparsity * l / n, l = 1 .. n (Greydanus & Kobak 2020,
https://arxiv.org/abs/2011.14439, in their lottery-ticket notebook). Of the survivors the late levels take ever more."""

from dataclasses import dataclass

from lth.prune import ladder
from lth.prune.rounds import Rounds


@dataclass(frozen=True)
class Linear(Rounds):
    """sparsity: target in [0, 1); 0 is the dense network alone. num_rounds: n, levels, at least 1."""

    num_rounds: int = 10

    def __call__(self) -> list[float]:
        return ladder(self.sparsity, self.num_rounds, lambda t: self.sparsity * t)

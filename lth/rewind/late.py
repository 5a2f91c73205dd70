"""Late: rewind to the state after a fraction of dense training (late resetting: Frankle et al. 2019,
https://arxiv.org/abs/1903.01611)."""

import math
from dataclasses import dataclass

from lth.rewind import at_end, check_optimizer, fresh, remaining, restart, throughout


@dataclass(frozen=True)
class Late:
    """fraction of recipe.steps, in [0, 1]; k = floor(fraction * steps), at most steps - 1 so that a step is left.
    optimizer: keep the moments of step k (masked), or reset."""

    fraction: float
    optimizer: str = "keep"

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, int | float) or not 0 <= self.fraction <= 1:
            raise ValueError(f"rewind.fraction={self.fraction} must be in [0, 1]")

    origin = fresh
    num_steps = remaining
    span = throughout
    leaves = at_end

    def step(self, recipe):
        k = math.floor(self.fraction * recipe.steps + 1e-9)  # 0.29 * 100 is 28.999999999999996
        return min(k, recipe.steps - 1)

    def __call__(self, dense, trained):
        k = self.step(dense.recipe)
        return restart(dense.at(k), k, self.optimizer)

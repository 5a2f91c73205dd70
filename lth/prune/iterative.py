"""Iterative: each level removes `rate` of the survivors (Frankle & Carbin 2019 use 0.2); the last lands on the target.

sparsity_l = 1 - (1 - rate)^l  while below the target, then the target
"""

import math
from dataclasses import dataclass

from lth.prune import check_levels, check_schedule


@dataclass(frozen=True)
class Iterative:
    """sparsity: target in [0, 1); 0 is the dense network alone. rate: in (0, 1).
    when: trained or init."""

    sparsity: float
    rate: float = 0.2
    when: str = "trained"

    def __post_init__(self) -> None:
        check_schedule(self.sparsity, self.when)
        if not (isinstance(self.rate, int | float) and 0 < self.rate < 1):
            raise ValueError(f"prune.rate={self.rate} must be a fraction in (0, 1), such as 0.2")
        check_levels(math.log1p(-self.sparsity) / math.log1p(-self.rate), f"prune.rate={self.rate}")

    def __call__(self) -> list[float]:
        """Sparsity of levels 1, 2, ... Rounded to 12 digits, so that a target of 0.488 is level 3 and not beside it."""
        levels, survivors = [], 1 - self.rate
        while (sparsity := round(1 - survivors, 12)) < self.sparsity:
            levels += [sparsity] if sparsity > max(levels, default=0.0) else []  # 12 digits: late ones may repeat
            survivors *= 1 - self.rate
        return [*levels, float(self.sparsity)] if self.sparsity > 0 else []

"""Rounds: n geometric steps to the target, each removing 1 - (1 - sparsity)^(1/n) of the survivors."""

from dataclasses import dataclass

from lth.prune import check_levels, check_schedule, ladder


@dataclass(frozen=True)
class Rounds:
    """sparsity: target in [0, 1); 0 is the dense network alone. num_rounds: levels, at least 1.
    when: trained or init."""

    sparsity: float
    num_rounds: int = 5
    when: str = "trained"

    def __post_init__(self) -> None:
        check_schedule(self.sparsity, self.when)
        if not isinstance(self.num_rounds, int) or self.num_rounds < 1:
            raise ValueError(f"prune.num_rounds={self.num_rounds} must be a whole number of at least 1")
        check_levels(self.num_rounds, f"prune.num_rounds={self.num_rounds}")

    def __call__(self) -> list[float]:
        return ladder(self.sparsity, self.num_rounds, lambda t: 1 - (1 - self.sparsity) ** t)

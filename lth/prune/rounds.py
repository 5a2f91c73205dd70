"""Rounds: n geometric steps to the target, each removing 1 - (1 - sparsity)^(1/n) of the survivors."""

from dataclasses import dataclass

from lth.prune import check_levels, check_schedule


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
        """Sparsity of levels 1 to n, the last one exact; steps too small for 12 digits are left out."""
        if self.sparsity == 0:
            return []
        n = self.num_rounds
        levels = {round(1 - (1 - self.sparsity) ** (level / n), 12) for level in range(1, n)}
        return [*sorted(level for level in levels if 0 < level < self.sparsity), float(self.sparsity)]

"""One shot: from dense to the target in a single level."""

from dataclasses import dataclass

from lth.prune import check_schedule


@dataclass(frozen=True)
class OneShot:
    """sparsity: target in [0, 1); 0 is the dense network alone. when: trained or init."""

    sparsity: float
    when: str = "trained"

    def __post_init__(self) -> None:
        check_schedule(self.sparsity, self.when)

    def __call__(self) -> list[float]:
        return [float(self.sparsity)] if self.sparsity > 0 else []

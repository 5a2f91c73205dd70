"""One shot: from dense to the target in a single level."""

from dataclasses import dataclass

from lth.prune import check_sparsity


@dataclass(frozen=True)
class OneShot:
    """sparsity: target in [0, 1); 0 is the dense network alone."""

    sparsity: float

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def __call__(self) -> list[float]:
        return [float(self.sparsity)] if self.sparsity > 0 else []

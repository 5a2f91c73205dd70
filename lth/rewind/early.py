"""Early: rewind to the state after k steps of dense training (Frankle et al. 2019, https://arxiv.org/abs/1903.01611)."""

from dataclasses import dataclass

from lth.recipe import num_steps
from lth.rewind import check_optimizer, moments


@dataclass(frozen=True)
class Early:
    """at: k, as 500it, 2ep or 500; 0 to recipe.steps - 1. optimizer: keep the moments of step k (masked), or reset."""

    at: int | str
    optimizer: str = "keep"

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)

    from_trained = False

    def step(self, recipe):
        k = num_steps(self.at, recipe.per_epoch, "rewind.at")
        if k >= recipe.steps:
            raise ValueError(f"rewind.at={self.at} is past the end of training (recipe.steps={recipe.steps})")
        return k

    def __call__(self, point, trained):
        return moments(point, self.optimizer)

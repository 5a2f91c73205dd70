"""Early: rewind to the state after k steps of dense training (Frankle et al. 2019, https://arxiv.org/abs/1903.01611)."""

from dataclasses import dataclass

from lth.rewind import at_end, check_optimizer, fresh, remaining, restart, step_of, throughout


@dataclass(frozen=True)
class Early:
    """at: k, as 500it, 2ep or 500; 0 to recipe.steps - 1. optimizer: keep the moments of step k (masked), or reset."""

    at: int | str
    optimizer: str = "keep"

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)

    origin = fresh
    num_steps = remaining
    span = throughout
    leaves = at_end

    def step(self, recipe):
        return step_of(self.at, recipe)

    def __call__(self, dense, trained):
        k = self.step(dense.recipe)
        return restart(dense.at(k), k, self.optimizer)

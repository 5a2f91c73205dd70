"""None: keep the trained weights and train them on, at the last learning rate: fine-tuning (Han et al. 2015,
https://arxiv.org/abs/1506.02626), the comparison of Renda et al. 2020 (https://arxiv.org/abs/2003.02389)."""

from dataclasses import dataclass

from lth.recipe import num_steps
from lth.rewind import at_end, check_optimizer, fresh, moved, throughout


@dataclass(frozen=True)
class Keep:
    """steps: how long each level is fine-tuned, as 500it, 2ep or 500, at least 1; null: recipe.steps, as long as the
    dense network was trained. optimizer: keep the moments of the trained network (masked), or reset."""

    steps: int | str | None = None
    optimizer: str = "keep"

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)

    origin = fresh
    span = throughout
    leaves = at_end

    def step(self, recipe):
        return int(recipe.steps)

    def num_steps(self, recipe):
        if self.steps is None:
            return int(recipe.steps)
        if (steps := num_steps(self.steps, recipe.per_epoch, "rewind.steps")) < 1:
            raise ValueError(f"rewind.steps={self.steps} must be at least 1it")
        return steps

    def __call__(self, dense, trained):
        return trained if self.optimizer == "keep" else moved(state=trained, step=None, optimizer=self.optimizer)

"""Learning-rate rewinding: keep the trained weights, replay the learning-rate schedule from step k (Renda et al. 2020,
https://arxiv.org/abs/2003.02389, section 3)."""

from dataclasses import dataclass

from lth.rewind import at_end, check_optimizer, fresh, moved, remaining, step_of, throughout


@dataclass(frozen=True)
class LearningRate:
    """at: k, as 500it, 2ep or 500; 0 (the whole schedule again) to recipe.steps - 1. optimizer: keep the moments of the
    trained network (masked), or reset; the paper does not say. The minibatches are those of step k on, as in weight
    rewinding, so that the two differ in the weights alone."""

    at: int | str = "0it"
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
        return moved(state=trained, step=self.step(dense.recipe), optimizer=self.optimizer)

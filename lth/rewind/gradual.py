"""Gradual: nothing restarts. Weights are removed during one training, which goes on (Zhu & Gupta 2017,
https://arxiv.org/abs/1710.01878, section 2, with their sparsities: prune=polynomial).

    level l is pruned at step k_l = begin + (l - 1) * every, and trained to k_{l+1}, the last one to the recipe's end

with weights, moments and learning rate as they are there. Only the last level is trained as long as the dense network.
"""

from dataclasses import dataclass

from lth.recipe import num_steps
from lth.rewind import fresh, step_of


@dataclass(frozen=True)
class Gradual:
    """begin: the step of the first pruning, 0 to recipe.steps - 1. every: steps between two, at least 1; both as 500it,
    2ep or 500."""

    begin: int | str
    every: int | str

    def origin(self, lab):
        """That of the others. Raises ValueError for what only a whole training could say."""
        if lab.when == "init" or "movement" in getattr(lab.criterion, "reads", ()):
            raise ValueError("rewind=gradual prunes within a training: prune.when=trained, and no criterion=movement")
        return fresh(self, lab)

    def step(self, recipe):
        return step_of(self.begin, recipe, "rewind.begin")

    def num_steps(self, recipe):
        if (steps := num_steps(self.every, recipe.per_epoch, "rewind.every")) < 1:
            raise ValueError(f"rewind.every={self.every} must be at least 1it")
        return steps

    def span(self, recipe, level, num_levels):
        """(k_l, steps of level l). Raises ValueError where pruning would go on past the end of training."""
        begin, every, steps = self.step(recipe), self.num_steps(recipe), int(recipe.steps)
        if (last := begin + (num_levels - 1) * every) >= steps:
            raise ValueError(f"rewind.every={self.every} prunes {num_levels} levels up to step {last}, past the end of "
                             f"training (recipe.steps={steps})")  # fmt: skip
        k = begin + (level - 1) * every
        return k, every if level < num_levels else steps - k

    def leaves(self, run):
        return run.at(self.step(run.recipe)) if run.mask is None else run.end

    def __call__(self, dense, trained):
        return trained

"""What do survivors restart from, and for how long are they trained?

    .origin(lab)         Stage of the state that the dense network itself begins with
    .step(recipe)        rewind step k: the step of the schedule at which their training goes on
    .num_steps(recipe)   how many steps it takes: recipe.steps - k, but for fine-tuning
    .span(recipe, level, num_levels)   both, of one level: the same at all levels, but where levels share one training
    .leaves(run)         Stage of the state from which the mask of the next level is drawn: the end of a run, but there
    (dense, trained)     Stage of the TrainState they restart from, given the dense run and what a run leaves

A rewind that does not depend on the trained weights names a state of the dense run, so all levels, criteria and rewind
points of a replicate share its one training, and `early` at step 0 is `init`.
"""

from dataclasses import replace
from typing import Any

from lth.recipe import num_steps
from lth.stage import Stage, task
from lth.state import TrainState


def fresh(rewind: Any, lab: Any) -> Stage:
    """The origin of most: the replicate's own initial weights."""
    return lab.initialise("init")


def remaining(rewind: Any, recipe: Any) -> int:
    """The steps that the schedule still holds: T - k (Frankle et al. 2019, https://arxiv.org/abs/1903.01611)."""
    return int(recipe.steps) - rewind.step(recipe)


def throughout(rewind: Any, recipe: Any, level: int, num_levels: int) -> tuple[int, int]:
    """(k, number of steps), the same at all levels."""
    return rewind.step(recipe), rewind.num_steps(recipe)


def at_end(rewind: Any, run: Any) -> Stage:
    """The trained state."""
    return run.end


def step_of(at: int | str, recipe: Any, name: str = "rewind.at") -> int:
    """k, as 500it, 2ep or 500: 0 to recipe.steps - 1. Raises ValueError, with its name, for one past the end."""
    k = num_steps(at, recipe.per_epoch, name)
    if k >= recipe.steps:
        raise ValueError(f"{name}={at} is past the end of training (recipe.steps={recipe.steps})")
    return k


@task(version=1, value=TrainState, stored=False)
def moved(context: Any, state: TrainState, step: int | None, optimizer: str) -> TrainState:
    """`state` taken to another step of the schedule (None: left at its own), its optimiser moments kept or reset."""
    step = state.step if step is None else step
    return replace(state, step=step, optimizer=state.optimizer if optimizer == "keep" else {})


def check_optimizer(optimizer: object) -> None:
    """Raises ValueError unless `optimizer` is keep or reset."""
    if optimizer not in ("keep", "reset"):
        raise ValueError(f"rewind.optimizer={optimizer} is not one of: keep, reset")


def restart(point: Stage, k: int, optimizer: str) -> Stage:
    """The state of the dense run at step k, where there are no moments to reset at step 0."""
    return point if optimizer == "keep" or k == 0 else moved(state=point, step=None, optimizer=optimizer)

"""What do survivors restart from? `.step(recipe)` is the rewind step k; called with the state at k and the trained one,
a rewind returns the TrainState that training restarts from, under the new mask. Training from it runs recipe.steps - k
steps, with the schedule at that state's own step. `from_trained` says whether it reads the trained one (else None)."""

from dataclasses import replace

from lth.train import TrainState


def moments(state: TrainState, optimizer: str) -> TrainState:
    """`state` with its optimiser moments kept, or reset to none."""
    return state if optimizer == "keep" else replace(state, optimizer={})


def check_optimizer(optimizer: object) -> None:
    """Raises ValueError unless `optimizer` is keep or reset."""
    if optimizer not in ("keep", "reset"):
        raise ValueError(f"rewind.optimizer={optimizer} is not one of: keep, reset")

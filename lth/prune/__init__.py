"""How sparse at each level? A schedule is called without arguments and says the sparsity of levels 1, 2, ...

Its field `when` says of what weights masks are drawn: "trained", those at the end of the level before, or "init", those
that the dense network begins with (pruning at initialisation).
"""

from collections.abc import Callable


def check_schedule(sparsity: object, when: object) -> None:
    """Raises ValueError unless `sparsity` is a number in [0, 1) and `when` is trained or init."""
    if not (isinstance(sparsity, int | float) and not isinstance(sparsity, bool) and 0 <= sparsity < 1):
        raise ValueError(f"prune.sparsity={sparsity} must be a number in [0, 1); 0 is the dense network alone")
    if when not in ("trained", "init"):
        raise ValueError(f"prune.when={when} is not one of: trained, init")


def ladder(sparsity: float, num_rounds: int, reached: Callable[[float], float]) -> list[float]:
    """Sparsity of levels 1 to num_rounds, the last one exact: reached(t) at t = level / num_rounds. Levels too near to
    each other for 12 digits are left out; a target of 0 has none."""
    levels = {round(reached(level / num_rounds), 12) for level in range(1, num_rounds)}
    return [*sorted(level for level in levels if 0 < level < sparsity), *([float(sparsity)] if sparsity else [])]


def check_levels(num_levels: float, name: str) -> None:
    """Raises ValueError, naming `name`, for more than 10,000 levels: each is a training, and nobody means that."""
    if num_levels > 10_000:
        raise ValueError(f"{name} asks for {num_levels:.0f} levels; at most 10000")

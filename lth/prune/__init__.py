"""How sparse at each level? A schedule is called without arguments and says the sparsity of levels 1, 2, ..."""


def check_sparsity(sparsity: object) -> None:
    """Raises ValueError unless `sparsity` is a number in [0, 1)."""
    if not (isinstance(sparsity, int | float) and not isinstance(sparsity, bool) and 0 <= sparsity < 1):
        raise ValueError(f"prune.sparsity={sparsity} must be a number in [0, 1); 0 is the dense network alone")


def check_levels(num_levels: float, name: str) -> None:
    """Raises ValueError, naming `name`, for more than 10,000 levels: each is a training, and nobody means that."""
    if num_levels > 10_000:
        raise ValueError(f"{name} asks for {num_levels:.0f} levels; at most 10000")

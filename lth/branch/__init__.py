"""What else is trained or measured from each ticket. Called with the ticket and the lab of its replicate, a branch
returns a Run, a network to train beside the ticket, or stages of Numbers by the name of what they are measured of."""

import re


def chosen_levels(levels: object, sparsities: list[float]) -> set[int] | None:
    """Which levels have branches: "all" (None), "every:n" (levels n, 2n, ... and the last), or a list of sparsities.

    Raises ValueError for a sparsity that no level has, for level 0 (the dense network has no ticket), for other words.
    """
    if levels == "all":
        return None
    if match := re.fullmatch(r"every:(\d+)", str(levels)):
        if (n := int(match[1])) < 1:
            raise ValueError(f"branch.levels={levels} must be every:1 or more; level 0 has no ticket")
        return {level for level in range(1, len(sparsities) + 1) if level % n == 0 or level == len(sparsities)}
    if not isinstance(levels, list):
        raise ValueError(f"branch.levels={levels} must be all, every:3 (each third level), or a list of sparsities")
    for sparsity in levels:
        if sparsity == 0:
            raise ValueError(
                "branch.levels: sparsity 0 is level 0, the dense network, which has no ticket to branch from"
            )
        if sparsity not in sparsities:
            near = ", ".join(f"{s:.4g}" for s in sparsities)
            raise ValueError(f"branch.levels: no level has sparsity {sparsity}; the schedule reaches {near or 'none'}")
    return {sparsities.index(sparsity) + 1 for sparsity in levels}

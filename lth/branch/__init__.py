"""What else is trained or measured from each ticket. Called with the ticket and the lab of its replicate, a branch
returns a Run, a network to train beside the ticket, or stages of Numbers by the name of what they are measured of."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lth.train import Run

if TYPE_CHECKING:
    from lth.tickets import Lab, Ticket


def networks(of: Sequence[str], ticket: "Ticket", lab: "Lab", where: str) -> dict[str, Run]:
    """What a measurement is of, by name: "ticket"; "dense", the dense network from rewind step k on; or another branch
    that trains a network, with the same ticket. Raises ValueError, naming the configured `where`, for any other name.
    """
    found = {}
    for name in of:
        if name == "ticket":
            found[name] = lab.train(ticket)
        elif name == "dense":
            k, end = ticket.rewind_step, int(lab.recipe.steps)
            if k >= end:
                raise ValueError(f"{where}.of=dense: the rewind step {k} leaves nothing to train (recipe.steps={end})")
            found[name] = lab.run(ticket.dense.at(k), None, end - k)
        else:
            branch = lab.branches.get(name)
            run = branch(ticket, lab) if branch else None
            if not isinstance(run, Run):
                known = ", ".join(
                    ["ticket", "dense", *(other for other in lab.branches if other != where.split(".")[-1])]
                )
                raise ValueError(f"{where}.of={name} is no network here; there are {known}")
            found[name] = run
    return found


def chosen_levels(levels: object, sparsities: list[float]) -> set[int] | None:
    """Which levels have branches: "all" (None), "every:n" (levels n, 2n, ... and the last), or a list of sparsities, of
    which four digits are enough.

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
    chosen = set()
    for sparsity in levels:
        if sparsity == 0:
            raise ValueError(
                "branch.levels: sparsity 0 is level 0, the dense network, which has no ticket to branch from"
            )
        close = [i for i, reached in enumerate(sparsities, start=1) if abs(reached - sparsity) < 5.1e-5]
        if not close:
            near = ", ".join(f"{s:.4g}" for s in sparsities)
            raise ValueError(f"branch.levels: no level has sparsity {sparsity}; the schedule reaches {near or 'none'}")
        chosen.add(min(close, key=lambda i: abs(sparsities[i - 1] - sparsity)))
    return chosen

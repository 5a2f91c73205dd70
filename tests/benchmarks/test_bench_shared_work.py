"""Shared work: trainings that the independent jobs of a study ask for, and how many of them have to be done.

pytest -n 0 -s tests/benchmarks/test_bench_shared_work.py

Nothing is trained: the studies are composed from conf/, built and planned. An independent job of a network at level n
trains the whole chain behind it, n + 1 networks; what is asked is summed over the jobs, what is needed is their union.
Both are exact, and counted beside the plan from what the studies are.
"""

from pathlib import Path

import hydra

import main
from hydra_plugins.lth_launcher import science
from lth.plan import plan
from lth.store import Store
from lth.tickets import Entry

CONF = Path(main.__file__).parent / "conf"


def built(tmp_path: Path, *overrides: str) -> list[Entry]:
    """The rows that `python main.py OVERRIDES` would write."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [f"store={tmp_path}", *overrides], return_hydra_config=True)
    return main.build(science(cfg), cfg.hydra).cell.entries


def depth(num_levels: int) -> str:
    """The sparsity of that level, at 20% a level, to the 12 digits that the schedule has."""
    return f"prune.sparsity={round(1 - 0.8**num_levels, 12)}"


def chains(num_levels: int) -> int:
    """Networks behind one ticket of every level, each of which trains its own: 2 + 3 + ... + (num_levels + 1)."""
    return sum(level + 1 for level in range(1, num_levels + 1))


def shared(name: str, jobs: list[list[Entry]], store: Path, asked: int, needed: int, least: float) -> None:
    """Plan the jobs on an empty store, print a line, and hold its counts to those of the definition."""
    todo = plan([[entry.stage for entry in job] for job in jobs], Store(store))
    ratio = todo.asked / len(todo.trainings)
    print(f"\n{name:58s} {len(jobs):5d} jobs {todo.asked:6d} asked {len(todo.trainings):5d} needed  x{ratio:.2f}")
    assert (todo.asked, len(todo.trainings)) == (asked, needed)
    assert ratio >= least


def test_three_sparsities(tmp_path):
    """A job a sparsity, which asks for every level to it; 20% a level reaches 0.5, 0.8 and 0.9 at level 4, 8 and 11.

    Two of the targets lie between levels of the chain, and are trained beside it.
    """
    jobs = [built(tmp_path, f"prune.sparsity={s}", "replicates=1", "branch=[]") for s in (0.5, 0.8, 0.9)]
    dense, chain, beside = 1, 11, 2
    shared("sparsity 0.5, 0.8, 0.9", jobs, tmp_path, 5 + 9 + 12, dense + chain + beside, 1.8)


def test_rewind_points(tmp_path):
    """A job a rewind step, level and seed: the dense network alone is common to rewind steps."""
    steps = (0, 25, 50, 100, 200, 400, 800)
    studies = [built(tmp_path, "rewind=early", f"rewind.at={k}it", depth(20), "branch=[]") for k in steps]
    jobs = [[entry] for rows in studies for entry in rows if entry.branch == "ticket"]
    assert len(jobs) == 7 * 20 * 3
    shared("7 rewind steps x 20 levels x 3 seeds", jobs, tmp_path, 7 * 3 * chains(20), 3 * (1 + 7 * 20), 11)


def test_three_conditions(tmp_path):
    """A job a condition, level and seed: what is behind a control at level n is the chain up to level n - 1."""
    rows = built(tmp_path, depth(15), "replicates=5", "branch=[random_reinit,random_mask]")
    jobs = [[entry] for entry in rows if entry.level]
    assert len(jobs) == 3 * 15 * 5
    shared("ticket, reinitialised, random x 15 levels x 5 seeds", jobs, tmp_path, 2025, 230, 8.5)
    assert (3 * 5 * chains(15), 5 * (1 + 3 * 15)) == (2025, 230)


def test_criteria(tmp_path):
    """A job a criterion and level, pruned iteratively: the dense network alone is common to criteria. Four of them,
    eight levels."""
    names = ("magnitude", "random", "gradient", "movement")
    rows = [built(tmp_path, f"criterion={name}", depth(8), "replicates=1", "branch=[]") for name in names]
    jobs = [[entry] for entries in rows for entry in entries if entry.level]
    shared("4 criteria x 8 levels", jobs, tmp_path, 4 * chains(8), 1 + 4 * 8, 5)

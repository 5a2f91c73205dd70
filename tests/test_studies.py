"""The studies of conf/study and experiments: each runs at a tiny size, shares its work, and says what it found.

Their verdicts are checked on rows made by hand, where it is known what holds.
"""

import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from test_main import run_here

import main
from lth import analysis

CONF = Path(main.__file__).parent / "conf" / "study"
STUDIES = sorted(path.stem for path in CONF.glob("*.yaml"))
TINY = (
    "dataset=digits model=mlp model.hidden=[8] recipe.steps=60it recipe.eval_every=30it replicates=2 "
    "prune.sparsity=0.6 wandb=disabled device=cpu device.workers=0 hydra.run.dir=out hydra.sweep.dir=out"
)
OF_STUDY = {  # what a tiny size must set otherwise
    "tickets": "",
    "accuracy_vs_sparsity": "",
    "three_conditions": "",
    "rewinding_stability": "rewind.at=0it,5it,10it,20it,40it",
    "linear_mode_connectivity": "rewind.at=0it,20it branch.stability.num_alphas=5",
    "rewind_or_finetune": "rewind.at=20it",
    "landscape": "rewind.at=0it,20it branch.landscape.num_examples=50 branch.landscape.num_steps=5",
}


def shown(table) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_every_study_has_its_experiment():
    """One yaml and one file of experiments a study, which says claim, source, figure, command and cost."""
    for study in STUDIES:
        module = main.experiment(study)
        assert module.__name__ == f"experiments.{study}"
        assert all(word in module.__doc__ for word in ("Claim", "Source", "Figure", "Command", "Cost")), study
        assert {"table", "verdict"} <= set(dir(module))


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_study_runs(study, tmp_path):
    """From the command line to its figure and its verdicts; typed again, nothing is left to do."""
    words = f"study={study} {TINY} {OF_STUDY[study]}"
    if study == "rewind_or_finetune":  # its sweep is over rewinds, of which not all have a step
        words = words.replace("rewind.at=20it", "recipe.schedule.drops=[30it,45it]").replace("60it", "120it")
    ran = run_here(words, tmp_path)
    assert ran.code == 0, ran.err
    rows = analysis.load(tmp_path / "out")
    assert set(rows["study"]) == {study} and rows["diverged_step"].isna().all()
    module = main.experiment(study)
    drawn = study if hasattr(module, "figure") else "accuracy_vs_sparsity"
    assert (tmp_path / "out" / "report" / f"{drawn}.png").stat().st_size
    assert shown(module.table(rows)).strip()
    verdicts = module.verdict(rows)
    assert verdicts and all(isinstance(v.evidence, str) and "nan" not in v.evidence for v in verdicts)
    assert all(v.evidence in " ".join(ran.out.split()) for v in verdicts)
    again = run_here(words, tmp_path)
    assert again.code == 0 and again.plan[1] == 0 and "measurements to do" not in again.out


@pytest.mark.slow
def test_five_rewind_points_cost_one_dense_training_a_replicate(tmp_path):
    """Five values of k, three replicates, two copies of each ticket: the plan asks for one dense training a replicate,
    not one a value of k."""
    words = f"study=rewinding_stability {TINY} {OF_STUDY['rewinding_stability']} prune=one_shot".replace(
        "replicates=2", "replicates=3"
    )
    ran = run_here(words, tmp_path)
    assert ran.code == 0, ran.err
    per_k = 1 + 2  # the dense network, the ticket and its copy in another data order
    assert ran.plan == (5 * 3 * per_k, 3 * (1 + 5 * 2), 4 * 3, 0)
    rows = analysis.load(tmp_path / "out")
    assert rows.loc[rows["branch"] == "dense", "stage"].nunique() == 3


# Verdicts on rows made by hand


def measured(values: dict[tuple[str, int], list[float]], metric: str = "error_barrier", **columns) -> list[dict]:
    """Rows of a measurement: {(of, k): [value of replicate 0, 1, ...]}."""
    return [
        {"of": of, "branch": "measured", "rewind_step": float(k), "replicate": r,
         "sparsity": 0.0 if of == "dense" else 0.9, metric: value, **columns}
        for (of, k), replicates in values.items() for r, value in enumerate(replicates)
    ]  # fmt: skip


def trained(values: dict[tuple[str, int], list[float]]) -> list[dict]:
    return [
        {"branch": branch, "rewind_step": float(k), "replicate": r, "sparsity": 0.0 if branch == "dense" else 0.9,
         "test_accuracy": value}
        for (branch, k), replicates in values.items() for r, value in enumerate(replicates)
    ]  # fmt: skip


def frame(rows: list[dict]) -> pd.DataFrame:
    blank = {"of": None, "setting": "", "level": 1, "diverged_step": math.nan, "error_barrier": math.nan, "stage": ""}
    return pd.DataFrame([{**blank, "test_accuracy": math.nan, "distance": 1.0, **row} for row in rows])


def test_stability_sets_in_at_the_first_step_from_which_all_are_stable():
    """Barriers of 30, 1, 5, 1 and 0.5 points: stable from the fourth k on, not from the second."""
    barriers = {
        ("ticket", k): [b, b, b] for k, b in zip((0, 10, 20, 50, 100), (0.3, 0.01, 0.05, 0.01, 0.005), strict=True)
    }
    accuracy = {("dense", 0): [0.95, 0.96, 0.94], ("ticket", 0): [0.90, 0.91, 0.89]}
    accuracy |= {("ticket", k): [0.95, 0.955, 0.945] for k in (10, 20, 50, 100)}
    stable, together = main.experiment("rewinding_stability").verdict(frame([*measured(barriers), *trained(accuracy)]))
    assert (
        stable.holds and "stable from k=50 on" in stable.evidence and "30.00 +- 0.00 points at k=0" in stable.evidence
    )
    # at k=0 neither, at 20 matching but not stable, at 10, 50 and 100 both
    assert not together.holds and "match dense first at k=10" in together.evidence
    assert "at 4 of 5 rewind steps" in together.evidence


def test_what_is_never_stable_is_said_so():
    barriers = {("dense", 0): [0.4, 0.5, 0.6], ("dense", 50): [0.021, 0.02, 0.02]}
    (verdict, *_) = main.experiment("linear_mode_connectivity").verdict(frame(measured(barriers)))
    assert not verdict.holds and "dense is not stable at any k tested" in verdict.evidence


@pytest.mark.parametrize("ticket, dense, holds", [(10, 50, True), (10, 10, True), (50, 10, False)])
def test_which_is_stable_first(ticket, dense, holds):
    """Below 2 points from k on: the ticket no later than the dense network?"""
    barriers = {
        (of, k): [0.5 if k < onset else 0.001] * 3
        for of, onset in (("ticket", ticket), ("dense", dense))
        for k in (0, 10, 50)
    }
    *_, last = main.experiment("linear_mode_connectivity").verdict(frame(measured(barriers)))
    assert last.holds is holds and f"ticket {ticket}, dense {dense}" in last.evidence


def test_three_conditions_are_paired():
    """Differences of 2 points in every replicate, among replicates that differ by 10: seen when paired."""
    dense = [0.80, 0.85, 0.90]
    values = {("dense", 0): dense, ("ticket", 0): dense, ("random_reinit", 0): [a - 0.02 for a in dense]}
    rows = frame(
        trained(values | {("random_mask", 0): [a + d for a, d in zip(dense, (-0.01, 0.01, 0.0), strict=True)]})
    )
    reinit, mask = main.experiment("three_conditions").verdict(rows)
    assert reinit.holds and "+2.00 +- 0.00 points above random_reinit" in reinit.evidence
    assert mask.holds is False and "n=3" in mask.evidence


def test_ways_of_retraining_are_compared_at_the_highest_sparsity():
    settings = {
        "rewind=early": [0.95, 0.96, 0.97],
        "rewind=learning_rate": [0.96, 0.97, 0.98],
        "rewind=none": [0.90, 0.93, 0.92],
    }
    rows = [
        {**row, "setting": setting, "steps": 100.0, "sparsity": sparsity, "test_accuracy": row["test_accuracy"] - lower}
        for setting, values in settings.items() for row in trained({("ticket", 0): values})
        for sparsity, lower in ((0.5, -0.3 if setting == "rewind=none" else 0.0), (0.9, 0.0))
    ]  # fmt: skip
    found = {v.claim: v for v in main.experiment("rewind_or_finetune").verdict(frame(rows))}
    assert found["learning-rate rewinding above weight rewinding"].holds
    assert (
        found["weight rewinding above fine-tuning"].holds and found["learning-rate rewinding above fine-tuning"].holds
    )
    assert "+1.00 +- 0.00 points" in found["learning-rate rewinding above weight rewinding"].evidence


def test_curvature_that_falls_is_seen():
    values = {("dense", 0): [30.0, 50.0, 40.0], ("dense", 100): [10.0, 28.0, 20.0]}
    values |= {("ticket", 0): [5.0, 5.5, 6.0], ("ticket", 100): [5.5, 5.0, 6.0]}
    rows = frame(measured(values, "start_largest_eigenvalue", end_largest_eigenvalue=2.0))
    dense, ticket, end = main.experiment("landscape").verdict(rows)
    assert dense.holds and "difference -20.7" in dense.evidence
    assert ticket.holds is False and end.holds is False


def test_means_are_over_replicates():
    """Forks of a replicate are averaged first; what has no value is left out; t interval by hand for 1, 2, 3."""
    rows = frame(
        [
            *measured({("ticket", 5): [1.0, 2.0, 3.0]}),
            *measured({("ticket", 5): [3.0]}),
            *measured({("dense", 5): [7.0]}),
        ]
    )
    lines = analysis.means(rows, "error_barrier", ["of", "rewind_step"]).set_index("of")
    assert lines.loc["dense", ["mean", "n"]].tolist() == [7.0, 1] and math.isnan(lines.loc["dense", "half"])
    mean, half, n = lines.loc["ticket", ["mean", "half", "n"]]
    assert (
        mean == pytest.approx(7 / 3) and n == 3 and half == pytest.approx(4.302653 * (1 / 3) ** 0.5 / 3**0.5, rel=1e-5)
    )
    assert analysis.means(rows, "nothing", ["of"]).empty

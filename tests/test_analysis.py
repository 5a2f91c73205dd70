"""Intervals against scipy and a textbook, verdicts against scipy's paired t test, loading of sweeps written by hand."""

import json
import math
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from lth import analysis


def row(branch="ticket", replicate=0, sparsity=0.5, accuracy: float | None = 0.9, **other):
    sparsity = 0.0 if branch == "dense" else sparsity
    return {
        "study": None,
        "cell": 0,
        "overrides": [],
        "replicate": replicate,
        "level": 0 if branch == "dense" else 1,
        "branch": branch,
        "sparsity": sparsity,
        "target_sparsity": sparsity,
        "num_kept": round(1000 * (1 - sparsity)),
        "num_total": 1000,
        "rewind_step": 0,
        "test_accuracy": accuracy,
        "test_loss": 0.1,
        "val_accuracy": accuracy,
        "early_stop_step": 70,
        "early_stop_test_accuracy": accuracy,
        "steps": 100,
        "numerics": "fast",
        "gemm": "onednn",
        "seconds": 1.0,
        "served": "computed",
        "diverged_step": 13 if accuracy is None else None,
        "stage": f"{branch}-{replicate}-{sparsity}",
    } | other


def sweep(directory, *cells):
    """Each cell a list of rows, in a job directory of its own."""
    for number, rows in enumerate(cells):
        (directory / str(number)).mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps({**row, "cell": number}) + "\n" for row in rows)
        (directory / str(number) / "rows.jsonl").write_text(text)
    return analysis.load(directory)


def runs(differences, dense=(0.90, 0.92, 0.95), branch="ticket"):
    """Rows of one branch whose accuracy is dense + differences[sparsity][replicate]; None: that run diverged."""
    return [row("dense", r, accuracy=accuracy) for r, accuracy in enumerate(dense)] + [
        row(branch, r, sparsity, None if d is None else dense[r] + d)
        for sparsity, ds in differences.items()
        for r, d in enumerate(ds)
    ]


def verdict(rows, claim="ticket matches dense"):
    found = {verdict.claim: verdict for verdict in analysis.verdicts(rows)}
    return found[claim]


# intervals


def test_interval_textbook():
    # Walpole, Myers, Myers & Ye, Probability & Statistics, seven containers of sulfuric acid: 9.74 < mu < 10.26.
    mean, half, n = analysis.interval([9.8, 10.2, 10.4, 9.8, 10.0, 10.2, 9.6])
    assert (mean, half, n) == (pytest.approx(10.0), pytest.approx(2.447 * 0.283 / math.sqrt(7), abs=2e-4), 7)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_interval_is_scipy_interval(n, confidence):
    values = np.random.default_rng(n).normal(0.9, 0.01, n)
    mean, half, count = analysis.interval(values, confidence)
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (mean - half, mean + half, count) == (pytest.approx(expected.low), pytest.approx(expected.high), n)


def test_interval_leaves_missing_values_out():
    assert analysis.interval([1.0, None, 3.0, math.nan]) == analysis.interval([1.0, 3.0])


def test_interval_of_few_values():
    mean, half, n = analysis.interval([0.5])
    assert (mean, n) == (0.5, 1) and math.isnan(half)
    mean, half, n = analysis.interval([])
    assert n == 0 and math.isnan(mean) and math.isnan(half)
    assert analysis.interval([0.5, 0.5, 0.5]) == (0.5, 0.0, 3)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_interval_refuses_confidence_outside_0_to_1(confidence):
    with pytest.raises(ValueError, match=f"confidence={confidence} must lie between 0 and 1"):
        analysis.interval([1.0, 2.0], confidence)


def test_interval_covers_what_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 3))
    covered = np.mean([abs(mean - 3.0) <= half for mean, half, _ in map(analysis.interval, draws)])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 draws; z in place of t gives 0.81


# loading


def test_replicates_of_one_target_are_one_point(tmp_path):
    """Whole channels land beside the target, each replicate elsewhere: one point of n=3, at the median; another
    target keeps its own."""
    made = [row("ticket", r, s, target_sparsity=0.5) for r, s in enumerate((0.48, 0.49, 0.495))]
    rows = sweep(tmp_path, [*runs({0.8: [0.0, 0.0, 0.0]}), *made])
    lines = analysis.curve(rows)
    assert list(zip(lines["sparsity"], lines["n"], strict=True)) == [(0.0, 3), (0.49, 3), (0.8, 3)]


def test_jobs_come_in_the_order_of_their_numbers(tmp_path):
    """Job 10 after job 9: settings appear as they were asked for."""
    cells = [[row("ticket", overrides=[f"criterion=c{n}"], stage=f"s{n}")] for n in range(11)]
    assert list(sweep(tmp_path, *cells)["setting"]) == [f"criterion=c{n}" for n in range(11)]


def test_nothing_to_load(tmp_path):
    rows = analysis.load(tmp_path)
    assert rows.empty and set(row()) | {"setting", "of", "job"} == set(rows.columns)
    assert analysis.curve(rows).empty and analysis.verdicts(rows) == [] and analysis.failures(tmp_path) == []
    columns = ["metric", "setting", "branch", "level", "sparsity", "mean", "half", "n", "num_diverged"]
    assert list(analysis.curves(rows).columns) == columns
    assert printed(rows).strip() == "no rows"


def test_shared_stages_count_once(tmp_path):
    ladder = [0.5, 0.8, 0.9]
    cells = [
        [{**row, "overrides": [f"prune.sparsity={ladder[i]}"]} for row in runs({s: [0, 0, 0] for s in ladder[: i + 1]})]
        for i in range(3)
    ]
    rows = sweep(tmp_path, *cells)
    assert list(rows["setting"].unique()) == [""]
    assert len(rows) == 3 + 9 and not rows.duplicated("stage").any()
    assert list(rows["cell"]) == [0] * 6 + [1] * 3 + [2] * 3  # the first cell that has a stage keeps it
    assert list(analysis.curve(rows)["n"]) == [3, 3, 3, 3]


def test_a_stage_shared_by_two_branches_is_in_both(tmp_path):
    """At level 1 the one-shot mask is the ticket's, and so is its training: it is a row of each, in every cell once."""
    cell = [row("dense"), row("ticket", stage="same"), row("one_shot", stage="same")]
    assert list(sweep(tmp_path, cell, cell)["branch"]) == ["dense", "ticket", "one_shot"]


def test_a_stage_shared_by_two_settings_is_in_both(tmp_path):
    cells = [[row("dense"), row(stage=rewind, overrides=[f"rewind={rewind}"])] for rewind in ("init", "late")]
    cells[0][0]["overrides"], cells[1][0]["overrides"] = ["rewind=init"], ["rewind=late"]
    rows = sweep(tmp_path, *cells)
    assert list(zip(rows["setting"], rows["branch"], strict=True)) == [
        *(("rewind=init", "dense"), ("rewind=init", "ticket"), ("rewind=late", "dense"), ("rewind=late", "ticket"))
    ]


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ([["recipe.lr=0.1"], ["recipe.lr=0.1"]], ["", ""]),
        ([["recipe.lr=0.1"], ["recipe.lr=0.3"]], ["recipe.lr=0.1", "recipe.lr=0.3"]),
        ([[], ["recipe.lr=0.3"]], ["", "recipe.lr=0.3"]),
        ([["model=mlp", "seed=1", "a=2"], ["a=3", "model=cnn", "seed=1"]], ["a=2, model=mlp", "a=3, model=cnn"]),
        ([["lr=1", "lr=2"], ["+lr=2"]], ["", ""]),
        ([["prune.rounds=5"], ["prune.rounds=10"]], ["prune.rounds=5", "prune.rounds=10"]),
        ([["prune.sparsity=0.5", "replicates=3", "branch=[]"], ["prune.sparsity=0.8", "store=/x"]], ["", ""]),
        ([["wandb=offline", "wandb.project=a"], ["device=cuda", "device.index=1", "hydra/launcher=ray"]], ["", ""]),
        ([["device.numerics=bf16"], ["device=cuda"]], ["device.numerics=bf16", ""]),
    ],
)
def test_setting_is_what_differs(tmp_path, overrides, settings):
    cells = [[row("ticket", i, stage=str(i), overrides=each)] for i, each in enumerate(overrides)]
    assert list(sweep(tmp_path, *cells)["setting"]) == settings


def test_measurements_are_floats_even_if_all_are_null(tmp_path):
    rows = sweep(tmp_path, [row(accuracy=None, test_loss=None, rewind_step=None, early_stop_step=None)])
    assert {str(dtype) for dtype in rows[list(analysis.NULLABLE)].dtypes} == {"float64"}


def test_studies_are_settings(tmp_path):
    assert list(sweep(tmp_path, [row(study="a", stage="1")], [row(study="b", stage="2")])["setting"]) == [
        *("study=a", "study=b")
    ]


def test_two_runs_of_one_ticket_are_kept_apart(tmp_path):
    old = runs({0.5: [0, 0, 0]})
    rows = sweep(tmp_path, old, [{**row, "stage": "new" + row["stage"]} for row in old])
    assert list(rows["setting"].unique()) == ["job=0", "job=1"]
    assert list(analysis.curve(rows)["n"]) == [3] * 4


def test_what_is_not_json_is_refused(tmp_path):
    sweep(tmp_path, [row(), row("dense")])
    with (tmp_path / "0" / "rows.jsonl").open("a") as file:
        file.write('{"study": nu')
    with pytest.raises(ValueError, match="Expecting value"):
        analysis.load(tmp_path)


def test_failures(tmp_path):
    for cell in (1, 0):
        (tmp_path / str(cell)).mkdir()
        failure = {"cell": cell, "overrides": ["model=x"], "cause": "no such model", "command": "python main.py"}
        (tmp_path / str(cell) / "failure.json").write_text(json.dumps(failure))
    assert [failure["cell"] for failure in analysis.failures(tmp_path)] == [0, 1]
    assert analysis.failures(tmp_path)[0]["cause"] == "no such model"


# curves


def test_curve(tmp_path):
    made = [
        *(row("random_reinit", r, 0.5, a, level=3) for r, a in enumerate([0.7, 0.8, 0.9])),
        *(row("ticket", r, 0.8, a, level=2) for r, a in enumerate([0.7, 0.9, None])),
        *(row("ticket", r, 0.5, a, level=1) for r, a in enumerate([None, None])),
        *(row("dense", r, accuracy=0.9) for r in range(1)),
        row("landscape", 0, 0.5, None, diverged_step=None),  # measures something else
    ]
    lines = analysis.curve(sweep(tmp_path, made))
    assert list(lines.columns) == ["setting", "branch", "level", "sparsity", "mean", "half", "n", "num_diverged"]
    assert list(lines["branch"]) == ["dense", "ticket", "ticket", "random_reinit"]
    assert list(lines["sparsity"]) == [0.0, 0.5, 0.8, 0.5] and list(lines["level"]) == [0, 1, 2, 3]
    assert list(lines["n"]) == [1, 0, 2, 3] and list(lines["num_diverged"]) == [0, 2, 1, 0]
    np.testing.assert_allclose(lines["mean"], [0.9, np.nan, 0.8, 0.8])
    np.testing.assert_allclose(lines["half"], [np.nan, np.nan, 12.7062 * 0.1, 4.30265 * 0.1 / 3**0.5], rtol=1e-5)


def test_curve_of_another_metric_leaves_diverged_runs_out(tmp_path):
    made = [row("ticket", r, early_stop_step=step) for r, step in enumerate([10, 30])]
    rows = sweep(tmp_path, [*made, row("ticket", 2, accuracy=None, early_stop_step=5)])
    line = analysis.curve(rows, "early_stop_step").iloc[0]
    assert (line["mean"], line["n"], line["num_diverged"]) == (20.0, 2, 1)


def test_forks_of_one_replicate_are_averaged(tmp_path):
    forks = [row("stability", r, 0.5, 0.8 + 0.1 * fork, stage=f"{r}{fork}") for r in range(3) for fork in range(2)]
    line = analysis.curve(sweep(tmp_path, forks)).iloc[0]
    assert line["n"] == 3 and line["mean"] == pytest.approx(0.85) and line["half"] == pytest.approx(0, abs=1e-12)


# verdicts

GOOD, BAD = [0.01, -0.01, 0.002], [-0.05, -0.051, -0.052]


def test_a_branch_without_a_ticket_beside_it_is_not_its_rival(tmp_path):
    """dense_order is a row of level 0: compared with dense, and with no ticket."""
    made = [*runs({0.5: [0.0, 0.0, 0.0]}), *(row("dense_order", r, 0.0, 0.9) for r in range(3))]
    claims = [verdict.claim for verdict in analysis.verdicts(sweep(tmp_path, made))]
    assert claims == ["ticket matches dense", "dense_order matches dense"]


def test_matching_is_the_paired_t_test(tmp_path):
    outcomes = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        dense = rng.normal(0.9, 0.05, 4)  # far noisier than the differences: an unpaired test would always match
        d = rng.normal(-0.004, 0.004, 4)
        interval = stats.ttest_rel(dense + d, dense).confidence_interval(0.95)
        found = verdict(sweep(tmp_path / str(seed), runs({0.5: d}, dense)))
        assert found.holds is bool(interval.high >= 0)
        outcomes.add(found.holds)
        unseen = math.ceil(1000 * (interval.high - interval.low) / 2) / 10
        assert not found.holds or f"n=4; drops under {unseen:.1f} points cannot be seen)" in found.evidence
    assert outcomes == {True, False}


def test_all_match(tmp_path):
    found = verdict(sweep(tmp_path, runs({0.5: GOOD, 0.965: GOOD})))
    assert found.holds is True  # s = sqrt(2.0267e-4 / 2), 4.30265 * s / sqrt(3) = 2.5006 points, rounded up
    assert found.evidence == (
        "ticket matches dense at every sparsity tested, down to 3.5% of the weights "
        "(paired t, 95%, n=3; drops under 2.6 points cannot be seen)"
    )


def test_never_matches(tmp_path):
    found = verdict(sweep(tmp_path, runs({0.5: BAD, 0.8: BAD})))
    evidence = "ticket never matches dense: -5.1 +- 0.2 points at 50.0% of the weights (paired t, 95%, n=3)"
    assert found == analysis.Verdict("ticket matches dense", False, evidence)


def test_down_to_the_last_sparsity_before_the_first_miss(tmp_path):
    found = verdict(sweep(tmp_path, runs({0.5: GOOD, 0.8: [0, 0.001, 0.002], 0.9: BAD, 0.95: BAD})))
    assert found.holds is True  # 4.303 * 0.1 / sqrt(3) = 0.248 points at the sparsity stated, rounded up
    assert found.evidence == (
        "ticket matches dense down to 20.0% of the weights (paired t, 95%, n=3; drops under 0.3 points cannot be seen)"
        "; -5.1 +- 0.2 points at 10.0%"
    )


def test_a_dip_ends_the_match(tmp_path):
    found = verdict(sweep(tmp_path, runs({0.5: GOOD, 0.8: BAD, 0.9: BAD, 0.95: GOOD})))
    assert found.holds is True and "dense down to 50.0% of the weights" in found.evidence
    assert found.evidence.endswith("; -5.1 +- 0.2 points at 20.0%, matches again at 5.0%")
    found = verdict(sweep(tmp_path, runs({0.8: BAD, 0.95: GOOD})))
    assert found.holds is False and found.evidence.startswith("ticket misses dense at the first sparsity: -5.1 +- 0.2")


def test_one_replicate_is_no_test(tmp_path):
    rows = sweep(tmp_path, [*runs({0.5: [0.0]}, [0.9]), row("random_reinit", accuracy=0.881)])
    assert [(found.claim, found.holds) for found in analysis.verdicts(rows)] == [
        *(("ticket matches dense", None), ("random_reinit matches dense", None), ("ticket above random_reinit", None))
    ]
    assert verdict(rows).evidence == "ticket against dense at 50.0%, n=1: no test; ask for replicates=3 or more"
    above = "ticket above random_reinit by 1.9 points at 50.0% of the weights "
    above += "(n=1: no test; ask for replicates=3 or more)"
    assert verdict(rows, "ticket above random_reinit").evidence == above


def test_too_few_pairs_end_the_match(tmp_path):
    found = verdict(sweep(tmp_path, runs({0.5: GOOD, 0.8: [0.01], 0.9: GOOD})))
    assert found.holds is True and "down to 50.0%" in found.evidence
    assert found.evidence.endswith("; n=1: no test at 20.0%, matches again at 10.0%")


@pytest.mark.parametrize(("difference", "holds"), [(0.0, True), (0.25, True), (-0.25, False)])
def test_equal_differences_go_by_their_sign(tmp_path, difference, holds):
    found = verdict(sweep(tmp_path, runs({0.5: [difference] * 3}, dense=(0.5, 0.5, 0.75))))
    assert found.holds is holds and "-0.0" not in found.evidence
    if holds:
        assert "no spread" in found.evidence


def test_replicates_without_a_twin_are_no_pair(tmp_path):
    made = [row for row in runs({0.5: GOOD}) if (row["branch"], row["replicate"]) != ("dense", 1)]
    assert "n=2;" in verdict(sweep(tmp_path, made)).evidence


def test_diverged_tickets_are_a_miss(tmp_path):
    rows = sweep(tmp_path, runs({0.5: GOOD, 0.8: [0.0, 0.001, None]}))
    assert "down to 50.0%" in verdict(rows).evidence
    assert verdict(rows).evidence.endswith("; 1 of 3 runs diverged at 20.0%")
    finished = verdict(rows, "every run finished")
    assert finished.holds is False
    assert finished.evidence == "1 of 9 runs diverged: replicate 2 level 1 ticket at step 13"


def test_a_pair_whose_dense_run_diverged_is_left_out(tmp_path):
    made = runs({0.5: GOOD})
    made[2] = row("dense", 2, accuracy=None)
    made[-1] = row("ticket", 2, accuracy=None)
    found = verdict(sweep(tmp_path, made))
    assert found.holds is True and "n=2;" in found.evidence


def test_at_most_three_diverged_runs_are_named_and_shared_ones_count_once(tmp_path):
    lost = [row("dense", r, accuracy=None) for r in range(5)]
    cells = [[{**row, "overrides": [f"rewind={name}"]} for row in lost] for name in ("init", "late")]
    evidence = analysis.verdicts(sweep(tmp_path, *cells))[-1].evidence
    assert evidence.startswith("5 of 5 runs diverged: replicate 0 level 0 dense at step 13, replicate 1 ")
    assert evidence.endswith("replicate 2 level 0 dense at step 13, and 2 more")


@pytest.mark.parametrize(
    ("control", "holds", "sentence"),
    [
        ([0.9 - 0.0165, 0.92 - 0.019, 0.95 - 0.0215], True, "ticket above random_reinit by 1.9 +- 0.6 points"),
        ([0.9 + 0.0165, 0.92 + 0.019, 0.95 + 0.0215], False, "ticket below random_reinit by 1.9 +- 0.6 points"),
        ([0.8335, 0.939, 0.9715], False, "ticket not told apart from random_reinit: +0.9 +- 12.4 points"),
    ],
)
def test_ticket_against_control(tmp_path, control, holds, sentence):
    """At the highest sparsity that both have: 0.9, though the ticket goes on to 0.95 and they differ at 0.5."""
    made = runs({s: [0, 0, 0] for s in (0.5, 0.9, 0.95)})
    made += [row("random_reinit", r, 0.9, accuracy) for r, accuracy in enumerate(control)]
    made += [row("random_reinit", r, 0.5, 0.1 * r) for r in range(3)]
    found = verdict(sweep(tmp_path, made), "ticket above random_reinit")
    assert found.holds is holds and found.evidence == f"{sentence} at 10.0% of the weights (paired t, 95%, n=3)"


def test_no_common_sparsity(tmp_path):
    found = verdict(sweep(tmp_path, [*runs({0.5: GOOD}), row("random_mask", 0, 0.8)]), "ticket above random_mask")
    assert found.holds is None and "no replicate finished both" in found.evidence


def test_verdicts_name_their_setting(tmp_path):
    cells = []
    for lr, ds in ((0.1, GOOD), (0.3, BAD)):
        cells.append([{**row, "overrides": [f"lr={lr}"], "stage": f"{lr}{row['stage']}"} for row in runs({0.5: ds})])
    found = analysis.verdicts(sweep(tmp_path, *cells))
    assert [(v.claim, v.holds) for v in found] == [
        *(("lr=0.1: ticket matches dense", True), ("lr=0.3: ticket matches dense", False))
    ]
    assert found[0].evidence.startswith("lr=0.1: ticket matches dense at every")
    assert all("\n" not in v.evidence for v in found)


# tables


def printed(rows):
    console = Console(file=StringIO(), width=80)
    console.print(analysis.table(rows))
    return console.file.getvalue()


def test_table_at_80_columns_without_a_terminal(tmp_path):
    made = runs({0.5: [0.01, 0.0, -0.01], 0.8: [None] * 3}, dense=(0.951, 0.955, 0.959))
    made += [row("layerwise_shuffle", 0, 0.5, 0.5), *(row("random_mask", r, 0.5, 0.25) for r in range(3))]
    lines = [line.split("  ") for line in printed(sweep(tmp_path, made)).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["0", "100.0", "95.5 +- 1.0", "3"] in cells
    assert ["1", "50.0", "95.5 +- 1.5", "50.0", "25.00 +- 0.00", "1-3"] in cells
    assert ["1", "20.0", "diverged", "0"] in cells
    assert any("(0: dense)" in cell for line in cells for cell in line)


def test_table_per_setting_with_brackets(tmp_path):
    cells = []
    for name in ("red", "bold"):  # rich would read both as markup
        new = {"overrides": [f"model.layers=[{name}]"]}
        cells.append([{**row, **new, "stage": f"{name}{row['stage']}"} for row in runs({0.5: GOOD})])
    text = printed(sweep(tmp_path, *cells))
    assert text.index("model.layers=[red]") < text.index("model.layers=[bold]")
    assert text.count("100.0") == 2 and max(map(len, text.splitlines())) <= 80


def test_curves_hold_every_metric(tmp_path):
    rows = sweep(tmp_path, runs({0.5: GOOD}))
    read = analysis.curves(rows)
    assert list(read["metric"].unique()) == list(analysis.METRICS)
    for metric, part in read.groupby("metric"):
        expected = analysis.curve(rows, metric)
        pd.testing.assert_frame_equal(part.drop(columns="metric").reset_index(drop=True), expected, check_dtype=False)

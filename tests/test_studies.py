"""The studies of conf/study and experiments: each runs at a tiny size, shares its work, and says what it found.

Their verdicts are checked on rows made by hand, where it is known what holds.
"""

import math
from pathlib import Path

import hydra
import pandas as pd
import pytest
import yaml
from omegaconf import open_dict
from rich.console import Console
from test_main import run_here

import main
from lth import analysis
from lth.plan import plan
from lth.store import Store

CONF = Path(main.__file__).parent / "conf" / "study"
OF_PAPERS = sorted(path.stem for path in (CONF / "quick").glob("*.yaml"))  # their own size has no folder
STUDIES = sorted({path.stem for path in CONF.glob("*.yaml")} - set(OF_PAPERS))
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
    "criteria": "criterion=magnitude,movement,random",
    "pruning_at_init": "criterion=magnitude,snip prune.sparsity=0.6 ",
    "mask_anatomy": "",
    "mnist1d": "prune.sparsity=0.97 prune.num_rounds=2 branch.levels=all",
    "landscape": "rewind.at=0it,20it branch.landscape.num_examples=50 branch.landscape.num_steps=5",
}


QUICKER = (  # the quick studies keep their data and networks
    "recipe.steps=40it recipe.eval_every=20it replicates=2 wandb=disabled device=cpu device.workers=0 "
    "hydra.run.dir=out hydra.sweep.dir=out"
)
QUICKER_OF = {
    "quick/frankle2019_lenet": "prune.num_rounds=1",
    "quick/frankle2019_conv": "prune.num_rounds=1",
    "quick/frankle2020_resnet20": "rewind.at=0it,20it recipe.schedule.drops=[20it,30it] branch.stability.num_alphas=3",
    "quick/frankle2020_vgg16": "prune.num_rounds=1 rewind.at=0it,20it recipe.schedule.drops=[20it,30it]",
    "quick/renda2020_resnet": "prune.num_rounds=1 recipe.schedule.drops=[20it,30it]",
    "quick/tanaka2020_vgg16": "prune.sparsity=0.9,0.99 criterion=magnitude,synflow recipe.schedule.drops=[20it,30it]",
}


def shown(table) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def experiment_of(study: str) -> str:
    """The name of the module in experiments/ that a study's yaml, or what it builds upon, says."""
    written = yaml.safe_load((CONF / f"{study}.yaml").read_text())
    return written.get("study") or experiment_of(written["defaults"][0].removeprefix("/study/"))


def test_every_study_has_its_experiment():
    """A file of experiments, which says claim, source, figure, command and cost, for each yaml that is not of a paper;
    those are asked by the same files, and each has a quick one and the whole, named alike and read alike."""
    for study in STUDIES:
        assert experiment_of(study) == study
    for study in OF_PAPERS:
        assert experiment_of(study) == experiment_of(f"quick/{study}")
    for study in [*STUDIES, *map(experiment_of, OF_PAPERS)]:
        module = main.experiment(study)
        assert module.__name__ == f"experiments.{study}"
        assert all(word in module.__doc__ for word in ("Claim", "Source", "Figure", "Command", "Cost")), study
        assert {"table", "verdict"} <= set(dir(module))


def test_a_size_names_the_form_of_a_study():
    full = ["-m", "study=frankle2019_lenet,quick/renda2020_resnet", "seed=1"]
    quick = ["-m", "study=quick/frankle2019_lenet,quick/renda2020_resnet", "seed=1"]
    assert main.sized([*full, "size=quick"]) == main.sized(["size=full", *full, "size=quick"]) == quick
    assert main.sized([*full, "size=full"]) == main.sized(full) == full


@pytest.mark.parametrize(
    ("study", "trainings", "measurements"),
    [
        ("frankle2019_lenet", 3 * (1 + 7 * 4 - 1), 0),  # at the first level one shot is the ticket
        ("frankle2019_conv", 3 * (1 + 6 * 2), 0),
        ("frankle2020_resnet20", 3 * (2 + 2), 2 * 3),  # dense and its fork, the ticket and its fork
        ("frankle2020_vgg16", 3 * (2 + 2), 2 * 3),
        ("renda2020_resnet", 3 * (1 + 3), 0),
        ("tanaka2020_vgg16", 3 * 2, 3),
    ],
)
def test_quick_study_is_planned(study, trainings, measurements, tmp_path):
    """The first job of each, built and planned without training: so many trainings, counted by hand."""
    folders = [f"{key}={tmp_path}" for key in ("store", "hydra.run.dir", "hydra.sweep.dir")]
    with hydra.initialize_config_dir(str(CONF.parent), version_base="1.3"):
        cfg = hydra.compose("config", [f"study=quick/{study}", *folders], return_hydra_config=True)
    with open_dict(cfg):
        settings = cfg.pop("hydra")
    assert cfg.replicates == 3 and cfg.dataset._target_.split(".")[-1] in ("Mnist5k", "Digits", "Fake")  # here already
    job = main.build(cfg, settings)
    todo = plan([[entry.stage for entry in job.cell.entries]], Store(tmp_path))
    assert len(todo.trainings) == trainings
    assert str(todo).endswith(f"; {measurements} measurements to do") or not measurements


def test_compressions_of_the_paper_are_powers_of_ten():
    """1 - 10^-x at x = 0.25, 0.5, ... 3, as figure 6 of Tanaka et al. 2020 has them."""
    written = yaml.safe_load((CONF / "tanaka2020_vgg16.yaml").read_text())["hydra"]["sweeper"]["params"]
    sparsities = [float(word) for word in written["prune.sparsity"].split(",")]
    assert sparsities == pytest.approx([1 - 10 ** -(quarter / 4) for quarter in range(1, 13)], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("study", [*STUDIES, *(f"quick/{study}" for study in OF_PAPERS)])
def test_study_runs(study, tmp_path):
    """From the command line to its figure and its verdicts; typed again, nothing is left to do."""
    words = f"study={study} {QUICKER if study in QUICKER_OF else TINY} {(OF_STUDY | QUICKER_OF)[study]}"
    if study == "rewind_or_finetune":  # its sweep is over rewinds, of which not all have a step
        words = words.replace("rewind.at=20it", "recipe.schedule.drops=[30it,45it]").replace("60it", "120it")
    ran = run_here(words, tmp_path)
    assert ran.code == 0, ran.err
    rows, name = analysis.load(tmp_path / "out"), experiment_of(study)
    assert set(rows["study"]) == {name} and rows["diverged_step"].isna().all()
    module = main.experiment(name)
    drawn = name if hasattr(module, "figure") else "accuracy_vs_sparsity"
    assert (tmp_path / "out" / "report" / f"{drawn}.png").stat().st_size
    assert shown(module.table(rows)).strip()
    verdicts = module.verdict(rows)
    assert verdicts and all(isinstance(v.evidence, str) and "nan" not in v.evidence for v in verdicts)
    assert all(v.evidence in " ".join(ran.out.split()) for v in verdicts)
    again = run_here(words, tmp_path)
    assert again.code == 0 and again.plan[1] == 0 and "measurements to do" not in again.out


PAPER = [*(f"paper/{path.stem}" for path in sorted((CONF / "paper").glob("*.yaml"))), *OF_PAPERS]
FEW = (  # a few steps on data of the right shape, at one sparsity
    "recipe.steps=4it recipe.eval_every=2it recipe.batch_size=20 replicates=1 prune=one_shot prune.sparsity=0.5 "
    "wandb=disabled device=cpu device.workers=0 hydra.run.dir=out hydra.sweep.dir=out"
)
IMAGES = (
    "dataset=fake dataset.num_classes=10 dataset.num_examples=100 dataset.num_val=20 dataset.num_test=20 "
    "dataset.crop=4 dataset.flip=true"
)


@pytest.mark.slow
@pytest.mark.parametrize("study", PAPER)
def test_study_of_the_papers_size_runs_for_a_few_steps(study, tmp_path):
    """The paper's own networks, optimiser and schedule, on images of their shape that nobody has to download."""
    with hydra.initialize_config_dir(str(CONF.parent), version_base="1.3"):
        composed = hydra.compose("config", ["hydra/launcher=basic", f"study={study}"])
    name = composed.study
    words = f"study={study} {FEW} "
    words += IMAGES if "cifar" in composed.dataset._target_ else "dataset=mnist_5k"
    if name in ("rewinding_stability", "linear_mode_connectivity", "landscape"):
        words += " rewind.at=0it,2it"
    words += " branch.stability.num_alphas=2 branch.stability.num_orders=2" if "stability" in composed.branch else ""
    small = {"num_examples": 4, "num_steps": 2, "num_eigenvalues": 1, "num_vectors": 2, "num_directions": 1}
    words += "".join(f" branch.landscape.{n}={v}" for n, v in small.items()) if name == "landscape" else ""
    words += " branch.levels=all" if name != "rewind_or_finetune" else ""
    words += " model=resnet_20,resnet_56" if study == "renda2020_resnet" else ""
    words += " criterion=random,magnitude" if study == "tanaka2020_vgg16" else ""
    ran = run_here(words, tmp_path)
    assert ran.code == 0, ran.err
    rows = analysis.load(tmp_path / "out")
    assert len(rows) >= 3 and rows["diverged_step"].isna().all() and set(rows["study"]) == {name}


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


def test_ways_of_retraining_are_compared_network_by_network():
    """Two networks whose last sparsities differ in the fifth digit: each has its own three comparisons, with its own
    differences of 2 and of 3 points."""
    rows = []
    for model, sparsity, gain in (("resnet_20", 0.89262, 0.02), ("resnet_56", 0.89261, 0.03)):
        for way, more in (("learning_rate", 2 * gain), ("renda2020", gain), ("none", 0.0)):
            for row in trained({("ticket", 0): [0.90 + more, 0.92 + more]}):
                rows.append({**row, "setting": f"model={model}, rewind={way}", "steps": 100.0, "sparsity": sparsity})
    found = main.experiment("rewind_or_finetune").verdict(frame(rows))
    assert len(found) == 6 and all(verdict.holds for verdict in found)
    assert "model=resnet_56: weight rewinding (100 steps) +3.00 +- 0.00 points above fine-tuning" in found[5].evidence
    assert found[2].claim == "model=resnet_20: weight rewinding above fine-tuning" and "+2.00" in found[2].evidence


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


def test_criteria_are_compared_in_pairs():
    """Each criterion against magnitude by replicate, at the highest sparsity alone; best first in the table."""
    made = []
    for setting, shift in (("criterion=magnitude", 0.0), ("criterion=movement", 0.02), ("criterion=random", -0.03)):
        for replicate, dense in enumerate((0.90, 0.93, 0.96)):
            row = {"setting": setting, "replicate": replicate}
            made.append(row | {"branch": "dense", "sparsity": 0.0, "test_accuracy": dense, "stage": f"d{replicate}"})
            for sparsity in (0.5, 0.9):
                found = dense + (shift + 0.001 * replicate if sparsity == 0.9 and shift else 0.0)
                ticket = {"branch": "ticket", "sparsity": sparsity, "test_accuracy": found}
                made.append(row | ticket | {"stage": f"{setting}{replicate}{sparsity}"})
    rows, module = frame(made), main.experiment("criteria")
    above, below = module.verdict(rows)
    assert (above.claim, above.holds) == ("movement above magnitude", True) and "+2.1 +- 0.2 points" in above.evidence
    assert below.claim == "random above magnitude" and not below.holds and "random below magnitude" in below.evidence
    lines = [line.split()[0] for line in shown(module.table(rows)).splitlines() if "+-" in line]
    assert lines == ["movement", "magnitude", "random"]
    together = module.of_criteria(rows)
    assert len(together[together["branch"] == "dense"]) == 3 and set(together["setting"]) == {""}


def test_pruning_at_init_wants_controls_as_good_and_of_trained_masks_worse():
    """SNIP at initialisation, whose shuffled mask is as good; magnitude after training, whose shuffled one is worse by
    2 points: both claims hold. Exchanged, neither does."""

    def rows(gains: dict[str, float]) -> pd.DataFrame:
        made = []
        for setting, gain in gains.items():
            for replicate, spread in enumerate((0.0, 0.01, 0.02)):
                for branch, extra in (("ticket", 0.0), ("random_mask", gain), ("random_reinit", gain)):
                    row = {"setting": setting, "replicate": replicate, "branch": branch, "sparsity": 0.9}
                    noise = 0.0005 * replicate * (branch != "ticket")
                    made.append(row | {"test_accuracy": 0.9 + spread + extra + noise, "stage": f"{setting}{branch}"})
        return frame(made)

    early, late = "criterion=snip, prune.when=init", "criterion=magnitude, prune.when=trained"
    verdict = main.experiment("pruning_at_init").verdict
    assert [v.holds for v in verdict(rows({early: 0.0, late: -0.02}))] == [True, True, True, True, False]
    found = verdict(rows({early: -0.02, late: 0.0}))
    assert [v.holds for v in found] == [False] * 5 and found[0].evidence.startswith("snip at init shuffled")
    assert found[-1].claim == "snip at init above magnitude"


def test_who_empties_a_layer_first():
    """Magnitude from 1% of the weights on in two of six masks, SynFlow nowhere and 10 points above it at 1%."""
    made = []
    for name, accuracy in (("magnitude", 0.8), ("synflow", 0.9)):
        for sparsity in (0.9, 0.99):
            for r in range(3):
                row = {"setting": f"criterion={name}", "sparsity": sparsity, "replicate": r}
                emptied = name == "magnitude" and sparsity == 0.99 and r > 0
                measured = {"branch": "anatomy", "of": "ticket", "collapsed_layers": float(emptied)}
                ticket = {"branch": "ticket", "test_accuracy": accuracy + 0.01 * r, "collapsed_layers": math.nan}
                made += [row | measured, row | ticket]
    magnitude, synflow, above = main.experiment("tanaka2020_vgg16").verdict(frame(made))
    assert not magnitude.holds and synflow.holds and above.holds
    assert magnitude.evidence == "magnitude empties a layer first at 1.0% of the weights, in 2 of 6 masks"
    assert synflow.evidence == "synflow empties no layer down to 1.0% of the weights, in 0 of 6 masks"
    assert above.evidence.startswith("synflow above magnitude: +10.00 +- 0.00 points at 1.0%")


def test_mask_anatomy_speaks_of_the_highest_sparsity():
    """Collapse anywhere counts; effective sparsity and overlaps are those of the sparsest masks, beside chance."""
    made = []
    for sparsity, gap in ((0.5, 0.0), (0.99, 0.004)):
        for r in range(4):
            row = {"of": "ticket", "branch": "anatomy", "replicate": r, "sparsity": sparsity, "dead_units": 3.0}
            row |= {"effective_sparsity": sparsity + gap, "collapsed_layers": float(sparsity == 0.99)}
            row |= {"one_shot_jaccard": 0.3 + 0.01 * r, "one_shot_chance": 0.1}
            row |= {"replicate_0_jaccard": 0.1 + 0.01 * (r - 2), "replicate_0_chance": 0.1} if r else {}
            made.append(row)
    rows, module = frame(made), main.experiment("mask_anatomy")
    collapse, effective, one_shot, replicate = module.verdict(rows)
    assert not collapse.holds and "first at 1.0% of the weights" in collapse.evidence
    assert effective.holds and "+0.40 +- 0.00 points above sparsity at 1.0%" in effective.evidence
    assert one_shot.holds and "31.5%, 10.0% by chance" in one_shot.evidence and "n=4" in one_shot.evidence
    assert not replicate.holds and "n=3" in replicate.evidence
    assert list(module.overlaps(rows)) == ["one_shot", "replicate_0"]


@pytest.mark.slow
def test_stability_of_a_network_with_batch_norm_and_augmentation(tmp_path):
    """A residual network on augmented images, from the command line: copies in other orders see other augmentation, and
    running statistics are estimated anew at each point, so a line between equal copies is flat."""
    words = (
        "study=linear_mode_connectivity model=resnet_20 model.depth=8 dataset=fake dataset.shape=[3,8,8] "
        "dataset.num_classes=3 dataset.num_examples=400 dataset.num_val=50 dataset.num_test=100 dataset.crop=1 "
        "dataset.flip=true recipe=sgd recipe.lr=0.05 recipe.steps=60it recipe.eval_every=30it recipe.batch_size=20 "
        "replicates=2 prune=one_shot prune.sparsity=0.5 pattern.scope=global rewind.at=0it,20it,59it wandb=disabled "
        "branch.stability.num_alphas=5 device=cpu device.workers=0 hydra.sweep.dir=out"
    )
    ran = run_here(words, tmp_path)
    assert ran.code == 0, ran.err
    rows = analysis.load(tmp_path / "out")
    found = rows[rows["of"].notna()].set_index(["rewind_step", "of", "replicate"])
    assert len(found) == 3 * 2 * 2 and found[["error_barrier", "loss_barrier", "distance"]].notna().all(axis=None)
    assert (found["distance"] > 0).all() and found.loc[0, "distance"].min() > found.loc[59, "distance"].max()
    assert found.loc[59, "loss_barrier"].max() < 0.05

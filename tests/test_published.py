"""Published numbers: the files are whole, and stand beside ours where, and only where, the setting is the same."""

import json
from pathlib import Path

import hydra
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from test_analysis import row
from test_studies import shown

import main
from experiments import published
from lth import analysis, plot
from lth.analysis import interval

CONF = Path(main.__file__).parent / "conf"
GROUPS = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}


def composed(*overrides: str) -> dict:
    """A resolved configuration, as a job writes it beside its rows."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", ["hydra/launcher=basic", *overrides])
    return yaml.safe_load(OmegaConf.to_yaml(config, resolve=True))


@pytest.mark.parametrize("path", published.files(), ids=lambda path: path.stem)
def test_a_file_is_whole(path):
    """It says its source and kind, never from memory; every member it names is in conf/ or said not to be; accuracies
    are percentages, and of the weights that remain some do."""
    head, table = published.read(path)
    assert "https://" in head["source"]
    assert head["kind"].split()[0].rstrip(",") in ("RAW", "READ", "NOTE") and head["protocol"]
    absent = head.get("not in conf", "").split(", ")
    keys = {name: [str(value)] for name, value in head["setting"].items()}
    keys |= {name: list(table[name].dropna().unique()) for name in table.columns if name not in published.NUMBERS}
    for key, values in keys.items():
        for value in values if key in GROUPS else ():
            assert (CONF / key / f"{value}.yaml").is_file() != (value in absent), (key, value)
        assert key in GROUPS or key.partition(".")[0] in GROUPS, key
    accuracies = table[table["metric"].str.endswith("accuracy")]
    assert accuracies["value"].between(0.4, 100).all()
    assert table["weights_left"].dropna().between(0.01, 100).all()
    assert (table.loc[accuracies.index, "weights_left"].eq(100) == accuracies["branch"].eq("dense")).all()
    assert not table.duplicated([name for name in table.columns if name not in ("value", "std", "n")]).any()


LENET = "study=paper/accuracy_vs_sparsity"
IMAGENET = ["model=resnet_50", "dataset=imagenet", "recipe=renda2020_imagenet", "pattern.scope=global"]


@pytest.mark.parametrize(
    ("overrides", "source"),
    [
        ([LENET], "repro-lottery-ticket"),
        ([LENET, "prune.sparsity=0.5", "replicates=2", "seed=3", "branch=[]"], "repro-lottery-ticket"),
        ([LENET, "recipe.lr=0.0012", "recipe.steps=50000"], "repro-lottery-ticket"),
        ([LENET, "recipe.lr=0.0013"], None),
        ([LENET, "recipe.steps=5000it"], None),
        ([LENET, "recipe/schedule=cosine"], None),
        ([LENET, "model.hidden=[300,101]"], None),
        ([LENET, "dataset=mnist_5k"], None),
        ([LENET, "dataset.num_val=4000"], "repro-lottery-ticket"),
        ([LENET, "dataset.split_seed=1"], None),
        (["study=mnist1d"], "Greydanus & Kobak 2020"),
        (["study=mnist1d", "model.width=100"], None),
        ([LENET, "rewind=early"], None),
        (["study=paper/rewinding_stability"], "Frankle et al. 2020"),
        (["study=paper/rewinding_stability", "rewind.at=4000it", "model=frankle2020_vgg_16"], "Frankle et al. 2020"),
        (["study=paper/rewinding_stability", "model=resnet_32"], None),
        (["study=paper/rewinding_stability", "pattern.scope=layerwise"], None),
        (["study=paper/rewind_or_finetune", "rewind=learning_rate"], "Renda et al. 2020"),
        (["study=paper/rewind_or_finetune", "rewind=learning_rate", "rewind.at=1it"], None),
        (["study=frankle2019_lenet"], "repro-lottery-ticket"),
        (["study=frankle2019_conv"], "repro-lottery-ticket"),
        (["study=frankle2019_conv", "model=conv_4", "replicates=1"], "repro-lottery-ticket"),
        (["study=frankle2019_conv", "model=conv_4", "recipe=frankle2019_conv_2"], None),
        (["study=frankle2019_conv", "dataset=cifar10"], None),  # augmented
        (["study=frankle2020_resnet20"], "Frankle et al. 2020"),
        (["study=frankle2020_vgg16"], "Frankle et al. 2020"),
        (["study=frankle2020_vgg16", "recipe.lr=0.01"], None),  # the low variant, of which it prints no numbers
        (["study=renda2020_resnet", "model=resnet_110", "rewind=renda2020"], "Renda et al. 2020"),
        (["study=tanaka2020_vgg16", "criterion=synflow", "prune.sparsity=0.99"], "Tanaka et al. 2020"),
        (["study=tanaka2020_vgg16", "criterion=synflow", "prune.when=trained"], None),
        ([*IMAGENET, "rewind=renda2020_imagenet"], "Renda et al. 2020"),
        ([*IMAGENET, "rewind=learning_rate", "dataset.path=mine"], "Renda et al. 2020"),
        ([*IMAGENET, "rewind=renda2020_imagenet", "recipe=frankle2020_imagenet"], None),
        ([], None),
    ],
)
def test_numbers_are_found_where_the_setting_is_the_same(overrides, source):
    """The paper's settings, whatever the target, the replicates, what else is trained; none where one thing differs."""
    found = [one["source"] for one in published.matching(composed(*overrides)) if one["metric"] != "matches_down_to"]
    found = [name for name in found if not name.startswith("Frankle & Carbin")]  # differences: not to be drawn
    assert bool(found) == (source is not None) and all(source in name for name in found)


@pytest.mark.parametrize("model", ["conv_2", "conv_4", "conv_6"])
def test_each_network_has_its_own_recipe_and_rates(model):
    """Of the three that one study sweeps over; the numbers of the paper are those of that network."""
    config = composed("study=frankle2019_conv", f"model={model}")
    assert all(published.same(config, key, f"frankle2019_{model}") for key in ("recipe", "pattern"))
    gains = [one["mean"] for one in published.matching(config) if one["metric"] == "points_above_dense"]
    assert gains == [{"conv_2": 3.4, "conv_4": 3.5, "conv_6": 3.3}[model]]  # section 3


def test_units_are_ours():
    """Percent become fractions, weights left become sparsity, a standard deviation the half of a t interval."""
    found = list(published.matching(composed("study=paper/rewind_or_finetune", "rewind=none", "model=resnet_56")))
    one = next(one for one in found if one["sparsity"] == 0.2)
    assert one["mean"] == pytest.approx(0.9360) and one["tolerance"] == pytest.approx(0.004)
    spread = [93.60 - 0.20, 93.60, 93.60 + 0.20]  # standard deviation 0.20, n=3
    assert one["half"] == pytest.approx(interval(spread)[1] / 100)
    dense = next(one for one in found if one["branch"] == "dense")
    assert (dense["sparsity"], dense["n"]) == (0, 246)


@pytest.fixture
def study(tmp_path):
    """Rows of a LeNet study in two jobs, with the paper's configuration beside them."""
    config = composed(LENET)
    for job, sparsity in enumerate((0.2, 0.488)):
        folder = tmp_path / str(job)
        folder.mkdir()
        rows = [row("dense", r, accuracy=0.98) for r in range(3)]
        rows += [row("ticket", r, sparsity, 0.9835 if job else 0.981) for r in range(3)]
        (folder / "rows.jsonl").write_text("".join(json.dumps({**one, "cell": job}) + "\n" for one in rows))
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_published_stands_beside_ours(study):
    """Drawn as hollow marks at its own values; compared where ours has the sparsity, within its tolerance or not."""
    rows = analysis.load(study)
    found = published.beside(rows, study)
    early = found[found["metric"] == "early_stop_test_accuracy"]
    assert set(early["setting"]) == {""} and early["branch"].value_counts().to_dict() == {
        "dense": 1,
        "ticket": 19,
        "random_reinit": 2,
    }
    figure = plot.figure(rows, "test_accuracy", found.assign(metric="test_accuracy"))
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert any("repro-lottery-ticket" in label for label in labels)
    marks = [
        line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "none" and len(line.get_xdata())
    ]
    ticket = next(line for line in marks if len(line.get_xdata()) == 19)
    assert ticket.get_ydata()[0] == pytest.approx(98.11) and ticket.get_xdata()[0] == pytest.approx(80.0)
    low, high = figure.axes[0].get_ylim()
    assert low < 96.98 and high > 98.33
    words = shown(analysis.compare(rows, found)).split("\n")
    assert words[0].strip() == "kowshikgunda71/repro-lottery-ticket: early stop test accuracy"
    lines = [" ".join(line.split()) for line in words if "(0.3)" in line]
    assert len(lines) == 3  # dense, 80.0% and 51.2%, which they call 51.3%
    assert [line.endswith(("yes (0.3)", "no (0.3)")) for line in lines] == [True] * 3
    within = [line.split()[-2] for line in lines]
    assert within == ["yes", "yes", "no"]  # 98.0 beside 98.05, 98.1 beside 98.11, 98.35 beside 98.04


def test_criteria_of_the_paper_are_drawn_beside_ours(tmp_path):
    """Each criterion's numbers at their own places, hollow, in the colour of ours; the axis holds both."""
    for job, criterion in enumerate(("snip", "synflow")):
        folder, words = tmp_path / str(job), [f"criterion={criterion}"]
        folder.mkdir()
        rows = [row("dense", 0), row("ticket", 0, 0.999, 0.5)]
        rows = [{**one, "cell": job, "overrides": words, "stage": f"{job}{one['branch']}"} for one in rows]
        (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        config = composed("study=tanaka2020_vgg16", *words, "prune.sparsity=0.999")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found, figures = analysis.load(tmp_path), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "_write", lambda fig, *rest: figures.append(fig) or [])
        main.experiment("tanaka2020_vgg16").figure(found, "unused", published.beside(found, tmp_path), [])
    (axes,) = figures[0].axes
    handles, labels = axes.get_legend_handles_labels()
    colour = {label: h.lines[0].get_color() for h, label in zip(handles, labels, strict=True) if hasattr(h, "lines")}
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    ends = {line.get_color(): (line.get_xdata()[-1], line.get_ydata()[-1]) for line in hollow}
    for criterion, accuracy in (("snip", 76.3), ("synflow", 80.4)):  # at 10^3 in their results
        assert ends[colour[criterion]] == pytest.approx((0.1, accuracy))
        assert f"{criterion}: Tanaka et al. 2020" in labels
    low, high = axes.get_ylim()
    assert low < 50 and high > 93.7  # ours at 50.0, their SNIP at 93.7


def test_two_trials_are_drawn_without_an_interval(study):
    """The t interval of two values would be all that one sees; that of three is drawn. Every label is a name."""
    rows = analysis.load(study)
    theirs = {
        "setting": "",
        "metric": "test_accuracy",
        "mean": 0.98,
        "half": 0.05,
        "tolerance": 0.01,
        "branch": "ticket",
    }
    made = [theirs | {"source": f"n={n}", "sparsity": 0.1 * n, "n": float(n)} for n in (2, 3)]
    figure = plot.figure(rows, "test_accuracy", pd.DataFrame(made))
    bars = {bar.lines[0].get_xdata()[0]: bar.lines[2][0].get_segments()[0] for bar in figure.axes[0].containers}
    spans = {round(float(left)): float(segment[1][1] - segment[0][1]) for left, segment in bars.items()}
    assert spans == pytest.approx({80: 0.0, 70: 10.0})
    assert not any(text.get_text().startswith("_") for text in figure.legends[0].get_texts())


def test_one_job_of_another_setting_and_nothing_is_drawn(study):
    """A setting whose jobs differ from the published one in anything, or say nothing of themselves, has no numbers."""
    rows = analysis.load(study)
    config = yaml.safe_load((study / "1" / "config.yaml").read_text())
    config["recipe"]["batch_size"] = 61
    (study / "1" / "config.yaml").write_text(yaml.safe_dump(config))
    assert published.beside(rows, study).empty
    (study / "1" / "config.yaml").unlink()
    assert published.beside(rows, study).empty
    assert analysis.compare(rows, published.beside(rows, study)).row_count == 0


def test_lines_are_drawn_as_measured(tmp_path):
    """The error along the line, mean over pairs and replicates, a line a rewind step, a panel a network."""
    points = [{"copies": [0, 1], "alpha": a, "test_error": e} for a, e in ((0, 0.1), (0.5, 0.3), (1, 0.2))]
    numbers = {"of": "ticket", "error_barrier": 0.15, "rewind_step": 10}
    made = [row("stability", r, 0.5, None, **numbers, stage=f"s{r}") | {"diverged_step": None} for r in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    curves = [{"stage": "s0", "line": points}, {"stage": "s1", "line": [{**p, "test_error": 0.0} for p in points]}]
    (tmp_path / "curves.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*curves, {"stage": "x"}]))
    lines = analysis.lines(analysis.records(tmp_path), analysis.load(tmp_path))
    assert len(lines) == 6 and set(lines["rewind_step"]) == {10}
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "_write", lambda fig, *rest: drawn.append(fig) or [])
        plot.along_lines(lines, "test_error", "test error", tmp_path / "lines")
    (axes,) = drawn[0].axes
    assert list(axes.get_lines()[0].get_ydata()) == pytest.approx([5.0, 15.0, 10.0])
    assert pd.Series(axes.get_lines()[0].get_xdata()).tolist() == [0, 0.5, 1]

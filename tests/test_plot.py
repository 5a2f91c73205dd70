"""The lines of a figure are curve(), the files are reproducible, and the corner cases draw."""

import itertools
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from lth import analysis, plot

CONTROLS = ("random_reinit", "random_mask")
WRITE = plot._write  # that of the module, where a test shows figures instead


def study(levels=6, replicates=3, controls=CONTROLS, setting="", collapse=False, diverged=(), seed=0):
    """Rows as load() gives them; diverged: (branch, level) whose runs all diverged."""
    rng, made = np.random.default_rng(seed), []
    for r in range(replicates):
        for level in range(levels + 1):
            for branch in ("ticket", *controls) if level else ("dense",):
                accuracy = 0.95 + rng.normal(0, 0.002) - (0.002 * level if branch in controls else 0)
                accuracy = 0.1 if collapse and branch == "random_mask" and level > 3 else accuracy
                lost = (branch, level) in diverged
                row = {"setting": setting, "branch": branch, "level": level, "sparsity": 1 - 0.8**level, "replicate": r}
                row |= {
                    "of": None,
                    "diverged_step": 13.0 if lost else math.nan,
                    "stage": f"{setting}{r}{level}{branch}",
                }
                row |= dict.fromkeys(analysis.METRICS[:2], math.nan if lost else accuracy)
                made.append(row | {"early_stop_step": math.nan if lost else 1000.0 + 10 * level + r})
    return pd.DataFrame(made)


def drawn(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def caption(fig):
    return " ".join(fig.get_supxlabel().split())


@pytest.mark.parametrize("metric", list(plot.LABELS))
def test_lines_are_the_curve(metric):
    rows = study(diverged={("random_reinit", 3)})
    fig, scale = plot.figure(rows, metric), 100 if metric.endswith("accuracy") else 1
    (axes,) = fig.axes
    lines, expected = drawn(axes), analysis.curve(rows, metric)
    assert list(lines) == ["dense", "ticket", *CONTROLS]
    dense = expected[expected["branch"] == "dense"]
    np.testing.assert_allclose(lines["dense"].get_ydata(), np.repeat(scale * dense["mean"], 2))
    for branch in ("ticket", *CONTROLS):
        part = expected[expected["branch"].isin(["dense", "ticket"] if branch == "ticket" else [branch])]
        np.testing.assert_allclose(lines[branch].get_xdata(), 100 * (1 - part["sparsity"]))
        np.testing.assert_allclose(lines[branch].get_ydata(), scale * part["mean"])  # a diverged level is a gap
    bands = [band for band in axes.collections if type(band).__name__ == "FillBetweenPolyCollection"]
    ticket = expected[expected["branch"].isin(["dense", "ticket"])]
    corners = bands[0].get_paths()[0].vertices[:, 1]
    assert corners.max() == pytest.approx(scale * (ticket["mean"] + ticket["half"]).max())
    assert corners.min() == pytest.approx(scale * (ticket["mean"] - ticket["half"]).min())
    assert axes.get_ylabel() == plot.LABELS[metric]
    assert caption(fig) == "mean and 95% Student t interval over n=3 replicates; 3 diverged runs left out"


def test_weights_axis_falls_to_the_right_on_a_logarithm():
    axes = plot.figure(study(), "test_accuracy").axes[0]
    left, right = axes.get_xlim()
    assert left > 100 > 100 * 0.8**6 > right and axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100", "80", "64", "51.2", "41", "32.8", "26.2"]


@pytest.mark.parametrize(("levels", "num_settings"), [(12, 1), (23, 1), (23, 3), (1, 1)])
def test_tick_labels_do_not_touch_and_keep_both_ends(levels, num_settings):
    fig = plot.figure(pd.concat([study(levels, setting=str(i)) for i in range(num_settings)]), "test_accuracy")
    fig.draw_without_rendering()
    for axes in fig.axes:
        boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
        np.testing.assert_allclose([axes.get_xticks()[0], axes.get_xticks()[-1]], [100, 100 * 0.8**levels])
        assert min(levels + 1, 6) <= len(boxes)


@pytest.mark.parametrize("draw", [plot.accuracy_vs_sparsity, plot.early_stop_vs_sparsity])
def test_same_rows_same_bytes(tmp_path, draw):
    before = dict(mpl.rcParams)
    first, second = draw(study(), tmp_path / "new" / "rewind.0.5"), draw(study(), tmp_path / "again")
    assert first == [tmp_path / "new" / "rewind.0.5.png", tmp_path / "new" / "rewind.0.5.svg"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert b"<dc:date>" not in first[1].read_bytes() and dict(mpl.rcParams) == before
    assert mpl.image.imread(first[0]).shape[1] == 150 * plot.PANEL[1]
    assert draw(study(seed=1, levels=5), tmp_path / "other")[1].read_bytes() != first[1].read_bytes()


def _against_step(rows, stem):
    steps = rows["level"] * 100.0
    return plot.against_step(rows.assign(rewind_step=steps), {"test_accuracy": "test accuracy"}, stem, {})


def _replicates(rows, stem):
    return plot.replicates({"a": rows["test_accuracy"].head(3), "b": rows["test_accuracy"].tail(3)}, "accuracy", stem)


@pytest.mark.parametrize(
    "draw", [plot.accuracy_vs_sparsity, lambda rows, stem: plot.side_by_side(rows, "test_accuracy", stem),
             _against_step, _replicates],
)  # fmt: skip
def test_laid_out_once_as_matplotlib_lays_it_out(tmp_path, shown, draw):
    """The files hold what they hold where matplotlib draws the whole figure for its layout before it saves it."""
    rows = pd.concat([study(setting="a=1"), study(setting="a=2", levels=3)])
    for _ in range(2):
        draw(rows, "unused")
    ours, theirs = shown
    theirs.draw_without_rendering()
    theirs.set_layout_engine("none")
    for path in WRITE(ours, tmp_path / "ours", (".png", ".svg")):
        with mpl.rc_context({"svg.hashsalt": "lth"}):
            metadata = {"Date": None} if path.suffix == ".svg" else None
            theirs.savefig(tmp_path / f"theirs{path.suffix}", dpi=150, metadata=metadata)
        expected = (tmp_path / f"theirs{path.suffix}").read_bytes()
        assert path.read_bytes() == expected


def test_a_panel_per_setting_with_shared_axes():
    settings = [f"model.hidden=[{i}], cost=$1$" for i in range(4)]
    fig = plot.figure(pd.concat([study(setting=name, seed=i) for i, name in enumerate(settings)]), "test_accuracy")
    fig.draw_without_rendering()
    assert [axes.get_title() for axes in fig.axes] == settings
    assert len({axes.get_ylim() for axes in fig.axes}) == 1 and len({axes.get_xlim() for axes in fig.axes}) == 1
    assert not any(axes.title.get_parse_math() for axes in fig.axes)
    corners = [axes.get_position() for axes in fig.axes]
    assert len({round(box.x0, 3) for box in corners}) == 3 and len({round(box.y0, 3) for box in corners}) == 2
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "ticket", *CONTROLS]


def test_nothing_is_clipped_or_covered():
    fig = plot.figure(study(collapse=True, controls=(*CONTROLS, "layerwise_shuffle", "sign_flip")), "test_accuracy")
    fig.draw_without_rendering()
    width, height = fig.canvas.get_width_height()
    (axes,), (legend,) = fig.axes, fig.legends
    texts = [legend, axes.xaxis.label, axes.yaxis.label, *(text for text in fig.texts), *axes.get_xticklabels()]
    for box in (text.get_window_extent() for text in texts):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_a_control_at_chance_does_not_flatten_the_ticket():
    rows = study(collapse=True)
    fig = plot.figure(rows, "test_accuracy")
    low, high = fig.axes[0].get_ylim()
    ticket = drawn(fig.axes[0])["ticket"].get_ydata()
    assert low > 85 and low < min(ticket) and max(ticket) < high <= 104
    assert "below the axis: random_mask (down to 10.0%)" in caption(fig)
    assert "below" not in caption(plot.figure(study(), "test_accuracy"))
    low, _ = plot.figure(study(), "test_accuracy").axes[0].get_ylim()
    assert low < 100 * analysis.curve(study())["mean"].min()  # a control that is only worse stays in view


def test_a_ticket_that_falls_stays_in_view():
    rows = study(collapse=True)
    rows.loc[(rows["branch"] == "ticket") & (rows["level"] == 6), "test_accuracy"] -= 0.3
    axes = plot.figure(rows, "test_accuracy").axes[0]
    assert axes.get_ylim()[0] < min(drawn(axes)["ticket"].get_ydata()) == pytest.approx(65, abs=1)


def test_one_replicate_has_no_band():
    fig = plot.figure(study(replicates=1), "test_accuracy")
    assert caption(fig) == "n=1: no interval"
    assert not any(len(band.get_paths()) for band in fig.axes[0].collections[:1])
    assert not fig.axes[0].patches  # nor has dense


def test_caption_tells_unequal_numbers_of_replicates():
    rows = study()
    assert "over n=2 to 3 replicates" in caption(plot.figure(rows[rows["stage"] != "22ticket"], "test_accuracy"))


def test_no_rows(tmp_path):
    rows = analysis.load(tmp_path)
    fig = plot.figure(rows, "test_accuracy")
    assert [text.get_text() for text in fig.axes[0].texts] == ["no rows"] and caption(fig) == "no finished run"
    assert all(path.stat().st_size for path in plot.accuracy_vs_sparsity(rows, tmp_path / "none"))
    assert all(path.stat().st_size for path in plot.early_stop_vs_sparsity(rows, tmp_path / "none"))


def test_diverged_everywhere(tmp_path):
    rows = study(1, diverged={(branch, level) for branch in ("dense", "ticket", *CONTROLS) for level in (0, 1)})
    fig = plot.figure(rows, "test_accuracy")
    assert [text.get_text() for text in fig.axes[0].texts] == ["no run finished: all diverged"] and not fig.legends
    assert caption(fig) == "no finished run; 12 diverged runs left out"
    assert all(path.stat().st_size for path in plot.early_stop_vs_sparsity(rows, tmp_path / "none"))


@pytest.mark.parametrize("levels", [0, 3])
def test_no_controls(tmp_path, levels):
    rows = study(levels, controls=())
    assert list(drawn(plot.figure(rows, "test_accuracy").axes[0])) == ["dense", "ticket"][: 2 if levels else 1]
    assert all(path.stat().st_size for path in plot.accuracy_vs_sparsity(rows, tmp_path / "none"))
    assert all(path.stat().st_size for path in plot.early_stop_vs_sparsity(rows, tmp_path / "none"))


def test_colours_differ_and_stay_with_their_branch():
    both = pd.concat([study(setting="a", controls=CONTROLS), study(setting="b", controls=("random_mask", "sign_flip"))])
    first, second = (drawn(axes) for axes in plot.figure(both, "test_accuracy").axes)
    assert first["random_mask"].get_color() == second["random_mask"].get_color()
    assert len({line.get_color() for line in (first | second).values()}) == 5
    assert first["ticket"].get_linestyle() == "-" and first["random_mask"].get_linestyle() == "--"


def test_unknown_metric():
    with pytest.raises(KeyError, match="accuracy"):
        plot.figure(study(), "accuracy")


@pytest.fixture
def shown(monkeypatch):
    """The figures that are drawn, not written."""
    figures = []
    monkeypatch.setattr(plot, "_write", lambda fig, *rest: figures.append(fig) or [])
    return figures


def test_side_by_side_hides_none(shown):
    """A line a branch with the values of curve(), each at a place of its own, the best at the highest sparsity first;
    what is more than 30 points below is named."""
    names = [f"criterion_{letter}" for letter in "abcdefghijklm"]
    rows = study(levels=3, controls=names)
    lost = (rows["branch"] == names[3]) & (rows["level"] == 3)
    rows.loc[lost, "test_accuracy"] = 0.4
    plot.side_by_side(rows, "test_accuracy", "unused")
    (axes,) = shown[0].axes
    expected = analysis.curve(rows).set_index(["branch", "sparsity"])
    last = max(rows["sparsity"])
    order = [text.get_text() for text in shown[0].legends[0].get_texts()]
    assert order[0] == "dense" and set(order[1:]) == {"ticket", *names} and order[-1] == names[3]
    means = [expected.loc[(name, last), "mean"] for name in order[1:]]
    assert means == sorted(means, reverse=True)
    lines = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    looks = {(line.get_color(), line.get_marker()) for line in lines.values()}
    assert len(looks) == len({line.get_xdata()[0] for line in lines.values()}) == 14
    for name, line in lines.items():
        part = expected.loc[name].reset_index()
        x, y = (np.asarray(data, dtype=float) for data in (line.get_xdata(), line.get_ydata()))
        np.testing.assert_allclose(y, 100 * part["mean"].astype(float))
        np.testing.assert_allclose(x, 100 * (1 - part["sparsity"].astype(float)), rtol=0.15)
    assert f"below the axis: {names[3]} (down to 40.0%)" in caption(shown[0])
    plot.side_by_side(rows, "test_accuracy", "unused", depth=100.0)
    assert "below" not in caption(shown[1]) and shown[1].axes[0].get_ylim()[0] < 40 < axes.get_ylim()[0]


def test_layers_and_overlaps_are_drawn_as_measured(shown):
    """Left what is kept of each layer, and what of it is on a path; right the overlap, and by chance."""
    layers = pd.DataFrame([
        {"layer": layer, "place": place, "sparsity": s, "replicate": r, "layer_sparsity": s * f + 0.01 * r,
         "layer_effective_sparsity": s * f + 0.05}
        for place, (layer, f) in enumerate({"one": 1.0, "two": 0.5}.items()) for s in (0.5, 0.9) for r in (0, 1)
    ])  # fmt: skip
    rows = pd.DataFrame([
        {"sparsity": s, "replicate": r, "same_jaccard": 0.4 + 0.1 * r, "same_chance": 0.2} for s in (0.5, 0.9)
        for r in (0, 1)
    ])  # fmt: skip
    plot.by_layer(layers, {"same": "the same"}, rows, "unused")
    left, right = shown[0].axes
    lines = {line.get_label(): line for line in left.get_lines()}
    np.testing.assert_allclose(lines["one"].get_ydata(), [49.5, 9.5])
    np.testing.assert_allclose(lines["two"].get_ydata(), [74.5, 54.5])
    dotted = [line for line in left.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted[0].get_ydata(), [45.0, 5.0])
    overlap, chance = right.get_lines()
    np.testing.assert_allclose(overlap.get_ydata(), [45.0, 45.0])
    np.testing.assert_allclose(chance.get_ydata(), [20.0, 20.0])
    np.testing.assert_allclose(overlap.get_xdata(), [50.0, 10.0])

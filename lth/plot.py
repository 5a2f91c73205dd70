"""Figures of finished runs, as the lottery-ticket papers draw them (Frankle & Carbin 2019, arXiv:1803.03635, Fig 3-5).

x: weights remaining = 100 * (1 - sparsity) percent, logarithmic, decreasing to the right; y: mean over the replicates
and its 95% Student t interval. Dense is the level line and the first point of the ticket's curve. The colours are Okabe
and Ito's (https://jfly.uni-koeln.de/color/), safe for colour-blind readers; markers say the same again in grey print.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lth.analysis import curve, interval, means, weights

Kinds = Sequence[str]  # endings of the files to write

LABELS = {  # metric -> name of the y axis
    "test_accuracy": "test accuracy at the end of training (%)",
    "early_stop_test_accuracy": "test accuracy at early stop (%)",
    "early_stop_step": "early-stop step (minimum validation loss)",
}
INK, TICKET = "#444444", "#0072B2"
COLOURS, MARKERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), "s^DvP"
CONTROLS = [(COLOURS[i % 5], MARKERS[(i + i // 5) % 5]) for i in range(25)]  # 25 that differ in one or in both
PANEL = {1: 6.4, 2: 4.8, 3: 4.0}  # inches that a panel is wide, by the number of columns


Published = pd.DataFrame | None  # numbers of papers for these settings, as experiments.published finds them


def accuracy_vs_sparsity(
    rows: pd.DataFrame, path_stem: str | Path, kinds: Kinds = (".png", ".svg"), published: Published = None
) -> list[Path]:
    """Test accuracy at the end of training against weights remaining: writes and returns <stem>.png and <stem>.svg."""
    return _write(figure(rows, "test_accuracy", published), path_stem, kinds)


def early_stop_vs_sparsity(
    rows: pd.DataFrame, path_stem: str | Path, kinds: Kinds = (".png", ".svg"), published: Published = None
) -> list[Path]:
    """Step of minimum validation loss, the papers' speed of learning, against weights remaining; files as above."""
    return _write(figure(rows, "early_stop_step", published), path_stem, kinds)


def figure(rows: pd.DataFrame, metric: str, published: Published = None) -> Figure:
    """One panel per setting, at most 3 a row, all with the same axes; accuracies in percent; n is in the caption.
    What was published for a setting is drawn into its panel as hollow marks, a source a label.

    A control that collapses to chance would flatten all else: an accuracy axis ends where dense and ticket still fill a
    third of it (or 2 points below their top), and the caption names what leaves it. KeyError: a metric not in LABELS.
    """
    label, accuracy = LABELS[metric], metric.endswith("accuracy")
    lines = curve(rows, metric)
    lines[["mean", "half"]] *= 100.0 if accuracy else 1.0
    settings = list(lines["setting"].unique()) or [""]
    columns = min(3, len(settings))
    num_rows, width = math.ceil(len(settings) / columns), PANEL[columns]
    fig = Figure(figsize=(width * columns, 3.4 * num_rows + 1.2), layout="constrained")
    panels = fig.subplots(num_rows, columns, squeeze=False, sharey=True).ravel()
    controls = lines.loc[~lines["branch"].isin(["dense", "ticket"]), "branch"].unique()
    styles = dict(zip(controls, itertools.cycle(CONTROLS), strict=False)) | {"ticket": (TICKET, "o")}
    theirs = published[published["metric"] == metric] if published is not None else lines.iloc[:0]
    for axes, setting in zip(panels, settings, strict=False):
        _draw(axes, lines[lines["setting"] == setting], styles)
        _draw_published(axes, theirs[theirs["setting"] == setting], styles, 100.0 if accuracy else 1.0)
        _weights_axis(axes, pd.concat([lines["sparsity"], theirs["sparsity"]]), width - 0.9)
        axes.set_title(textwrap.fill(setting, int(width * 11)), fontsize=9, parse_math=False)
    for axes in panels[len(settings) :]:
        axes.remove()
    for axes in panels[::columns]:
        axes.set_ylabel(label)
    scaled = theirs.assign(mean=theirs["mean"] * 100.0) if accuracy else theirs
    drawn = pd.concat([lines, scaled[["branch", "sparsity", "mean"]]]) if len(scaled) else lines
    caption = _caption(lines, rows) + _limit(panels[0], drawn, accuracy)
    fig.supxlabel(textwrap.fill(caption, int(width * columns * 14)), fontsize=8, color=INK)
    entries = {str(line.get_label()): line for axes in panels[: len(settings)] for line in axes.get_lines()}
    entries = {label: line for label, line in entries.items() if not label.startswith("_")}
    if entries:
        fits = max(1, int(width * columns / (0.7 + 0.065 * max(map(len, entries)))))
        look = {"ncols": min(4, fits), "frameon": False, "fontsize": 9}
        fig.legend(entries.values(), entries.keys(), loc="outside upper center", **look)
    return fig


def side_by_side(
    rows: pd.DataFrame, metric: str, path_stem: str | Path, kinds: Kinds = (".png", ".svg"), depth: float = 30.0,
    published: Published = None,
) -> list[Path]:  # fmt: skip
    """`metric` against weights remaining, one line a branch however many there are: means with their 95% t intervals as
    bars, side by side where they would hide each other, the best at the highest sparsity first in the legend. What was
    published, under these branches, is drawn as hollow marks.

    The axis ends `depth` points below the best; the caption names what leaves it.
    """
    lines = curve(rows, metric)
    lines[["mean", "half"]] *= 100.0
    lines["half"] = lines["half"].fillna(0)
    others = lines[(lines["branch"] != "dense") & (lines["n"] > 0)]
    theirs = published[published["metric"] == metric] if published is not None else lines.iloc[:0]
    last = others[others["sparsity"] == others["sparsity"].max()]
    names = list(last.sort_values("mean", ascending=False)["branch"])
    fig = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = fig.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    for mean in lines.loc[lines["branch"] == "dense", "mean"]:
        axes.axhline(mean, color=INK, linewidth=1, label="dense")
    _weights_axis(axes, pd.concat([others["sparsity"], theirs["sparsity"]]), 5.0)
    step = math.log(axes.get_xlim()[0] / axes.get_xlim()[1]) / 150  # between neighbours, on the logarithmic axis
    styles = dict(zip(names, [(TICKET, "o"), *CONTROLS], strict=False))
    for place, (name, (colour, marker)) in enumerate(styles.items()):
        part = others[others["branch"] == name].sort_values("sparsity")
        left = 100 * (1 - part["sparsity"]) * math.exp(step * ((len(names) - 1) / 2 - place))
        look = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1, "elinewidth": 0.8}
        axes.errorbar(left, part["mean"], part["half"], capsize=1.5, label=name, **look)
    _draw_published(axes, theirs, styles, 100.0)
    lows, highs = (pd.concat([lines["mean"] + sign * lines["half"], 100 * theirs["mean"]]) for sign in (-1, 1))
    lowest = max(lows.min(), others["mean"].max() - depth)
    highest = min(100.0, highs.max())
    margin = 0.04 * (highest - lowest) or 1.0
    axes.set_ylim(lowest - margin, highest + margin)
    axes.set_ylabel(LABELS[metric])
    below = others[others["mean"] < lowest].groupby("branch", sort=False)["mean"].min()
    lost = ", ".join(f"{branch} (down to {mean:.1f}%)" for branch, mean in below.items())
    caption = _caption(lines, rows) + (f"; below the axis: {lost}" if lost else "")
    fig.supxlabel(textwrap.fill(caption, 110), fontsize=8, color=INK)
    fig.legend(loc="outside right upper", frameon=False, fontsize=9)
    return _write(fig, path_stem, kinds)


def against_step(
    rows: pd.DataFrame, panels: dict[str, str], path_stem: str | Path, limits: dict[str, float] | None = None,
    published: Published = None, kinds: Kinds = (".png", ".svg"),
) -> list[Path]:  # fmt: skip
    """One panel a metric (panels: metric -> name of its y axis) against the rewind step k, one line a network and
    sparsity: mean and 95% t interval over the replicates. limits: metric -> where a dotted line is drawn. published:
    its step `stable_from` of a network is a dotted upright in the panel of the error barrier.

    The axis of k is linear up to its smallest positive value and logarithmic from there. Accuracies, errors and
    disagreement are drawn in percent. A network that was trained has the name of its branch, a measurement that of what
    it is `of`; the dense network has one accuracy for all k.
    """
    rows = rows.assign(network=rows["of"].fillna(rows["branch"]))
    fig = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    axes_of = fig.subplots(1, len(panels), squeeze=False)[0]
    several = rows.loc[rows["network"] != "dense", "sparsity"].nunique() > 1
    names, counts = {}, []
    for axes, (metric, label) in zip(axes_of, panels.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        scale = 100.0 if any(word in metric for word in ("accuracy", "error_barrier", "disagreement")) else 1.0
        lines = means(rows, metric, ["network", "sparsity", "rewind_step"])
        for (network, sparsity), line in lines.groupby(["network", "sparsity"], sort=True):
            name = f"{network} at {weights(float(str(sparsity)))}" if several and network != "dense" else str(network)
            colour, marker = names.setdefault(name, ([(TICKET, "o"), *CONTROLS] * 2)[len(names)])
            look = {"color": INK if network == "dense" else colour, "label": name}
            mean, half, k = scale * line["mean"], scale * line["half"].fillna(0), line["rewind_step"]
            counts += list(line["n"])
            if network == "dense" and metric == "test_accuracy":
                axes.axhline(mean.mean(), linewidth=1, **look)
                continue
            axes.errorbar(k, mean, half, marker=marker, markersize=4, linewidth=1.5, capsize=2, **look)
        if limits and metric in limits:
            axes.axhline(scale * limits[metric], color=INK, linewidth=1, linestyle=":")
        if metric == "error_barrier" and published is not None:
            onset = published[published["metric"] == "stable_from"].drop_duplicates(["source", "branch", "mean"])
            for source, branch, k in onset[["source", "branch", "mean"]].itertuples(index=False):
                colour = (
                    INK if branch == "dense" else next((c for name, (c, _) in names.items() if branch in name), INK)
                )
                axes.axvline(k, color=colour, linewidth=1, linestyle=":", label=f"{branch} stable: {source}")
        steps = sorted(set(lines["rewind_step"]))
        positive = [step for step in steps if step > 0]
        if positive:
            axes.set_xscale("symlog", linthresh=positive[0])
        axes.set_xticks(steps, [f"{step:.0f}" for step in steps], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="rewind step k", ylabel=label + (" (%)" if scale > 1 else ""))
    span = " to ".join(dict.fromkeys([str(min(counts, default=0)), str(max(counts, default=0))]))
    fig.supxlabel(f"mean and 95% Student t interval over n={span} replicates", fontsize=8, color=INK)
    entries = {str(h.get_label()): h for axes in axes_of for h in [*axes.containers, *axes.get_lines()]}
    entries = {label: handle for label, handle in entries.items() if not label.startswith("_")}
    if entries:
        fig.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return _write(fig, path_stem, kinds)


def along_lines(
    lines: pd.DataFrame, metric: str, label: str, path_stem: str | Path, kinds: Kinds = (".png", ".svg")
) -> list[Path]:
    """`metric` (an error, in percent) along the line between two copies, alpha = 0 and 1 the copies themselves: one
    panel a network and sparsity, one line a rewind step, its mean over the pairs and replicates (analysis.lines)."""
    groups = list(lines.groupby(["of", "sparsity"], sort=True))
    fig = Figure(figsize=(3.6 * max(1, len(groups)) + 0.6, 3.8), layout="constrained")
    panels = fig.subplots(1, max(1, len(groups)), squeeze=False, sharey=True)[0]
    steps = sorted(lines["rewind_step"].unique())
    shades = mpl.colormaps["viridis"]
    for axes, ((of, sparsity), part) in zip(panels, groups, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        for place, k in enumerate(steps):
            mean = 100 * part[part["rewind_step"] == k].groupby("alpha")[metric].mean()
            colour = shades(0.9 * place / max(1, len(steps) - 1))
            axes.plot(mean.index, mean, color=colour, linewidth=1.6, label=f"k={k:.0f}")
        name = str(of) if of == "dense" else f"{of} at {weights(float(str(sparsity)))}"
        axes.set(xlabel="alpha", title=name, xticks=[0, 0.5, 1])
    panels[0].set_ylabel(f"{label} (%)")
    caption = f"mean over the pairs of copies of n={lines['replicate'].nunique()} replicates"
    fig.supxlabel(caption, fontsize=8, color=INK)
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=7, frameon=False, fontsize=9)
    return _write(fig, path_stem, kinds)


def by_layer(
    layers: pd.DataFrame, overlaps: dict[str, str], rows: pd.DataFrame, path_stem: str | Path,
    kinds: Kinds = (".png", ".svg"),
) -> list[Path]:  # fmt: skip
    """Anatomy of tickets' masks against weights remaining: what is left of each layer (dotted: on a path from input to
    output), and their Jaccard overlap with other masks (dotted: that of random masks with the same counts).

    layers: analysis.layers. rows: of branch=anatomy. overlaps: prefix of their columns _jaccard and _chance -> name.
    Means over the replicates, in percent.
    """
    fig = Figure(figsize=(10.0, 4.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    looks = [(TICKET, "o"), *CONTROLS] * (1 + layers["layer"].nunique() // len(CONTROLS))

    def draw(axes: Axes, values: pd.Series, faint: pd.Series, label: str, look: tuple[str, str]) -> None:
        axes.plot(100 * (1 - values.index), 100 * values, color=look[0], marker=look[1], markersize=4, label=label)
        axes.plot(100 * (1 - faint.index), 100 * faint, color=look[0], linestyle=":", linewidth=1)

    if "layer_effective_sparsity" not in layers:  # of a network that lth.graph cannot follow
        layers = layers.assign(layer_effective_sparsity=math.nan)
    for look, ((_, layer), part) in zip(looks, layers.groupby(["place", "layer"]), strict=False):
        kept = 1 - part.groupby("sparsity")[["layer_sparsity", "layer_effective_sparsity"]].mean()
        draw(left, kept["layer_sparsity"], kept["layer_effective_sparsity"], str(layer), look)
    for look, (prefix, name) in zip(looks, overlaps.items(), strict=False):
        grouped = rows.dropna(subset=[f"{prefix}_jaccard"]).groupby("sparsity")
        draw(right, grouped[f"{prefix}_jaccard"].mean(), grouped[f"{prefix}_chance"].mean(), name, look)
    for axes, label in ((left, "weights remaining in the layer (%)"), (right, "Jaccard overlap (%)")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        _weights_axis(axes, rows["sparsity"], 4.0)
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8)
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    count = rows["replicate"].nunique()
    fig.supxlabel(
        f"mean over n={count} replicates; dotted, left: on a path from input to output; dotted, right: by chance",
        fontsize=8, color=INK,
    )  # fmt: skip
    return _write(fig, path_stem, kinds)


def replicates(
    values: dict[str, pd.Series], label: str, path_stem: str | Path, kinds: Kinds = (".png", ".svg")
) -> list[Path]:
    """Each replicate's value as a point, by name, with mean and 95% t interval beside them; a line at 0."""
    fig = Figure(figsize=(1.6 + 1.5 * len(values), 4.0), layout="constrained")
    axes = fig.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.axhline(0.0, color=INK, linewidth=1)
    for place, (series, (colour, marker)) in enumerate(zip(values.values(), [(TICKET, "o"), *CONTROLS], strict=False)):
        mean, half, _ = interval(series)
        axes.plot([place - 0.12] * len(series), series, marker, color=colour, alpha=0.5, markersize=5)
        axes.errorbar(place + 0.12, mean, 0.0 if math.isnan(half) else half, fmt=marker, color=colour, capsize=4)
    axes.set_xticks(range(len(values)), list(values))
    axes.set(xlim=(-0.5, len(values) - 0.5), ylabel=label)
    count = max((len(series) for series in values.values()), default=0)
    fig.supxlabel(f"each replicate, and mean with 95% Student t interval, n={count}", fontsize=8, color=INK)
    return _write(fig, path_stem, kinds)


def _draw(axes: Axes, lines: pd.DataFrame, styles: dict[str, tuple[str, str]]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    if not (lines["n"] > 0).any():
        text = "no run finished: all diverged" if len(lines) else "no rows"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK)
        return
    dense = lines[lines["branch"] == "dense"]
    for mean, half in zip(dense["mean"], dense["half"], strict=True):
        axes.axhline(mean, color=INK, linewidth=1, label="dense", zorder=1)
        if not math.isnan(half):
            axes.axhspan(mean - half, mean + half, color=INK, alpha=0.12, linewidth=0, zorder=0)
    for branch in lines.loc[lines["branch"] != "dense", "branch"].unique():
        ticket = branch == "ticket"
        colour, marker = styles[branch]
        part = lines[lines["branch"].isin(["dense", "ticket"] if ticket else [branch])]  # sorted: dense comes first
        left, mean, half = 100 * (1 - part["sparsity"]), part["mean"], part["half"]
        look = {"linewidth": 2.2, "markersize": 5} if ticket else {"linewidth": 1.3, "markersize": 4, "linestyle": "--"}
        axes.plot(left, mean, color=colour, marker=marker, label=branch, zorder=4 if ticket else 3, **look)
        axes.fill_between(left, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0, zorder=2)
        axes.vlines(left, mean - half, mean + half, color=colour, alpha=0.5, linewidth=1, zorder=2)  # a point's own


def _draw_published(axes: Axes, theirs: pd.DataFrame, styles: dict[str, tuple[str, str]], scale: float) -> None:
    """Hollow marks and a dotted line, in the colour of the same branch of ours; an interval from n=3 on, since that of
    two values is wider than the figure."""
    for (source, branch), part in theirs.groupby(["source", "branch"], sort=False) if len(theirs) else ():
        colour, marker = styles.get(str(branch), (INK, "o"))
        part = part.sort_values("sparsity")
        left, mean = 100 * (1 - part["sparsity"]), scale * part["mean"]
        half = scale * part["half"].where(part["n"] >= 3).fillna(0)
        look = {"color": colour, "marker": marker, "markerfacecolor": "none", "markersize": 6, "linewidth": 0.8}
        axes.errorbar(left, mean, half, linestyle=":", capsize=2, zorder=5, **look)
        axes.plot([], [], linestyle=":", label=f"{branch}: {source}", **look)  # its legend, without the bars


def _weights_axis(axes: Axes, sparsity: pd.Series, inches: float) -> None:
    """Ticks at the data's own values: both ends, and between them those whose labels do not touch."""
    values = sorted({100.0, *(100 * (1 - sparsity))}, reverse=True)
    names = {value: f"{value:.1f}".removesuffix(".0") if value >= 10 else f"{value:.2g}" for value in values}
    first, last = values[0], values[-1]
    scale = inches / math.log(first / last) if last < first else 0.0

    def clear(a: float, b: float) -> bool:
        return scale * math.log(a / b) > 0.075 * (len(names[a]) + len(names[b])) / 2 + 0.08  # 9 point digits, a gap

    ticks = [first]
    for value in values[1:-1]:
        if clear(ticks[-1], value) and clear(value, last):
            ticks.append(value)
    ticks += [last] if last < first else []
    margin = (first / last) ** 0.04 if last < first else 1.5
    axes.set(xscale="log", xlim=(first * margin, last / margin), xlabel="weights remaining (%)")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [names[tick] for tick in ticks], fontsize=9)


def _limit(axes: Axes, lines: pd.DataFrame, accuracy: bool) -> str:
    """Sets the y range of all panels; returns what the caption has to say about it."""
    low, high = lines["mean"] - lines["half"].fillna(0), lines["mean"] + lines["half"].fillna(0)
    if not low.notna().any():
        axes.set_yticks([])
        return ""
    bottom, top = (low.min(), min(high.max(), 100.0)) if accuracy else (0.0, high.max())
    focus = lines["branch"].isin(["dense", "ticket"]) & low.notna()
    if accuracy and focus.any():
        peak = min(high[focus].max(), 100.0)
        bottom = max(bottom, peak - max(2.0, 3 * (peak - low[focus].min())))
    margin = 0.04 * (top - bottom) or 1.0
    axes.set_ylim(bottom - margin if accuracy else 0.0, top + margin)
    below = lines[lines["mean"] < bottom - margin].groupby("branch", sort=False)["mean"].min()
    return "".join(f"; below the axis: {branch} (down to {mean:.1f}%)" for branch, mean in below.items())


def _caption(lines: pd.DataFrame, rows: pd.DataFrame) -> str:
    finished = [n for n in lines["n"] if n > 0]
    num_diverged = rows.loc[rows["diverged_step"].notna(), "stage"].nunique()
    left_out = f"; {num_diverged} diverged runs left out" if num_diverged else ""
    if max(finished, default=0) < 2:
        return ("n=1: no interval" if finished else "no finished run") + left_out
    count = " to ".join(dict.fromkeys([str(min(finished)), str(max(finished))]))
    return f"mean and 95% Student t interval over n={count} replicates{left_out}"


def _write(fig: Figure, path_stem: str | Path, kinds: Kinds) -> list[Path]:
    """The svg holds no date and no random ids: the same rows give the same bytes."""
    paths = [Path(f"{path_stem}{kind}") for kind in kinds]
    if engine := fig.get_layout_engine():  # laid out once, not once a file; with an engine each file is drawn twice
        engine.execute(fig)
        fig.set_layout_engine(None)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": "lth"}):
            fig.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths

"""What do the masks of tickets look like: how much of each layer, what of it can be reached, what they have in common?

Claim      layers lose weights at different rates; weights on no path from input to output make a mask sparser than its
           count says; masks of other initial weights share no more than chance, those of other criteria drawn from one
           trained network do
Source     Vysogorets & Kempe 2023, https://arxiv.org/abs/2107.02306, effective sparsity; Tanaka et al. 2020,
           https://arxiv.org/abs/2006.05467, layer collapse; Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635,
           appendix E
Figure     weights remaining by layer, and Jaccard overlap with other masks, against weights remaining
Command    python main.py study=mask_anatomy
Cost       88 trainings of 1,000 steps, 84 measurements
"""

from lth import analysis, plot
from lth.analysis import Verdict, interval, points, table_of, weights

WITH = {
    "one_shot": "one-shot, same criterion",
    "movement_abs": "one-shot, movement_abs",
    "snip": "one-shot, snip",
    "magnitude_at_init": "one-shot, magnitude_at_init",
    "replicate_0": "replicate 0",
}


def overlaps(rows):
    """Those masks of WITH whose overlap was measured."""
    columns = set(rows.columns[rows.notna().any()])
    return {prefix: name for prefix, name in WITH.items() if f"{prefix}_jaccard" in columns}


def table(rows):
    """By sparsity, means over the replicates: effective sparsity, dead units, layers without a weight, overlaps in
    percent."""
    measured = rows[rows["of"] == "ticket"]
    lines, found = [], overlaps(measured)
    for sparsity, part in measured.groupby("sparsity"):
        numbers = [part[metric].mean() for metric in ("effective_sparsity", "dead_units", "collapsed_layers")]
        cells = [f"{100 * numbers[0]:.2f}", *(f"{number:.1f}" for number in numbers[1:])]
        cells += [f"{100 * part[f'{prefix}_jaccard'].mean():.1f}" for prefix in found]
        lines.append((weights(sparsity), *cells))
    names = [name.removeprefix("one-shot, ").replace("_", " ") for name in found.values()]
    return table_of(("weights left", "effective %", "dead units", "layers lost", *names), lines)


def figure(rows, stem, published, records):
    """Write <stem>.png and <stem>.svg."""
    measured = rows[rows["of"] == "ticket"]
    return plot.by_layer(analysis.layers(records, measured), overlaps(measured), measured, stem)


def verdict(rows):
    """Collapse, effective sparsity, and overlaps beside chance at the highest sparsity."""
    measured = rows[rows["of"] == "ticket"]
    last = measured[measured["sparsity"] == measured["sparsity"].max()]
    where = f"at {weights(measured['sparsity'].max())} of the weights"
    collapsed = measured[measured["collapsed_layers"] > 0]
    first = f"first at {weights(collapsed['sparsity'].min())} of the weights" if len(collapsed) else "in no mask"
    found = [Verdict("no layer is emptied", collapsed.empty, f"a whole layer is removed {first}")]
    mean, half, n = interval((last["effective_sparsity"] - last["sparsity"]).dropna())
    evidence = f"effective sparsity {points(mean, half, '+')} points above sparsity {where} (t interval, 95%, n={n})"
    found.append(Verdict("effective sparsity is above sparsity", mean > half if n > 1 else None, evidence))
    for prefix, name in overlaps(measured).items():
        mean, half, n = interval((last[f"{prefix}_jaccard"] - last[f"{prefix}_chance"]).dropna())
        both = f"{100 * last[f'{prefix}_jaccard'].mean():.1f}%, {100 * last[f'{prefix}_chance'].mean():.1f}% by chance"
        evidence = f"overlap with {name} {both} {where}: {points(mean, half, '+')} points (t interval, 95%, n={n})"
        found.append(Verdict(f"the mask shares more than chance with {name}", mean > half if n > 1 else None, evidence))
    return found

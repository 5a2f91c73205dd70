"""Which weights matter? The criteria that read a trained network, on one figure.

Claim      no criterion beats magnitude where each level is trained again; random scores, and those that keep the
           smallest weights, fall behind first
Source     Zhou et al. 2019, https://arxiv.org/abs/1905.01067, figure 4; Blalock et al. 2020,
           https://arxiv.org/abs/2003.03033, on how seldom criteria are compared under one protocol
Figure     accuracy of the tickets against weights remaining, one line a criterion
Command    python main.py study=criteria
Cost       153 trainings of 1,000 steps
"""

import re

import pandas as pd

from lth import plot
from lth.analysis import Verdict, interval, means, points, table_of, weights


def criterion_of(setting):
    """What a setting says of the criterion and of when it pruned, as "snip" or "snip at init"."""
    named = dict(re.findall(r"([\w.]+)=([\w.]+)", setting))
    return named.get("criterion", "magnitude") + (" at init" if named.get("prune.when") == "init" else "")


def of_criteria(rows):
    """The dense networks and the tickets of all settings together: a ticket's branch is then its criterion_of."""
    tickets, dense = (rows[rows["branch"] == branch] for branch in ("ticket", "dense"))
    named = tickets.assign(branch=tickets["setting"].map(criterion_of))
    return pd.concat([dense.drop_duplicates("stage"), named]).assign(setting="")


def table(rows):
    """By criterion: accuracy of its tickets at each sparsity, best at the last one first."""
    lines = means(of_criteria(rows), "test_accuracy", ["branch", "sparsity"])
    tickets = lines[lines["branch"] != "dense"]
    sparsities = sorted(tickets["sparsity"].unique())
    cells = {(line.branch, line.sparsity): points(line.mean, line.half) for line in tickets.itertuples()}
    last = tickets[tickets["sparsity"] == sparsities[-1]].sort_values("mean", ascending=False)
    filled = {name: [cells.get((name, sparsity), "") for sparsity in sparsities] for name in last["branch"]}
    named = [(name.replace("_", " "), *line) for name, line in filled.items()]
    return table_of(("criterion", *map(weights, sparsities)), named)


def figure(rows, stem, published, records):
    """Write <stem>.png and <stem>.svg."""
    return plot.side_by_side(of_criteria(rows), "test_accuracy", stem)


def verdict(rows):
    """Each criterion against magnitude, paired by replicate, at the highest sparsity."""
    tickets = of_criteria(rows)
    return [against(tickets, name, "magnitude") for name in _names(tickets) if name != "magnitude"]


def against(tickets, name, other):
    """Verdict: are the tickets of one criterion above those of another at the highest sparsity?"""
    last = tickets[tickets["sparsity"] == tickets["sparsity"].max()]
    one, two = (last[last["branch"] == b].set_index("replicate")["test_accuracy"] for b in (name, other))
    mean, half, n = interval((one - two).dropna())
    word = "not told apart from" if not abs(mean) > half else "above" if mean > 0 else "below"
    evidence = f"{name} {word} {other}: {points(mean, half, '+')} points at {weights(last['sparsity'].max())}"
    return Verdict(f"{name} above {other}", mean > half if n > 1 else None, f"{evidence} (paired t, 95%, n={n})")


def _names(tickets):
    return list(dict.fromkeys(tickets.loc[tickets["branch"] != "dense", "branch"]))

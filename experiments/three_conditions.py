"""Winning ticket, random reinitialisation, random mask: is it the structure, the weights, or both?

Claim      at one sparsity the ticket is above its own mask with fresh weights, and above a random mask with its own
           initial weights
Source     Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635, section 2
Figure     difference of accuracy to the dense network, replicate by replicate
Command    python main.py study=three_conditions
Cost       70 trainings of 1,000 steps
"""

from lth import plot
from lth.analysis import Verdict, paired, points, table_of, weights

CONDITIONS = ("ticket", "random_reinit", "random_mask")


def table(rows):
    """Paired difference to the dense network at the sparsity where all three are trained."""
    lines = [(name, f"{points(mean, half, '+')}", str(n)) for name, _, mean, half, n in differences(rows)]
    return table_of(("condition", "points above dense", "n"), lines)


def figure(rows, stem, published, records):
    """Write <stem>.png and <stem>.svg."""
    last = rows[rows["sparsity"] == rows.loc[rows["branch"].isin(CONDITIONS[1:]), "sparsity"].max()]
    dense = rows[rows["branch"] == "dense"].set_index("replicate")["test_accuracy"]
    values = {name: last[last["branch"] == name].set_index("replicate")["test_accuracy"] - dense for name in CONDITIONS}
    return plot.replicates({name: 100 * found.dropna() for name, found in values.items()}, "points above dense", stem)


def verdict(rows):
    """The ticket against each control, paired by replicate."""
    found = []
    for control in CONDITIONS[1:]:
        for sparsity, mean, half, n, _ in paired(rows, "ticket", control)[-1:]:
            evidence = f"ticket {points(mean, half, '+')} points above {control} at {weights(sparsity)} of the weights"
            holds = mean > half if n > 1 else None
            found.append(Verdict(f"ticket above {control}", holds, f"{evidence} (paired t, 95%, n={n})"))
    return found


def differences(rows):
    """(condition, sparsity, mean and half of accuracy - dense, n) at the highest sparsity of each condition."""
    return [(name, *line[:4]) for name in CONDITIONS for line in paired(rows, name, "dense")[-1:]]

"""From which rewind step on are tickets stable, and from which do they match?

Claim      tickets rewound to a step k early in training match the dense network where those rewound to 0 may not, and
           they match where they are stable: where copies trained in other data orders find one linearly connected
           minimum (error barrier below 2 points), and where pruning moves the trained weights little
Source     Frankle et al. 2019, https://arxiv.org/abs/1903.01611; Frankle et al. 2020, https://arxiv.org/abs/1912.05671,
           which finds LeNet on MNIST stable at initialisation already
Figure     error barrier, distance between the copies, distance to the pruned network, accuracy, against k; test error
           along the line between the copies
Command    python main.py study=rewinding_stability; with the paper's: study=frankle2020_resnet20, frankle2020_vgg16
Cost       123 trainings of up to 1,000 steps (one dense training a replicate), 45 measurements
"""

import math

from lth import analysis, plot
from lth.analysis import STABLE, Verdict, matches_dense, means, points, table_of, weights

PANELS = {
    "error_barrier": "error barrier",
    "distance": "L2 distance of two copies",
    "pruning_distance": "L2 distance to the pruned network",
    "test_accuracy": "test accuracy",
}


def table(rows):
    """By network, sparsity and k: error barrier, distances, and the accuracy of the ticket."""
    by = ["of", "sparsity", "rewind_step"]
    measured = [means(rows, metric, by).set_index(by) for metric in ("error_barrier", "distance", "pruning_distance")]
    accuracy = means(rows[rows["branch"] == "ticket"], "test_accuracy", by[1:]).set_index(by[1:])
    lines = []
    for key, barrier in measured[0].iterrows():
        of, sparsity, k = key
        cells = [f"{part.loc[key, 'mean']:.2f}" if key in part.index else "" for part in measured[1:]]
        own = of == "ticket" and key[1:] in accuracy.index
        cells.append(points(accuracy.loc[key[1:], "mean"], accuracy.loc[key[1:], "half"]) if own else "")
        lines.append((of, weights(sparsity), f"{k:.0f}", points(barrier["mean"], barrier["half"]), *cells))
    headers = ("network", "weights left", "k", "error barrier", "distance", "to pruned", "accuracy %")
    return table_of(headers, lines)


def figure(rows, stem, published, records):
    """Write <stem>.png and <stem>_lines.png, and both as .svg."""
    measured = rows[rows["sparsity"].isin([0.0, *rows.loc[rows["error_barrier"].notna(), "sparsity"]])]
    return [
        *plot.against_step(measured, PANELS, stem, {"error_barrier": STABLE}, published),
        *plot.along_lines(analysis.lines(records, rows), "test_error", "test error", f"{stem}_lines"),
    ]


def verdict(rows):
    """By sparsity: the first k that is stable, the first that matches, and whether they go together."""
    found = []
    for of, part in rows[rows["error_barrier"].notna()].groupby("of"):
        for sparsity, here in part.groupby("sparsity"):
            found.append(stable_from(here, f"{of} at {weights(sparsity)} of the weights"))
    tickets = rows[rows["error_barrier"].notna() & (rows["of"] == "ticket")]
    for sparsity, here in tickets.groupby("sparsity"):
        stable = {k: mean < STABLE for k, mean in means(here, "error_barrier", ["rewind_step"]).iloc[:, :2].to_numpy()}
        matching = matches_dense(rows, sparsity)
        both = [k for k in stable if matching.get(k) is not None]
        agree = [k for k in both if stable[k] == matching[k]]
        first = next((f"k={k:.0f}" for k in sorted(matching) if matching[k]), "no k")
        found.append(Verdict(
            "tickets match where they are stable", len(agree) == len(both) if both else None,
            f"tickets at {weights(sparsity)} of the weights match dense first at {first}; "
            f"stable and matching, or neither, at {len(agree)} of {len(both)} rewind steps",
        ))  # fmt: skip
    return found


def stable_from(rows, name):
    """Verdict: the first k from which on every mean error barrier is below 2 points."""
    line = means(rows, "error_barrier", ["rewind_step"]).sort_values("rewind_step")
    unstable = line.loc[line["mean"] >= STABLE, "rewind_step"]
    good = line[line["rewind_step"] > unstable.max()] if len(unstable) else line
    worst = line.loc[line["mean"].idxmax()]
    range_ = f"largest barrier {points(worst['mean'], worst['half'])} points at k={worst['rewind_step']:.0f}"
    basis = f"(t interval, 95%, n={worst['n']:.0f}; stable: below {points(STABLE, math.nan)} points)"
    if good.empty:
        return Verdict(f"{name} becomes stable", False, f"{name} is not stable at any k tested; {range_} {basis}")
    k = good["rewind_step"].iloc[0]
    return Verdict(f"{name} becomes stable", True, f"{name} is stable from k={k:.0f} on; {range_} {basis}")

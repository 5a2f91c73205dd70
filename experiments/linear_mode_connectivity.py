"""Is the line between two copies of a network free of barriers, for the dense network and for its ticket?

Claim      a dense network becomes stable to the order of its data early in training; a ticket that matches is stable at
           an earlier step than the dense network
Source     Frankle et al. 2020, https://arxiv.org/abs/1912.05671, figures 3 and 5; LeNet on MNIST is stable at
           initialisation there, dense and pruned
Figure     barriers of error and loss, distance and disagreement of the copies, against k; test error along the line
           between them
Command    python main.py study=linear_mode_connectivity
Cost       129 trainings of up to 1,000 steps, 36 measurements
"""

from experiments.rewinding_stability import stable_from, table
from lth import analysis, plot
from lth.analysis import STABLE, Verdict, weights

__all__ = ["figure", "table", "verdict"]
PANELS = {
    "error_barrier": "error barrier",
    "loss_barrier": "loss barrier (nats)",
    "distance": "L2 distance of two copies",
    "disagreement": "disagreement",
}


def figure(rows, stem, published, records):
    """Write <stem>.png and <stem>_lines.png, and both as .svg."""
    return [
        *plot.against_step(rows[rows["of"].notna()], PANELS, stem, {"error_barrier": STABLE}, published),
        *plot.along_lines(analysis.lines(records, rows), "test_error", "test error", f"{stem}_lines"),
    ]


def verdict(rows):
    """The first k that is stable, dense and ticket, and which comes first."""
    measured = rows[rows["error_barrier"].notna()]
    found, onset = [], {}
    for (of, sparsity), part in measured.groupby(["of", "sparsity"]):
        name = "dense" if of == "dense" else f"{of} at {weights(sparsity)} of the weights"
        found.append(stable_from(part, name))
        means_by_k = part.groupby("rewind_step")["error_barrier"].mean()
        unstable = means_by_k[means_by_k >= STABLE].index.max() if (means_by_k >= STABLE).any() else -1
        onset[of] = next((k for k in means_by_k.index if k > unstable), float("inf"))
    if {"dense", "ticket"} <= set(onset):
        claim = "the ticket is stable no later than the dense network"
        evidence = f"stable from k on: ticket {onset['ticket']:.0f}, dense {onset['dense']:.0f}"
        found.append(Verdict(claim, onset["ticket"] <= onset["dense"], evidence))
    return found

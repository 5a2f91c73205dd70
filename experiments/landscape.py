"""What does the loss look like around the rewind point and the end of training, inside the mask?

Claim      the largest curvature falls as training goes on from k = 0, and is smaller inside a ticket's mask than in the
           dense network at the same step: a measurement, no claim of the rewinding papers
Source     methods in lth/landscape.py; sharpness of tickets: Frankle et al. 2020, https://arxiv.org/abs/1912.05671,
           leave it open
Figure     largest Hessian eigenvalue and trace at k, largest eigenvalue and sharpness at the end, against k
Command    python main.py study=landscape
Cost       63 trainings of up to 1,000 steps, 24 measurements of about 10 s
"""

from lth import plot
from lth.analysis import Verdict, interval, means, table_of, weights

PANELS = {
    "start_largest_eigenvalue": "largest eigenvalue at k",
    "start_trace": "trace of the Hessian at k",
    "end_largest_eigenvalue": "largest eigenvalue at the end",
    "end_sharpness": "sharpness at the end (nats)",
}


def table(rows):
    """By network, sparsity and k: mean and half of the 95% t interval of each figure's metric."""
    by = ["of", "sparsity", "rewind_step"]
    measured = [means(rows, metric, by).set_index(by) for metric in PANELS]
    lines = []
    for key in measured[0].index:
        cells = [f"{part.loc[key, 'mean']:.2g} +- {part.loc[key, 'half']:.1g}" for part in measured]
        lines.append((key[0], weights(key[1]), f"{key[2]:.0f}", *cells))
    headers = ("network", "weights left", "k", "eigenvalue at k", "trace at k", "eigenvalue at end", "sharpness at end")
    return table_of(headers, lines)


def figure(rows, stem, published, records):
    """Write <stem>.png and <stem>.svg."""
    return plot.against_step(rows[rows["of"].notna()], PANELS, stem)


def verdict(rows):
    """Paired by replicate: does the curvature at the rewind point fall with k, and is it less inside the mask?"""
    found = []
    measured = rows[rows["start_largest_eigenvalue"].notna()]
    first, last = measured["rewind_step"].min(), measured["rewind_step"].max()

    def values(of, k, metric):
        return measured[(measured["of"] == of) & (measured["rewind_step"] == k)].set_index("replicate")[metric]

    for of in measured["of"].unique():
        early, late = (values(of, k, "start_largest_eigenvalue") for k in (first, last))
        found.append(_below(f"{of}: largest eigenvalue at k={last:.0f}", f"at k={first:.0f}", late, early))
    if {"dense", "ticket"} <= set(measured["of"]):
        ticket, dense = (values(of, last, "end_largest_eigenvalue") for of in ("ticket", "dense"))
        found.append(_below(f"largest eigenvalue at the end of training, k={last:.0f}: ticket", "dense", ticket, dense))
    return found


def _below(name, other, smaller, larger):
    mean, half, n = interval((smaller - larger).dropna())
    evidence = f"{name} {smaller.mean():.3g}, {other} {larger.mean():.3g}: difference {mean:+.3g} +- {half:.2g}"
    return Verdict(f"{name} below {other}", mean + half < 0 if n > 1 else None, f"{evidence} (paired t, 95%, n={n})")

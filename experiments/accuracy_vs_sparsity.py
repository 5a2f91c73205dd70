"""Accuracy against sparsity with all the controls of Frankle & Carbin: reinitialised, random, and pruned in one shot.

Claim      as in experiments/tickets.py; and iterative pruning finds tickets at higher sparsity than one-shot pruning
Source     Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635, section 2, figures 3 and 4
Figure     accuracy_vs_sparsity, early_stop_vs_sparsity
Command    python main.py study=accuracy_vs_sparsity; with the paper's settings: study=frankle2019_lenet
Cost       132 trainings of 1,000 steps
"""

from experiments.tickets import table
from lth.analysis import Verdict, paired, points, verdicts, weights

__all__ = ["table", "verdict"]


def verdict(rows):
    """Those of experiments/tickets.py, and whether the ticket is above the one-shot ticket at the highest sparsity."""
    return [*verdicts(rows), *one_shot(rows)]


def one_shot(rows):
    """At how many sparsities iterative pruning is above, level with and below one-shot pruning (paired t, 95%)."""
    lines = [(sparsity, mean, half) for sparsity, mean, half, n, _ in paired(rows, "ticket", "one_shot") if n > 1]
    if not lines:
        return []
    above = [line for line in lines if line[1] > line[2]]
    below = [line for line in lines if -line[1] > line[2]]
    sparsity, mean, half = lines[-1]
    evidence = (
        f"iterative above one-shot at {len(above)}, below at {len(below)} of {len(lines)} sparsities; "
        f"{points(mean, half, '+')} points at {weights(sparsity)} of the weights"
    )
    return [Verdict("iterative above one-shot at the highest sparsity", mean > half, evidence)]

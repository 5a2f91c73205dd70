"""Does a ticket match the dense network, and do its controls? What every job reports that names no study.

Claim      a network contains sparse subnetworks that, trained alone from their own initial weights, match it; the same
           masks with fresh weights, and random masks of the same layer sparsities, fall behind as sparsity grows
Source     Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635, section 2, figures 1, 3 and 4
Figure     accuracy_vs_sparsity, early_stop_vs_sparsity (<sweep>/report/)
Command    python main.py -m prune.sparsity=0.5,0.8,0.9; Conv-2, 4 and 6 as in the paper: study=frankle2019_conv
Cost       120 trainings of 1,000 steps, 82 to 126 s on two CPU cores
"""

from lth import analysis


def table(rows):
    """Accuracy of ticket and controls by level, a rich table."""
    return analysis.table(rows)


def verdict(rows):
    """Which branch matches dense, down to how many weights, and how far the ticket is above each control."""
    return analysis.verdicts(rows)

"""How far can a network be pruned at initialisation before a whole layer is gone, and who goes furthest?

Claim      SynFlow empties no layer at any compression, where magnitude, SNIP and GraSP do; where few weights are left
           its networks are the best
Source     Tanaka et al. 2020, https://arxiv.org/abs/2006.05467, figure 6
Figure     accuracy against weights remaining, one line a criterion, the paper's as hollow marks
Command    python main.py study=quick/tanaka2020_vgg16; with the paper's settings: study=tanaka2020_vgg16
Cost       48 trainings of 160 steps and 45 measurements; of the paper's size 183 trainings of 160 epochs
"""

from experiments.criteria import against, criterion_of, of_criteria, table
from lth import plot
from lth.analysis import Verdict, weights

__all__ = ["table", "verdict"]


def figure(rows, stem, published, records):
    """Write <stem>.png and <stem>.svg, down to chance."""
    dense = published["branch"] == "dense"
    theirs = published.assign(branch=published["branch"].where(dense, published["setting"].map(criterion_of)))
    return plot.side_by_side(of_criteria(rows), "test_accuracy", stem, depth=100.0, published=theirs)


def verdict(rows):
    """By criterion: where is a layer emptied first? Then SynFlow against each other one, at the highest sparsity."""
    found = []
    for setting, part in rows[rows["collapsed_layers"].notna()].groupby("setting", sort=False):
        emptied = part.loc[part["collapsed_layers"] > 0, "sparsity"]
        name, lowest = criterion_of(str(setting)), weights(part["sparsity"].max())
        where = f"a layer first at {weights(emptied.min())}" if len(emptied) else f"no layer down to {lowest}"
        evidence = f"{name} empties {where} of the weights, in {len(emptied)} of {len(part)} masks"
        found.append(Verdict(f"{name} empties no layer", emptied.empty, evidence))
    tickets = of_criteria(rows)
    others = [name for name in tickets["branch"].unique() if name not in ("dense", "synflow")]
    return found + [against(tickets, "synflow", name) for name in others if "synflow" in set(tickets["branch"])]

"""Pruning at initialisation: do SNIP, GraSP and SynFlow find weights, or only how many to keep in each layer?

Claim      masks drawn at initialisation stay below magnitude after training; shuffled within each layer, or given fresh
           weights, they train as well or better, where tickets of magnitude after training get worse
Source     Frankle et al. 2021, https://arxiv.org/abs/2009.08576, figures 1 to 3; random_mask is their layerwise shuffle
Figure     accuracy against weights remaining, one line a criterion, at initialisation and after training
Command    python main.py study=pruning_at_init
Cost       183 trainings of 1,000 steps
"""

from experiments.criteria import against, figure, of_criteria, table
from lth.analysis import Verdict, paired, points, weights

__all__ = ["figure", "table", "verdict"]
CONTROLS = {"random_mask": "shuffled within each layer", "random_reinit": "given fresh weights"}


def verdict(rows):
    """Each criterion, at initialisation and after training: against its own controls, then against magnitude after
    training. At initialisation the claim is that a control is as good; after training, that it is worse."""
    found = []
    for setting, part in rows.groupby("setting", sort=False):
        (name,) = of_criteria(part).query("branch != 'dense'")["branch"].unique()
        for control, words in CONTROLS.items():
            for sparsity, mean, half, n, _ in paired(part, control, "ticket")[-1:]:
                early = name.endswith("at init")
                claim = f"{name}, {words}, is {'as good' if early else 'worse'}"
                holds = None if n < 2 else mean + half >= 0 if early else mean + half < 0
                result = f"{name} {words}: {points(mean, half, '+')} points at {weights(sparsity)} of the weights"
                found.append(Verdict(claim, holds, f"{result} (paired t, 95%, n={n})"))
    tickets = of_criteria(rows)
    names = [name for name in tickets["branch"].unique() if name.endswith("at init")]
    if "magnitude" in set(tickets["branch"]):
        found += [against(tickets, name, "magnitude") for name in names]
    return found

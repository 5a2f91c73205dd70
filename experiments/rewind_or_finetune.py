"""After pruning: rewind the weights, rewind the learning rate, or fine-tune?

Claim      rewinding the weights or the learning-rate schedule gives better networks than fine-tuning at the last
           learning rate; learning-rate rewinding is at least as good as weight rewinding
Source     Renda et al. 2020, https://arxiv.org/abs/2003.02389, figures 1 and 2
Figure     accuracy_vs_sparsity, one panel a way to retrain
Command    python main.py study=rewind_or_finetune
Cost       90 trainings of 900 or 1,000 steps
"""

import itertools

from lth.analysis import Verdict, interval, points, table, weights

__all__ = ["table", "verdict"]
NAMES = {
    "rewind=early": "weight rewinding",
    "rewind=renda2020": "weight rewinding",
    "rewind=learning_rate": "learning-rate rewinding",
    "rewind=none": "fine-tuning",
}


def verdict(rows):
    """Each way of retraining against each other, paired by replicate, at the highest sparsity."""
    last = rows[(rows["branch"] == "ticket") & (rows["sparsity"] == rows["sparsity"].max())]
    ways = {name: part for setting, name in NAMES.items() if len(part := last[last["setting"] == setting])}
    found = []
    for better, worse in itertools.combinations(("learning-rate rewinding", "weight rewinding", "fine-tuning"), 2):
        if better not in ways or worse not in ways:
            continue
        accuracy = [ways[name].set_index("replicate")["test_accuracy"] for name in (better, worse)]
        mean, half, n = interval((accuracy[0] - accuracy[1]).dropna())
        steps = [int(ways[name]["steps"].iloc[0]) for name in (better, worse)]
        evidence = (
            f"{better} ({steps[0]} steps) {points(mean, half, '+')} points above {worse} ({steps[1]} steps) at "
            f"{weights(rows['sparsity'].max())} of the weights (paired t, 95%, n={n})"
        )
        found.append(Verdict(f"{better} above {worse}", mean > half if n > 1 else None, evidence))
    return found

"""After pruning: rewind the weights, rewind the learning rate, or fine-tune?

Claim      rewinding the weights or the learning-rate schedule gives better networks than fine-tuning at the last
           learning rate; learning-rate rewinding is at least as good as weight rewinding
Source     Renda et al. 2020, https://arxiv.org/abs/2003.02389, figures 1 and 2
Figure     accuracy_vs_sparsity, one panel a way to retrain
Command    python main.py study=rewind_or_finetune; with the paper's settings: study=renda2020_resnet
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
    """Each way of retraining against each other, paired by replicate, at the highest sparsity, network by network."""
    tickets, found = rows[rows["branch"] == "ticket"], []
    words = tickets["setting"].str.split(", ")
    others = words.map(lambda one: ", ".join(word for word in one if word not in NAMES))
    ways = words.map(lambda one: next((NAMES[word] for word in one if word in NAMES), ""))
    for other, here in tickets.assign(way=ways).groupby(others, sort=False):
        last = here[here["sparsity"] == here["sparsity"].max()]
        where = f"{other}: " if other else ""
        for better, worse in itertools.combinations(("learning-rate rewinding", "weight rewinding", "fine-tuning"), 2):
            one, two = (last[last["way"] == way].set_index("replicate") for way in (better, worse))
            if one.empty or two.empty:
                continue
            mean, half, n = interval((one["test_accuracy"] - two["test_accuracy"]).dropna())
            steps = [int(part["steps"].iloc[0]) for part in (one, two)]
            evidence = (
                f"{where}{better} ({steps[0]} steps) {points(mean, half, '+')} points above {worse} ({steps[1]} steps) "
                f"at {weights(last['sparsity'].max())} of the weights (paired t, 95%, n={n})"
            )
            found.append(Verdict(f"{where}{better} above {worse}", mean > half if n > 1 else None, evidence))
    return found

"""The lottery tickets of MNIST-1D: does the ticket beat fresh weights under its mask, and those a random mask?

Claim      at 97% sparsity the ticket is above its mask with fresh weights, and that above a random mask; between 70 and
           95% it is above the dense network
Source     Greydanus & Kobak 2020, https://arxiv.org/abs/2011.14439, section 3 and notebooks/lottery-tickets.ipynb
Figure     accuracy_vs_sparsity, with the numbers of the notebook
Command    python main.py study=mnist1d
Cost       339 trainings of 1,500 steps
"""

from lth.analysis import Verdict, interval, paired, points, table, weights

__all__ = ["table", "verdict"]


def verdict(rows):
    """At 97% sparsity ticket against reinit against random mask; where the ticket is above dense."""
    found, near = [], rows[(rows["sparsity"] - 0.97).abs() < 0.002]
    accuracy = {b: near[near["branch"] == b].set_index("replicate")["test_accuracy"] for b in near["branch"].unique()}
    for better, worse in (("ticket", "random_reinit"), ("random_reinit", "random_mask"), ("ticket", "random_mask")):
        if better in accuracy and worse in accuracy:
            mean, half, n = interval((accuracy[better] - accuracy[worse]).dropna())
            evidence = f"{better} {points(mean, half, '+')} points above {worse} at {weights(near['sparsity'].iloc[0])}"
            holds = mean > half if n > 1 else None
            found.append(Verdict(f"{better} above {worse}", holds, f"{evidence} (paired t, 95%, n={n})"))
    above = [(sparsity, mean, half) for sparsity, mean, half, *_ in paired(rows, "ticket", "dense") if mean > half]
    if above:
        sparsity, mean, half = max(above, key=lambda line: line[1])
        span = f"{weights(above[0][0])} to {weights(above[-1][0])}"
        evidence = f"ticket above dense at {len(above)} sparsities from {span} of the weights, most by "
        evidence += f"{points(mean, half)} points at {weights(sparsity)}"
    else:
        evidence = "ticket above dense at no sparsity"
    return [*found, Verdict("the ticket is above dense somewhere", bool(above), f"{evidence} (paired t, 95%)")]

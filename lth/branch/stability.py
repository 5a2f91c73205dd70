"""Stability: do copies of a network trained in other data orders find the same minimum, and does pruning move it?

Stability to data order (Frankle et al. 2020, https://arxiv.org/abs/1912.05671, there instability analysis): a network
is trained num_orders times from its state at rewind step k, each time in another data order; for each pair of the
results L2 distance, angle, the fraction of test examples they class differently, and the barriers of error and loss on
the line between them. An error barrier below 2 points counts as stable.
Stability to pruning (Frankle et al. 2019, https://arxiv.org/abs/1903.01611): distance and angle between the trained
network and the weights that its mask was drawn from, both under the mask.

Deviations: the first copy is the network as the study trains it, so num_orders - 1 trainings are added. The papers
compare two copies; with more, the means over all pairs are given, and each pair beside them. The test split is read for
the lines; nothing is chosen by it.
"""

import statistics
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from lth.branch import networks
from lth.connectivity import angle, barrier, disagreement, distance, interpolate
from lth.data import Source
from lth.mask import Mask
from lth.stage import Numbers, task
from lth.state import TrainState


@task(version=1, value=Numbers)
def stability(
    context: Any, model: Any, data: Source, mask: Mask | None, copies: list[TrainState], pruned: TrainState | None,
    num_alphas: int, num_batches: int, batch_size: int,
) -> Numbers:  # fmt: skip
    """Distances and barriers between trained copies of one network under one mask (None: dense).

    Distances are over all parameters, removed weights being zero in all; those to `pruned` over the kept weights.
    Accuracies, errors and disagreement in [0, 1], loss in nats, angles in degrees. pairs: one entry a pair of copies;
    line: one entry a point of a pair's line. What has no prefix is on the test split, train_ on the training split.
    """
    network, splits = context.model(model, data), context.data(data)
    pairs, line = [], []
    for (i, a), (j, b) in combinations(enumerate(copies), 2):
        points = interpolate(network, a, b, num_alphas, splits.train, splits.test, num_batches, batch_size)
        barriers = {
            name: barrier([point[of] for point in points])
            for name, of in (
                ("error_barrier", "test_error"), ("loss_barrier", "test_loss"),
                ("train_error_barrier", "train_error"), ("train_loss_barrier", "train_loss"),
            )
        }  # fmt: skip
        apart = {"distance": distance(a, b), "angle": angle(a, b)}
        pairs.append({**apart, "disagreement": disagreement(network, a, b, splits.test), **barriers})
        line += [{"copies": [i, j], **point} for point in points]
    kept = mask or Mask.dense(network)
    numbers: dict[str, Any] = {"num_kept": kept.num_kept, "num_total": kept.num_total}
    numbers |= {name: statistics.fmean(pair[name] for pair in pairs) for name in pairs[0]}
    if pruned is not None:
        numbers["pruning_distance"] = distance(copies[0], pruned, kept)
        numbers["pruning_angle"] = angle(copies[0], pruned, kept)
    return Numbers(numbers, pairs=pairs, line=line)


@dataclass(frozen=True)
class Stability:
    """of: ticket, dense (from rewind step k on), or other branches of this study. num_orders: copies, at least 2.
    num_alphas: points of a line, at least 2, the ends among them; the paper takes 30, an odd number has the middle.
    num_batches: batches of the training split, at most an epoch, on which batch-norm statistics are estimated anew at
    each point."""

    of: list[str] = field(default_factory=lambda: ["ticket"])
    num_orders: int = 2
    num_alphas: int = 31
    num_batches: int = 10

    def __post_init__(self) -> None:
        for name in ("num_orders", "num_alphas"):
            if (number := getattr(self, name)) < 2:
                raise ValueError(f"branch.stability.{name}={number} must be at least 2")

    def __call__(self, ticket, lab):
        found = {}
        for name, run in networks(self.of, ticket, lab, "branch.stability").items():
            # the dense run's own end, by law 1, is what its own order leads to from step k on
            first = ticket.dense.end if name == "dense" else run.end
            orders = [lab.seed("stability", order) for order in range(1, self.num_orders)]
            found[name] = stability(
                model=lab.model, data=lab.data, mask=run.mask,
                copies=[first, *(replace(run, order=order).end for order in orders)],
                pruned=ticket.pruned if name == "ticket" else None,
                num_alphas=self.num_alphas, num_batches=min(self.num_batches, lab.recipe.per_epoch),
                batch_size=lab.recipe.batch_size,
            )  # fmt: skip
        return found

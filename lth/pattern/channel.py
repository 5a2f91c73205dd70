"""Channel: whole output channels and neurons go, with the inputs that the next layers would have taken from them
(Li et al. 2017, https://arxiv.org/abs/1608.08710; global ranking and batch-norm scores: network slimming, Liu et al.
2017, https://arxiv.org/abs/1708.06519).

    score of a channel = l1: sum |s|,  l2: sqrt(sum s^2),  mean: sum s / number,  over the scores s of its kept weights

its weights being the rows that make it. Channels that are added to each other, as in residual networks, are one group:
they go together, and score over all their rows. The network is followed by lth.graph. Logits are never removed, and at
least one channel of each layer stays. l1 and l2 rank by absolute value: a criterion with signed scores wants mean.

What sparsity is a fraction of (budget), groups being removed in the order of their scores, the lowest first:
weights    of the prunable weights. Whole channels cannot meet a number: they go while at least round((1 - sparsity) *
           total) weights are kept, and the first that would go below ends it. So the mask keeps at least what it is
           asked to, and the next channel in order would be too much.
flops      the same, each weight counted once a position at which it is multiplied (the model's input_shape says).
channels   of the groups, logits aside: exactly round((1 - sparsity) * groups) stay.
Channels that `mask` has taken stay removed, so levels are nested. The mask is also the smaller network: what a removed
channel still emits, the bias of its norm, nothing reads.

Deviations: Li et al. prune chosen layers at chosen rates and leave shortcuts alone; here the whole network is ranked.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from lth.graph import INPUT, ZERO, coupled, follow, positions
from lth.mask import Mask, num_kept


@dataclass(frozen=True)
class Channel:
    """norm: l1, l2 or mean. scope: global ranks all groups together; layerwise removes the same fraction of each
    layer's, a group being of the first layer that makes it. budget: weights, channels or flops."""

    norm: str = "l1"
    scope: str = "global"
    budget: str = "weights"

    by_weight = False

    def __post_init__(self) -> None:
        words = {"norm": "l1 l2 mean", "scope": "global layerwise", "budget": "weights channels flops"}
        for name, allowed in words.items():
            if (word := getattr(self, name)) not in allowed.split():
                raise ValueError(f"pattern.{name}={word} is not one of: {allowed.replace(' ', ', ')}")

    def __call__(self, scores, mask, sparsity, model):
        """The mask inside `mask` without the rows and columns of the groups that go."""
        graph = follow(model)
        group, times = coupled(graph), positions(model) if self.budget == "flops" else dict.fromkeys(mask, 1)
        layers = [(name, group[taken], group[made]) for name, taken, made in graph.steps if name]
        rows = np.stack([np.bincount(made, minlength=graph.num_units) for *_, made in layers])  # of a layer, a group
        number, sums = np.zeros((2, graph.num_units))
        for name, _, made in layers:
            kept = mask[name].flatten(1)
            values = scores[name].flatten(1).double().masked_fill(~kept, 0)
            values = {"l1": values.abs(), "l2": values.square(), "mean": values}[self.norm]
            np.add.at(number, made, kept.sum(1).numpy())
            np.add.at(sums, made, values.sum(1).numpy())
        score = sums / np.maximum(number, 1) if self.norm == "mean" else sums  # the root changes no order
        fixed = {*group[[ZERO, INPUT]], *group[graph.outputs]}
        groups = [g for g in np.flatnonzero(rows.any(0)) if g not in fixed]
        order = sorted((g for g in groups if number[g]), key=lambda g: (score[g], -g))
        if self.scope == "layerwise":
            home = rows.astype(bool).argmax(0)  # the first layer that makes a group
            peers, seen, place = Counter(home[order]), Counter(), {}
            for g in order:
                seen[home[g]] += 1
                place[g] = seen[home[g]] / peers[home[g]]
            order.sort(key=lambda g: (place[g], -g))
        # Each group's turn: 0 if it is gone already, then 1, 2, ... in order, passing by what would empty a layer
        turn, last = np.full(graph.num_units, len(groups) + 1), 0
        turn[[g for g in groups if not number[g]]] = 0
        left = rows[:, turn > 0].sum(1)
        for g in order:
            if ((left > rows[:, g]) | (rows[:, g] == 0)).all():
                left, last = left - rows[:, g], last + 1
                turn[g] = last
        # A weight goes at the turn of its row or of its column, whichever comes first
        ends: dict[str, np.ndarray] = {}
        for name, taken, made in layers:
            ends[name] = np.minimum(ends.get(name, len(groups) + 1), np.minimum.outer(turn[made], turn[taken]))
        lost = np.zeros(len(groups) + 2)
        for name, end in ends.items():
            counts = mask[name].reshape(*end.shape, -1).sum(2).numpy() * times[name]
            lost += np.bincount(end.ravel(), counts.ravel(), len(lost))
        if self.budget == "channels":
            total, after = len(groups), len(order) - np.arange(last + 1)
        else:
            total = sum(kept.numel() * times[name] for name, kept in mask.items())
            after = sum(n * times[name] for name, n in mask.counts().items()) - np.cumsum(lost)[: last + 1]
        target = num_kept(sparsity, total)
        stop = int((after >= target).sum()) - 1
        if stop < 0 or (after[stop] > target and stop == last):
            raise ValueError(
                f"cannot keep {target} of {total} {self.budget} in whole channels, at least one a layer; "
                f"{after[-1]:.0f} to {after[0]:.0f} can be kept"
            )
        kept = {name: mask[name] for name in mask}
        for name, end in ends.items():
            stays = torch.from_numpy(end > stop)
            kept[name] = (kept[name].reshape(*stays.shape, -1) & stays[..., None]).reshape(kept[name].shape)
        return Mask(kept)

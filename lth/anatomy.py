"""Anatomy: what is left of a network under a mask.

A weight counts if it lies on a path of kept weights from an input to a logit; the sparsity that counts only those is
the effective sparsity (Vysogorets & Kempe 2023, https://arxiv.org/abs/2107.02306). A unit (channel or neuron) is dead
if no such path runs through it: no fan-in, no fan-out, or none that leads anywhere. Biases are left out: what a unit
without fan-in emits is the same for every input. Shortcuts without weights are parts of paths.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lth.graph import INPUT, Graph
from lth.mask import Mask


def paths(mask: Mask, graph: Graph) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(the kept weights that lie on a path, in the mask's shapes; the number of dead units), by layer of the graph.
    Logits are units, too."""
    fed, used = np.zeros((2, graph.num_units), dtype=bool)
    fed[INPUT] = used[graph.outputs] = True
    layers = [step for step in graph.steps if step.name]
    kept = {s.name: mask[s.name].reshape(len(s.made), len(s.sources), -1) for s in layers}
    pairs = {name: tensor.any(2).numpy() for name, tensor in kept.items()}  # [rows, columns]
    for name, sources, made in graph.steps:
        fed[made] = (pairs[name] & fed[sources]).any(1) if name else fed[sources].any(0)
    for name, sources, made in reversed(graph.steps):
        used[sources[pairs[name][used[made]].any(0)] if name else sources[:, used[made]]] = True
    # A layer that is used twice is alive where it is so in either place
    alive = {step.name: np.zeros(len(step.made), dtype=bool) for step in layers}
    through = {name: np.zeros_like(pair) for name, pair in pairs.items()}
    for name, sources, made in layers:
        alive[name] |= fed[made] & used[made]
        through[name] |= np.logical_and.outer(used[made], fed[sources])
    on = {n: (kept[n] & torch.from_numpy(through[n])[..., None]).reshape(mask[n].shape) for n in kept}
    return on, {name: int((~units).sum()) for name, units in alive.items()}


def jaccard(one: Mask, other: Mask, names: Iterable[str]) -> tuple[float, float] | tuple[None, None]:
    """|A and B| / |A or B| over some layers, in [0, 1], and what it is for independent random masks with the counts of
    these two in each layer: |A and B| is |A| * |B| / size of each, and the ratio one of expectations. None for two
    masks that keep nothing there."""
    both, chance, size = 0, 0.0, 0
    for a, b in ((one[name], other[name]) for name in names):
        both += int((a & b).sum())
        chance += int(a.sum()) * int(b.sum()) / a.numel()
        size += int(a.sum()) + int(b.sum())
    return (both / (size - both), chance / (size - chance)) if size else (None, None)

"""Unstructured: any single weight may go. Of all prunable weights exactly round((1 - sparsity) * total) are kept.

budget says of what: weights are the prunable ones; parameters all of the network's, of which biases and norms stay;
flops the multiply-adds of its layers, of which the most weights are kept that need at most round((1 - sparsity) *
total), each counted once a position at which it is multiplied.

scope says over what scores are ranked, and how many weights each layer keeps:
global     all layers are ranked together.
layerwise  the same fraction p of every layer's survivors goes, p * output of the output layer's, as Frankle & Carbin
           2019 (https://arxiv.org/abs/1803.03635, figure 2) do with output=0.5 ("output layer at half the rate").
erk        Erdos-Renyi-Kernel, Evci et al. 2020 (https://arxiv.org/abs/1911.11134, section 3): of a layer of shape
           (n_out, n_in, *kernel), density = min(1, eps * (n_out + n_in + sum(kernel)) / (n_out * n_in * prod(kernel))).
balanced   every layer keeps the same number of weights, as far as it has them: density = min(1, eps / size). Ours by
           this name; it is erk with equal numerators.
eps is the one number that makes the total exact; layers it would fill are full, and the rest is shared by the others.

Deviations: Frankle & Carbin fix p (20%) and let the total follow (51.28% remain after three levels of LeNet-300-100,
not 51.20%); here the total is exact, so p comes out slightly above the prune rate where the output layer lags behind.
Evci et al. draw erk masks at random before training; here the scores choose within a layer. A layer keeps at least 1
weight in all scopes but global, and never more than it still has.
"""

import difflib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch

from lth.graph import positions
from lth.mask import Mask, num_kept, top_k
from lth.quotas import filled, quotas

SCOPES = ("global", "layerwise", "erk", "balanced")


@dataclass(frozen=True)
class Unstructured:
    """scope: global, layerwise, erk or balanced. output: prune rate of the output layer relative to the others, in
    [0, 1]; 1 treats it like the others, 0 leaves it as it is. Only layerwise reads it.
    rates: prune rate relative to the others, by weight name or glob, the last match counts: {"0.weight": 0} leaves the
    first convolution dense. Layerwise takes any in [0, 1], the other scopes 0 and 1. Layers at 0 lose weights only
    when the others have none left to lose (global: the last ones). On the command line: +pattern.rates={0.weight:0}
    budget: weights, parameters or flops."""

    scope: str = "layerwise"
    output: float = 0.5
    rates: dict[str, float] = field(default_factory=dict)
    budget: str = "weights"

    def __post_init__(self) -> None:
        if self.budget not in ("weights", "parameters", "flops"):
            raise ValueError(f"pattern.budget={self.budget} is not one of: weights, parameters, flops")
        if self.scope not in SCOPES:
            raise ValueError(f"pattern.scope={self.scope} is not one of: {', '.join(SCOPES)}")
        for key, rate in [("output", self.output), *((f"rates.{name}", rate) for name, rate in self.rates.items())]:
            if isinstance(rate, bool) or not (isinstance(rate, int | float) and 0 <= rate <= 1):
                raise ValueError(f"pattern.{key}={rate} must be in [0, 1]")
            if key != "output" and self.scope != "layerwise" and rate not in (0, 1):
                raise ValueError(f"pattern.{key}={rate} must be 0 or 1; only pattern.scope=layerwise takes others")

    def __call__(self, scores, mask, sparsity, model):
        """The mask inside `mask` that keeps what the budget says, at least 1 weight (a layer)."""
        if self.budget == "weights":
            return self._draw(scores, mask, num_kept(sparsity, mask.num_total))
        if self.budget == "parameters":
            others = sum(parameter.numel() for parameter in model.parameters()) - mask.num_total
            if (total := num_kept(sparsity, mask.num_total + others) - others) < 1:
                raise ValueError(f"cannot keep {total + others} parameters: {others} of them cannot be pruned")
            return self._draw(scores, mask, total)
        times = positions(model)
        most = num_kept(sparsity, sum(kept.numel() * times[name] for name, kept in mask.items()))
        few, many = 0, mask.num_kept + 1
        while many - few > 1:  # the number of weights is the only unknown, and multiply-adds rise with it
            total = (few + many) // 2
            try:
                drawn = self._draw(scores, mask, total)
            except ValueError:  # fewer than one a layer
                few = total
                continue
            fits = sum(count * times[name] for name, count in drawn.counts().items()) <= most
            few, many = (total, many) if fits else (few, total)
        return self._draw(scores, mask, few)

    def _draw(self, scores, mask, total):
        """The mask inside `mask` that keeps exactly `total` weights."""
        rates = self._rates(list(mask))
        if self.scope == "global":
            free = [scores[name] if rate else torch.full(mask[name].shape, torch.inf) for name, rate in rates.items()]
            flat, kept = (torch.cat([part.reshape(-1) for part in parts]) for parts in (free, mask.values()))
            parts = top_k(flat, kept, total).split([part.numel() for part in free])
            return Mask({name: part.reshape(mask[name].shape) for name, part in zip(mask, parts, strict=True)})
        survivors = list(mask.counts().values())
        shares = [sum(kept.shape) if self.scope == "erk" else 1 for kept in mask.values()]
        if self.scope == "layerwise":
            counts = quotas(survivors, total, [*rates.values()])
        else:
            counts = filled(survivors, total, shares, [*rates.values()])
        return Mask({
            name: top_k(scores[name].reshape(-1), kept.reshape(-1), count).reshape(kept.shape)
            for (name, kept), count in zip(mask.items(), counts, strict=True)
        })  # fmt: skip

    def _rates(self, names: list[str]) -> dict[str, float]:
        """The relative prune rate of each layer. Raises ValueError for a glob that no layer answers to."""
        rates = dict.fromkeys(names, 1.0)
        rates[names[-1]] = float(self.output) if self.scope == "layerwise" else 1.0
        for glob, rate in self.rates.items():
            if not (found := [name for name in names if fnmatchcase(name, glob)]):
                near = difflib.get_close_matches(glob, names, n=1, cutoff=0)
                raise ValueError(f"pattern.rates.{glob}={rate} names no layer; did you mean {near[0]}?")
            rates |= dict.fromkeys(found, float(rate))
        return rates

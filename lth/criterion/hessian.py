"""Hessian: score = w^2 H_ww / 2, the change of L when w is removed at a minimum, g = 0: Optimal Brain Damage (LeCun et
al. 1990, https://papers.nips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html). H_ww by `method`:

    exact        e' H e, one product a weight
    hutchinson   mean of z (H z), z = +-1: off by sqrt(sum_{v != w} H_wv^2 / num_vectors) (Bekas et al. 2007,
                 https://doi.org/10.1016/j.apnum.2007.01.003)
    fisher       mean over examples of (dL_i/dw)^2, the empirical Fisher information, never negative

Eval mode: with the statistics of a batch L would be no mean over examples; an untrained network is then not normalised.
Away from a minimum H_ww (exact, hutchinson) may be negative, and such weights go first."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lth.criterion import check_counts, check_curvature, copied, gradients, sample
from lth.data import Split
from lth.mask import Mask


@dataclass(frozen=True)
class Hessian:
    """method: exact (of up to 10,000 weights), hutchinson (num_vectors) or fisher. num_examples: at most so many."""

    method: str
    num_examples: int
    num_vectors: int

    def __post_init__(self) -> None:
        check_counts(self)
        if self.method not in ("exact", "hutchinson", "fisher"):
            raise ValueError(f"criterion.method={self.method} is not one of: exact, hutchinson, fisher")

    def check(self, model: nn.Module, data: Split) -> None:
        if self.method == "exact" and (total := Mask.dense(model).num_total) > 10_000:
            raise ValueError(f"criterion.method=exact is for up to 10000 weights; this network has {total}")
        if self.method != "fisher":
            check_curvature(self, model, data)

    def __call__(self, model, state, mask, data, rng):
        ((x, y),) = sample(data, rng, 1, min(self.num_examples, len(data.y)), 0)
        network, weights = copied(model, mask, training=False)
        diagonal = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        if self.method == "fisher":
            loss = lambda w, x, y: cross_entropy(functional_call(network, w, x[None]), y[None])  # noqa: E731
            slopes = vmap(grad(loss), (None, 0, 0))
            x, values = x.to(next(iter(weights.values())).dtype), {name: w.detach() for name, w in weights.items()}
            for some, labels in zip(x.split(32), y.split(32), strict=True):  # 32 gradients are held at a time
                with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention cannot be batched
                    found = slopes(values, some, labels)
                for name, slope in found.items():
                    diagonal[name] += slope.square().sum(0) / len(y)
        for vectors in self._vectors(mask, rng):
            z = {name: vector.to(weights[name]) for name, vector in vectors.items()}
            for name, product in gradients(network, weights, [Split(x, y)], along=z).items():
                diagonal[name] += z[name] * product
        return {name: weight.detach() ** 2 * diagonal[name] / 2 for name, weight in weights.items()}

    def _vectors(self, mask: Mask, rng: torch.Generator):
        """Vectors z over the kept weights, by name, for which the sum of z * (H z) is the diagonal of H."""
        if self.method == "hutchinson":
            for _ in range(self.num_vectors):
                signs = {name: torch.randint(0, 2, kept.shape, generator=rng) * 2 - 1 for name, kept in mask.items()}
                yield {name: signs[name] * kept / self.num_vectors**0.5 for name, kept in mask.items()}
        for name, kept in mask.items() if self.method == "exact" else ():
            for index in kept.flatten().nonzero().flatten().tolist():
                flat = {other: torch.arange(k.numel()) == (index if other == name else -1) for other, k in mask.items()}
                yield {other: one.reshape(mask[other].shape) for other, one in flat.items()}

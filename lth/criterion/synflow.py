"""SynFlow (Tanaka et al. 2020, https://arxiv.org/abs/2006.05467): prune in steps, none of which takes a whole layer.

    score = |w| dR/d|w|,   R = the sum of the outputs of f on one example of ones: no data is read

f is the network of |w| and |gamma| in eval mode and float64 (R overflows float32), biases and batch-norm shifts at 0,
running mean 0 and variance 1. With ReLU and pooling R is the sum over all paths of the product of their weights, and in
a chain of layers each layer's scores add up to R. The authors' code takes |bias| and absolute running statistics: the
same for an untrained network without biases. Of no use with norms that undo scale (LayerNorm).

The criterion prunes by itself, over the whole network, and scores anew in each of n = num_iterations steps:

    density_i = density_0 (density / density_0)^(i / n),   i = 1 ... n

The last step is the pattern's. Survivors of step n - 1 have their scores, what went before is negative, the later the
higher, and so small (1e-300) that sums do not feel it. As in the paper: pattern.scope=global prune=one_shot
prune.when=init.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lth.criterion import check_counts, copied
from lth.mask import Mask, num_kept, top_k


def _linearise_(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.abs() * (name.rpartition(".")[2] != "bias")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            zeros = next(network.parameters()).new_zeros(module.num_features)
            module.running_mean, module.running_var = zeros, zeros + 1 - module.eps


@dataclass(frozen=True)
class Synflow:
    """num_iterations: n, at least 1; 1 scores once, which takes whole layers at high sparsity."""

    num_iterations: int
    reads = ("sparsity",)

    __post_init__ = check_counts

    def __call__(self, model, state, mask, data, rng, sparsity):
        network, named = copied(model, mask, training=False)
        (network.cpu() if next(network.parameters()).is_mps else network).double()  # mps has no float64
        _linearise_(network)
        weights, n = list(named.values()), self.num_iterations
        ones = weights[0].new_ones(1, *data.x.shape[1:])
        ratio = min(1.0, num_kept(sparsity, mask.num_total) / mask.num_kept)
        kept = torch.cat([k.reshape(-1) for k in mask.values()])
        scores = below = torch.zeros(len(kept), dtype=torch.float64)
        for i in range(1, n + 1):
            Mask(_parts(kept, mask)).apply_(named)
            slopes = torch.autograd.grad(network(ones).sum(), weights)
            scores = torch.cat([(w.detach() * g).reshape(-1).cpu() for w, g in zip(weights, slopes, strict=True)])
            if i < n:
                survivors = top_k(scores, kept, max(1, round(mask.num_kept * ratio ** (i / n))))
                rank = scores / scores.max().clamp_min(1e-300) - 2 * (n - i)
                below = torch.where(kept & ~survivors, 1e-300 * rank, below)
                kept = survivors
        return _parts(torch.where(kept, scores, below), mask)


def _parts(flat: Tensor, mask: Mask) -> dict[str, Tensor]:
    parts = flat.split([kept.numel() for kept in mask.values()])
    return {name: part.reshape(kept.shape) for part, (name, kept) in zip(parts, mask.items(), strict=True)}

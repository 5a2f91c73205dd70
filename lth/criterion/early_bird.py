"""Early-Bird (You et al. 2020, https://arxiv.org/abs/1909.11957): score = |gamma_c|, the batch-norm scale of a weight's
output channel c, for pattern=channel. A layer's batch norm is the first one behind it in the order of named_modules,
before the next layer, if it has a feature an output. The weights of layers without one, as the output layer, get the
largest score plus 1: they go last. Deviation: the paper adds an L1 penalty on gamma, which the recipe has not."""

from dataclasses import dataclass

import torch
from torch import nn

from lth.data import Split
from lth.mask import prunable


def scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weight name -> gamma [outputs] of the batch norm behind its layer, for layers that have one."""
    found, names, layer = {}, {id(weight): name for name, weight in prunable(model).items()}, None
    for module in model.modules():
        if id(weight := getattr(module, "weight", None)) in names:
            layer = weight
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and layer is not None:
            if module.affine and module.num_features == len(layer):
                found[names[id(layer)]] = module.weight
            layer = None
    return found


@dataclass(frozen=True)
class EarlyBird:
    needs_training = True

    def check(self, model: nn.Module, data: Split) -> None:
        if not scales(model):
            raise ValueError("criterion=early_bird needs batch norm behind a layer; this network has none")

    def __call__(self, model, state, mask, data, rng):
        self.check(model, data)
        gammas = {name: gamma.detach().abs().cpu() for name, gamma in scales(model).items()}
        last = torch.cat(list(gammas.values())).max() + 1
        shaped = {name: gammas.get(name, last).reshape(-1, *[1] * (kept.ndim - 1)) for name, kept in mask.items()}
        return {name: score.expand(mask[name].shape).clone() for name, score in shaped.items()}

"""Which weights matter? A criterion scores them, the pattern keeps the highest.

    criterion(model, state, mask, data, rng, **read) -> {name: score of every weight, in its shape}

model: the network on the device with `state`, a TrainState, loaded, in train mode. mask: the current Mask, whose names
are scored. data: the normalised training Split, on the device. rng: a seeded CPU generator. Pure: nothing given is
changed, global generators neither. Finite; scores of removed weights are not read. Class attributes (no fields):

    reads            of "origin" (TrainState the dense network began with), "movement" (tensors by name, lth.train) and
                     "sparsity" (of the mask to be drawn), which are passed by keyword
    needs_training   True for one that says nothing of an untrained network: refused with prune.when=init
    check(model, data)   a method, called before anything trains with the raw split: ValueError where it cannot score

L is the mean cross-entropy of a batch, removed weights at zero. In train mode batch norm has the statistics of the
batch, as in the code of SNIP and GraSP: an untrained network has no others. Dropout is off: it would be noise.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lth.data import Split
from lth.mask import Mask

COUNTS = {"num_batches": 1, "batch_size": 1, "per_class": 0, "num_examples": 1, "num_vectors": 1, "num_iterations": 1}


def name_of(criterion: Any) -> str:
    """The word on the command line: that of its field `name`, or of its class, EarlyBird being early_bird."""
    return getattr(criterion, "name", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(criterion).__name__).lower())


def check_counts(criterion: Any) -> None:
    """A __post_init__: ValueError for a field of COUNTS that is not a whole number of at least so many."""
    for name, least in COUNTS.items():
        number = getattr(criterion, name, least)
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"criterion.{name}={number} must be a whole number of at least {least}")


def sample(data: Split, rng: Generator, num_batches: int, batch_size: int, per_class: int) -> list[Split]:
    """Batches of different examples: per_class of every class in each, or, per_class=0, batch_size of any."""
    y, size = data.y.cpu(), per_class or batch_size
    order = torch.randperm(len(y), generator=rng)
    pools = [order[y[order] == label] for label in range(int(y.max()) + 1)] if per_class else [order]
    for label, pool in enumerate(pools):
        if len(pool) < num_batches * size:
            asked = f"per_class={size}" if per_class else f"batch_size={size}"
            which = f"class {label} has" if per_class else "there are"
            raise ValueError(f"criterion.{asked} in num_batches={num_batches}: {which} {len(pool)} training examples")
    chosen = [torch.cat([pool[i * size : (i + 1) * size] for pool in pools]) for i in range(num_batches)]
    return [data[index.to(data.y.device)] for index in chosen]


def check_sample(criterion: Any, model: nn.Module, data: Split) -> None:
    """The `check` of criteria that draw a sample."""
    sample(data, torch.Generator(), criterion.num_batches, criterion.batch_size, criterion.per_class)


def check_curvature(criterion: Any, model: nn.Module, data: Split) -> None:
    """Part of the `check` of criteria that read H, of no matter which examples."""
    network, weights = copied(model, Mask.dense(model), training=False)
    device = next(iter(weights.values())).device
    x, y = torch.zeros(2, *data.x.shape[1:], device=device), torch.zeros(2, dtype=torch.int64, device=device)
    try:
        gradients(network, weights, [Split(x, y)], along=weights)
    except ValueError as error:
        raise ValueError(f"criterion={name_of(criterion)} {error}") from error


def copied(model: nn.Module, mask: Mask, training: bool = True) -> tuple[nn.Module, dict[str, Tensor]]:
    """(a copy of the network, removed weights at zero; its weights by name): only its running statistics can change."""
    network = copy.deepcopy(model).train(training)
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    params: dict[str, Tensor] = dict(network.named_parameters())
    mask.apply_(params)
    return network, {name: params[name] for name in mask}


def gradients(
    network: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Split], temperature: float = 1.0,
    along: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Sum over batches of dL/dw, or, along v, of H v with H = d^2 L / dw^2; logits are divided by the temperature."""
    totals, wrt = {name: torch.zeros_like(weight) for name, weight in weights.items()}, list(weights.values())
    for x, y in batches:
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
            loss = cross_entropy(network(x.to(wrt[0].dtype)) / temperature, y)
        slopes = torch.autograd.grad(loss, wrt, create_graph=along is not None)
        if along is not None:
            dot = torch.stack([(g * along[name]).sum() for name, g in zip(weights, slopes, strict=True)]).sum()
            try:
                slopes = torch.autograd.grad(dot, wrt, materialize_grads=True)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                raise ValueError(f"needs second derivatives, which this network has not: {error}") from error
        for total, slope in zip(totals.values(), slopes, strict=True):
            total += slope
    return totals

"""Connectivity: how far apart trained networks lie, and whether the straight line between two of them stays good.

Linear mode connectivity, Frankle et al. 2020 (https://arxiv.org/abs/1912.05671): with E(alpha) the error, or the loss,
of the network (1 - alpha) * a + alpha * b,

    barrier = max over alpha of E(alpha) - (E(0) + E(1)) / 2.

Two copies of a network, trained from one state with other data orders, whose error barrier is about zero found the same
linearly connected minimum: that state is stable. Stability as L2 distance and angle of the trained weights under a
mask m, |m * a - m * b|, is Frankle et al. 2019 (https://arxiv.org/abs/1903.01611, section 2 and appendix B).

Nothing given is changed: the work is done on a copy of the model, on the model's device, where the splits must be too
(normalised). No global generator is read.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lth.data import Split
from lth.mask import Mask
from lth.state import TrainState, evaluate, load


def _pairs(a: TrainState, b: TrainState) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, a's parameter, b's parameter), float64 on the CPU. Raises ValueError where names or shapes differ."""
    one, two = ({name: tuple(tensor.shape) for name, tensor in state.params.items()} for state in (a, b))
    for name in one | two:
        if one.get(name) != two.get(name):
            shapes = f"{one.get(name, 'missing')} and {two.get(name, 'missing')}"
            raise ValueError(f"two states must have the same parameters; {name} is {shapes}")
    for name, tensor in a.params.items():
        yield name, tensor.cpu().double(), b.params[name].cpu().double()


def _vectors(a: TrainState, b: TrainState, mask: Mask | None) -> tuple[Tensor, Tensor]:
    """The two states as vectors, float64 [n]: of all parameters, or of the weights that a mask keeps."""
    if mask is None:
        kept = [(x.flatten(), y.flatten()) for _, x, y in _pairs(a, b)]
    else:
        kept = [(x[mask[name]], y[mask[name]]) for name, x, y in _pairs(a, b) if name in mask]
    return torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])


def distance(a: TrainState, b: TrainState, mask: Mask | None = None) -> float:
    """L2 distance |a - b| = sqrt(sum (a_i - b_i)^2) of two states, in [0, inf), in the units of the weights.

    Without a mask over all parameters, biases and normalisation too; with one over the weights it keeps and nothing
    else, whether or not the removed ones are zero. Stability to pruning of Frankle et al. 2019 compares a trained
    ticket with the trained dense network so, under the ticket's mask.
    Deviation: the paper's mask covers all parameters; ours the prunable ones, so biases and normalisation do not count.
    Raises ValueError where names or shapes of the two states differ.
    """
    x, y = _vectors(a, b, mask)
    return torch.linalg.vector_norm(x - y).item()


def angle(a: TrainState, b: TrainState, mask: Mask | None = None) -> float:
    """Angle between two states as vectors from the origin, in degrees, in [0, 180]: 0 parallel, 180 opposite.

        2 * atan2(|u - v|, |u + v|),  u = a / |a|,  v = b / |b|     (Kahan)

    It is exact to rounding at both ends, where acos(u . v) loses half of the digits. mask and errors as in `distance`;
    NaN where one of the vectors is zero, which has no angle. Frankle et al. 2019, appendix B.
    """
    x, y = _vectors(a, b, mask)
    norms = torch.linalg.vector_norm(x), torch.linalg.vector_norm(y)
    if 0 in norms:
        return math.nan
    u, v = x / norms[0], y / norms[1]
    return math.degrees(2 * torch.atan2(torch.linalg.vector_norm(u - v), torch.linalg.vector_norm(u + v)).item())


@torch.no_grad()
def disagreement(model: nn.Module, a: TrainState, b: TrainState, split: Split, batch_size: int = 4096) -> float:
    """Fraction of the examples of a split that two states put in different classes, in [0, 1]: 0 all the same.

    Each state is read with its own buffers, in eval mode. Deviation: Frankle et al. 2020 (appendix) count them.
    """
    scratch = copy.deepcopy(model).eval()
    classes = []
    for state in (a, b):
        load(scratch, state.params, state.buffers)
        classes.append(torch.cat([scratch(x).argmax(1) for x, _ in split.batches(batch_size)]))
    return (classes[0] != classes[1]).sum().item() / len(split.y)


@torch.no_grad()
def interpolate(
    model: nn.Module,
    a: TrainState,
    b: TrainState,
    num_alphas: int,
    train: Split,
    test: Split,
    num_batches: int,
    batch_size: int,
) -> list[dict[str, float]]:
    """Error and loss at num_alphas >= 2 points of the line from a to b, as `evaluate` measures them.

    The points are (1 - alpha) * a + alpha * b with alpha = i / (num_alphas - 1), both ends included. Each is {alpha,
    train_loss, train_error, test_loss, test_error}: mean cross-entropy in nats, and error = 1 - accuracy in [0, 1].
    Frankle et al. 2020 take 30 points; an odd number has the midpoint among them.

    Batch norm: running statistics between two networks belong to neither, so they are estimated anew at each point,
    both ends included: mean and unbiased variance, averaged over the first num_batches batches of batch_size examples
    of the training split, batch norm alone in train mode (Jordan et al. 2022, https://arxiv.org/abs/2211.08403; their
    rescaling of networks without batch norm is not done). So the ends differ a little from the networks as trained.
    All other buffers are a's. A network without running statistics reads neither num_batches nor batch_size.

    Raises ValueError where num_alphas < 2, the states' parameters differ or the batches exceed the training split.
    """
    if num_alphas < 2:
        raise ValueError(f"num_alphas={num_alphas} must be at least 2, the two ends")
    scratch = copy.deepcopy(model).eval()
    norms = [m for m in scratch.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if norms and (min(num_batches, batch_size) < 1 or num_batches * batch_size > len(train.y)):
        raise ValueError(f"num_batches={num_batches} of batch_size={batch_size} must be 1 to {len(train.y)} examples")
    # float64, so that where a equals b every point has a's own bits once it is rounded to the model's type
    pairs = list(_pairs(a, b))
    points = []
    # One point after another. On one thread of an EPYC, 31 points of LeNet-300-100 on mnist_5k take 1.13 s of CPU time
    # so, and 1.05 to 1.22 s side by side by torch.func.vmap, which makes the same products; a small CNN 18 s so and
    # 24 s by vmap. This way holds one network, and its points are what `evaluate` says to the last bit.
    for alpha in (i / (num_alphas - 1) for i in range(num_alphas)):
        load(scratch, {name: (1 - alpha) * x + alpha * y for name, x, y in pairs}, a.buffers)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the plain average
            norm.train()
        for x in islice(train.x.split(batch_size), num_batches) if norms else ():
            scratch(x)
        scratch.eval()
        (train_loss, train_accuracy), (test_loss, test_accuracy) = evaluate(scratch, train), evaluate(scratch, test)
        errors = {"train_error": 1 - train_accuracy, "test_error": 1 - test_accuracy}
        points.append({"alpha": alpha, "train_loss": train_loss, "test_loss": test_loss, **errors})
    return points


def barrier(values: Sequence[float]) -> float:
    """max over alpha of values - (values[0] + values[-1]) / 2, in the units of the values (error, or nats).

    values: along the line, both ends included. Their maximum is that over the points, so it bounds the line's from
    below. Never negative, since the maximum is at least either end and so at least their mean; 0 for a flat line,
    |E(0) - E(1)| / 2 for one that rises or falls all the way. NaN if a value is NaN.
    """
    along = torch.tensor(values, dtype=torch.float64)
    return (along.max() - (along[0] + along[-1]) / 2).item()

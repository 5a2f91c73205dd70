"""Landscape: curvature and sharpness of the loss around a network, inside its mask.

    L(theta) = 1/n sum_i cross_entropy(f_theta(x_i), y_i),   H = d^2 L / d theta^2,   over a whole split of n examples

theta [dim] holds every parameter, in the order of named_parameters(), save the removed weights: they stay at zero and
are projected out. So H is the submatrix of the dense Hessian on the kept coordinates, the curvature a ticket can feel.

The network is a copy in eval mode and in `dtype`, its removed weights at zero; the one given is only read. In training
mode batch norm would couple the examples of a batch, L would be no mean over examples, and dropout would be random.
Vectors are float64 on the CPU, wherever and in whatever dtype the products are computed.

Product: Pearlmutter 1994 (https://doi.org/10.1162/neco.1994.6.1.147). Lanczos 1950
(https://doi.org/10.6028/jres.045.026); Golub & Van Loan, Matrix Computations, 4th ed., section 10. Trace: Hutchinson
1989 (https://doi.org/10.1080/03610918908812806). Sharpness: directions of Li et al. 2018
(https://arxiv.org/abs/1712.09913).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lth.data import Split
from lth.mask import Mask, prunable

Product = Callable[[Tensor], Tensor]  # v -> A v, float64 [dim] on the CPU, of a symmetric matrix A
BREAKDOWN = 1e-12  # a remainder shorter than this, relative to the matrix, is rounding: the subspace is invariant
CONVERGED = 1e-2  # a value is known when its residual bound is at most this part of it


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])


def _restrict(model: nn.Module, mask: Mask | None, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Callable]:
    """(params, index, loss) of the copy: its parameters by name, those removed at zero; the positions of the kept ones
    among all, int64 [dim]; loss(theta, x, y), the summed cross-entropy of a batch as a function of theta [dim]."""
    frozen = copy.deepcopy(model).to(dtype).eval()
    params: dict[str, Tensor] = dict(frozen.named_parameters())
    kept = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in params.items()}
    if mask is not None:
        mask.apply_(params)
        mask.apply_(kept)
    index, zeros = _flat(kept).nonzero().squeeze(1), torch.zeros_like(_flat(params))
    shapes = [parameter.shape for parameter in params.values()]

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        pieces = zeros.index_copy(0, index, theta).split([shape.numel() for shape in shapes])
        named = {name: piece.view(shape) for name, piece, shape in zip(params, pieces, shapes, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
            return cross_entropy(functional_call(frozen, named, (x.to(dtype),)), y, reduction="sum")

    return params, index, loss


def hessian_product(
    model: nn.Module, mask: Mask | None, split: Split, dtype: torch.dtype = torch.float64, batch_size: int = 4096
) -> tuple[Product, int]:
    """(v -> H v, dim): the Hessian as an operator, exact up to rounding: about 1e-15 of its norm in float64, 1e-6 in
    float32, which takes half the time. A kink of ReLU counts as flat, as autograd has it.

    split: normalised, on the model's device. batch_size: bounds the memory; batches are summed, so it changes nothing
    else. A split of a single batch keeps its first backward pass for all products, which halves their time.
    """
    params, index, loss = _restrict(model, mask, dtype)
    point = _flat(params)[index]

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        theta = point.clone().requires_grad_()
        with torch.enable_grad():
            return theta, torch.autograd.grad(loss(theta, x, y), theta, create_graph=True)[0]

    single = gradient(*split) if len(split.y) <= batch_size else None  # no more memory than one product needs anyway

    def product(vector: Tensor) -> Tensor:
        v, total = vector.to(point), torch.zeros_like(point)
        for x, y in split.batches(batch_size):
            theta, slope = single or gradient(x, y)
            total += torch.autograd.grad(slope, theta, v, retain_graph=single is not None)[0]
        return (total / len(split.y)).to(vector)

    return product, point.numel()


def lanczos(product: Product, dim: int, num_steps: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """(Ritz values, ascending, and their residual bounds), float64 [min(num_steps, dim)], of a symmetric matrix A.

        A Q = Q T + beta q e_m',   T s_i = theta_i s_i,   |A y_i - theta_i y_i| = beta |s_mi|   for y_i = Q s_i

    so that an eigenvalue of A lies within beta |s_mi| of theta_i, up to the rounding of the product. Without full
    reorthogonalisation converged eigenvalues would come again as copies; it holds 8 * num_steps * dim bytes.
    An invariant subspace (beta ~ 0) is closed and a new random direction taken up: at num_steps >= dim all eigenvalues
    come, as often as they are; before that a repeated one may come once, since one direction finds it once.
    """
    basis = torch.empty(min(num_steps, dim), dim, dtype=torch.float64)
    w, beta, scale, alphas, betas = torch.empty(0), 0.0, 0.0, [], []

    def orthogonal(vector: Tensor, known: Tensor) -> Tensor:
        for _ in range(2):  # twice is enough (Parlett 1980); after once, rounding shows where little remains
            vector = vector - (known @ vector) @ known
        return vector

    for step in range(len(basis)):
        if beta <= BREAKDOWN * scale:  # at step 0 too
            beta, w = 0.0, orthogonal(torch.randn(dim, generator=rng, dtype=torch.float64), basis[:step])
        basis[step] = w / w.norm()
        w = product(basis[step])
        betas.append(beta)  # T[step, step - 1]
        alphas.append((w @ basis[step]).item())
        w = orthogonal(w, basis[: step + 1])
        beta = w.norm().item()
        if not math.isfinite(beta):
            raise ValueError(f"the product of Lanczos step {step} is not finite; the network may have diverged")
        scale = max(scale, abs(alphas[-1]), beta)
    lower = torch.diag(torch.tensor(betas[1:], dtype=torch.float64), -1)
    values, vectors = torch.linalg.eigh(torch.diag(torch.tensor(alphas, dtype=torch.float64)) + lower + lower.T)
    return values, (beta * vectors[-1]).abs()


def hessian_extremes(
    product: Product, dim: int, num_eigenvalues: int, num_steps: int, rng: Generator, negligible: float = 1e-6
) -> dict[str, Any]:
    """Both ends of the spectrum after `num_steps` of Lanczos, as {value, bound (residual bound), converged}.

    largest: list of the num_eigenvalues largest, descending. most_negative: the smallest one, whatever its sign.
    smallest_positive: the smallest above negligible * largest, None where no Ritz value is.
    condition_number = largest / smallest_positive, in [1, 1 / negligible); None unless both are converged.
    converged: bound <= CONVERGED * max(|value|, negligible * largest), since a zero has no relative error.

    The ends converge in tens of steps. smallest_positive is inside the spectrum, where Lanczos comes last: unless there
    is a gap above `negligible` it takes about dim steps. It is called converged only if, too, no Ritz value below it
    could by its bound be above `negligible`; that is needed but no proof, as an eigenvalue with no Ritz value near it
    stays unseen. A repeated eigenvalue may be listed once (`lanczos`). The bounds know nothing of float32's rounding.
    """
    if not 1 <= num_eigenvalues <= min(num_steps, dim):
        raise ValueError(f"num_eigenvalues={num_eigenvalues} must be 1 to min(num_steps={num_steps}, dim={dim})")
    values, bounds = (numbers.tolist() for numbers in lanczos(product, dim, num_steps, rng))
    threshold = negligible * values[-1]
    found: list[dict[str, Any]] = [
        {"value": value, "bound": bound, "converged": bound <= CONVERGED * max(abs(value), threshold)}
        for value, bound in zip(values, bounds, strict=True)
    ]
    positive = [number for number in found if number["value"] > threshold]
    smallest = dict(positive[0]) if positive else None
    condition_number = None
    if smallest is not None:
        below = zip(values[: -len(positive)], bounds[: -len(positive)], strict=True)
        smallest["converged"] &= all(value + bound <= threshold for value, bound in below)
        if smallest["converged"] and found[-1]["converged"]:
            condition_number = values[-1] / smallest["value"]
    return {
        "largest": found[: -num_eigenvalues - 1 : -1],
        "most_negative": found[0],
        "smallest_positive": smallest,
        "condition_number": condition_number,
    }


def hessian_trace(product: Product, dim: int, num_vectors: int, rng: Generator) -> tuple[float, float]:
    """(mean, its standard error) of v' A v over num_vectors >= 2 Rademacher vectors v, entries -1 and 1: unbiased for
    the trace. One term has the variance 2 sum_{i != j} A_ij^2, none where A is diagonal."""
    vectors = (torch.randint(0, 2, (dim,), generator=rng).double() * 2 - 1 for _ in range(num_vectors))
    terms = torch.stack([v @ product(v) for v in vectors])
    return terms.mean().item(), terms.std().item() / math.sqrt(num_vectors)


def sharpness(
    model: nn.Module,
    mask: Mask | None,
    split: Split,
    radii: Sequence[float],
    num_directions: int,
    rng: Generator,
    dtype: torch.dtype = torch.float64,
    batch_size: int = 4096,
) -> list[float]:
    """Mean over num_directions >= 1 random directions d of L(theta + radius * d) - L(theta), in nats, by radius.

        d_i = |w_i| g_i / |g_i|,   g ~ N(0, 1),   for each filter i of each prunable weight w

    A filter is what makes one output: a row of a linear layer, the weights of one output channel of a convolution.
    radius: 0 moves nothing, 1 moves each filter by its own norm, -1 the other way. Biases and normalisation parameters
    stay, as in the paper. Deviation: removed weights stay at zero and norms are over the kept ones; the paper has no
    mask. Far out a loss may overflow, and the mean is then inf or nan.
    """
    params, index, loss = _restrict(model, mask, dtype)
    point, total = _flat(params)[index], torch.zeros(len(radii), dtype=torch.float64)

    def mean_loss(theta: Tensor) -> float:
        return math.fsum(loss(theta, x, y).item() for x, y in split.batches(batch_size)) / len(split.y)

    for _ in range(num_directions):
        noise = {n: torch.randn(params[n].shape, generator=rng, dtype=torch.float64) for n in prunable(model)}
        if mask is not None:
            mask.apply_(noise)
        direction = {name: torch.zeros_like(parameter) for name, parameter in params.items()}
        for name, g in noise.items():
            filters, lengths = g.flatten(1).to(point), params[name].flatten(1).norm(dim=1, keepdim=True)
            # a filter without a kept weight is 0 / 0 here, and not in index
            direction[name] = filters / filters.norm(dim=1, keepdim=True) * lengths
        d = _flat(direction)[index]
        total += torch.tensor([mean_loss(point + radius * d) for radius in radii], dtype=torch.float64)
    return (total / num_directions - mean_loss(point)).tolist()

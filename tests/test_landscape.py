"""The loss landscape inside a mask, against torch's explicit Hessian, known matrices and a loss with a closed form."""

import copy

import pytest
import torch
from conftest import blobs
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from lth.data import Split
from lth.landscape import Product, hessian_extremes, hessian_product, hessian_trace, lanczos, sharpness
from lth.mask import Mask
from lth.model.mlp import Mlp
from lth.model.vit import Vit
from lth.seeds import generator


def train_split() -> Split:
    return blobs().normalised("cpu").train


def mlp() -> nn.Module:
    """16-5-3 with biases that are not zero: 103 parameters."""
    torch.manual_seed(0)
    model = Mlp([5])((1, 4, 4), 3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def conv_net() -> nn.Module:
    """Batch norm, with statistics of its own, and dropout: what training mode would make random or coupled."""
    torch.manual_seed(0)
    head = [nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3)]
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *head)
    with torch.no_grad():
        model(train_split().x)
    return model


def half(model: nn.Module) -> Mask:
    """A random mask that keeps about half."""
    rng = generator(1)
    return Mask({name: torch.rand(kept.shape, generator=rng) < 0.5 for name, kept in Mask.dense(model).items()})


def explicit(model: nn.Module, mask: Mask | None) -> Tensor:
    """An oracle: the Hessian of the mean loss of the masked network in float64, in blocks, then rows and columns cut.

    jacrev twice, since torch.func.hessian warns of its own use of torch.jit.script in torch 2.14.
    """
    model, split = copy.deepcopy(model).double().eval(), train_split()
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if mask is not None:
        params |= {name: params[name] * kept for name, kept in mask.items()}

    def loss(p: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(model, p, (split.x.double(),)), split.y)

    blocks = jacrev(jacrev(loss))(params)
    sizes = {name: parameter.numel() for name, parameter in params.items()}
    whole = torch.cat([torch.cat([blocks[a][b].reshape(sizes[a], sizes[b]) for b in sizes], 1) for a in sizes])
    kept = {name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()}
    kept |= {name: tensor.reshape(-1) for name, tensor in (mask or {}).items()}
    index = torch.cat(list(kept.values()))
    return whole[index][:, index]


def diagonal(*numbers: float) -> tuple[Product, int]:
    entries = torch.tensor(numbers, dtype=torch.float64)
    return lambda v: entries * v, len(entries)


def rotated(numbers: Tensor, seed: int = 0) -> Product:
    """A dense symmetric matrix with these eigenvalues."""
    q, _ = torch.linalg.qr(torch.randn(len(numbers), len(numbers), generator=generator(seed), dtype=torch.float64))
    matrix = q @ torch.diag(numbers) @ q.T
    return lambda v: matrix @ v


def columns(product: Product, dim: int) -> Tensor:
    return torch.stack([product(unit) for unit in torch.eye(dim, dtype=torch.float64)])


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# Hessian


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("build", [mlp, conv_net])
def test_product_is_the_explicit_hessian(build, masked, dtype, tolerance):
    """Column by column, of kept coordinates only, at the masked network even where the model still holds the removed
    weights; a training mode that the model may be in does not matter."""
    model = build().train()
    mask = half(model) if masked else None
    product, dim = hessian_product(model, mask, train_split(), dtype)
    matrix = explicit(model, mask)
    num_removed = mask.num_total - mask.num_kept if mask is not None else 0
    assert dim == len(matrix) == sum(parameter.numel() for parameter in model.parameters()) - num_removed
    assert product(torch.ones(dim, dtype=torch.float64)).dtype == torch.float64
    assert relative(columns(product, dim), matrix) < tolerance


@pytest.mark.parametrize("build", [mlp, conv_net])
def test_batches_change_only_rounding(build):
    """A last batch of another size weighs by its examples."""
    model = build().train()
    split = train_split()
    whole, dim = hessian_product(model, half(model), split)
    v = torch.randn(dim, generator=generator(0), dtype=torch.float64)
    for size in (1, 7, 199, 200):
        product, _ = hessian_product(model, half(model), split, batch_size=size)
        assert relative(product(v), whole(v)) < 1e-12
        assert relative(product(v), whole(v)) < 1e-12, "a second time"
    radii = [0.0, 0.5, -0.5]
    by_size = [sharpness(model, half(model), split, radii, 2, generator(0), batch_size=n) for n in (7, 4096)]
    assert by_size[0] == pytest.approx(by_size[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_extremes_are_those_of_the_explicit_hessian(masked):
    """All steps that there are: every number to rounding, and each known to be."""
    model = mlp()
    mask = half(model) if masked else None
    product, dim = hessian_product(model, mask, train_split())
    found = hessian_extremes(product, dim, 5, dim, generator(0))
    values = torch.linalg.eigvalsh(explicit(model, mask))
    assert [number["value"] for number in found["largest"]] == pytest.approx(values[-5:].flip(0).tolist(), rel=1e-9)
    assert found["most_negative"]["value"] == pytest.approx(values[0].item(), rel=1e-9)
    assert values[0] < 0, "no curvature to find"
    smallest = values[values > 1e-6 * values[-1]][0].item()
    assert found["smallest_positive"]["value"] == pytest.approx(smallest, rel=1e-6)
    assert found["condition_number"] == pytest.approx(values[-1].item() / smallest, rel=1e-6)
    assert all(number["converged"] for number in [*found["largest"], found["most_negative"]])


def test_masked_extremes_are_not_the_dense_ones():
    """The test above is not vacuous: projecting matters for the top eigenvalue."""
    model = mlp()
    mask = half(model)
    with torch.no_grad():
        mask.apply_(dict(model.named_parameters()))  # the same network; only the subspace differs
    tops = []
    for given in (None, mask):
        product, dim = hessian_product(model, given, train_split())
        tops.append(hessian_extremes(product, dim, 1, dim, generator(0))["largest"][0]["value"])
    assert tops[1] < 0.99 * tops[0]


def test_float32_extremes_are_near():
    model = mlp()
    exact, dim = hessian_product(model, None, train_split())
    fast, _ = hessian_product(model, None, train_split(), torch.float32)
    one, two = (hessian_extremes(product, dim, 3, 60, generator(0)) for product in (exact, fast))
    for a, b in zip([*one["largest"], one["most_negative"]], [*two["largest"], two["most_negative"]], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-4) and a["converged"] and b["converged"]


# Lanczos


def test_lanczos_finds_a_known_spectrum():
    """num_steps beyond dim is dim; the values come ascending, each within its bound."""
    numbers = [-3.0, -0.5, 0.0, 1e-3, 2.0, 7.0]
    for num_steps in (6, 50):
        values, bounds = lanczos(*diagonal(*numbers), num_steps, generator(0))
        assert values.tolist() == pytest.approx(numbers, abs=1e-12)
        assert bounds.max() < 1e-12


@pytest.mark.parametrize("numbers", [[1.0] * 4, [0.0] * 4, [5.0, 5.0, 5.0, 1.0, 0.0, 0.0, -2.0, -2.0], [3.0]])
def test_lanczos_goes_on_from_an_invariant_subspace(numbers):
    """Repeated eigenvalues come as often as they are when all steps are taken, the zero matrix not excepted."""
    for make in (lambda: diagonal(*numbers)[0], lambda: rotated(torch.tensor(numbers, dtype=torch.float64))):
        values, bounds = lanczos(make(), len(numbers), 20, generator(0))
        assert values.tolist() == pytest.approx(sorted(numbers), abs=1e-11)
        assert bounds.max() < 1e-10


def test_lanczos_stays_orthogonal():
    """Far beyond the convergence of the top eigenvalue, where the recurrence alone would bring copies of it."""
    numbers = torch.cat([torch.linspace(0, 1, 197, dtype=torch.float64), torch.tensor([10.0, 100.0, 1000.0])])
    values, _ = lanczos(rotated(numbers), 200, 150, generator(0))
    assert ((values > 5).sum(), (values > -1e-9).sum()) == (3, 150)
    assert values[-3:].tolist() == pytest.approx([10, 100, 1000], rel=1e-12)


def test_bounds_bound():
    """An eigenvalue lies within the bound of each Ritz value; the bounds are the true residuals, neither loose nor
    blind: early ones are large, those of the top fall below 1e-8."""
    numbers = torch.arange(1, 101, dtype=torch.float64) ** 2
    product, basis = rotated(numbers), []

    def noted(v: Tensor) -> Tensor:
        basis.append(v.clone())
        return product(v)

    for num_steps in (1, 3, 10, 30, 60):
        basis.clear()
        values, bounds = lanczos(noted, 100, num_steps, generator(0))
        distances = (values[:, None] - numbers).abs().min(1).values
        assert (distances <= bounds + 1e-9).all()
        q = torch.stack(basis, 1)
        _, s = torch.linalg.eigh(q.T @ torch.stack([product(v) for v in basis], 1))
        ritz = q @ s
        residuals = torch.stack([product(y) for y in ritz.T], 1) - ritz * values
        assert bounds.tolist() == pytest.approx(residuals.norm(dim=0).tolist(), abs=1e-8)
        assert (bounds[-1] < 1e-8) == (num_steps == 60)


def test_divergence_is_named():
    with pytest.raises(ValueError, match="Lanczos step 0 is not finite"):
        lanczos(lambda v: v * float("nan"), 4, 4, generator(0))


# What is known


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_extremes_of_a_known_spectrum(unit):
    """Negligible values are passed over, whatever the unit; the condition number is of what is left."""
    product, dim = diagonal(*(unit * number for number in (-2.0, 1e-9, 1e-7, 0.5, 1.0, 10.0)))
    found = hessian_extremes(product, dim, 2, 10, generator(0))
    assert [number["value"] for number in found["largest"]] == pytest.approx([10 * unit, unit])
    assert found["most_negative"]["value"] == pytest.approx(-2 * unit)
    assert found["smallest_positive"]["value"] == pytest.approx(0.5 * unit) and found["smallest_positive"]["converged"]
    assert found["condition_number"] == pytest.approx(20)
    strict = hessian_extremes(product, dim, 2, 10, generator(0), negligible=1e-9)
    assert strict["condition_number"] == pytest.approx(1e8, rel=1e-4)


def test_a_zero_end_is_known():
    """A positive semidefinite matrix: its most negative eigenvalue is zero, and that is known."""
    numbers = torch.cat([torch.zeros(10, dtype=torch.float64), torch.linspace(1, 2, 90, dtype=torch.float64)])
    found = hessian_extremes(rotated(numbers), 100, 1, 15, generator(0))
    assert abs(found["most_negative"]["value"]) < 1e-8 and found["most_negative"]["converged"]
    assert found["most_negative"]["bound"] > abs(found["most_negative"]["value"]), "the case that this test is about"


@pytest.mark.parametrize("numbers", [[-1.0, -2.0], [0.0, 0.0]])
def test_no_positive_eigenvalue(numbers):
    found = hessian_extremes(*diagonal(*numbers), 1, 2, generator(0))
    assert found["largest"][0]["value"] == pytest.approx(max(numbers)) and found["largest"][0]["converged"]
    assert found["smallest_positive"] is None and found["condition_number"] is None


def test_what_has_not_converged_is_not_known():
    """Few steps: the top is known, the inside is not, and there is no condition number."""
    numbers = torch.logspace(-9, 0, 300, dtype=torch.float64)
    numbers[-1] = 10
    found = hessian_extremes(rotated(numbers), 300, 1, 20, generator(0))
    assert found["largest"][0]["converged"] and found["largest"][0]["value"] == pytest.approx(10)
    assert not found["smallest_positive"]["converged"] and found["condition_number"] is None
    one = hessian_extremes(rotated(numbers), 300, 1, 1, generator(0))
    assert not one["largest"][0]["converged"] and one["condition_number"] is None


def test_a_smaller_one_may_hide_below_the_threshold():
    """The only Ritz value above the threshold has converged, but one below it, unconverged, stands for positive
    eigenvalues too: the smallest is not known."""
    numbers = torch.cat([torch.linspace(-1.6e-2, 8e-3, 400, dtype=torch.float64), torch.tensor([1000.0])])
    found = hessian_extremes(rotated(numbers), 401, 1, 2, generator(0))
    assert found["largest"][0]["converged"]
    assert found["smallest_positive"]["value"] == pytest.approx(1000, rel=1e-2), "the case that this test is about"
    assert not found["smallest_positive"]["converged"] and found["condition_number"] is None


@pytest.mark.parametrize("num_eigenvalues", [0, 5])
def test_number_of_eigenvalues_has_a_range(num_eigenvalues):
    with pytest.raises(ValueError, match=f"num_eigenvalues={num_eigenvalues} must be 1 to"):
        hessian_extremes(*diagonal(1.0, 2.0, 3.0, 4.0), num_eigenvalues, 100, generator(0))


# Trace


def test_trace_of_a_diagonal_matrix_is_exact():
    mean, error = hessian_trace(*diagonal(1.0, -2.0, 3.5), 3, generator(0))
    assert mean == pytest.approx(2.5, rel=1e-12) and error == pytest.approx(0, abs=1e-12)


def test_trace_by_its_variance():
    """Unbiased, and the standard error is that of theory: sqrt(2 sum_{i != j} A_ij^2 / n)."""
    matrix = torch.tensor([[1.0, 2.0, 0.0], [2.0, -1.0, 1.0], [0.0, 1.0, 5.0]], dtype=torch.float64)
    mean, error = hessian_trace(lambda v: matrix @ v, 3, 4000, generator(0))
    assert error == pytest.approx((2 * 10 / 4000) ** 0.5, rel=0.05)
    assert abs(mean - 5) < 4 * error


def test_trace_of_a_network():
    model = mlp()
    mask = half(model)
    mean, error = hessian_trace(*hessian_product(model, mask, train_split()), 300, generator(0))
    exact = explicit(model, mask).trace().item()
    assert 0 < error < 0.1 * exact and abs(mean - exact) < 4 * error


# Sharpness

CURVATURE = torch.tensor([1.0, 10.0, 100.0])


class Quadratic(nn.Module):
    """Logits whose cross-entropy for class 0 is 1 + 1/2 sum_i c_i (w_i x + b_i)^2, c = CURVATURE.

    On the unit vectors x = e_j the mean loss is 1 + 1/6 sum_ij c_i (w_ij + b_i)^2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.layer.weight.data = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -0.2], [0.0, 0.05, 0.1]])
        self.layer.bias.data = torch.tensor([0.5, -0.2, 0.1])

    def forward(self, x: Tensor) -> Tensor:
        loss = 1 + (CURVATURE.to(x) * self.layer(x) ** 2).sum(1) / 2
        return torch.stack([torch.zeros_like(loss), torch.log(torch.expm1(loss))], 1)


UNITS = Split(torch.eye(3), torch.zeros(3, dtype=torch.int64))


def closed_form(mask: Mask | None, radius: float) -> float:
    """The mean over radius and -radius: the linear part cancels, and radius^2/6 sum_i c_i |w_i|^2 is left, whatever the
    direction, if each filter's own norm is kept and the bias stays."""
    weight = Quadratic().layer.weight.detach()
    kept = weight * mask["layer.weight"] if mask is not None else weight
    return radius**2 / 6 * (CURVATURE * (kept**2).sum(1)).sum().item()


@pytest.mark.parametrize("masked", [False, True])
def test_sharpness_in_closed_form(masked):
    """Also with a filter that the mask leaves one weight, and one without any."""
    kept = torch.tensor([[True, False, False], [True, False, True], [False, False, False]])
    mask = Mask({"layer.weight": kept}) if masked else None
    radii = [0.0, 0.1, -0.1, 1.0, -1.0]
    for num_directions in (1, 3):
        increases = sharpness(Quadratic(), mask, UNITS, radii, num_directions, generator(0))
        assert increases[0] == pytest.approx(0, abs=1e-12)
        for up, down, radius in ((1, 2, 0.1), (3, 4, 1.0)):
            assert (increases[up] + increases[down]) / 2 == pytest.approx(closed_form(mask, radius), rel=1e-5)
            assert abs(increases[up] - increases[down]) > 1e-6, "the linear part is there"


def test_sharpness_is_a_mean_over_different_directions():
    """The linear parts of independent directions are independent of mean 0: their mean shrinks as 1 / sqrt(n)."""

    def linear(num_directions: int, seed: int) -> float:
        up, down = sharpness(Quadratic(), None, UNITS, [1.0, -1.0], num_directions, generator(seed))
        return (up - down) / 2

    one, many = ([linear(n, seed) for seed in range(30)] for n in (1, 25))
    ratio = (sum(x * x for x in many) / sum(x * x for x in one)) ** 0.5
    assert 0.1 < ratio < 0.4  # 0.2 in theory
    assert abs(sum(one)) / 30 < sum(abs(x) for x in one) / 30  # of both signs


def test_sharpness_moves_each_filter_by_its_norm():
    """An oracle for a convolution and batch norm: what the network is given, filter by filter."""
    model, seen = conv_net(), []
    mask = half(model)
    model.register_forward_pre_hook(lambda module, args: seen.append(dict(module.named_parameters())))
    sharpness(model, mask, train_split(), [0.25], 1, generator(0))
    (moved, still) = ({n: p.detach().float() for n, p in params.items()} for params in seen)
    for name, parameter in model.named_parameters():
        if name not in mask:
            assert torch.equal(moved[name], parameter) and torch.equal(still[name], parameter)
            continue
        assert torch.equal(still[name], parameter * mask[name])
        assert not moved[name][~mask[name]].any() and (moved[name] != still[name])[mask[name]].all()
        lengths = (moved[name] - still[name]).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, 0.25 * still[name].flatten(1).norm(dim=1), rtol=1e-5, atol=0)


# Purity


def test_a_seed_is_a_result():
    """The same generator seed gives the same bits, another one others; the global generator is not touched."""
    model = mlp()
    before = torch.get_rng_state()
    product, dim = hessian_product(model, None, train_split())
    measures = {
        "lanczos": lambda rng: lanczos(product, dim, 10, rng)[0].tolist(),
        "trace": lambda rng: hessian_trace(product, dim, 3, rng),
        "sharpness": lambda rng: sharpness(model, None, train_split(), [0.3], 2, rng),
    }
    for name, measure in measures.items():
        assert measure(generator(3)) == measure(generator(3)), name
        assert measure(generator(3)) != measure(generator(4)), name
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_about_the_model_changes():
    """Parameters, buffers, gradients, requires_grad and the mode of each module; and neither no_grad nor frozen
    parameters hinder."""
    model = conv_net()
    cross_entropy(model(train_split().x), train_split().y).backward()
    model.train()
    modules = list(model.children())
    modules[1].eval()
    modules[5].requires_grad_(False)

    def everything() -> list:
        tensors = [t.clone() for t in model.state_dict().values()]
        tensors += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [*tensors, [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]]

    before = everything()
    grads = [parameter.grad for parameter in model.parameters()]
    with torch.no_grad():
        product, dim = hessian_product(model, half(model), train_split(), batch_size=64)
        hessian_extremes(product, dim, 1, 3, generator(0))
        sharpness(model, half(model), train_split(), [1.0], 1, generator(0))
    after = everything()
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(before, after, strict=True))
    assert all(a is b.grad for a, b in zip(grads, model.parameters(), strict=True))
    assert relative(columns(product, dim), explicit(model, half(model))) < 1e-12


def test_attention_has_a_hessian():
    """Through scaled_dot_product_attention, whose fused form has no second derivative: H v is the difference quotient
    of gradients, by the network's own backward pass."""
    torch.manual_seed(0)
    network = Vit(4, 6, 1, 2)((1, 4, 8), 3).double()
    split = Split(torch.randn(5, 1, 4, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0]))
    product, dim = hessian_product(network, None, split)
    v, ends = torch.randn(dim, dtype=torch.float64), []
    for sign in (1, -1):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            step = torch.nn.utils.parameters_to_vector(network.parameters()) + sign * 1e-7 * v
            torch.nn.utils.vector_to_parameters(step, moved.parameters())
        cross_entropy(moved(split.x), split.y).backward()
        ends.append(torch.cat([parameter.grad.reshape(-1) for parameter in moved.parameters()]))
    torch.testing.assert_close(product(v), (ends[0] - ends[1]) / 2e-7, rtol=1e-5, atol=1e-6)

"""Each criterion against its formula worked out by hand, sign included; masks drawn at initialisation; the movement of
a run, which is summed while it trains."""

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from conftest import Bench, blobs
from test_execute import Killed, contents, unbroken
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lth.branch.one_shot import OneShot
from lth.criterion import sample
from lth.criterion.early_bird import EarlyBird
from lth.criterion.gradient import Gradient, Grasp, Snip
from lth.criterion.hessian import Hessian
from lth.criterion.magnitude import Magnitude, MagnitudeAtInit
from lth.criterion.movement import Movement
from lth.criterion.random import Random
from lth.criterion.synflow import Synflow
from lth.criterion.zhou import Zhou
from lth.data import Split
from lth.mask import Mask, prunable
from lth.pattern.channel import Channel
from lth.pattern.unstructured import Unstructured
from lth.perform import value
from lth.plan import plan
from lth.recipe import Recipe
from lth.rewind.early import Early
from lth.stage import Diverged, Tensors, ancestors
from lth.state import TrainState, evaluate
from lth.train import train, unit_of

F64 = {"dtype": torch.float64}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight, *shape: int) -> nn.Linear:
    """A linear layer without bias, in float64."""
    layer = nn.Linear(*shape[::-1], bias=False, **F64)
    layer.weight.data = torch.tensor(weight, **F64).reshape(shape)
    return layer


def scored(criterion, model: nn.Module, data: Split, mask: Mask | None = None, **read) -> dict[str, Tensor]:
    """The scores of a network as it is, in train mode."""
    return criterion(model.train(), TrainState.of(model), mask or Mask.dense(model), data, rng(), **read)


def softmax(x: Tensor, w: Tensor) -> Tensor:
    """p [n, classes] of logits x w'."""
    e = (x @ w.T).exp()
    return e / e.sum(1, keepdim=True)


X = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0], [2.0, 0.25]], **F64)
Y = torch.tensor([0, 1, 1, 0])
W = torch.tensor([[0.3, -0.2], [-0.5, 0.4]], **F64)
DATA = Split(X, Y)
P = softmax(X, W)
SLOPE = (P - torch.eye(2, **F64)[Y]).T @ X / 4  # dL/dW of a linear softmax: mean (p - onehot) x'
ALL = {"num_batches": 1, "batch_size": 4, "per_class": 0}  # the whole of DATA


def flat_softmax() -> nn.Module:
    return nn.Sequential(linear(W.tolist(), 2, 2))


# Gradients


def test_gradient_of_a_linear_softmax():
    """|w dL/dw| with dL/dW = mean (p - onehot) x', whatever the sample, when it is the whole data."""
    for settings in (ALL, {"num_batches": 1, "batch_size": 1, "per_class": 2}):
        found = scored(Gradient(**settings), flat_softmax(), DATA)["0.weight"]
        torch.testing.assert_close(found, (W * SLOPE).abs())
    twice = scored(Gradient(2, 2, 0), flat_softmax(), DATA)["0.weight"]  # two halves: the sum of their means
    torch.testing.assert_close(twice, 2 * (W * SLOPE).abs())


def test_snip_is_normalised_over_the_network():
    """|w g| / sum |w g|; of two linear layers, V U x, with U = 2 I, dL/dV = 2 G and dL/dU = V' G for G = dL/d(VU)."""
    found = scored(Snip(**ALL), flat_softmax(), DATA)["0.weight"]
    torch.testing.assert_close(found, (W * SLOPE).abs() / (W * SLOPE).abs().sum())
    deep = nn.Sequential(linear([2.0, 0.0, 0.0, 2.0], 2, 2), linear((W / 2).tolist(), 2, 2))
    parts = [torch.eye(2, **F64) * 2 * ((W / 2).T @ SLOPE), W / 2 * 2 * SLOPE]
    total = sum(part.abs().sum() for part in parts)
    for score, part in zip(scored(Snip(**ALL), deep, DATA).values(), parts, strict=True):
        torch.testing.assert_close(score, part.abs() / total)


def test_removed_weights_are_at_zero_in_every_loss():
    """With when=init the state still holds the weights that the mask has removed; the network scored does not."""
    mask = Mask({"0.weight": torch.tensor([[1, 1], [0, 1]])})
    pruned = W * mask["0.weight"]
    model = nn.Sequential(linear(pruned.tolist(), 2, 2))
    for criterion in (Gradient(**ALL), Snip(**ALL), Grasp(**ALL, temperature=2.0), Hessian("fisher", 4, 1)):
        kept = mask["0.weight"]
        ours, theirs = (scored(criterion, m, DATA, mask)["0.weight"] for m in (flat_softmax(), model))
        assert torch.equal(ours[kept], theirs[kept]) and ours[kept].abs().min() > 0


class Logistic(nn.Module):
    """Logits (w'x / 1, 0): L = mean log(1 + exp(-w'x)) where every label is 0."""

    def __init__(self, weight):
        super().__init__()
        self.layer = linear(weight, 1, len(weight))

    def forward(self, x):
        out = self.layer(x)
        return torch.cat([out, torch.zeros_like(out)], 1)


def test_grasp_by_hand():
    """One example, label 0, t = temperature: g = -s x / t, H = s (1 - s) x x' / t^2 with s = 1 / (1 + exp(w'x / t)), so
    that w (H g) = -w x s^2 (1 - s) |x|^2 / t^3; x = (1, 2), w = (1, -1), t = 1: s = 1 / (1 + 1/e)."""
    data = Split(torch.tensor([[1.0, 2.0]], **F64), torch.tensor([0]))
    s = 1 / (1 + math.exp(-1))
    expected = torch.tensor([[-1.0, 2.0]], **F64) * 5 * s**2 * (1 - s)
    settings = {"num_batches": 1, "batch_size": 1, "per_class": 0}
    found = scored(Grasp(**settings, temperature=1.0), Logistic([1.0, -1.0]), data)["layer.weight"]
    torch.testing.assert_close(found, expected)
    s = 1 / (1 + math.exp(-1 / 200))
    found = scored(Grasp(**settings, temperature=200.0), Logistic([1.0, -1.0]), data)["layer.weight"]
    torch.testing.assert_close(found, torch.tensor([[-1.0, 2.0]], **F64) * 5 * s**2 * (1 - s) / 200**3)


def test_grasp_keeps_what_the_gradient_flow_needs():
    """The sign: shrinking a weight by the part e changes |g|^2 by -2 e score. So where the score is lowest the flow
    gains most, and that weight goes first. The flow, that of the kept weights, by its closed form for a linear
    softmax."""

    def flow(w: Tensor, kept: Tensor) -> float:
        return float((((softmax(X, w) - torch.eye(2, **F64)[Y]).T @ X / 4)[kept] ** 2).sum())

    signs = set()
    whole, some = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[True, True], [False, True]])
    for w, kept in ((W, whole), (W * some, some), (torch.tensor([[1.0, -0.5], [0.2, 0.9]], **F64), whole)):
        model = nn.Sequential(linear(w.tolist(), 2, 2))
        found = scored(Grasp(**ALL, temperature=1.0), model, DATA, Mask({"0.weight": kept}))["0.weight"]
        for index, score in enumerate(found.flatten().tolist()):
            e, change = 1e-6, torch.zeros(4, **F64)
            change[index] = 1
            there, back = (flow(w * (1 - sign * e * change.reshape(2, 2)), kept) for sign in (1, -1))
            assert (there - back) / (2 * e) == pytest.approx(-2 * score, rel=1e-5)
            signs.add(score > 0)
    assert signs == {True, False}


# Hessians


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3, **F64), nn.Tanh(), nn.Linear(3, 2, **F64))


def hessian(model: nn.Module) -> dict[str, Tensor]:
    """[n, n] of each weight, by torch.autograd.functional.hessian."""
    found = {}
    for name in prunable(model):
        params = {n: p.detach() for n, p in model.named_parameters()}

        def loss(w, name=name, params=params):
            return cross_entropy(torch.func.functional_call(model, params | {name: w}, (X,)), Y)

        n = params[name].numel()
        found[name] = torch.autograd.functional.hessian(loss, params[name]).reshape(n, n)
    return found


def test_exact_hessian_is_torchs():
    """w^2 H_ww / 2 with the Hessian of torch.autograd.functional; under a mask, with the removed weights at zero."""
    model = small_net()
    for name, score in scored(Hessian("exact", 100, 1), model, DATA).items():
        w = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(score.flatten(), w.flatten() ** 2 * hessian(model)[name].diag() / 2)
    mask = Mask({name: torch.arange(w.numel()).reshape(w.shape) % 2 for name, w in prunable(model).items()})
    found = scored(Hessian("exact", 100, 1), model, DATA, mask)
    mask.apply_(dict(model.named_parameters()))
    for name, diagonal in ((name, whole.diag()) for name, whole in hessian(model).items()):
        w = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(found[name].flatten(), w.flatten() ** 2 * diagonal / 2)


def test_hessian_of_a_linear_softmax():
    """H_ww of w_ci is mean p_c (1 - p_c) x_i^2, and its empirical Fisher information mean ((p_c - onehot_c) x_i)^2."""
    expected = ((P * (1 - P)).T @ X**2 / 4) * W**2 / 2
    torch.testing.assert_close(scored(Hessian("exact", 4, 1), flat_softmax(), DATA)["0.weight"], expected)
    information = (((P - torch.eye(2, **F64)[Y]) ** 2).T @ X**2) / 4
    found = scored(Hessian("fisher", 4, 1), flat_softmax(), DATA)["0.weight"]
    torch.testing.assert_close(found, W**2 * information / 2)
    many = Split(X.repeat(20, 1), Y.repeat(20))  # more than are held at a time, some of them in the last part
    torch.testing.assert_close(scored(Hessian("fisher", 999, 1), flat_softmax(), many)["0.weight"], found)


def test_hutchinson_is_within_its_standard_error():
    """z (H z) has mean H_ww and, over n vectors, variance sum_{v != w} H_wv^2 / n: 5 standard errors hold all; with one
    vector on a diagonal Hessian (one weight) it is exact."""
    model, n = small_net(), 400
    names = list(prunable(model))
    params = {k: p.detach() for k, p in model.named_parameters()}
    sizes = [params[name].numel() for name in names]

    def loss(theta):
        parts = {k: part.view_as(params[k]) for k, part in zip(names, theta.split(sizes), strict=True)}
        return cross_entropy(torch.func.functional_call(model, params | parts, (X,)), Y)

    theta = torch.cat([params[name].flatten() for name in names])
    whole = torch.autograd.functional.hessian(loss, theta)
    errors = ((whole - whole.diag().diag()) ** 2).sum(1).div(n).sqrt()
    found = scored(Hessian("hutchinson", 4, n), model, DATA)
    diagonal = torch.cat([found[name].flatten() for name in names]) * 2 / theta**2
    off = (diagonal - whole.diag()).abs() / errors
    assert off.max() < 5 and off.mean() > 0.3  # it is an estimate, of this spread
    data = Split(torch.tensor([[2.0]], **F64), torch.tensor([0]))
    one = scored(Hessian("hutchinson", 1, 1), Logistic([0.5]), data)["layer.weight"]
    s = 1 / (1 + math.exp(1))
    assert float(one) == pytest.approx(0.25 * 4 * s * (1 - s) / 2)


# SynFlow


def relu_net(*widths: int, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for i, j in pairwise(widths):
        layers += [nn.Linear(i, j), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images(*shape: int) -> Split:
    return Split(torch.randn(8, *shape), torch.zeros(8, dtype=torch.int64))


def test_synflow_by_hand():
    """V U 1 with U = (1, -2; 0, 3), V = (-1, 1): paths through hidden unit 1 carry 1 * (1 + 2), through unit 2
    1 * (0 + 3); R = 6. The score of a weight is the sum of the paths through it."""
    model = nn.Sequential(linear([1.0, -2.0, 0.0, 3.0], 2, 2), nn.ReLU(), linear([-1.0, 1.0], 1, 2))
    found = scored(Synflow(1), model, images(2), sparsity=0.5)
    assert found["0.weight"].tolist() == [[1, 2], [0, 3]] and found["2.weight"].tolist() == [[3, 3]]
    # two iterations to 3 of 6: after the first, 6 * sqrt(1/2) ~ 4 are kept: 2, 3, 3, 3; then unit 1 passes 2, unit 2 3
    found = scored(Synflow(2), model, images(2), sparsity=0.5)
    assert found["0.weight"][0, 1] == 2 and found["0.weight"][1, 1] == 3 and found["2.weight"].tolist() == [[2, 3]]
    assert (
        -1e-290 < found["0.weight"][1, 0] < found["0.weight"][0, 0] < 0
    )  # of those removed the higher score is higher


def test_synflow_is_conserved_and_reads_no_data():
    """The scores of each layer add up to R, whatever biases; images, labels and the seed do not matter."""
    model = relu_net(16, 12, 9, 5)
    found = scored(Synflow(1), model, images(1, 4, 4), sparsity=0.9)
    sums = [float(score.sum()) for score in found.values()]
    r = torch.ones(1, 16, **F64)
    for weight in prunable(model).values():
        r = r @ weight.detach().double().abs().T
    assert sums == pytest.approx([float(r.sum())] * 3, rel=1e-12)
    other = Synflow(1)(model, TrainState.of(model), Mask.dense(model), images(1, 4, 4), rng(5), sparsity=0.9)
    assert all(torch.equal(found[name], other[name]) for name in found)


@pytest.mark.parametrize("num_kept", [6, 12, 40])
def test_synflow_takes_no_whole_layer(num_kept: int):
    """Down to two weights a layer of 5 layers every layer keeps some and a path is left; scored once, layers vanish."""
    model = relu_net(64, 100, 10, 100, 10, 10)
    dense = Mask.dense(model)
    sparsity = 1 - num_kept / dense.num_total
    masks = {}
    for n in (1, 100):
        scores = scored(Synflow(n), model, images(1, 8, 8), sparsity=sparsity)
        masks[n] = Unstructured("global")(scores, dense, sparsity, model)
    assert masks[100].num_kept == masks[1].num_kept == num_kept
    assert min(masks[1].counts().values()) == 0 < min(masks[100].counts().values())
    flow = torch.ones(64, **F64)
    for kept in masks[100].values():
        flow = kept.double() @ flow
    assert flow.sum() > 0


class Block(nn.Module):
    """Residual, with batch norm whose statistics and scales are not those of an untrained network."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.norm(self.conv(x)).relu() + self.skip(x)


def test_synflow_with_batch_norm():
    """40 residual blocks: finite, positive, though R is beyond float32. Running statistics, shifts and the sign of the
    scales do not matter; their size does, as that of a weight: scores of the conv before it double."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), *(Block() for _ in range(40)), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for name, weight in prunable(model).items():
            weight.mul_(8 if "conv" in name else 4)
    data = images(1, 4, 4)
    found = scored(Synflow(1), model, data, sparsity=0.5)
    assert all(torch.isfinite(score).all() and (score >= 0).all() for score in found.values())
    assert float(found["42.weight"].sum()) > 3.4e38
    norm = model[1].norm
    norm.running_mean.fill_(3), norm.running_var.fill_(0.01), norm.bias.data.fill_(-2), norm.weight.data.fill_(-1)
    again = scored(Synflow(1), model, data, sparsity=0.5)
    for name in found:
        torch.testing.assert_close(again[name], found[name], rtol=1e-9, atol=0)
    model[40].norm.weight.data.fill_(2)
    doubled = scored(Synflow(1), model, data, sparsity=0.5)["40.conv.weight"]
    torch.testing.assert_close(doubled, 2 * found["40.conv.weight"], rtol=1e-9, atol=0)


# Magnitudes, and what is read of the beginning


def test_initial_and_final_magnitudes_by_hand():
    """Four weights: w_i = (1, -2, 3, -4), w_f = (-5, 1, 0.5, -2), of which the last one has been removed."""
    w_i, w_f = torch.tensor([[1.0, -2.0, 3.0, -4.0]], **F64), torch.tensor([[-5.0, 1.0, 0.5, -2.0]], **F64)
    mask = Mask({"w": torch.tensor([[1, 1, 1, 0]])})
    state, origin = TrainState(9, {"w": w_f}), TrainState(0, {"w": w_i})
    expected = {
        Magnitude(): [5, 1, 0.5, 2], MagnitudeAtInit(): [1, 2, 3, 4], Zhou("small_final"): [-5, -1, -0.5, -2],
        Zhou("small_init"): [-1, -2, -3, -4], Zhou("magnitude_increase"): [4, -1, -2.5, -2],
        Zhou("movement_abs"): [6, 3, 2.5, 2],
        # ranks of |w_f| are 3, 2, 1, of |w_i| 1, 2, 3; the smaller: 1, 2, 1 of 3. The other way round the same
        Zhou("large_init_large_final"): [1 / 3, 2 / 3, 1 / 3, 0],
        Zhou("small_init_small_final"): [1 / 3, 2 / 3, 1 / 3, 0],
    }  # fmt: skip
    for criterion, scores in expected.items():
        read = {"origin": origin} if "origin" in getattr(criterion, "reads", ()) else {}
        found = criterion(nn.Identity(), state, mask, DATA, rng(), **read)
        assert found["w"].tolist() == [pytest.approx(scores)], criterion
    assert Zhou("small_final").reads == () and not Zhou("small_init").needs_training


def test_equal_percentiles_are_the_papers_quadrant():
    """The k best by min of ranks are those above one percentile in both |w_i| and |w_f| (below it, for the small)."""
    w_i, w_f = torch.randn(2, 1, 200, generator=rng(), **F64)
    mask = Mask({"w": torch.ones(1, 200)})
    for name, sign in (("large_init_large_final", 1), ("small_init_small_final", -1)):
        score = Zhou(name)(None, TrainState(9, {"w": w_f}), mask, DATA, rng(), origin=TrainState(0, {"w": w_i}))["w"]
        for t in (20, 90, 150):
            above = [(sign * w.abs()) >= (sign * w.abs()).flatten().sort().values[t] for w in (w_i, w_f)]
            assert torch.equal(score > t / 200, above[0] & above[1]) and 0 < int((above[0] & above[1]).sum()) < 200 - t


def test_early_bird_finds_the_batch_norm_behind():
    """Conv -> the first batch norm behind it, not a second one, not that of the layer after; linear -> none."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3),
        nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip
    model[2].weight.data = torch.tensor([0.5, -2.0])
    model[5].weight.data = torch.tensor([0.0, 1.0, -0.25])
    found = scored(EarlyBird(), model, images(1, 1, 1))
    assert found["0.weight"].flatten().tolist() == [0.5, 2.0]
    assert found["4.weight"].reshape(3, 2).tolist() == [[0, 0], [1, 1], [0.25, 0.25]]
    assert (found["3.weight"] == 3).all() and (found["8.weight"] == 3).all()
    with pytest.raises(ValueError, match=r"^criterion=early_bird needs batch norm behind a layer; [^\n]*$"):
        EarlyBird().check(relu_net(4, 3, 2), DATA)


@dataclass(frozen=True)
class Normed:
    """16 inputs, 8 units with batch norm, 3 classes."""

    def __call__(self, input_shape, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


def test_early_bird_takes_the_units_of_small_scale(bench: Bench):
    """38 of 152 weights: all of the two units whose trained scale is smallest, 6 of the third, none of the outputs."""
    bench = dataclasses.replace(
        bench, model=Normed(), criterion=EarlyBird(), branches={}, pattern=Unstructured("global")
    )
    lab, dense = bench.lab(), bench.trainings(0.0)[0]
    drawn = lab.prune(dense.run, lab.dense_mask(), 0.25, "criterion", 1)
    assert not bench.run([dense], also=[drawn])
    order = bench.store.read(dense.run.end).params["2.weight"].abs().argsort()
    counts = bench.store.read(drawn)["1.weight"].sum(1)[order].tolist()
    assert counts == [0, 0, 10, 16, 16, 16, 16, 16] and bench.store.read(drawn).counts()["4.weight"] == 24


def test_early_bird_takes_whole_channels(bench: Bench):
    """With the channel pattern and a budget of channels half of the 8 units go, those of the smallest trained scale,
    with what the output layer reads of them, though all its scores are equal."""
    bench = dataclasses.replace(
        bench, model=Normed(), criterion=EarlyBird(), branches={}, pattern=Channel("mean", budget="channels")
    )
    entries = bench.trainings(0.5)
    half = bench.lab().prune(entries[0].run, bench.lab().dense_mask(), 0.5, "criterion", 1)
    assert not bench.run([entries[0]], also=[half])
    order = bench.store.read(entries[0].run.end).params["2.weight"].abs().argsort()
    mask = bench.store.read(half)
    assert mask["1.weight"].sum(1)[order].tolist() == [0] * 4 + [16] * 4
    assert mask["4.weight"].sum(0)[order].tolist() == [0] * 4 + [3] * 4


# Samples


def test_sample():
    """per_class of every class in each batch, none twice; else batch_size of any. Too few are named in one line."""
    data = blobs().train
    data = Split(torch.arange(len(data.y)), data.y)
    batches = sample(data, rng(), 3, 99, 7)
    assert [batch.y.bincount().tolist() for batch in batches] == [[7, 7, 7]] * 3
    assert len(torch.cat([batch.x for batch in batches]).unique()) == 63
    assert all(torch.equal(data.y[batch.x], batch.y) for batch in batches)
    plain = sample(data, rng(), 4, 50, 0)
    assert sorted(torch.cat([batch.x for batch in plain]).tolist()) == list(range(200))
    assert not torch.equal(plain[0].x, sample(data, rng(1), 4, 50, 0)[0].x)
    least = int(data.y.bincount().argmin())
    with pytest.raises(ValueError, match=rf"^criterion.per_class=66 in num_batches=1: class {least} has \d+ training"):
        sample(data, rng(), 1, 1, 66)
    with pytest.raises(
        ValueError, match=r"^criterion.batch_size=101 in num_batches=2: there are 200 training examples$"
    ):
        sample(data, rng(), 2, 101, 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Snip(0, 1, 1), "num_batches=0 must be a whole number of at least 1"),
        (lambda: Gradient(1, "x", 1), "batch_size=x must be a whole number of at least 1"),
        (lambda: Grasp(1, 1, -1, 1.0), "per_class=-1 must be a whole number of at least 0"),
        (lambda: Grasp(1, 1, 1, 0), "temperature=0 must be a number above 0"),
        (lambda: Hessian("obd", 1, 1), "method=obd is not one of: exact, hutchinson, fisher"),
        (lambda: Synflow(True), "num_iterations=True must be a whole number of at least 1"),
        (lambda: Zhou("large"), "name=large is not one of: small_final, "),
        (lambda: Hessian("exact", 1, 1).check(nn.Linear(101, 100), DATA), "method=exact is for up to 10000 weights; "),
    ],
)
def test_bad_settings_are_named(make, words: str):
    with pytest.raises(ValueError, match=rf"^criterion\.{words}[^\n]*$"):
        make()


# Movement


def test_movement_is_the_sum_of_a_loop_by_hand(bench: Bench):
    """Five steps of SGD with momentum in a loop of our own: -sum w * dL/dw, the weights before each step."""
    bench.recipe = Recipe("SGD", 0.1, 20, 5, 5, options={"momentum": 0.9})
    (dense,) = bench.trainings(0.0)
    assert not bench.run([dense], also=[dense.run.movement])
    found = bench.store.read(dense.run.movement)
    start = bench.store.read(dense.run.start)
    model = bench.model((1, 4, 4), 3)
    model.load_state_dict(start.params)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    expected = {name: torch.zeros_like(w) for name, w in prunable(model).items()}
    batches = bench.data.normalised("cpu").batches(dense.run.order, 20)
    for _ in range(5):
        x, y = next(batches)
        slopes = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        with torch.no_grad():
            for (name, p), slope in zip(model.named_parameters(), slopes, strict=True):
                if name in expected:
                    expected[name] -= p * slope
                velocity[name] = 0.9 * velocity[name] + slope
                p -= 0.1 * velocity[name]
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
    scores = Movement()(model, None, Mask.dense(model), DATA, rng(), movement=found)
    assert all(torch.equal(scores[name], found[name]) for name in found)


def test_movement_costs_nothing_unless_it_is_asked_for(bench: Bench):
    """Law 1 for the sums: cut at 20 and gone on with them, they are those of 40 steps in one; the weights are the same
    with and without; of removed weights they are zero."""
    model, start = bench.model((1, 4, 4), 3), bench.model((1, 4, 4), 3)
    start, recipe, data = TrainState.of(start), bench.recipe.on(200), bench.data.normalised("cpu")
    mask = Mask({name: torch.arange(w.numel()).reshape(w.shape) % 3 for name, w in prunable(model).items()})

    def sums(*stops: int) -> tuple[TrainState, dict]:
        moved, at = {name: torch.zeros_like(w) for name, w in prunable(model).items()}, start
        for stop in stops:
            *_, (_, state, _) = train(model, at, mask, recipe, data, 3, stop, (), None, moved)
            at = state()
        return at, moved

    whole, cut = sums(40), sums(20, 40)
    *_, (_, state, _) = train(model, start, mask, recipe, data, 3, 40)
    assert all(torch.equal(tensor, whole[0].params[name]) for name, tensor in state().params.items())
    for name, kept in mask.items():
        assert torch.equal(whole[1][name], cut[1][name]) and (whole[1][name][~kept] == 0).all()
        assert (whole[1][name][kept] != 0).all()


@pytest.mark.parametrize("at", [2, 3, 6])
def test_killed_while_moving_resumes_identical(bench: Bench, at: int):
    """Law 6: torn away at the n-th evaluation, the same again gives the movement of a run that was not."""
    moving = dataclasses.replace(bench, recipe=Recipe("Adam", 0.01, 20, 40, 10), criterion=Movement(), branches={})
    trainings = moving.trainings(0.36)
    expected, points = unbroken(moving, trainings), []

    def tell(event, *rest):
        if event == "point":
            points.append(rest)
            if len(points) == at:
                raise Killed

    with pytest.raises(Killed):
        moving.run(trainings, tell=tell, checkpoint_seconds=0.0)
    assert not moving.run(trainings, checkpoint_seconds=0.0)
    assert contents(moving.store) == expected


def test_a_checkpoint_without_the_movement_is_of_no_use_to_it(bench: Bench):
    """Killed while nobody asked for the movement, then asked for: from the start, and so the whole sum."""
    (dense,) = bench.trainings(0.0)

    def tell(event, *rest):
        if event == "point" and rest[1]["step"] == 30:
            raise Killed

    with pytest.raises(Killed):
        bench.run([dense], tell=tell, checkpoint_seconds=0.0)
    assert list((bench.store.root / "work").iterdir())
    assert not bench.run([dense], also=[dense.run.movement])
    other = dataclasses.replace(bench, store=type(bench.store)(bench.store.root.parent / "other"))
    other.run([dense], also=[dense.run.movement])
    assert contents(bench.store) == contents(other.store)


def test_movement_of_a_stored_run_trains_it_once_more(bench: Bench):
    """The dense network and its results are stored; another criterion asks for its movement: one training for that, one
    for the ticket. A run that diverges has none."""
    plain, moving = (dataclasses.replace(bench, criterion=c, branches={}) for c in (Magnitude(), Movement()))
    plain.run(plain.trainings(0.2))
    before = contents(bench.store)
    todo = plan([[entry.stage for entry in moving.trainings(0.2)]], bench.store)
    dense, ticket = moving.trainings(0.2)
    assert [stage.task.value for stage in todo.units[unit_of(dense.stage)]] == [Tensors]
    assert len(todo.trainings) == 2 and not moving.run([dense, ticket])
    assert before.items() <= contents(bench.store).items()
    wild = dataclasses.replace(moving, recipe=Recipe("SGD", 1e30, 20, 40, 10))
    dense, ticket = wild.trainings(0.2)
    assert not wild.run([dense, ticket])
    assert all(isinstance(bench.store.read(s), Diverged) for s in (dense.run.movement, ticket.stage))


# Masks drawn at initialisation, and what a key holds


@dataclass
class AtInit(Bench):
    """A bench that prunes at initialisation."""

    def lab(self, replicate: int = 0):
        return dataclasses.replace(super().lab(replicate), when="init")


@pytest.mark.parametrize("criterion", [Magnitude(), Snip(1, 1, 10), Synflow(5), Random()])
def test_masks_at_initialisation_need_no_training(bench: Bench, criterion):
    """Nothing behind a ticket's result is a training but its own; levels are nested and drawn from the initial weights;
    the one-shot branch is the ticket of that schedule."""
    bench = AtInit(bench.store, criterion=criterion, branches={"one_shot": OneShot()}, pattern=Unstructured("global"))
    dense, first, _, second, single = bench.trainings(0.36)
    for entry in (first, second, single):
        runs = {stage.inputs["run"].unit for stage in ancestors([entry.stage]) if "run" in stage.inputs}
        assert runs == {unit_of(entry.stage)} and entry.run.start.key == dense.run.start.key
    assert first.ticket.pruned.key == dense.run.start.key
    assert not bench.run([first, second, single])
    assert not bench.store.present(dense.stage.key)
    one, two = (value(e.run.mask, bench.store, bench.context) for e in (first, second))
    assert two.inside(one) and two.num_kept == round(0.64 * two.num_total)
    if isinstance(criterion, Magnitude):
        w = bench.store.read(dense.run.start).params
        least = min(float(w[name][kept].abs().min()) for name, kept in two.items())
        assert all((w[name][~kept].abs() <= least).all() for name, kept in two.items())


def test_rewind_is_free_where_masks_need_no_training(bench: Bench):
    """A mask of the initial weights, a ticket that restarts at step 10 of the dense run: only the start needs it."""
    bench = AtInit(bench.store, rewind=Early(10), branches={})
    dense, ticket = bench.trainings(0.2)
    assert {s.inputs["step"] for s in ancestors([ticket.stage]) if s.inputs.get("run") is dense.run} == {10}
    assert not [s for s in ancestors([ticket.run.mask]) if "run" in s.inputs]


@pytest.mark.parametrize("criterion", [Movement(), EarlyBird(), Zhou("magnitude_increase"), Zhou("movement_abs")])
def test_what_needs_training_is_refused_at_initialisation(bench: Bench, criterion):
    word = {"Movement": "movement", "EarlyBird": "early_bird"}.get(type(criterion).__name__) or criterion.name
    bench = AtInit(bench.store, criterion=criterion)
    with pytest.raises(ValueError, match=rf"^criterion={word} needs a trained network; prune.when=init has none$"):
        bench.trainings()


def test_a_mask_is_named_by_what_its_criterion_reads(bench: Bench):
    """origin and movement stand among the inputs of masks of the criteria that read them, and of no others."""
    reads = {
        Magnitude(): set(), Snip(1, 9, 9): set(), Synflow(2): set(), Zhou("small_final"): set(),
        MagnitudeAtInit(): {"origin"}, Zhou("small_init"): {"origin"}, Movement(): {"movement"},
    }  # fmt: skip
    for criterion, names in reads.items():
        (*_, ticket) = dataclasses.replace(bench, criterion=criterion, branches={}).trainings(0.36)
        inputs = ticket.ticket.mask.inputs
        assert set(inputs) & {"origin", "movement"} == names
        assert "batch_size" not in inputs
    moving = dataclasses.replace(bench, criterion=Movement(), branches={}).trainings(0.36)
    assert moving[2].ticket.mask.inputs["movement"].key == moving[1].run.movement.key


@dataclass(frozen=True)
class Flat:
    """One score for all of the first layer, and magnitude elsewhere."""

    def __call__(self, model, state, mask, data, rng):
        scores = {name: state.params[name].abs() for name in mask}
        return scores | {"1.weight": torch.full(mask["1.weight"].shape, 3.0)}


def test_a_layer_is_not_chosen_by_position(bench: Bench):
    """One score for a layer that loses some of its weights is an error that names both; one that keeps all is fine."""
    flat = dataclasses.replace(bench, criterion=Flat(), branches={})
    failures = flat.run(flat.trainings(0.2))
    assert {f.cause for f in failures.values()} == {
        "ValueError: criterion=flat gave all of 1.weight one score: nothing says which to keep"
    }
    spared = dataclasses.replace(flat, pattern=Unstructured("global"))  # 3 is above every weight of the other layer
    *_, ticket = trainings = spared.trainings(0.1)
    assert not spared.run(trainings)
    assert value(ticket.run.mask, bench.store, bench.context).counts()["1.weight"] == 128


@pytest.mark.parametrize("criterion", [Gradient(2, 20, 0), Grasp(1, 1, 10, 200.0), Hessian("hutchinson", 50, 3)])
def test_a_sample_of_the_data_makes_a_ticket(bench: Bench, criterion):
    """From the configured thing to a trained ticket, twice the same in stores of their own."""
    bench = dataclasses.replace(bench, criterion=criterion, branches={})
    trainings = bench.trainings(0.2)
    assert not bench.run(trainings)
    assert contents(bench.store) == unbroken(bench, trainings)


def test_batch_norm_is_scored_in_the_mode_that_is_stated():
    """Gradients with the statistics of the batch, Fisher with the running ones: each by a network that is put into that
    mode by hand. Running statistics stay as they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, **F64), nn.BatchNorm1d(3, **F64), nn.Dropout(0.5), nn.Linear(3, 2, **F64))
    model[1].running_mean.fill_(0.5), model[1].running_var.fill_(4.0)
    w = model[0].weight
    (slope,) = torch.autograd.grad(cross_entropy(model[3](model[1](model[0](X))), Y), w)  # train mode, no dropout
    model[1].running_mean.fill_(0.5), model[1].running_var.fill_(4.0)
    torch.testing.assert_close(scored(Gradient(**ALL), model, DATA)["0.weight"], (w * slope).detach().abs())
    fisher = scored(Hessian("fisher", 4, 1), model, DATA)["0.weight"]
    assert (model[1].running_mean == 0.5).all() and (model[1].running_var == 4).all() and model[2].training
    model.eval()
    slopes = [torch.autograd.grad(cross_entropy(model(x[None]), y[None]), w)[0] for x, y in zip(X, Y, strict=True)]
    mean = torch.stack(slopes).square().mean(0)
    torch.testing.assert_close(fisher, (w**2 * mean / 2).detach())
    assert evaluate(model, DATA)[0] > 0

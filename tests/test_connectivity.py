"""Connectivity against closed forms: distances by hand, a line whose every point is known, convexity, batch norm."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from conftest import blobs
from torch import nn
from torch.nn.functional import cross_entropy

import lth.connectivity
from lth.connectivity import angle, barrier, disagreement, distance, interpolate
from lth.data import Split
from lth.mask import Mask
from lth.model.mlp import Mlp
from lth.state import TrainState, evaluate, load


def state(**params) -> TrainState:
    """A state of parameters given as lists; w__b is read as w.b."""
    return TrainState(0, {name.replace("__", "."): torch.tensor(values) for name, values in params.items()})


def normed() -> nn.Module:
    """Dropout, a layer and batch norm behind it: running statistics that depend on the weights before them."""
    layers = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers)


def drawn(model: nn.Module, seed: int) -> TrainState:
    """Random parameters of the model's shapes; a batch norm that has seen thirty batches, of something else."""
    rng = torch.Generator().manual_seed(seed)
    params = {name: torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.5 for name, p in model.named_parameters()}
    buffers = {name: torch.full_like(buffer, 30) for name, buffer in model.named_buffers()}
    return TrainState(0, params, buffers)


def ready():
    return blobs().normalised("cpu")


def line(model, a, b, num_alphas=5, num_batches=2, batch_size=20):
    data = ready()
    return interpolate(model, a, b, num_alphas, data.train, data.test, num_batches, batch_size)


# Distances


@pytest.mark.parametrize(
    ("a", "b", "length", "degrees"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], 0.0, 0.0),
        ([1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0], 4.0, 0.0),
        ([3.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0], 5.0, 90.0),
        ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], 1.0, 45.0),
        ([1.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0], math.sqrt(5), 135.0),
        ([1.0, -1.0, 1.0, -1.0], [-2.0, 2.0, -2.0, 2.0], 6.0, 180.0),
        ([3e20, 0.0, 0.0, 0.0], [0.0, 4e20, 0.0, 0.0], 5e20, 90.0),  # squares that float32 does not hold
        ([3e-30, 0.0, 0.0, 0.0], [0.0, 4e-30, 0.0, 0.0], 5e-30, 90.0),
    ],
)
def test_distance_and_angle_by_hand(a, b, length, degrees):
    assert distance(state(w=a), state(w=b)) == pytest.approx(length, rel=1e-7, abs=1e-40)
    assert distance(state(w=b), state(w=a)) == distance(state(w=a), state(w=b))
    assert angle(state(w=a), state(w=b)) == pytest.approx(degrees, abs=1e-13)


@pytest.mark.parametrize("tiny", [1e-3, 1e-6, 1e-9, 1e-12])
def test_angle_is_exact_at_both_ends(tiny):
    """Where acos of a dot product says 0, or is off by half of the digits."""
    one, near, far = state(w=[1.0, 0.0, 0.0, 0.0]), state(w=[1.0, 0.0, tiny, 0.0]), state(w=[-1.0, 0.0, tiny, 0.0])
    degrees = math.degrees(math.atan(torch.tensor(tiny).item()))  # the float32 that the state holds
    assert angle(one, near) == pytest.approx(degrees, rel=1e-12)
    assert 180 - angle(one, far) == pytest.approx(degrees, rel=1e-12, abs=1e-13)


def test_mask_restricts():
    """With a mask the kept weights count and nothing else: neither removed ones, zero or not, nor the bias."""
    ticket = state(a__weight=[[3.0, 0.0], [0.0, 0.0]], a__bias=[7.0, 7.0])
    dense = state(a__weight=[[0.0, 5.0], [4.0, 9.0]], a__bias=[1.0, 2.0])
    mask = Mask({"a.weight": torch.tensor([[True, False], [True, False]])})
    assert distance(ticket, dense, mask) == distance(dense, ticket, mask) == 5.0
    assert angle(ticket, dense, mask) == 90.0
    assert distance(ticket, dense) == pytest.approx(math.sqrt(9 + 25 + 16 + 81 + 36 + 25))
    cosine = 21 / math.sqrt((9 + 49 + 49) * (25 + 16 + 81 + 1 + 4))
    assert angle(ticket, dense) == pytest.approx(math.degrees(math.acos(cosine)))


def test_states_are_matched_by_name():
    """The order of names does not matter; other names or shapes are an error that names the parameter."""
    a = TrainState(0, {"u": torch.tensor([1.0, 2.0]), "v": torch.tensor([3.0, 4.0])})
    b = TrainState(5, {"v": torch.tensor([3.0, 4.0]), "u": torch.tensor([1.0, 2.0])})
    assert distance(a, b) == angle(a, b) == 0.0
    for other in (state(u=[1.0, 2.0]), state(u=[1.0, 2.0], v=[3.0, 4.0], w=[5.0]), state(u=[1.0, 2.0], v=[[3.0, 4.0]])):
        for x, y in ((a, other), (other, a)):
            with pytest.raises(ValueError, match=r"same parameters; [vw] is "):
                distance(x, y)
            with pytest.raises(ValueError, match=r"same parameters; [vw] is "):
                line(nn.Identity(), x, y)
    assert math.isnan(angle(a, state(u=[0.0, 0.0], v=[0.0, 0.0])))  # no angle, but no reason to lose a study


def test_disagreement_by_hand():
    """Linear classifiers on 5,000 examples, more than one batch; dropout is off, and the last batch counts too."""
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2, bias=False)).train()
    plain, swapped = state(**{"1.weight": [[1.0, 0.0], [0.0, 1.0]]}), state(**{"1.weight": [[0.0, 1.0], [1.0, 0.0]]})
    first = state(**{"1.weight": [[1.0, 0.0], [0.5, 0.0]]})  # class 0 where x_0 > 0
    x = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).repeat(2500, 1)
    split = Split(x, torch.zeros(5000, dtype=torch.int64))
    assert disagreement(model, plain, plain, split) == 0.0
    assert disagreement(model, plain, swapped, split) == 1.0
    assert disagreement(model, plain, first, split) == disagreement(model, first, plain, split) == 0.5
    x[-3:] = torch.tensor([2.0, 1.0])
    assert disagreement(model, plain, first, split) == 2498 / 5000
    assert disagreement(model, plain, first, split, batch_size=7) == 2498 / 5000


def test_disagreement_reads_each_state_with_its_own_buffers():
    """Equal weights, other running statistics, other classes."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    a = TrainState.of(model)
    b = TrainState(0, a.params, a.buffers | {"0.running_mean": torch.tensor([3.0, 0.0])})
    split = Split(torch.tensor([[2.0, 1.0], [5.0, 1.0]]), torch.zeros(2, dtype=torch.int64))
    assert disagreement(model, a, b, split) == 0.5


# The line


@pytest.mark.parametrize("num_alphas", [2, 30, 31])
def test_line_between_a_network_and_its_permutation(num_alphas):
    """Two hidden units hold relu(x) and relu(-x), logits (s x, -s x) = s (1, -1) (relu(x) - relu(-x)). Exchange the
    units: the same function, weights opposite. Between them, with c = 1 - 2 alpha, both layers are c times the first
    network's, so that the logits are c^2 (s x, -s x), and in the middle the network is the zero function."""
    s, sizes = 3.0, [0.5, 1.0, 2.0, 0.1]
    x = torch.tensor([[size * sign] for size in sizes for sign in (1, -1)])
    y = torch.tensor([0, 1] * 4)  # sign of x: both networks are right everywhere
    hidden, out = [[1.0], [-1.0]], [[s, -s], [-s, s]]
    bias = {"1.bias": [0.0, 0.0], "3.bias": [0.0, 0.0]}
    a = state(**{"1.weight": hidden, "3.weight": out}, **bias)
    b = state(**{"1.weight": hidden[::-1], "3.weight": [row[::-1] for row in out]}, **bias)
    assert distance(a, b) == pytest.approx(math.sqrt(8 + 16 * s * s)) and angle(a, b) == 180.0
    test = Split(x[:3], y[:3])
    points = interpolate(Mlp([2])((1,), 2), a, b, num_alphas, Split(x, y), test, 0, 0)
    assert [point["alpha"] for point in points] == [i / (num_alphas - 1) for i in range(num_alphas)]

    def loss(c, values):
        return sum(math.log1p(math.exp(-2 * s * c * c * value)) for value in values) / len(values)

    for point in points:
        c, middle = 1 - 2 * point["alpha"], point["alpha"] == 0.5
        assert point["train_loss"] == pytest.approx(loss(c, sizes), rel=1e-5)
        assert point["test_loss"] == pytest.approx(loss(c, [0.5, 0.5, 1.0]), rel=1e-5)
        # the zero function says class 0, which is right for half of the examples, and for 2 of the 3 tested
        assert point["train_error"] == (0.5 if middle else 0.0)
        assert point["test_error"] == pytest.approx(1 / 3 if middle else 0.0)
    highest = loss(min(abs(1 - 2 * i / (num_alphas - 1)) for i in range(num_alphas)), sizes)  # log 2 in the middle
    barriers = {name: barrier([point[name] for point in points]) for name in ("train_loss", "train_error")}
    assert barriers["train_loss"] == pytest.approx(highest - loss(1, sizes), rel=1e-5, abs=1e-7)
    assert barriers["train_error"] == (0.5 if num_alphas == 31 else 0.0)  # only an odd number sees the middle
    assert highest == pytest.approx(math.log(2), abs=0.01) or num_alphas == 2
    assert (barriers["train_error"] < 0.02) is (num_alphas != 31)


def noisy() -> Split:
    """Labels that no linear classifier gets right: its loss has a minimum, flat only along the softmax shift."""
    rng = torch.Generator().manual_seed(3)
    return Split(torch.randn(200, 2, generator=rng).double(), torch.randint(0, 3, (200,), generator=rng))


def test_convex_minimum_has_no_barrier():
    """Two trainings of a linear softmax classifier end far apart, along the flat direction of the softmax, and the line
    between them is flat to rounding."""
    split, model = noisy(), Mlp([])((2,), 3).double()
    ends = []
    for seed in (0, 1):
        load(model, drawn(model, seed).params, {})
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, tolerance_grad=1e-9, tolerance_change=0)

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = cross_entropy(model(split.x), split.y)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        ends.append(TrainState.of(model))
    assert distance(*ends) > 0.5
    points = interpolate(model, *ends, 11, split, split, 0, 0)
    assert 0 <= barrier([point["train_loss"] for point in points]) < 1e-12
    assert barrier([point["train_error"] for point in points]) < 0.005  # no example, or one at a boundary


@pytest.mark.parametrize("seed", range(3))
def test_convex_loss_lies_below_its_chords(seed):
    """Between arbitrary linear classifiers the loss is convex along the line: under the chord, clearly so midway."""
    split, model = noisy(), Mlp([])((2,), 3).double()
    points = interpolate(model, drawn(model, 2 * seed), drawn(model, 2 * seed + 1), 21, split, split, 0, 0)
    alphas, losses = ([point[name] for point in points] for name in ("alpha", "train_loss"))
    chord = [(1 - alpha) * losses[0] + alpha * losses[-1] for alpha in alphas]
    assert all(loss <= above + 1e-12 for loss, above in zip(losses, chord, strict=True))
    assert losses[10] < chord[10] - 0.01
    slopes = [later - earlier for earlier, later in pairwise(losses)]
    assert all(later > earlier for earlier, later in pairwise(slopes))
    assert barrier(losses) == pytest.approx(abs(losses[0] - losses[-1]) / 2)  # no point above both ends


def test_points_are_what_evaluate_says():
    """Each point, both splits, ends included, to the last bit: that of a network into which the point was loaded."""
    data = ready()
    model, bare = Mlp([8])((1, 4, 4), 3), Mlp([8])((1, 4, 4), 3)
    a, b = drawn(model, 1), drawn(model, 2)
    points = line(model, a, b)
    assert len(points) == 5
    for i, point in enumerate(points):
        params = {n: ((4 - i) * a.params[n].double() + i * b.params[n].double()) / 4 for n in a.params}
        load(bare, a.params if i == 0 else b.params if i == 4 else params, {})
        for name, split in (("train", data.train), ("test", data.test)):
            loss, accuracy = evaluate(bare, split)
            assert (point[f"{name}_loss"], point[f"{name}_error"]) == (loss, 1 - accuracy)
    assert len({point["train_loss"] for point in points}) == 5 and points[0]["train_loss"] != points[0]["test_loss"]


def test_a_network_against_itself_is_flat_to_the_last_bit():
    model = Mlp([8])((1, 4, 4), 3)
    points = line(model, drawn(model, 1), drawn(model, 1), 31)
    assert all({**point, "alpha": 0} == {**points[0], "alpha": 0} for point in points)
    assert barrier([point["train_loss"] for point in points]) == 0


@pytest.mark.parametrize("make", [Mlp([8]).__call__, lambda *_: normed()], ids=["mlp", "normed"])
def test_a_point_does_not_know_its_neighbours(make):
    """Three points or nine: those at the same alpha have the same bits, and so have those of the line read backwards
    where its arithmetic is exact."""
    model = make((1, 4, 4), 3)
    a, b = drawn(model, 1), drawn(model, 2)
    few, many = line(model, a, b, 3), line(model, a, b, 9)
    assert few == many[::4]
    back = line(model, b, a, 3)
    assert [point["train_loss"] for point in back] == [point["train_loss"] for point in few[::-1]]


def test_line_needs_two_ends():
    model = normed()
    with pytest.raises(ValueError, match="num_alphas=1 must be at least 2"):
        line(model, drawn(model, 1), drawn(model, 2), 1)
    assert len(line(model, drawn(model, 1), drawn(model, 2), 2)) == 2


# Batch norm


@pytest.mark.parametrize(("num_batches", "batch_size"), [(1, 7), (3, 5), (10, 20)])
def test_statistics_are_those_of_the_batches(num_batches, batch_size, monkeypatch):
    """At each point, ends included, running mean and variance are the averages over the first batches of the training
    split of their mean and unbiased variance, dropout off; and loss and error are those of the network with them."""
    data, model = ready(), normed()
    a, b = drawn(model, 1), drawn(model, 2)
    seen = []

    def spy(network, split):
        assert not any(module.training for module in network.modules())
        seen.append((network[3].running_mean.clone(), network[3].running_var.clone()))
        return evaluate(network, split)

    monkeypatch.setattr(lth.connectivity, "evaluate", spy)
    model.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))  # copied with the model
    modes = []
    points = line(model, a, b, 5, num_batches, batch_size)
    assert modes == [False] * 5 * (num_batches + 2)  # no graph is kept
    batches = data.train.x.flatten(1).double().split(batch_size)[:num_batches]
    for i, point in enumerate(points):
        p = {n: (1 - i / 4) * a.params[n].double() + i / 4 * b.params[n].double() for n in a.params}
        hidden = [x @ p["2.weight"].T + p["2.bias"] for x in batches]
        mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
        var = torch.stack([h.var(0, correction=1) for h in hidden]).mean(0)
        for running_mean, running_var in seen[2 * i : 2 * i + 2]:
            torch.testing.assert_close(running_mean, mean.float(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(running_var, var.float(), rtol=1e-4, atol=1e-5)
        for name, split in (("train", data.train), ("test", data.test)):
            h = split.x.flatten(1).double() @ p["2.weight"].T + p["2.bias"]
            h = (h - mean) / (var + 1e-5).sqrt() * p["3.weight"] + p["3.bias"]
            logits = h.relu() @ p["5.weight"].T + p["5.bias"]
            assert point[f"{name}_loss"] == pytest.approx(cross_entropy(logits, split.y).item(), rel=1e-5)
            assert point[f"{name}_error"] == pytest.approx((logits.argmax(1) != split.y).double().mean().item())


def test_wrong_statistics_make_no_barrier():
    """Networks that differ only in their running statistics, wrong ones included, are one network on the line."""
    data, model = ready(), normed()
    right = drawn(model, 1)
    wrong = [
        TrainState(0, right.params, right.buffers | {"3.running_mean": torch.full((6,), m), "3.running_var": v})
        for m, v in ((50.0, torch.full((6,), 9.0)), (-20.0, torch.full((6,), 1e-3)))
    ]
    points = line(model, *wrong)
    assert points == line(model, right, right)
    assert barrier([point["train_loss"] for point in points]) == 0
    load(model, wrong[0].params, wrong[0].buffers)
    assert evaluate(model, data.train)[0] > points[0]["train_loss"] + 0.5  # they would have made a difference


class Shifted(nn.Module):
    """Adds a buffer, which no training changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(6))

    def forward(self, x):
        return x + self.shift


def plain_net(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), norm, nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(6), nn.BatchNorm1d(6, track_running_stats=False)])
def test_without_running_statistics_nothing_is_estimated(norm):
    """Bit for bit the same whatever the batches, which are not even read; the ends are the networks as trained."""
    model = plain_net(norm)
    a, b = drawn(model, 1), drawn(model, 2)
    points = line(model, a, b)
    assert points == line(model, a, b, num_batches=10**9, batch_size=1) == line(model, a, b, num_batches=0)
    sizes = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))  # copied with the model
    line(model, a, b)
    assert sizes == [200, 50] * 5
    for end, point in ((a, points[0]), (b, points[-1])):
        load(model, end.params, end.buffers)
        loss, accuracy = evaluate(model, ready().test)
        assert (point["test_loss"], point["test_error"]) == (loss, 1 - accuracy)


def test_other_buffers_are_those_of_a():
    model = plain_net(Shifted())
    a, b = drawn(model, 1), drawn(model, 1)
    a.buffers["2.shift"], b.buffers["2.shift"] = torch.full((6,), 2.0), torch.full((6,), -5.0)
    points = line(model, a, b, 3)
    load(model, a.params, a.buffers)
    assert {point["test_loss"] for point in points} == {evaluate(model, ready().test)[0]}


@pytest.mark.parametrize(("num_batches", "batch_size"), [(11, 20), (1, 201), (0, 20), (5, 0), (-2, -5)])
def test_batches_must_be_there(num_batches, batch_size):
    model = normed()
    with pytest.raises(ValueError, match=f"num_batches={num_batches} of batch_size={batch_size} must be 1 to 200"):
        line(model, drawn(model, 1), drawn(model, 2), 3, num_batches, batch_size)


def test_nothing_given_is_changed():
    """Parameters, buffers, gradients, flags and momentum of the model, both states, the data, the global generator; and
    what the model held before does not matter."""
    data, model = ready(), normed().train()
    model[3].eval()
    cross_entropy(model(data.train.x), data.train.y).backward()
    model[5].weight.requires_grad_(False)
    a, b = drawn(model, 1), drawn(model, 2)

    def everything():
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters()), *data.train, *data.test]
        tensors += [t for end in (a, b) for t in end.pack()[0].values()]
        flags = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
        return copy.deepcopy([*tensors, torch.get_rng_state()]), flags, model[3].momentum

    before = everything()
    points = line(model, a, b)
    share = disagreement(model, a, b, data.test)
    after = everything()
    assert all(torch.equal(one, two) for one, two in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:] and model[3].momentum == 0.1
    load(model, b.params, {name: torch.full_like(t, 7) for name, t in b.buffers.items()})
    assert line(model.eval(), a, b) == points and disagreement(model, a, b, data.test) == share


# The barrier


@pytest.mark.parametrize(
    ("values", "height"),
    [
        ([0.1, 0.1], 0.0),
        ([0.25, 0.5], 0.125),
        ([0.5, 0.375, 0.25], 0.125),
        ([0.25, 0.0, 0.25], 0.0),
        ([0.0, 0.75, 0.5], 0.5),
        ([1.0, 2.0, 5.0, 3.0], 3.0),
        ([1.0, 1.0 + 2.0**-40, 1.0], 2.0**-40),
    ],
)
def test_barrier_by_hand(values, height):
    assert barrier(values) == barrier(values[::-1]) == height


def test_barrier_is_never_negative():
    """Nor by rounding; and what is not a number does not hide."""
    rng = torch.Generator().manual_seed(0)
    for values in torch.rand(1000, 4, generator=rng, dtype=torch.float64).pow(9):
        assert barrier(values.tolist()) >= 0
        assert barrier([values[0].item()] * 3) == 0
    for position in range(3):
        assert math.isnan(barrier([math.nan if i == position else 1.0 for i in range(3)]))

"""Engines: each against `sequential`, laws 1, 2 and 9 in each, and the choice between them.

The oracle of every engine is torch's own modules, autograd and optimisers, in `sequential`; float64 tells an error from
rounding.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import Bench, blobs
from test_execute import contents
from test_main import run_here
from test_train import same
from torch import Tensor, nn

import lth.engine.graph
import lth.engine.sparse
import lth.perform
from lth.criterion.movement import Movement
from lth.data import Data, Split
from lth.dataset.fake import Fake
from lth.engine import choice
from lth.engine.choice import Choice, chosen, engines
from lth.engine.graph import Graph
from lth.engine.lockstep import ELEMENTWISE, Lockstep
from lth.engine.perceptrons import Perceptrons, layers, slope_of_cross_entropy
from lth.engine.sequential import Sequential
from lth.engine.sparse import Sparse
from lth.mask import Mask, prunable
from lth.model import Residual
from lth.model.mlp import Mlp, ResidualMlp
from lth.model.resnet_cifar import Resnet
from lth.numerics import applied
from lth.recipe import Cosine, Recipe
from lth.rewind.early import Early
from lth.state import History, Lane, TrainState
from lth.store import Store
from lth.train import train_together, unit_of


@dataclass(frozen=True)
class Norms:
    """A convolution, batch norm and an output layer: buffers, and weights that no mask speaks of."""

    def __call__(self, input_shape, num_classes) -> nn.Module:
        convolution = nn.Conv2d(input_shape[0], 4, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, num_classes))


NETWORKS = {
    "mlp": Mlp([30, 20]),
    "odd": Mlp([13, 11]),
    "residual": ResidualMlp(24),
    "norms": Norms(),
    "resnet_20": Resnet(20),
}
PERCEPTRONS = "mlp", "residual"
SGD = {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
RECIPES = {
    "sgd": Recipe("SGD", 0.05, 7, 30, 10, options=SGD),
    "adam": Recipe("Adam", 0.01, 7, 30, 10),
    "adamw": Recipe("AdamW", 0.01, 7, 30, 10, Cosine(), 5, {"weight_decay": 0.1}),
    "all": Recipe("SGD", 0.1, 7, 30, 10, Cosine(), 5, SGD, label_smoothing=0.2, clip=0.5, ema=0.7),
    "adam_all": Recipe("Adam", 0.01, 7, 30, 10, Cosine(), 5, label_smoothing=0.2, clip=0.5, ema=0.7),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Layers as small as these are sparse, too."""
    monkeypatch.setattr(lth.engine.sparse, "SMALL", 0)


@functools.cache
def data(kind: torch.dtype = torch.float64, images: bool = False) -> Data:
    """blobs, or a few images of 3 x 8 x 8."""
    given = (Fake([3, 8, 8], 3, 60, 10, 10)(Path()) if images else blobs()).normalised("cpu")
    splits = {
        name: Split(split.x[:].to(kind), split.y) for name in ("train", "val", "test") for split in [vars(given)[name]]
    }
    return dataclasses.replace(given, **splits)


def network(name: str, kind: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Its biases are drawn, too."""
    torch.manual_seed(seed)
    model = NETWORKS[name](data(images=name == "resnet_20").input_shape, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(kind)


def random_mask(model: nn.Module, density: float, seed: int) -> Mask:
    rng = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(kept.shape, generator=rng) < density for name, kept in Mask.dense(model).items()})


def odd_mask(model: nn.Module) -> Mask:
    """A unit without fan-in, one without fan-out, one of both kinds, and an output layer with a single weight."""
    kept = {name: tensor.clone() for name, tensor in random_mask(model, 0.7, 3).items()}
    first, second, last = kept
    kept[first][[2, 5]] = False
    kept[second][:, [3, 5]] = False
    kept[last][:] = False
    kept[last][1, 4] = True
    return Mask(kept)


def empty_mask(model: nn.Module) -> Mask:
    """The second layer has no weight left."""
    kept = {name: tensor.clone() for name, tensor in random_mask(model, 0.5, 4).items()}
    kept[list(kept)[1]][:] = False
    return Mask(kept)


def lanes_of(name: str, kind: torch.dtype = torch.float64, num: int = 5) -> list[Lane]:
    """Runs that have nothing in common: starts, masks (one dense, one None), orders."""
    model = network(name, kind)
    masks = [
        None,
        random_mask(model, 0.5, 1),
        Mask.dense(model),
        random_mask(model, 0.1, 2),
        random_mask(model, 0.8, 3),
    ]
    if name in (*PERCEPTRONS, "odd"):
        masks[2:4] = odd_mask(model), empty_mask(model)
    starts = [TrainState.of(network(name, kind, seed)) for seed in range(num)]
    return [Lane(start, mask, 10 + i) for i, (start, mask) in enumerate(zip(starts, masks, strict=False))]


Ends = list[tuple[TrainState, History]]


def ends(kind, name: str, lanes: Sequence[Lane], recipe: Recipe, stop: int) -> Ends:
    """(state, history) of each lane at `stop`, or where it diverged; the lanes themselves are left as they are."""
    given = data(lanes[0].start.params[next(iter(lanes[0].start.params))].dtype, name == "resnet_20")
    lanes, found = [copy.deepcopy(lane) for lane in lanes], {}  # one by one: a lane may be there twice
    model = network(name, given.train.x.dtype)
    for reached in train_together(model, lanes, recipe.on(len(given.train.y)), given, stop, kind):
        found[reached.index] = reached.state()
    return [(found[index], lane.history) for index, lane in enumerate(lanes)]


def one_by_one(name: str, lanes: Sequence[Lane], recipe: Recipe, stop: int, kind=Sequential) -> Ends:
    return [end for lane in lanes for end in ends(kind, name, [lane], recipe, stop)]


def distance(one: Tensor, other: Tensor) -> float:
    """max |a - b| / max |b|, 0 of zeros."""
    assert one.shape == other.shape and one.dtype == other.dtype
    gap = (one.double() - other.double()).abs().max().item() if one.numel() else 0
    return gap / other.double().abs().max().item() if gap else 0


def assert_close(ours: Ends, theirs: Ends, most: float) -> None:
    """Weights, buffers, every moment, averages, the best network and what was measured."""
    for (state, history), (other, measured) in zip(ours, theirs, strict=True):
        parts, others = state.pack(), other.pack()
        assert parts[1] == others[1] and parts[0].keys() == others[0].keys()
        assert history.best_step == measured.best_step and history.best.keys() == measured.best.keys()
        pairs = [(name, parts[0][name], others[0][name]) for name in parts[0]]
        for name, one, two in pairs + [(f"best {n}", history.best[n], t) for n, t in measured.best.items()]:
            assert distance(one, two) <= most, name
        assert len(history.points) == len(measured.points)
        for point, expected in zip(history.points, measured.points, strict=True):
            assert (point["step"], point["val_accuracy"]) == (expected["step"], expected["val_accuracy"])
            assert point["val_loss"] == pytest.approx(expected["val_loss"], rel=most)
            assert point["train_loss"] == pytest.approx(expected["train_loss"], rel=max(most, 1e-6))  # kept as float32


# Where bits of MKL's products were seen not to depend on a run's neighbours (law 9). On another CPU they may; then the
# choice of engines puts none side by side (`stand_alone`).
BITS = torch.backends.cpu.get_cpu_capability() == "AVX2"


def assert_same(ours: Ends, theirs: Ends) -> None:
    """Every bit, or where these may differ within the rounding of float32, which Adam enlarges."""
    if not BITS:
        assert_close(ours, theirs, 1e-3)
        return
    for (state, history), (other, measured) in zip(ours, theirs, strict=True):
        assert same(state, other) and history.points == measured.points
        assert all(torch.equal(tensor, measured.best[name]) for name, tensor in history.best.items())


# Equality with `sequential`


@pytest.mark.parametrize(("recipe", "size"), [*((recipe, 7) for recipe in RECIPES), ("all", 1), ("adam_all", 1)])
@pytest.mark.parametrize("name", PERCEPTRONS)
def test_perceptrons_and_sparse_equal_sequential(name, recipe, size):
    """In float64 30 steps are those of `sequential` to 1e-10: five runs side by side, and each in compressed rows."""
    recipe, lanes = dataclasses.replace(RECIPES[recipe], batch_size=size), lanes_of(name)
    theirs = one_by_one(name, lanes, recipe, 30)
    assert_close(ends(Perceptrons, name, lanes, recipe, 30), theirs, 1e-10)
    assert_close(one_by_one(name, lanes, recipe, 30, Sparse), theirs, 1e-10)


@pytest.mark.parametrize("name", PERCEPTRONS)
def test_small_layers_of_sparse_are_dense(name, monkeypatch):
    lanes, recipe = lanes_of(name), RECIPES["all"]
    sizes = sorted(weight.numel() for weight in prunable(network(name)).values())
    monkeypatch.setattr(lth.engine.sparse, "SMALL", sizes[-1])  # but for the largest
    assert_close(one_by_one(name, lanes, recipe, 30, Sparse), one_by_one(name, lanes, recipe, 30), 1e-10)


@pytest.mark.parametrize(("recipe", "most"), [("sgd", 1e-5), ("all", 1e-5), ("adam", 1e-3)])
@pytest.mark.parametrize("name", PERCEPTRONS)
def test_perceptrons_and_sparse_in_float32(name, recipe, most):
    """10 steps to 1e-5; to 1e-3 with Adam, which divides the rounding of a slope near zero by that slope."""
    recipe, lanes = RECIPES[recipe], lanes_of(name, torch.float32)
    theirs = one_by_one(name, lanes, recipe, 10)
    assert_close(ends(Perceptrons, name, lanes, recipe, 10), theirs, most)
    assert_close(one_by_one(name, lanes, recipe, 10, Sparse), theirs, most)


@pytest.mark.parametrize(
    ("name", "recipe", "num", "stop"),
    [*(("norms", recipe, 5, 20) for recipe in RECIPES), ("mlp", "all", 5, 10), ("resnet_20", "all", 2, 3)],
)
def test_lockstep_equals_sequential(name, recipe, num, stop):
    """Through vmap, in float64 to 1e-10: batch norm with its statistics, weights that no mask speaks of, a ResNet."""
    lanes = lanes_of(name, num=num)
    theirs = one_by_one(name, lanes, RECIPES[recipe], stop)
    assert_close(ends(Lockstep, name, lanes, RECIPES[recipe], stop), theirs, 1e-10)
    one, two = theirs[0][0].buffers, theirs[1][0].buffers
    assert name == "mlp" or any(not torch.equal(tensor, two[n]) for n, tensor in one.items())


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_every_elementwise_optimizer(optimizer):
    """Each of them, with all of its moments, and gone on from."""
    recipe, lanes = Recipe(optimizer, 0.01, 7, 12, 4), lanes_of("mlp")
    middle = [state for state, _ in one_by_one("mlp", lanes, recipe, 4)]
    on = [dataclasses.replace(lane, start=state) for lane, state in zip(lanes, middle, strict=True)]
    theirs, ours = one_by_one("mlp", on, recipe, 12), one_by_one("mlp", on, recipe, 12, Sparse)
    assert_close(ends(Perceptrons, "mlp", on, recipe, 12), theirs, 1e-10)
    for lane, *pair in zip(lanes, ours, theirs, strict=True):
        for (state, _), (key, moment) in ((end, item) for end in pair for item in end[0].optimizer.items()):
            if (kept := (lane.mask or {}).get(key.rpartition("/")[0])) is not None and moment.ndim:
                moment[~kept] = 0  # of removed weights Adamax and Rprop keep the least there is, `sparse` nothing
    assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("recipe", ["all", "adam_all"])
@pytest.mark.parametrize(("name", "num"), [("norms", 1), ("norms", 3), ("mlp", 3)])
def test_graph_without_a_gpu(name, num, recipe, monkeypatch):
    """All of it but the recording, for which steps are done again here: what they changed is set back, each batch and
    each rate is where the recorded step reads it, as float32."""

    def recorded(step):
        for _ in range(4):
            losses = step().clone()
        return lambda: losses.copy_(step().view_as(losses)), losses

    monkeypatch.setattr(lth.engine.graph, "recorded", recorded)
    lanes = lanes_of(name)[:num]
    assert_close(ends(Graph, name, lanes, RECIPES[recipe], 20), one_by_one(name, lanes, RECIPES[recipe], 20), 1e-6)
    on = gone_on(lanes, one_by_one(name, lanes, RECIPES[recipe], 10))
    assert_close(ends(Graph, name, on, RECIPES[recipe], 20), one_by_one(name, on, RECIPES[recipe], 20), 1e-6)


def test_slope_of_cross_entropy_by_hand():
    """Two classes, logits (log 3, 0), so softmax (3/4, 1/4); label 0, smoothed by 0.2: targets (0.9, 0.1). Of two runs,
    each of two such examples, the second one's labels 1."""
    z = torch.tensor([3.0, 1.0], dtype=torch.float64).log().expand(2, 2, 2).contiguous()
    losses, slope = slope_of_cross_entropy(z, torch.tensor([[0, 0], [1, 1]]), 0.2)
    log = torch.log(torch.tensor([0.75, 0.25], dtype=torch.float64))
    targets = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(losses, -(targets * log).sum(1))
    expected = (torch.tensor([0.75, 0.25], dtype=torch.float64) - targets) / 2
    torch.testing.assert_close(slope, expected[:, None].expand(2, 2, 2))


def test_fresh_memory_is_not_read(monkeypatch):
    """What torch.empty_like leaves in memory, here NaN, reaches no gradient."""
    monkeypatch.setattr(torch, "empty_like", lambda t, **more: torch.full_like(t, float("nan"), **more))
    for kind in (Perceptrons, Sparse):
        assert ends(kind, "mlp", lanes_of("mlp", num=1), RECIPES["sgd"], 3)[0][1].diverged_step is None


# Laws 1, 2 and 9


def each(kind, *arguments) -> Ends:
    """`ends`, one by one where an engine takes but one."""
    one = kind in (Sequential, Sparse)
    return one_by_one(*arguments, kind=kind) if one else ends(kind, *arguments)


def gone_on(lanes: Sequence[Lane], middle: Ends) -> list[Lane]:
    return [dataclasses.replace(lane, start=state) for lane, (state, _) in zip(lanes, middle, strict=True)]


@pytest.mark.parametrize(
    ("recipe", "size"), [*((recipe, 7) for recipe in RECIPES), ("all", 3), ("sgd", 1), ("adam", 20)]
)
@pytest.mark.parametrize("name", ["odd", "residual"])
def test_neighbours_do_not_matter_to_perceptrons(name, recipe, size):
    """Law 9, float32, on a CPU: every bit of a run is there alone, with one other and with five, in any place, also
    where no matrix ends with a vector or a line of memory."""
    recipe = dataclasses.replace(RECIPES[recipe], batch_size=size, eval_every=4)
    lanes = lanes_of(name, torch.float32)
    alone = one_by_one(name, lanes, recipe, 8, Perceptrons)
    lanes, alone = [*lanes, lanes[0]], [*alone, alone[0]]
    assert_same(ends(Perceptrons, name, lanes, recipe, 8), alone)
    assert_same(ends(Perceptrons, name, lanes[::-1], recipe, 8), alone[::-1])
    for pair in ([0, 3], [4, 1], [2, 0]):
        assert_same(ends(Perceptrons, name, [lanes[i] for i in pair], recipe, 8), [alone[i] for i in pair])
    assert_same(ends(Perceptrons, name, lanes[1:4], recipe, 8), alone[1:4])


@pytest.mark.parametrize("recipe", ["all", "adamw"])
def test_neighbours_do_not_matter_to_lockstep(recipe):
    """Law 9 through vmap: in float64, to 1e-10."""
    recipe, lanes = dataclasses.replace(RECIPES[recipe], eval_every=4), lanes_of("norms")
    alone = one_by_one("norms", lanes, recipe, 8, Lockstep)
    assert_close(ends(Lockstep, "norms", lanes[::-1], recipe, 8), alone[::-1], 1e-10)
    assert_close(ends(Lockstep, "norms", lanes[1:3], recipe, 8), alone[1:3], 1e-10)


@pytest.mark.parametrize(("kind", "name"), [(Perceptrons, "residual"), (Sparse, "residual"), (Lockstep, "norms")])
@pytest.mark.parametrize("recipe", ["sgd", "adam_all"])
def test_cut_is_whole(kind, name, recipe):
    """Law 1: gone on from any step every bit is there; without the moments, or without the averages, it is not."""
    recipe, lanes = RECIPES[recipe], lanes_of(name, torch.float32, 3)
    whole = each(kind, name, lanes, recipe, 20)
    for cut in (1, 13):
        middle = each(kind, name, lanes, recipe, cut)
        parts = each(kind, name, gone_on(lanes, middle), recipe, 20)
        assert all(same(part, state) for (part, _), (state, _) in zip(parts, whole, strict=True))
    forgetful = [(dataclasses.replace(state, optimizer={}), history) for state, history in middle]
    parts = each(kind, name, gone_on(lanes, forgetful), recipe, 20)
    assert not any(same(part, state) for (part, _), (state, _) in zip(parts, whole, strict=True))


@pytest.mark.parametrize("before", [Sequential, Lockstep, Perceptrons, Sparse])
def test_one_engine_goes_on_from_another(before):
    """A state holds nothing of the engine that made it: each goes on from it, moments and averages with it."""
    recipe, lanes = RECIPES["adam_all"], lanes_of("mlp")
    whole = [(state, History()) for state, _ in one_by_one("mlp", lanes, recipe, 15)]
    middle = gone_on(lanes, each(before, "mlp", lanes, recipe, 6))
    for after in (Sequential, Lockstep, Perceptrons, Sparse):
        parts = [(state, History()) for state, _ in each(after, "mlp", middle, recipe, 15)]
        assert_close(parts, whole, 1e-10)


@pytest.mark.parametrize(("kind", "name"), [(Perceptrons, "residual"), (Sparse, "mlp"), (Lockstep, "norms")])
@pytest.mark.parametrize("recipe", ["sgd", "adamw", "adam_all"])
def test_pruned_stays_zero(kind, name, recipe):
    """Law 2: at every step, from dense states whose moments speak of the removed weights; and so do the moments."""
    recipe, lanes = RECIPES[recipe].on(200), lanes_of(name)
    dense = [dataclasses.replace(lane, mask=None) for lane in lanes]
    lanes = gone_on(lanes, one_by_one(name, dense, recipe, 4))
    masked = [dataclasses.replace(lane, stops=range(31)) for lane in lanes if lane.mask]
    seen = 0
    for group in [[lane] for lane in masked] if kind is Sparse else [masked]:
        for reached in train_together(network(name), group, recipe, data(), 10, kind):
            state, mask, seen = reached.state(), group[reached.index].mask, seen + 1
            for key, tensor in [*state.params.items(), *state.optimizer.items()]:
                kept = mask.get(key) if key in state.params else mask.get(key.rpartition("/")[0])
                assert kept is None or not tensor.ndim or not tensor[~kept].any(), f"{key} at step {reached.step}"
            assert any(state.params[key][kept].any() for key, kept in mask.items())
    assert seen == 6 * len(masked)


# Divergence, half precision, what fits


def test_one_diverges_the_others_do_not_notice():
    """It ends where `sequential` ends it, at the first step or a later one; the others' bits are as without it."""
    recipe = dataclasses.replace(RECIPES["all"], eval_every=2, clip=None)
    *others, lane = lanes_of("odd", torch.float32)
    without = ends(Perceptrons, "odd", others, recipe, 12)
    assert all(history.diverged_step is None for _, history in without)
    for times, steps in ((1e30, (0,)), (1e5, (3, 5, 7))):  # within an interval, not at its first step
        wild = dataclasses.replace(lane.start, params={n: t * times for n, t in lane.start.params.items()})
        bad = dataclasses.replace(lane, start=wild)
        found = ends(Perceptrons, "odd", [*others[:2], bad, *others[2:]], recipe, 12)
        ((_, history),) = ends(Sequential, "odd", [bad], recipe, 12)
        ((_, sparse),) = ends(Sparse, "odd", [bad], recipe, 12)
        for other in (found.pop(2)[1], sparse):
            assert other.diverged_step == history.diverged_step and history.diverged_step in steps
            assert other.points[-1] == history.points[-1] and len(other.points) == len(history.points)
        assert_same(found, without)


def test_half_precision():
    """bf16: three steps are near those of `sequential`, and have not its bits in float32; `sparse` has none of it."""
    lanes, recipe = lanes_of("mlp", torch.float32, 2), RECIPES["sgd"].on(200)

    def third(kind, numerics: str) -> dict[str, Tensor]:
        model, lane = applied(network("mlp", torch.float32), numerics), copy.deepcopy(lanes[1])
        *_, reached = train_together(model, [lane], recipe, data(torch.float32), 3, kind)
        return reached.state().params

    ours, theirs, full = third(Perceptrons, "bf16"), third(Sequential, "bf16"), third(Perceptrons, "reference")
    assert max(distance(ours[name], theirs[name]) for name in ours) < 2e-2
    assert max(distance(ours[name], full[name]) for name in ours) > 1e-4
    model = applied(network("mlp", torch.float32), "bf16")
    assert Perceptrons.fits(model, recipe) and not Sparse.fits(model, recipe)


def test_what_fits():
    """Dropout, batches in parts, optimisers that look at more than one weight, fp16, and what is no perceptron."""
    plain, recipe = network("mlp"), RECIPES["sgd"]
    every, wide, none = (Perceptrons, Lockstep, Sparse), (Lockstep,), ()
    dropping = [nn.Sequential(*network("mlp"), nn.Dropout(p)) for p in (0.0, 0.5)]
    half_precise = network("mlp")
    half_precise.numerics = "fp16"
    without_bias = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    for model, given, fitting in (
        (plain, recipe, every),
        (network("residual"), recipe, every),
        (network("norms"), recipe, wide),
        (without_bias, recipe, wide),
        (dropping[0], recipe, wide),
        (dropping[1], recipe, none),
        (half_precise, recipe, none),
        (plain, dataclasses.replace(recipe, accumulate=7), none),
        *((plain, dataclasses.replace(recipe, optimizer=name), none) for name in ("Adafactor", "Muon", "LBFGS")),
    ):
        assert tuple(kind for kind in (Perceptrons, Lockstep, Sparse) if kind.fits(model, given)) == fitting
        names = {"sequential", *(["lockstep"] if fitting else []), *(["sparse"] if Sparse in fitting else [])}
        assert engines(model, given).keys() == names


def test_layers_by_hand():
    """The layers of a perceptron by the names of their weights; [] of anything else."""
    flat, relu = nn.Flatten(), nn.ReLU()

    def linear() -> nn.Linear:
        return nn.Linear(4, 4)

    def names(*modules: nn.Module) -> list:
        return [(layer.weight, layer.bias, layer.residual) for layer in layers(nn.Sequential(*modules))]

    assert names(flat, linear()) == [("1.weight", "1.bias", False)]
    found = names(flat, linear(), relu, Residual(linear(), relu), linear())
    assert found[1] == ("3.layers.0.weight", "3.layers.0.bias", True) and [f[0] for f in found[::2]] == [
        "1.weight",
        "4.weight",
    ]
    across = Residual(linear(), relu, shortcut=linear())
    for other in (
        (linear(),),
        (linear(), relu, linear()),
        (flat, linear(), relu),
        (flat, linear(), linear()),
        (flat, linear(), nn.Tanh(), linear()),
        (flat, nn.BatchNorm1d(4), linear()),
        (flat, linear(), relu, across, linear()),
        (flat, linear(), relu, Residual(linear(), nn.Tanh()), linear()),
        (flat, linear(), relu, Residual(linear()), linear()),
        (flat, linear(), relu, nn.Linear(4, 4, bias=False)),
    ):
        assert names(*other) == []
    assert layers(nn.Linear(4, 4)) == []


# The choice


def measured(monkeypatch, root: Path, rates: dict, name: str = "auto", stand_alone: bool = True) -> tuple[Choice, dict]:
    """(the choice, what is recorded) where engines have these rates by (class, width), or (Sparse, sparsity), and, by
    default, bits that do not depend on how many run."""

    def rate(self, kind, mask, width):
        assert width == 1 or kind is not Sequential
        near = min(choice.SPARSITIES, key=lambda sparsity: abs(sparsity - mask.sparsity))
        number = rates[kind, near if kind is Sparse else width]
        if isinstance(number, Exception):
            raise number
        return number

    monkeypatch.setattr(choice._Bench, "_rate", rate)
    if stand_alone:
        monkeypatch.setattr(choice._Bench, "stand_alone", lambda *_: None)
    model, recipe = network("mlp", torch.float32), RECIPES["sgd"].on(200)
    found = chosen(name, root, "these runs", model, recipe, data(torch.float32))
    (record,) = (root / "machines").rglob("engine-*.json")
    return found, json.loads(record.read_text())["found"]


SLOW = {(Sparse, 0.98): 1.0}
GROWING = {(Sequential, 1): 100, (Perceptrons, 1): 100, (Perceptrons, 2): 150, (Perceptrons, 4): 200}


@pytest.mark.parametrize(
    ("rates", "name", "expected"),
    [
        ({(Perceptrons, 8): 219}, "auto", ("lockstep", 4, 2.0)),
        ({(Perceptrons, 8): 221, (Perceptrons, 16): 221}, "auto", ("lockstep", 8, 2.21)),
        ({(Perceptrons, 2): 109, (Perceptrons, 1): 101}, "auto", ("lockstep", 1, 1.01)),
        ({(Perceptrons, 8): 200, (Sequential, 1): 201}, "auto", ("sequential", 1, 1.0)),
        ({(Perceptrons, 8): 200, (Sequential, 1): 400}, "lockstep", ("lockstep", 4, 0.5)),
        ({(Perceptrons, 8): RuntimeError("out of\nmemory")}, "auto", ("lockstep", 4, 2.0)),
        ({(Perceptrons, 2**n): 2**n for n in range(9)} | {(Sequential, 1): 1}, "auto", ("lockstep", 256, 256.0)),
    ],
)
def test_the_fastest_is_chosen(rates, name, expected, monkeypatch, tmp_path):
    """Rates as given: width doubles as long as that gains a tenth, memory lasts and it is under 256; slower than
    `sequential` it is not taken but by name."""
    found, record = measured(monkeypatch, tmp_path, GROWING | SLOW | rates, name)
    assert (found.engine, found.width, found.gain) == (expected[0], expected[1], pytest.approx(expected[2]))
    assert record["choice"] == dataclasses.asdict(found)
    assert record["refused"] == ({"lockstep 8": "out of memory"} if "out" in str(rates) else {})


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((2, 1.5, 1.0, 3), 0.95),
        ((2, 1.11, 1.11, 1.11), 0.8),
        ((1.09, 5, 5, 5), 1.0),
        ((2, 2, RuntimeError("no"), 2), 1.0),
    ],
)
def test_sparse_from(gains, expected, monkeypatch, tmp_path):
    """The least sparsity of those from which on, up to the sparsest, `sparse` gains a tenth on the choice before it."""
    sparse = zip((0.98, 0.95, 0.9, 0.8), gains, strict=True)
    rates = {(Sparse, at): gain if isinstance(gain, Exception) else 200 * gain for at, gain in sparse}
    found, record = measured(monkeypatch, tmp_path, GROWING | {(Perceptrons, 8): 200} | rates)
    assert (found.engine, found.width, found.sparse_from) == ("lockstep", 4, expected)
    assert record["refused"] == ({"sparse": "no"} if isinstance(gains[2], Exception) else {})
    model, recipe = network("mlp", torch.float32), RECIPES["sgd"].on(200)
    for sparsity, sparse in ((0.0, False), (0.75, False), (0.97, expected <= 0.95), (0.99, expected < 1)):
        mask = random_mask(model, 1 - sparsity, 0)
        assert found.of(model, recipe, mask) == ((Sparse, 1) if sparse else (Perceptrons, 4))
    assert found.of(model, recipe, None) == (Perceptrons, 4)
    assert found.of(model, recipe, None, "sequential") == (Sequential, 1)


@pytest.mark.parametrize("kind", [Perceptrons, Sparse])
@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_what_is_wrong_is_refused(kind, fault, monkeypatch, tmp_path):
    """An engine whose losses are not those of `sequential`, or that raises, is not taken, however fast; the record says
    why."""
    right = kind._backward

    def backward(self, x, y):
        if fault == "raises":
            raise RuntimeError("no kernel for this")
        losses = right(self, x, y)
        for slope in self._slopes.values():
            slope.mul_(-10)
        return losses

    monkeypatch.setattr(kind, "_backward", backward)
    rates = {(Perceptrons, 8): 200} | {(Sparse, at): 1e6 for at in choice.SPARSITIES}
    found, record = measured(monkeypatch, tmp_path, GROWING | rates)
    assert found.engine == ("sequential" if kind is Perceptrons else "lockstep")
    assert found.sparse_from == (1.0 if kind is Sparse else 0.8)
    (said,) = record["refused"].items()
    assert said[0] == ("sparse" if kind is Sparse else "lockstep")
    assert ("not those of sequential" if fault == "wrong" else "no kernel") in said[1] and "\n" not in said[1]


def test_runs_that_would_have_other_bits_are_not_put_side_by_side(monkeypatch, tmp_path):
    """Law 6: a resumed sweep puts other runs side by side. Here the first of several is moved by their number."""
    whole = Perceptrons._backward

    def leaning(self, x, y):
        losses = whole(self, x, y)
        self._slopes[self._layers[0].weight].mul_(1 + 1e-6 * (len(x) - 1))
        return losses

    rates = {**GROWING, **SLOW}
    monkeypatch.setattr(Perceptrons, "_backward", leaning)
    found, record = measured(monkeypatch, tmp_path, rates, "lockstep", stand_alone=False)
    assert found.width == 1 and "other bits" in record["refused"]["lockstep 2"]


def test_the_choice_is_recorded(monkeypatch, tmp_path):
    """The second time nothing is measured; other runs, another name are."""
    found, _ = measured(monkeypatch, tmp_path, GROWING | SLOW | {(Perceptrons, 8): 200})
    monkeypatch.setattr(choice, "_measure", lambda *_: pytest.fail("measured"))
    model, recipe = network("mlp", torch.float32), RECIPES["sgd"].on(200)
    again = (tmp_path, "these runs", model, recipe, data(torch.float32))
    assert chosen("auto", *again) == found
    for name, about in (("auto", "others"), ("lockstep", "these runs")):
        with pytest.raises(pytest.fail.Exception, match="measured"):
            chosen(name, tmp_path, about, *again[2:])
    assert chosen("sequential", *again) == Choice() and chosen("sparse", *again) == Choice("sparse")


def test_several_ranks_have_but_one(monkeypatch, tmp_path):
    """Ranks that train one network together do so by `sequential`, since no other engine sums their gradients."""
    model, recipe = network("mlp", torch.float32), RECIPES["sgd"].on(200)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert engines(model, recipe) == {"sequential": Sequential}
    assert chosen("auto", tmp_path, "these runs", model, recipe, data(torch.float32)) == Choice()
    assert Choice().of(model, recipe, None, "lockstep") == (Sequential, 1)
    with pytest.raises(ValueError, match=r"device.engine=lockstep .* on 2 ranks; of auto, sequential take one"):
        choice.check("lockstep", model, recipe)


# Runs side by side in a store


@dataclass
class Chosen(Bench):
    """A bench whose runs have this choice."""

    choice: Choice = field(default_factory=Choice)

    @property
    def context(self):
        context = super().context
        shape = self.trainings(0.0)[0].run.shape
        context.choices[shape] = self.choice
        return context

    def beside(self, name: str, **changes) -> "Chosen":
        return dataclasses.replace(self, store=Store(self.store.root.parent / name), **changes)


@pytest.fixture
def lockstep(tmp_path: Path) -> Chosen:
    """Three runs side by side."""
    recipe = Recipe("Adam", 0.01, 20, 40, 10)
    return Chosen(Store(tmp_path / "store"), model=Mlp([11]), recipe=recipe, choice=Choice("lockstep", 3))


@pytest.fixture
def groups(monkeypatch) -> list[tuple]:
    """(engine, number of runs, step they start at) of every call of train_together."""
    found = []

    def watched(model, lanes, recipe, data, stop, engine):
        found.append((engine, len(lanes), lanes[0].start.step))
        return train_together(model, lanes, recipe, data, stop, engine)

    monkeypatch.setattr(lth.perform, "train_together", watched)
    return found


class KilledError(BaseException):
    """Like SIGKILL: no handler of the code under test sees it."""


def kill_at(step: int):
    def tell(event, *rest):
        if event == "point" and rest[1]["step"] == step:
            raise KilledError

    return tell


def test_groups_in_a_store(lockstep: Chosen, groups):
    """Dense runs, tickets and controls of four replicates, three at a time: byte for byte what they are one and two at
    a time; near what `sequential` gives."""
    trainings = lockstep.trainings(0.2, replicates=4)
    assert not lockstep.run(trainings)
    assert sum(num for _, num, _ in groups) == len(trainings) == 16
    assert max(num for _, num, _ in groups) == 3 and len(groups) <= 8 and {kind for kind, *_ in groups} == {Perceptrons}
    expected = contents(lockstep.store)
    for width in (1, 2):
        other = lockstep.beside(f"{width}", choice=Choice("lockstep", width))
        assert not other.run(trainings)
        assert contents(other.store) == expected or not BITS
    plain = lockstep.beside("sequential", choice=Choice())
    assert not plain.run(trainings)
    assert groups[-1][:2] == (Sequential, 1)
    for training, ours, theirs in zip(trainings, lockstep.numbers(trainings), plain.numbers(trainings), strict=True):
        if training.level == 0:  # behind it a weight may be kept or not by the last digit
            assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-4)
    names = [store.manifest(trainings[0].run.result.key)["engine"] for store in (lockstep.store, plain.store)]
    assert names == ["lockstep", "sequential"]


@pytest.mark.slow
def test_groups_in_workers(lockstep: Chosen):
    """Two workers take groups, of other sizes than one process does, and give its bytes."""
    trainings = lockstep.trainings(0.2, replicates=5)
    assert not lockstep.run(trainings)
    other = lockstep.beside("workers")
    assert not other.run(trainings, workers=2)
    assert contents(other.store) == contents(lockstep.store) or not BITS
    names = {other.store.manifest(training.run.result.key)["engine"] for training in trainings}
    assert names == {"lockstep"}


def test_a_run_from_another_step_is_by_itself(lockstep: Chosen, groups):
    """Of three runs that can be trained together one stands at a checkpoint: it goes on alone, and each is what it is
    unbroken. With momentum, and with nothing in its state that would tell its age."""
    lockstep.recipe = Recipe("SGD", 0.05, 20, 40, 10, Cosine(), options={"momentum": 0.9})
    lone = Recipe("SGD", 0.05, 20, 40, 10, Cosine())
    for given in (lockstep, dataclasses.replace(lockstep, recipe=lone)):
        trainings = given.trainings(0.0, replicates=3)
        with pytest.raises(KilledError):
            given.run(trainings[:1], tell=kill_at(30), checkpoint_seconds=0.0)
        groups.clear()
        assert not given.run(trainings)
        assert sorted(groups, key=str) == [(Perceptrons, 1, 20), (Perceptrons, 2, 0)]
        whole = given.beside(f"whole {bool(given.recipe.options)}")
        assert not whole.run(trainings)
        assert given.numbers(trainings) == whole.numbers(trainings) or not BITS


def test_states_of_other_ages_are_apart(lockstep: Chosen, groups):
    """Tickets that rewind to one step with and without moments, all ready at once, are not mixed up."""
    lockstep.choice = Choice("lockstep", 6)
    keep, reset = (dataclasses.replace(lockstep, rewind=Early(15, how)) for how in ("keep", "reset"))
    trainings = [
        *reset.trainings(0.2),
        *keep.trainings(0.2)[1:],
    ]  # were the first one's moments taken, it would be seen
    alone = lockstep.beside("alone", choice=Choice("lockstep", 1))
    assert not lockstep.run(trainings) and not alone.run(trainings)
    for training in trainings[1:]:
        lockstep.store.drop(training.run.result.key)
    groups.clear()
    assert not lockstep.run(trainings)
    assert [num for _, num, step in groups if step == 15] == [2, 2]  # ticket and random_mask of each
    assert contents(lockstep.store) == contents(alone.store) or not BITS


def test_one_that_raises_fails_alone(lockstep: Chosen, monkeypatch):
    """The runs beside it are trained, and so is what is built on them."""
    trainings = lockstep.trainings(0.2, replicates=3)
    bad = trainings[4].run

    def raising(model, lanes, recipe, data, stop, engine):
        if any(lane.order == bad.order for lane in lanes):
            raise RuntimeError("a bad image")
        return train_together(model, lanes, recipe, data, stop, engine)

    monkeypatch.setattr(lth.perform, "train_together", raising)
    failures = lockstep.run(trainings)
    assert {failure.cause for failure in failures.values()} == {"RuntimeError: a bad image"}
    for training in trainings:
        assert lockstep.store.holds(training.run.result.key) == (training.replicate != 1)


def test_one_that_diverges_in_a_group(lockstep: Chosen):
    """Its result says so, and those of the others are what they are without it."""
    trainings = lockstep.trainings(0.0, replicates=3)
    first = lockstep.store
    lth.perform.perform([[trainings[1].run.start]], first, lockstep.context, lambda *event: None)
    start = first.read(trainings[1].run.start)
    first.drop(trainings[1].run.start.key)
    wild = dataclasses.replace(start, params={name: tensor * 1e30 for name, tensor in start.params.items()})
    first.commit(trainings[1].run.start, wild, {"seconds": 0.0})
    assert not lockstep.run(trainings)
    one, bad, three = lockstep.numbers(trainings)
    assert bad["diverged_step"] == 0 and bad["test_accuracy"] is None
    other = lockstep.beside("without")
    assert not other.run([trainings[0], trainings[2]])
    assert other.numbers([trainings[0], trainings[2]]) == [one, three] or not BITS


def test_a_run_goes_on_with_the_engine_that_began_it(lockstep: Chosen, groups, monkeypatch):
    """Law 6: though another is chosen since; but on several ranks, where there is but one."""
    trainings = lockstep.trainings(0.0)
    with pytest.raises(KilledError):
        lockstep.run(trainings, tell=kill_at(30), checkpoint_seconds=0.0)
    (meta,) = [lockstep.store.resume(unit_of(trainings[0].run.result))[1]]
    assert (meta["engine"], meta["step"]) == ("lockstep", 20)
    changed = dataclasses.replace(lockstep, choice=Choice("sparse"))
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        course = lth.perform._Course([trainings[0].run.result], lockstep.store, changed.context)
        assert (course.engine, course.width, course.start.step) == (Sequential, 1, 20)
    groups.clear()
    assert not changed.run(trainings)
    assert groups == [(Perceptrons, 1, 20)]
    assert changed.store.manifest(trainings[0].run.result.key)["engine"] == "lockstep"
    whole = lockstep.beside("whole")
    assert not whole.run(trainings)
    assert contents(whole.store) == contents(lockstep.store) or not BITS


def test_movement_is_summed_by_sequential(lockstep: Chosen, groups):
    """Runs whose movement is asked for are trained one by one, those beside them are not."""
    moving = dataclasses.replace(lockstep, criterion=Movement(), branches={})
    assert not moving.run(moving.trainings(0.2, replicates=3))
    assert groups == [(Sequential, 1, 0)] * 3 + [(Perceptrons, 3, 0)]


@pytest.mark.slow
def test_engines_give_equal_rows(tmp_path):
    """Whole commands: what each engine writes about the dense networks is equal within rounding."""
    line = (
        "dataset=digits model=mlp model.hidden=[32] recipe.steps=60it recipe.eval_every=20it wandb=disabled device=cpu"
    )
    rows = {}
    for name in ("sequential", "lockstep", "sparse", "auto"):
        ran = run_here(
            f"{line} prune.sparsity=0.36 replicates=2 hydra.run.dir=run store={name} device.engine={name}", tmp_path
        )
        assert ran.code == 0, ran.err
        rows[name] = ran.rows("run")
        engine = {json.loads(path.read_text()).get("engine") for path in (tmp_path / name).rglob("manifest.json")}
        assert engine - {None} == {"sequential" if name == "auto" else name}  # a short plan measures nothing
    for name in ("lockstep", "sparse"):
        for row, theirs in zip(rows[name], rows["sequential"], strict=True):
            near = 1e-4 if row["level"] == 0 else 1e-2
            assert row["test_loss"] == pytest.approx(theirs["test_loss"], rel=near)
            assert row["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=near)
            assert [row[n] for n in ("branch", "num_kept")] == [theirs[n] for n in ("branch", "num_kept")]

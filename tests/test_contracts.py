"""One contract a group: every member of conf/ is picked up by itself, and keeps it."""

import copy
import dataclasses
import json
import pickle
import re
import socket
import sys
import urllib.request
from itertools import pairwise
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import yaml
from conftest import Bench, blobs
from safetensors.torch import save_file
from torch import nn

import main
from lth.criterion import name_of
from lth.data import Augment
from lth.dataset.fake import Fake
from lth.mask import Mask, prunable
from lth.model.mlp import Mlp
from lth.numerics import applied
from lth.perform import value
from lth.recipe import Recipe
from lth.rewind.late import Late
from lth.stage import canonical, describe, task
from lth.state import TrainState
from lth.tickets import Ticket

CONF = Path(main.__file__).parent / "conf"
MEMBERS = [
    path for path in sorted(CONF.rglob("*.yaml")) if path.parent != CONF and not {"branch", "study"} & set(path.parts)
]


FILLED = {  # what a command must say: of rewind=pretrained, and of data sets of one's own or made of another
    "source": "weights.safetensors",
    "store": "store",
    "path": "mine.npz",
    "of": {"_target_": "lth.dataset.digits.Digits"},
}


def made(path: Path):
    """The configured thing of a yaml; a recipe takes its default schedule, FILLED what is left open."""
    node = yaml.safe_load(path.read_text())
    node.pop("defaults", None)
    node |= {name: FILLED[name] for name, word in node.items() if word == "???" or str(word).startswith("${")}
    return hydra.utils.instantiate(node, _convert_="all")


def members(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def names(paths: list[Path]) -> list[str]:
    return [f"{path.parent.name}/{path.stem}" for path in paths]


@pytest.mark.parametrize("path", MEMBERS, ids=names(MEMBERS))
def test_member_is_a_value(path):
    """A member is a frozen dataclass: it has a description, survives the way to a worker, and its module says what it
    is; its yaml names all its fields and nothing else."""
    if path.stem == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    thing = made(path)
    assert dataclasses.is_dataclass(thing) and type(thing).__dataclass_params__.frozen
    assert canonical(describe(pickle.loads(pickle.dumps(thing)))) == canonical(describe(thing))
    module = __import__(type(thing).__module__, fromlist=["_"])
    assert module.__doc__ and len(module.__doc__) > 20
    written = set(yaml.safe_load(path.read_text())) - {"_target_", "defaults"}
    derived = {"per_epoch", "schedule"} if isinstance(thing, Recipe) else set()
    assert written == {field.name for field in dataclasses.fields(thing)} - derived


HOMES = {"device": "lth.device.", "wandb": "lth.tracking.", "recipe": "lth.recipe.", "schedule": "lth.recipe."}
ALL = [*MEMBERS, *members("branch")]


@pytest.mark.parametrize("path", ALL, ids=names(ALL))
def test_member_stands_in_its_group(path):
    """A member's class is at home in lth.<group>, and it or its module says what it is in words of its own."""
    node = yaml.safe_load(path.read_text())
    target = (node[path.stem] if path.parent.name == "branch" else node)["_target_"]
    assert target.startswith(HOMES.get(path.parent.name, f"lth.{path.parent.name}."))
    where, _, name = target.rpartition(".")
    kind = getattr(sys.modules.get(where) or __import__(where, fromlist=["_"]), name)
    said = [text for text in (kind.__doc__, sys.modules[where].__doc__) if text and not text.startswith(f"{name}(")]
    assert any(len(text.split()) >= 5 or "https://" in text for text in said)


def composed(*overrides: str):
    """The recipe of a whole configuration, its schedule in it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", ["hydra/launcher=basic", *overrides])
    names = {field.name for field in dataclasses.fields(Recipe)} - {"per_epoch"}
    assert set(config.recipe) - {"_target_"} == names  # what a yaml leaves out cannot be set without a plus
    return hydra.utils.instantiate(config.recipe, _convert_="all")


@pytest.mark.parametrize("chosen", [f"recipe={path.stem}" for path in members("recipe")] + [
    f"recipe/schedule={path.stem}" for path in members("recipe/schedule")
])  # fmt: skip
def test_recipe(chosen):
    """All of it can be set; every word for steps becomes a whole number, twice is once, the schedule in [0, 1]."""
    resolved = composed(chosen).on(4000)
    numbers = [resolved.steps, resolved.warmup, resolved.eval_every, resolved.per_epoch]
    numbers += [drop for field in vars(resolved.schedule).values() if isinstance(field, list) for drop in field]
    assert {type(number) for number in numbers} == {int}
    assert resolved.on(4000) == resolved
    steps = {*range(0, resolved.steps, resolved.steps // 200 + 1), resolved.steps - 1, resolved.steps}
    assert all(0 <= resolved.schedule(step, resolved.steps) <= 1 for step in steps)
    assert all(0 <= resolved.rate(step) <= resolved.lr for step in steps)


def test_renda2020_imagenet_is_as_the_authors_run_it():
    """Their README, on 1,281,167 images: 112,590 steps, weights rewound to step 11,259, fine-tuned at 0.0004."""
    resolved = composed("recipe=renda2020_imagenet").on(1281167)
    assert (resolved.steps, resolved.per_epoch) == (112590, 1251)
    assert made(CONF / "rewind" / "renda2020_imagenet.yaml").step(resolved) == 11259
    assert resolved.rate(resolved.steps) == pytest.approx(0.0004)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).relu().flatten(1))


def reading(criterion, model) -> dict:
    """What a criterion reads beside the network, and nothing else: all of it made up."""
    params = {name: tensor * 0.5 + 0.1 for name, tensor in TrainState.of(model).params.items()}
    known = {"origin": TrainState(0, params), "movement": {name: params[name].clone() for name in prunable(model)}}
    known["sparsity"] = 0.6
    return {name: known[name] for name in getattr(criterion, "reads", ())}


def refused(criterion, model, data) -> bool:
    """True where a criterion cannot score this network, and says so in one line that names it."""
    try:
        getattr(criterion, "check", lambda *given: None)(model, data)
    except ValueError as error:
        assert re.fullmatch(rf"criterion(={name_of(criterion)}|\.\w+=)[^\n]*", str(error))
        return True
    return False


HEAVY = {"resnet_32", "resnet_44", "resnet_56", "resnet_110", "resnet_34", "resnet_50", "vgg_13", "vgg_16", "vgg_19"}
HEAVY |= {"frankle2020_vgg_16", "frankle2020_resnet_20", "wide_resnet_16_8", "wide_resnet_28_10"}  # as lighter ones
NEED_BATCH_NORM = {"early_bird"}


@pytest.mark.parametrize("network", [Conv, lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3))])
@pytest.mark.parametrize("path", members("criterion"), ids=names(members("criterion")))
def test_criterion(path, network):
    """Scores for exactly the mask's weights, finite, the same for the same seed; nothing it was given is changed, the
    global generator neither. Or it is refused in one line, where there is no batch norm."""
    criterion, model, data = made(path), network(), blobs(1600).normalised("cpu").train
    assert name_of(criterion) == path.stem and isinstance(getattr(criterion, "reads", ()), tuple)
    assert refused(criterion, model, data) == (path.stem in NEED_BATCH_NORM and network is not Conv)
    if refused(criterion, model, data):
        return
    read = reading(criterion, model)
    state = TrainState.of(model)
    mask = Mask({name: torch.rand(weight.shape) < 0.7 for name, weight in prunable(model).items()})
    given = [*state.params.values(), *state.buffers.values(), *mask.values(), *model.state_dict().values()]
    given += [*data, *read.get("movement", {}).values(), *getattr(read.get("origin"), "params", {}).values()]
    given.append(torch.get_rng_state())
    before = [tensor.clone() for tensor in given]
    found = [made(path)(model, state, mask, data, torch.Generator().manual_seed(3), **read) for _ in range(2)]
    assert list(found[0]) == list(mask)
    for name, kept in mask.items():
        assert found[0][name].shape == kept.shape and torch.isfinite(found[0][name]).all()
        assert torch.equal(found[0][name], found[1][name])
    given[-1] = torch.get_rng_state()
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True)) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("path", members("criterion"), ids=names(members("criterion")))
def test_criterion_leaves_all_as_it_was(path, training):
    """The mode, gradients that were there, the mask, the state's moments and numpy's generator stay; the scores are no
    views of the state. The data may be pixels that are normalised as they are read."""
    model = Conv().train(training)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    state = dataclasses.replace(TrainState.of(model), optimizer={"conv.weight/m": torch.ones(3, 1, 3, 3)})
    mask = Mask(
        {name: torch.arange(weight.numel()).reshape(weight.shape) % 3 for name, weight in prunable(model).items()}
    )
    same, before = Mask(mask), copy.deepcopy(state)
    numpy = np.random.get_state()[1].copy()
    raw = blobs(1600) if training else Augment(crop=1, flip=True).on(blobs(1600))
    criterion, data = made(path), raw.normalised("cpu").train
    scores = criterion(model, state, mask, data, torch.Generator().manual_seed(3), **reading(criterion, model))
    for score in scores.values():
        score.detach().fill_(7)
    assert mask == same
    for now, then in (
        (state.params, before.params),
        (state.buffers, before.buffers),
        (state.optimizer, before.optimizer),
    ):
        assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in now)
    assert all(module.training == training for module in model.modules())
    assert all((parameter.grad == 2).all() and parameter.requires_grad for parameter in model.parameters())
    assert (np.random.get_state()[1] == numpy).all()


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_shape = (1, 6, 6)
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12)
        self.hidden, self.out = nn.Linear(48, 20), nn.Linear(20, 3)

    def forward(self, x):
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        return self.out(self.hidden(x.flatten(1)).relu())


HOLD = {"n_m": ["conv2.weight", "hidden.weight", "out.weight"]}  # the layers that sparsity speaks of, where not all
AT_LEAST = {"channel"}  # patterns that keep at least what they are asked to, since they go by whole channels


@pytest.mark.parametrize("path", members("pattern"), ids=names(members("pattern")))
def test_pattern(path):
    """Law 3 down a ladder of sparsities: the number that the pattern promises, inside the mask before, the same when
    asked again; scores, mask, network and generators stay as they were."""
    model, pattern = Deep().train(), made(path)
    if getattr(pattern, "rates", None):  # of a paper's own network, whose layers they name
        pattern = dataclasses.replace(pattern, rates={})
    mask, scores = Mask.dense(model), {n: torch.randint(0, 4, w.shape).float() for n, w in prunable(model).items()}
    hold = HOLD.get(path.stem, list(mask))
    total = sum(mask[name].numel() for name in hold)
    given = [*scores.values(), *model.state_dict().values(), torch.get_rng_state()]
    before = [tensor.clone() for tensor in given]
    for sparsity in (0.0, 0.3, 0.5, 0.7, 0.8):
        same = Mask(mask)
        drawn = pattern(scores, mask, sparsity, model)
        assert drawn.inside(mask) and mask == same and drawn == pattern(scores, mask, sparsity, model)
        kept, promised = sum(drawn.counts()[name] for name in hold), round((1 - sparsity) * total)
        assert promised <= kept <= promised + 0.1 * total if path.stem in AT_LEAST else kept == promised
        assert all(drawn[name].all() for name in set(mask) - {*hold})
        mask = drawn
    given[-1] = torch.get_rng_state()
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True)) and model.training
    assert all(module.training for module in model.modules()) and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(("name", "rate"), [("conv_2", 0.5), ("conv_4", 0.5), ("conv_6", 0.75)])
def test_pattern_of_a_network_names_its_layers(name, rate):
    """Convolutions lose `rate` of what a linear layer does, the output layer half (Frankle & Carbin 2019, figure 2)."""
    network = made(CONF / "model" / f"{name}.yaml")((3, 8, 8), 10)
    weights, mask = prunable(network), Mask.dense(network)
    pattern = made(CONF / "pattern" / f"frankle2019_{name}.yaml")
    drawn = pattern({n: w.detach().abs() for n, w in weights.items()}, mask, 0.2, network)
    lost = {n: 1 - count / weights[n].numel() for n, count in drawn.counts().items()}
    linear = next(share for n, share in lost.items() if weights[n].dim() == 2)
    assert drawn.num_kept == round(0.8 * mask.num_total) and linear > 0.2
    for n, share in lost.items():
        expected = rate if weights[n].dim() == 4 else 0.5 if weights[n].shape[0] == 10 else 1.0
        assert share == pytest.approx(expected * linear, abs=2 / weights[n].numel() + 1e-4), n


@pytest.mark.parametrize("sparsity", [0, 0.0, 1e-12, 1 - 1e-13, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("path", members("prune"), ids=names(members("prune")))
def test_prune(path, sparsity):
    """Sparsities rise within (0, 1) and end exactly on the target; 0 is no level at all."""
    levels = dataclasses.replace(made(path), sparsity=sparsity, when="init")()
    assert made(path).when == "trained"
    with pytest.raises(ValueError, match=r"^prune\.when=now is not one of: trained, init$"):
        dataclasses.replace(made(path), when="now")
    assert levels == sorted(set(levels)) and all(0 < level < 1 for level in levels)
    assert levels[-1:] == ([sparsity] if sparsity else [])


@pytest.mark.parametrize("path", members("rewind"), ids=names(members("rewind")))
def test_rewind(path, bench: Bench, tmp_path, monkeypatch):
    """A step of the schedule, a number of steps to train, and a start that is a state of this replicate: of its dense
    run, or of the network its mask was drawn from. The stored states stay as they were."""
    monkeypatch.chdir(tmp_path)
    save_file(Mlp([8])((1, 4, 4), 3).state_dict(), FILLED["source"])
    bench.recipe, bench.rewind, bench.branches = Recipe("Adam", 0.01, 20, 120, 60), made(path), {}
    recipe = bench.lab().recipe
    spans = [bench.rewind.span(recipe, level, 2) for level in (1, 2)]
    k, num_steps = spans[-1]
    assert 0 <= k <= 120 and num_steps >= 1 and (k + num_steps == 120 or k == 120)  # the last one to the end, or on
    assert spans[0][0] == bench.rewind.step(recipe) and spans[0][1] == bench.rewind.num_steps(recipe)
    entries = bench.trainings(0.36)
    bench.run(entries)
    before = {p: p.read_bytes() for p in bench.store.root.rglob("value.*")}
    dense = entries[0].run
    for parent, entry in pairwise(entries):
        start = value(entry.run.start, bench.store, bench.context)
        k, num_steps = spans[entry.level - 1]
        assert entry.run.num_steps == num_steps and entry.rewind_step == k
        states = [value(stage, bench.store, bench.context) for stage in (dense.start, parent.run.end)]
        states += [bench.store.read(dense.at(k))] if k and bench.store.present(dense.at(k).key) else []
        same = [all(torch.equal(start.params[n], t) for n, t in state.params.items()) for state in states]
        assert any(same)
    assert before == {p: p.read_bytes() for p in bench.store.root.rglob("value.*")}


def test_late_is_the_floor_of_its_fraction():
    """k = floor(fraction * steps) of the decimal that was written: 0.29 of 100 steps is 29, not 28."""
    for steps in (1, 50, 100, 170, 1000, 50_000):
        for percent in range(101):
            recipe = Recipe("SGD", 0.1, 20, steps, 10).on(200)
            assert Late(percent / 100).step(recipe) == min(percent * steps // 100, steps - 1), (percent, steps)


@pytest.mark.parametrize("init", ["dirac", "constant", "nothing", "calculate_gain"])
def test_an_initialiser_that_draws_no_matrix_is_named(init):
    """What torch.nn.init cannot draw a linear layer with is refused in one line that names the key."""
    with pytest.raises(ValueError, match=rf"^model\.init={init} [^\n]*$"):
        Mlp([8], init)


SLOW = {*HEAVY, "vgg_11", "resnet_18"}
MODELS = [pytest.param(p, marks=[pytest.mark.slow] if p.stem in SLOW else [], id=p.stem) for p in members("model")]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8)])
@pytest.mark.parametrize("path", MODELS)
def test_model(path, shape):
    """A plain network with logits a class and prunable weights, in the order in which they act, each with a finite
    gradient in the numerics that a CPU has and, of one shape, in float64; weights are drawn from torch's seed alone,
    and so is a pass."""
    if path.stem == "resnet_50":
        shape = (shape[0], 64, 64)  # its stem shrinks 32-fold, and 50 batch norms over 4 values explode (CI saw inf)
    built = []
    for _ in range(2):
        torch.manual_seed(4)
        built.append(made(path)(shape, 7))
    one, two = built
    assert isinstance(one, nn.Module) and one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    layers = [m.weight for m in one.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    weights = prunable(one)
    assert [id(weight) for weight in weights.values()] == [id(weight) for weight in layers]
    assert layers[0].shape[1] in (shape[0], np.prod(shape)) and layers[-1].shape[0] == 7
    x, y = torch.randn(4, *shape), torch.arange(4)
    state = torch.get_rng_state()
    kinds = [(torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "bf16")]
    for dtype, numerics in kinds[0 if shape[0] == 3 else 1 :]:
        applied(one.to(dtype), numerics).zero_grad()
        logits = one(x.to(dtype))
        assert logits.dtype == dtype
        assert logits.shape == (4, 7) and logits.min() < 0 < logits.max()
        nn.functional.cross_entropy(logits, y).backward()
        for name, weight in weights.items():
            assert weight.grad is not None and weight.grad.dtype == dtype, name
            assert torch.isfinite(weight.grad).all() and weight.grad.any(), name
    assert torch.equal(torch.get_rng_state(), state)  # no dropout: a step is a function of state and batch (law 1)


SMALLER = {"num_examples": 8, "num_vectors": 2, "num_iterations": 3, "num_batches": 1, "batch_size": 8, "per_class": 1}
WIDE = {
    "wide_resnet_16_8",
    "wide_resnet_28_10",
    "resnet_110",
}  # gigabytes of gradients by example; others stand for them


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in members("model") if p.stem not in HEAVY], ids=lambda path: path.stem)
def test_every_criterion_and_pattern_on_every_model(path):
    """Finite scores for each weight, or a refusal in one line; from them a mask with the number of weights that the
    pattern promises, nested, or a refusal that names the layer."""
    torch.manual_seed(0)
    model, data = made(path)((3, 8, 8), 3), fake_images().normalised("cpu").train
    model.input_shape = (3, 8, 8)
    state, mask, scored = TrainState.of(model), Mask.dense(model), {}
    for member in members("criterion"):
        criterion = made(member)
        known = {f.name for f in dataclasses.fields(criterion)}
        criterion = dataclasses.replace(criterion, **{n: v for n, v in SMALLER.items() if n in known})
        if refused(criterion, model, data):
            bent = path.stem == "torchvision" and member.stem == "grasp"  # hardsigmoid has no second derivative
            assert member.stem in NEED_BATCH_NORM or bent
            continue
        scores = criterion(model, state, mask, data, torch.Generator().manual_seed(1), **reading(criterion, model))
        assert list(scores) == list(mask) and all(score.shape == mask[name].shape for name, score in scores.items())
        assert all(torch.isfinite(score).all() for score in scores.values()), member.stem
        scored[member.stem] = scores
    assert len(scored) >= len(members("criterion")) - 2
    for member in members("pattern"):
        pattern = made(member)
        pattern = dataclasses.replace(pattern, rates={}) if getattr(pattern, "rates", None) else pattern
        try:
            drawn = pattern(scored["random"], mask, 0.3, model)
        except ValueError as error:
            assert member.stem in ("channel", "n_m") and "\n" not in str(error), (member.stem, error)
            continue
        sparser = pattern(scored["random"], drawn, 0.5, model)
        assert drawn.inside(mask) and sparser.inside(drawn) and sparser.num_kept < drawn.num_kept
        if member.stem not in ("channel", "n_m"):
            assert drawn.num_kept == round(0.7 * mask.num_total)


def fake_images():
    """Three classes of noisy 3 x 8 x 8 images."""
    return Fake([3, 8, 8], 3, 200, 20, 20, 0, 0, False, 0)(Path())


def test_lenet_has_the_papers_weights():
    """266,200 = 784 * 300 + 300 * 100 + 100 * 10 (Frankle & Carbin 2019, figure 2)."""
    lenet = made(CONF / "model" / "lenet_300_100.yaml")((1, 28, 28), 10)
    assert Mask.dense(lenet).num_total == 266_200 == 784 * 300 + 300 * 100 + 100 * 10


@pytest.mark.parametrize("name", ["digits", "mnist_5k"])
def test_embedded_dataset(name, tmp_path):
    """uint8 images, three disjoint splits that are the whole, normalised by the training split; the split seed, and
    nothing else, says which is which; nothing is written."""
    dataset = made(CONF / "dataset" / f"{name}.yaml")
    data, again = dataset(tmp_path), dataset(tmp_path)
    other = dataclasses.replace(dataset, split_seed=1)(tmp_path)
    assert data.digest == again.digest != other.digest and not list(tmp_path.iterdir())
    parts = [data.train, data.val, data.test]
    assert all(part.x.dtype == torch.uint8 and part.y.dtype == torch.int64 for part in parts)
    assert [len(part.y) for part in parts[1:]] == [dataset.num_val, dataset.num_test]

    def rows(data) -> list:
        splits = (data.train, data.val, data.test)
        return sorted((int(y), x.numpy().tobytes()) for part in splits for x, y in zip(*part, strict=True))

    assert rows(data) == rows(other)
    ready = data.normalised("cpu").train.x
    assert ready.mean().abs() < 1e-4 and (ready.std() - 1).abs() < 1e-3


@pytest.mark.parametrize("path", members("dataset"), ids=names(members("dataset")))
def test_dataset_without_a_network(path, tmp_path, monkeypatch):
    """A data set is there without a download, or is refused in one line that names data_dir; nothing is written."""

    def refuse(*address, **options):
        raise OSError("no network")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    data_dir = tmp_path / "data"
    try:
        data = made(path)(data_dir)
    except ValueError as error:
        assert path.stem not in ("digits", "mnist_5k")
        assert re.search(rf"^[^\n]*data_dir={re.escape(str(data_dir))}\b[^\n]*$", str(error))
    else:
        assert len(data.train.y) > 0 and data.num_classes == len(data.train.y.unique())
    assert not data_dir.exists()


@task(version=1, value=Mask, stored=False)
def lopsided(context):
    """A mask whose first layer scope=global has emptied."""
    return Mask({"1.weight": torch.zeros(8, 16), "3.weight": torch.arange(24).reshape(3, 8) % 2})


UNMASKED = {"dense_order"}  # branches that train the dense network
IN_ALL = {"random_mask_global", "one_shot"}  # branches with the ticket's weights in all, but not in each layer


def same_counts(name: str, mask: Mask, ticket: Mask) -> bool:
    """True if a branch's mask keeps as many weights in each layer as its ticket's; those of IN_ALL, in all."""
    return mask.num_kept == ticket.num_kept if name in IN_ALL else mask.counts() == ticket.counts()


@pytest.mark.parametrize("path", members("branch"), ids=names(members("branch")))
def test_branch_of_an_empty_layer(path, bench: Bench):
    """Where global pruning has taken a whole layer, a branch takes it too, and can be trained."""
    ((name, node),) = yaml.safe_load(path.read_text()).items()
    lab = bench.lab()
    dense, mask = lab.run(lab.initialise("init"), None, 40), lopsided()
    ticket = Ticket(1, 1 - 12 / 152, mask, dense.start, 0, 40, dense, dense.end)
    run = hydra.utils.instantiate(node, _convert_="all")(ticket, lab)
    if isinstance(run, dict):
        assert not bench.run([], also=run.values())
        assert [bench.store.read(stage)["num_kept"] for stage in run.values()] == [12] * len(run)
        return
    assert not bench.run([], also=[run.end])
    assert (run.mask is None) == (name in UNMASKED)
    if run.mask is not None:
        kept, theirs = (value(stage, bench.store, bench.context) for stage in (run.mask, mask))
        assert theirs.counts() == {"1.weight": 0, "3.weight": 12} and same_counts(name, kept, theirs)


@pytest.mark.parametrize("path", members("branch"), ids=names(members("branch")))
def test_branch(path, bench: Bench):
    """A branch trains as many weights in each layer as its ticket (IN_ALL: in all), for as many steps, and stands at
    the ticket's level; the dense network trained once more stands at level 0, once."""
    ((name, node),) = yaml.safe_load(path.read_text()).items()
    assert name == path.stem
    bench.branches = {name: hydra.utils.instantiate(node, _convert_="all")}
    trainings = bench.trainings(0.36)
    assert not bench.run(trainings)
    tickets, found = ([t for t in trainings if t.branch == branch] for branch in ("ticket", name))
    assert len(tickets) == 2 and len(trainings) == 1 + len(tickets) + len(found)
    if name in UNMASKED:
        assert [(b.level, b.sparsity, b.run.mask, b.run.num_steps) for b in found] == [(0, 0.0, None, 40)]
        return
    for ticket, branch in zip(tickets, found, strict=True):
        assert (branch.level, branch.sparsity) == (ticket.level, ticket.sparsity)
        if branch.run is None:
            numbers = bench.store.read(branch.stage)
            assert branch.of == "ticket" and numbers["num_kept"] == bench.store.read(ticket.stage)["num_kept"]
            assert len(numbers) > 3 and not {"replicate", "level", "branch", "of", "rewind_step"} & set(numbers)
            json.dumps(numbers, allow_nan=False)
            continue
        masks = [value(t.run.mask, bench.store, bench.context) for t in (branch, ticket)]
        assert same_counts(name, *masks)
        assert branch.run.num_steps == ticket.run.num_steps

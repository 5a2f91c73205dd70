"""Training: laws 1, 2, 8 and 9, and the loop against torch's own optimisers and a hand-written oracle."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Bench, blobs
from torch import nn
from torch.nn.functional import cross_entropy

import lth.engine.sequential
import lth.perform
import lth.state
import lth.train
from lth.data import Data
from lth.dataset.fake import Fake
from lth.mask import Mask
from lth.model.mlp import Mlp
from lth.model.resnet_cifar import Resnet
from lth.recipe import Cosine, Recipe
from lth.state import TrainState, evaluate, load, score
from lth.train import measure, train


@dataclass(frozen=True)
class ConvNet:
    """A convolution, batch norm and an output layer: buffers and unpruned parameters in the state."""

    def __call__(self, input_shape, num_classes) -> nn.Module:
        convolution = nn.Conv2d(input_shape[0], 4, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, num_classes))


OPTIMIZERS = {
    "adam": Recipe("Adam", 0.01, 20, 30, 10, options={"weight_decay": 0.1}),
    "adamw": Recipe("AdamW", 0.01, 20, 30, 10, options={"weight_decay": 0.1}),
    "sgd": Recipe("SGD", 0.1, 20, 30, 10, options={"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "rmsprop": Recipe("RMSprop", 0.001, 20, 30, 10, options={"momentum": 0.9, "weight_decay": 0.01}),
    "options": Recipe(
        "SGD", 0.1, 20, 30, 10, options={"momentum": 0.9, "weight_decay": 0.01},
        label_smoothing=0.2, clip=1.0, ema=0.7, accumulate=4,
    ),
}  # fmt: skip
MODELS = {"mlp": Mlp([8]), "conv": ConvNet()}


def data() -> Data:
    return blobs().normalised("cpu")


def started(model_name: str) -> tuple[nn.Module, TrainState]:
    torch.manual_seed(0)
    model = MODELS[model_name]((1, 4, 4), 3)
    return model, TrainState.of(model)


def half(model: nn.Module) -> Mask:
    """A random mask that keeps about half."""
    rng = torch.Generator().manual_seed(1)
    return Mask({name: torch.rand(kept.shape, generator=rng) < 0.5 for name, kept in Mask.dense(model).items()})


def final(model: nn.Module, start: TrainState, stop: int, recipe: Recipe, mask: Mask | None, **more) -> TrainState:
    """The state at the end of a training."""
    state = start
    for _, copied, _ in train(model, start, mask, recipe.on(200), data(), 5, stop, **more):
        state = copied()
    return state


def same(a: TrainState, b: TrainState) -> bool:
    one, two = a.pack(), b.pack()
    return (
        one[1] == two[1]
        and one[0].keys() == two[0].keys()
        and all(torch.equal(t, two[0][n]) for n, t in one[0].items())
    )


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cut", [1, 13, 20])
def test_cut_is_whole(model_name, optimizer, cut):
    """Law 1: training to the cut and on from there gives every bit of training through, over an epoch's end too."""
    recipe = OPTIMIZERS[optimizer]
    model, start = started(model_name)
    mask = half(model)
    middle = final(model, start, cut, recipe, mask)
    assert middle.step == cut
    fresh = MODELS[model_name]((1, 4, 4), 3)
    assert same(final(fresh, middle, 30, recipe, mask), final(model, start, 30, recipe, mask))


def test_cut_is_whole_of_a_residual_network():
    """Law 1 with all that a paper's recipe holds: ResNet-20, batch norm, momentum, weight decay, a schedule, a mask,
    crop and flip; three epochs of two steps, cut within the second."""
    given = Fake([3, 8, 8], 3, 60, 10, 10, crop=2, flip=True)(Path()).normalised("cpu")
    options = {"momentum": 0.9, "weight_decay": 1e-4}
    recipe = Recipe("SGD", 0.1, 20, 6, 3, warmup=3, schedule=Cosine(), options=options).on(40)

    def end(state: TrainState, stop: int, data: Data = given) -> TrainState:
        model = Resnet(20)((3, 8, 8), 3)  # nothing of an earlier part but its state
        *_, (_, copied, _) = train(model, state, mask, recipe, data, 5, stop)
        return copied()

    torch.manual_seed(0)
    model = Resnet(20)((3, 8, 8), 3)
    start, mask = TrainState.of(model), half(model)
    middle, whole = end(start, 3), end(start, 6)
    assert middle.step == 3 and same(end(middle, 6), whole)
    # it is not vacuous: all of it is there, and matters
    assert any(name.endswith("running_mean") and tensor.any() for name, tensor in middle.buffers.items())
    assert middle.optimizer and not same(end(dataclasses.replace(middle, optimizer={}), 6), whole)
    assert not same(end(dataclasses.replace(middle, buffers=start.buffers), 6), whole)
    assert not same(end(middle, 6, dataclasses.replace(given, augment=None)), whole)


def test_cut_is_whole_needs_the_moments():
    """Law 1 is not vacuous: without the optimiser's moments the second half differs."""
    model, start = started("mlp")
    recipe = OPTIMIZERS["adam"]
    middle = final(model, start, 13, recipe, None)
    forgetful = dataclasses.replace(middle, optimizer={})
    assert not same(final(model, forgetful, 30, recipe, None), final(model, start, 30, recipe, None))


def test_states_on_the_way_do_not_disturb():
    """Asking for states on the way, or evaluating at another pace, changes no bit of the training."""
    model, start = started("conv")
    recipe = OPTIMIZERS["sgd"]
    plain = final(model, start, 30, recipe, None)
    assert same(final(model, start, 30, recipe, None, stops={3, 17}), plain)
    assert same(final(model, start, 30, dataclasses.replace(recipe, eval_every=7), None), plain)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_stays_zero(model_name, optimizer):
    """Law 2: at every step, through momentum, weight decay, Adam and batch norm; also from a dirty dense start whose
    moments speak of the removed weights. And the moments of removed weights stay zero too."""
    recipe = OPTIMIZERS[optimizer]
    model, start = started(model_name)
    dirty = final(model, start, 10, recipe, None)  # a dense rewind point: moments everywhere
    mask = half(model)
    seen = 0
    for _, state, _ in train(model, dirty, mask, recipe.on(200), data(), 5, 30, stops=set(range(31))):
        now, seen = state(), seen + 1
        for name, kept in mask.items():
            assert not now.params[name][~kept].any(), f"{name} at step {now.step}"
            averages = recipe.ema > 0 and any(key.endswith("/ema") for key in now.optimizer)
            assert averages == (recipe.ema > 0)
            for key, moment in now.optimizer.items():
                if key.rpartition("/")[0] == name and moment.shape == kept.shape:
                    assert not moment[~kept].any(), f"{key} at step {now.step}"
        assert (now.params[name][kept] != 0).any()
    assert seen == 20


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loop_equals_plain_torch(optimizer):
    """An oracle: the dense loop equals a textbook loop with torch's optimiser over the same batches, to rounding; with
    label smoothing, clipping and averages written out."""
    recipe = OPTIMIZERS[optimizer].on(200)
    model, start = started("mlp")
    result = final(model, start, 10, recipe, None)
    torch.manual_seed(0)
    plain = MODELS["mlp"]((1, 4, 4), 3)
    kind = getattr(torch.optim, recipe.optimizer)
    optimizer_ = kind(plain.parameters(), lr=recipe.lr, foreach=False, **recipe.options)
    batches = data().batches(5, recipe.batch_size)
    averages, norms = start.params, []
    for _ in range(10):
        x, y = next(batches)
        optimizer_.zero_grad()
        logp = plain(x).log_softmax(1)
        true, even = logp[torch.arange(20), y].mean(), logp.mean()
        (-(1 - recipe.label_smoothing) * true - recipe.label_smoothing * even).backward()
        norm = sum(parameter.grad.square().sum().item() for parameter in plain.parameters()) ** 0.5
        norms.append(norm)
        for parameter in plain.parameters():
            parameter.grad *= min(1, recipe.clip / norm) if recipe.clip else 1
        optimizer_.step()
        for name, parameter in plain.named_parameters():
            averages[name] = recipe.ema * averages[name] + (1 - recipe.ema) * parameter.detach()
    assert recipe.clip is None or min(norms) < recipe.clip < max(norms)  # some are clipped, some are not
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(result.params[name], parameter.detach(), rtol=1e-4, atol=1e-6)
        if recipe.ema:
            torch.testing.assert_close(result.optimizer[f"{name}/ema"], averages[name], rtol=1e-4, atol=1e-6)


def test_masked_loop_equals_small_network():
    """An oracle for the mask: pruning all of a hidden unit's weights trains like the network without that unit, whose
    contribution is the constant relu(bias) * 0 outgoing weights = 0."""
    model, start = started("mlp")
    kept = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in Mask.dense(model).items()}
    kept["1.weight"][7], kept["3.weight"][:, 7] = False, False
    recipe = Recipe("SGD", 0.1, 20, 20, 10)
    big = final(model, start, 20, recipe, Mask(kept))
    small = Mlp([7])((1, 4, 4), 3)
    cut = {n: start.params[n][:7] for n in ("1.weight", "1.bias")} | {"3.weight": start.params["3.weight"][:, :7]}
    result = final(small, TrainState(0, start.params | cut), 20, recipe, None)
    torch.testing.assert_close(result.params["1.weight"], big.params["1.weight"][:7])
    torch.testing.assert_close(result.params["3.weight"], big.params["3.weight"][:, :7])


def test_history_is_what_was_measured():
    """The points: train_loss the mean over the interval, validation as `evaluate` says at that step, and the best
    network that of the lowest validation loss, the first of equals."""
    recipe = Recipe("Adam", 0.05, 20, 60, 20)
    model, start = started("mlp")
    states, history = {}, None
    for step, state, history in train(model, start, None, recipe.on(200), data(), 5, 60, stops=set(range(61))):
        states[step] = state()
    assert history is not None and [point["step"] for point in history.points] == [20, 40, 60]
    for point in history.points:
        load(model, states[point["step"]].params, {})
        assert (point["val_loss"], point["val_accuracy"]) == evaluate(model, data().val)
    losses = []
    batches = data().batches(5, 20)
    for step in range(20):
        load(model, (states[step] if step else start).params, {})
        x, y = next(batches)
        losses.append(cross_entropy(model(x), y).item())
    assert history.points[0]["train_loss"] == pytest.approx(sum(losses) / 20, rel=1e-6)
    best = min(history.points, key=lambda point: point["val_loss"])
    assert history.best_step == best["step"]
    assert torch.equal(history.best["1.weight"], states[best["step"]].params["1.weight"])


def test_averages_are_what_is_evaluated():
    """recipe.ema: validation, the early stop and what the model holds at the end are of the averages, batch norm's
    statistics among them; without recipe.ema the training is the same, bit for bit."""
    recipe = Recipe("Adam", 0.02, 20, 60, 20, ema=0.9)
    model, start = started("conv")
    states, history = [], None
    for _, state, history in train(model, start, half(model), recipe.on(200), data(), 5, 60):
        states.append(state())
    assert history is not None
    held = TrainState.of(model)
    for state, point in zip(states, history.points, strict=True):
        shown = {name.removesuffix("/ema"): t for name, t in state.optimizer.items() if name.endswith("/ema")}
        assert not torch.equal(shown["1.running_mean"], state.buffers["1.running_mean"])
        load(model, shown, state.buffers | shown)
        assert (point["val_loss"], point["val_accuracy"]) == evaluate(model, data().val)
        if point["step"] == history.best_step:
            assert all(torch.equal(history.best[name], tensor) for name, tensor in shown.items())
    assert all(torch.equal({**held.params, **held.buffers}[name], tensor) for name, tensor in shown.items())
    plain = final(model, start, 60, dataclasses.replace(recipe, ema=0.0), half(model))
    assert plain.params.keys() == states[-1].params.keys()
    assert all(torch.equal(plain.params[name], tensor) for name, tensor in states[-1].params.items())


def test_a_batch_in_parts():
    """recipe.accumulate: each part is worked on by itself, so batch norm sees the parts, one after another."""
    sizes = []
    model, start = started("conv")
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])) if module.training else None)
    recipe = Recipe("SGD", 0.1, 20, 3, 3, accumulate=5)
    state = final(model, start, 3, recipe, None)
    assert sizes == [4] * 15 and state.buffers["1.num_batches_tracked"] == 15


def test_evaluate_by_hand():
    """Cross-entropy and accuracy of a network that says what it is told, in pieces of any size."""

    class Told(nn.Module):
        def forward(self, x):
            assert not self.training
            return x

    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    split = lth.data.Split(logits, torch.tensor([0, 1, 1]))
    by_hand = (torch.log(1 + torch.exp(torch.tensor([-2.0, -1.0, 3.0])))).mean().item()
    model = Told().train()
    for size in (1, 2, 3, 100):
        loss, accuracy = evaluate(model, split, size)
        assert loss == pytest.approx(by_hand, rel=1e-6)
        assert accuracy == pytest.approx(2 / 3)
    assert model.training


def test_test_split_is_touched_once(monkeypatch):
    """Law 8: training never reads the test split; measure reads it once for the end and once for the early stop; and
    what is in it changes no choice."""
    recipe = Recipe("Adam", 0.05, 20, 40, 20).on(200)
    model, start = started("mlp")
    whole = data()
    poisoned = dataclasses.replace(whole, test=lth.data.Split(whole.test.x * float("nan"), whole.test.y))
    histories, touched = [], []
    monkeypatch.setattr(
        lth.state, "score", lambda model, split, size: touched.append(split.y.data_ptr()) or score(model, split, size)
    )
    for given in (whole, poisoned):
        for _, _, history in train(model, start, None, recipe, given, 5, 40):
            pass
        assert given.test.y.data_ptr() not in touched
        histories.append(history)
    assert histories[0].points == histories[1].points and histories[0].best_step == histories[1].best_step
    touched.clear()
    measure(model, None, histories[0], whole, 0)
    assert touched.count(whole.test.y.data_ptr()) == len(touched) == 2


def test_early_stop_numbers():
    """measure: the early-stop network's own test accuracy, and its step counted from the start of this training."""
    recipe = Recipe("Adam", 0.1, 20, 60, 10).on(200)
    model, start = started("mlp")
    shifted = dataclasses.replace(start, step=100)
    states, history = {}, None
    for step, state, history in train(model, shifted, None, recipe, data(), 5, 160):
        states[step] = state()
    assert history is not None
    numbers = measure(model, None, history, data(), 100)
    assert numbers["early_stop_step"] == history.best_step - 100
    load(model, states[history.best_step].params, {})
    assert numbers["early_stop_test_accuracy"] == evaluate(model, data().test)[1]
    load(model, states[160].params, {})
    assert (numbers["test_loss"], numbers["test_accuracy"]) == evaluate(model, data().test)
    assert numbers["num_kept"] == numbers["num_total"] == Mask.dense(model).num_total


@pytest.mark.parametrize("bad_step", [0, 7, 20, 33])
def test_divergence_is_seen_with_its_step(bad_step, monkeypatch):
    """A loss that is not finite ends the run at its evaluation, with the step at which it came."""
    calls = []

    def poisoned(logits, y, **more):
        if "reduction" not in more:
            calls.append(1)
            if len(calls) == bad_step + 1:
                return cross_entropy(logits, y) * float("nan")
        return cross_entropy(logits, y, **more)

    monkeypatch.setattr(lth.engine.sequential, "cross_entropy", poisoned)
    model, start = started("mlp")
    recipe = Recipe("SGD", 0.1, 20, 60, 10).on(200)
    *_, (step, _, history) = train(model, start, None, recipe, data(), 5, 60)
    assert history.diverged_step == bad_step
    assert step == bad_step // 10 * 10 + 10
    assert measure(model, None, history, data(), 0)["test_accuracy"] is None


def test_neighbours_do_not_matter(bench: Bench):
    """Law 9: a run alone gives the bits it gives among others, in this process or in two workers."""
    together = bench.trainings(replicates=2)
    assert not bench.run(together, workers=2)
    for training in together[3:]:
        alone = Bench(type(bench.store)(bench.store.root.parent / training.run.result.key[:8]))
        assert not alone.run([training])
        assert alone.numbers([training]) == bench.numbers([training])


def test_reads_no_global_generator():
    """Training draws from no global generator and leaves it as it was."""
    model, start = started("mlp")
    recipe = OPTIMIZERS["adam"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = final(model, start, 30, recipe, None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(final(model, start, 30, recipe, None), one)


def test_a_test_loss_that_overflows_is_none(bench: Bench, monkeypatch):
    """Validation finite, test loss not: the result is stored, with None for that number."""
    trainings = bench.trainings(0.0)
    test_size = len(bench.data.test.y)

    def overflowing(model, split, *more):
        loss, accuracy = evaluate(model, split, *more)
        return (
            float("inf") if len(split.y) == test_size and torch.equal(split.y, bench.data.test.y) else loss
        ), accuracy

    monkeypatch.setattr(lth.train, "evaluate", overflowing)
    assert not bench.run(trainings)
    (numbers,) = bench.numbers(trainings)
    assert numbers["test_loss"] is None and numbers["test_accuracy"] is not None


def test_building_draws_from_no_global_generator(bench: Bench):
    """Neither naming a model nor asking for its dense mask moves torch's generator."""
    before = torch.get_rng_state()
    Mlp([8], "orthogonal")
    ticket = bench.trainings(0.2)[1].ticket
    assert ticket is not None
    dense = next(stage for stage in ticket.mask.parents() if not stage.task.stored)
    lth.perform.value(dense, bench.store, bench.context)
    assert torch.equal(torch.get_rng_state(), before)

"""The recipe: closed forms of the schedules, warmup, words for steps, one-line errors, and the optimiser it builds."""

import math
import re

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lth.recipe import Constant, Cosine, OneCycle, Recipe, Step, num_steps
from lth.stage import describe

NUM_TRAIN, BATCH = 250, 20  # 12 whole batches an epoch, and 10 examples left over


def recipe(**changes) -> Recipe:
    return Recipe(**{"optimizer": "SGD", "lr": 0.5, "batch_size": BATCH, "steps": 100, "eval_every": 10} | changes)


# Schedules


@given(st.integers(1, 10_000), st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_cosine_is_its_formula(steps, data):
    """(1 + cos(pi * step / steps)) / 2: from 1, by 1/2 half way, down to 0 at the end, never up."""
    step, cosine = data.draw(st.integers(0, steps - 1)), Cosine()
    assert cosine(step, steps) == pytest.approx(math.cos(math.pi * step / steps / 2) ** 2, abs=1e-12)
    assert cosine(0, steps) == 1
    assert cosine(steps, steps) == pytest.approx(0, abs=1e-12)
    assert cosine(steps, 2 * steps) == pytest.approx(0.5)
    assert cosine(step + 1, steps) < cosine(step, steps)


@given(st.lists(st.integers(0, 50), max_size=4), st.floats(0.01, 1), st.integers(0, 60))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_step_multiplies_at_each_drop(drops, gamma, step):
    """gamma to the number of drops at or before the step: the drop's own step is already lower."""
    factor = 1.0
    for drop in drops:
        if drop <= step:
            factor *= gamma
    assert Step(drops, gamma)(step, 100) == pytest.approx(factor)


def test_constant_is_one():
    """1 at every step."""
    assert {Constant()(step, 100) for step in range(101)} == {1.0}


def test_step_by_hand():
    """Drops after 2 and 4 of 6 steps: 1, 1, 0.1, 0.1, 0.01, 0.01."""
    rates = [recipe(lr=1.0, steps=6, schedule=Step([2, 4])).rate(step) for step in range(6)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("start", "peak", "end"), [(0.2, 0.25, 0.1), (0.0, 0.0, 0.0), (0.5, 1.0, 0.3), (1, 0.5, 1)])
def test_one_cycle_is_linear_between_its_corners(start, peak, end):
    """`start` at first, 1 at the peak, `end` at the end, straight lines between: numpy's interpolation of the three."""
    corners = {0.0: start} | {1.0: end} | {peak: 1.0}
    times = sorted(corners)
    expected = numpy.interp(numpy.arange(100) / 100, times, [corners[time] for time in times])
    assert [OneCycle(start, peak, end)(step, 100) for step in range(100)] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["start", "peak", "end"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_corner_outside_zero_to_one_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^recipe\.schedule\.{name}={value} [^\n]*$"):
        OneCycle(**{"start": 0.2, "peak": 0.3, "end": 0.1, name: value})


@pytest.mark.parametrize("gamma", [-0.5, 1.5, math.nan])
def test_a_schedule_leaves_zero_to_one_nowhere(gamma):
    """A schedule is a multiplier in [0, 1]; a gamma that leads out of it is refused in one line that names it."""
    with pytest.raises(ValueError, match=r"^[^\n]*gamma[^\n]*$"):
        recipe(schedule=Step([2], gamma)).on(NUM_TRAIN)


def test_warmup_is_linear():
    """rate(step) = lr * schedule * (step + 1) / warmup for the first `warmup` steps, then lr * schedule."""
    warm, plain = recipe(warmup=4, schedule=Cosine()), recipe(schedule=Cosine())
    ratios = [warm.rate(step) / plain.rate(step) for step in range(8)]
    assert ratios == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert plain.rate(0) == 0.5
    assert recipe(warmup=100).rate(99) == 0.5


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), Step([2, 99]), OneCycle(0.2, 0.3, 0.1)])
def test_past_the_end_the_last_rate_stays(schedule):
    """Fine-tuning goes on at the rate of the last step of training, which is above 0."""
    trained = recipe(schedule=schedule)
    last = trained.lr * schedule(99, 100)
    assert 0 < last == trained.rate(99)
    assert {trained.rate(step) for step in (100, 101, 199, 10**9)} == {last}


# Words for steps


@pytest.mark.parametrize(("text", "steps"), [("500it", 500), ("500", 500), (500, 500), ("2ep", 24), ("0ep", 0)])
def test_words_for_steps(text, steps):
    """ "500it", "500" and 500 are steps, "2ep" is two epochs of 12."""
    assert num_steps(text, 12, "recipe.steps") == steps


@pytest.mark.parametrize(
    "text", ["", "it", "-5", -5, "1.5ep", 1.5, "5 ep", "5epochs", "1e3", True, None, "5it\n", "5it 5it", math.inf]
)
def test_other_words_are_refused(text):
    """Anything else is a ValueError of one line that begins with the key and its value."""
    with pytest.raises(ValueError, match=r"^recipe\.steps=") as caught:
        num_steps(text, 12, "recipe.steps")
    assert f"recipe.steps={text} " in str(caught.value)


def test_on_resolves_every_word():
    """Epochs drop the last incomplete batch: 250 examples in batches of 20 are 12 steps. Twice is once."""
    words = recipe(steps="5ep", eval_every="10it", warmup="1ep", schedule=Step(["2ep", "30it", 40]))
    resolved = words.on(NUM_TRAIN)
    assert (resolved.steps, resolved.eval_every, resolved.warmup, resolved.per_epoch) == (60, 10, 12, 12)
    assert resolved.schedule == Step([24, 30, 40])
    assert resolved.on(NUM_TRAIN) == resolved
    assert words == recipe(steps="5ep", eval_every="10it", warmup="1ep", schedule=Step(["2ep", "30it", 40]))


def test_equal_meaning_has_one_name():
    """5 epochs, 60it and 60 are one recipe, and so is 1 for 1.0: what is named by it has one key."""
    ways = [recipe(steps=steps, lr=lr).on(NUM_TRAIN) for steps, lr in (("5ep", 1), ("60it", 1.0), (60, 1), ("60", 1))]
    assert len({str(describe(way)) for way in ways}) == 1


# What cannot train


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0), ("batch_size", NUM_TRAIN + 1), ("batch_size", "20"), ("batch_size", 2.5),
        ("lr", 0), ("lr", -1), ("lr", math.inf), ("lr", math.nan), ("lr", "fast"), ("lr", None),
        ("steps", 0), ("steps", "many"), ("steps", -1), ("eval_every", "0ep"), ("eval_every", "often"),
        ("warmup", 101), ("warmup", "slow"), ("optimizer", "Adem"), ("optimizer", "lr_scheduler"),
        ("label_smoothing", 1), ("label_smoothing", -0.1), ("clip", 0), ("clip", -1), ("ema", 1), ("ema", -0.5),
        ("accumulate", 0), ("accumulate", 3), ("accumulate", 40),
    ],
)  # fmt: skip
def test_errors_name_the_key(key, value):
    """One line that names the key and its value."""
    with pytest.raises(ValueError, match=r"^recipe\.[^\n]*$") as caught:
        recipe(**{key: value}).on(NUM_TRAIN)
    assert f"recipe.{key}={value} " in str(caught.value)


def test_a_wrong_drop_is_named():
    """The schedule's steps are words too."""
    with pytest.raises(ValueError, match=r"^recipe\.schedule\.drops=soon [^\n]*$"):
        recipe(schedule=Step(["soon"])).on(NUM_TRAIN)


@pytest.mark.parametrize(("typed", "meant"), [("SDG", "SGD"), ("Adem", "Adam"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_the_nearest_optimiser_is_named(typed, meant):
    """A slip of the finger, or of the shift key, gets the right name back."""
    with pytest.raises(ValueError, match=rf"such as .*\b{meant}\b"):
        recipe(optimizer=typed).on(NUM_TRAIN)


def checked(**changes) -> Recipe:
    """A recipe as it is checked before anything trains."""
    resolved = recipe(**changes).on(NUM_TRAIN)
    resolved.check_optimizer()
    return resolved


@pytest.mark.parametrize("optimizer", ["Optimizer", "LBFGS", "SparseAdam"])
def test_optimisers_that_take_no_plain_step_are_refused(optimizer):
    """L-BFGS wants a closure, SparseAdam sparse gradients, Optimizer is none: one line, the same each time."""
    with pytest.raises(ValueError, match=rf"^recipe\.[^\n]*{optimizer}[^\n]*$") as caught:
        checked(optimizer=optimizer)
    assert not re.search("0x[0-9a-f]{6}", str(caught.value))  # no address of an object


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {"momentun": 0.9}), ("SGD", {"momentum": -1}), ("SGD", {"momentum": "high"}), ("SGD", {"lr": 1.0}),
        ("SGD", {"nesterov": True}), ("Adam", {"betas": [0.9]}), ("Adam", {"betas": [2, 0.9]}),
        ("Adam", {"foreach": True}), ("Adam", {"differentiable": True}), ("Adam", {"fused": False}),
    ],
)  # fmt: skip
def test_wrong_options_are_named(optimizer, options):
    """An option that the optimiser does not take is one line that names recipe.options, the option and the optimiser,
    before anything trains."""
    with pytest.raises(ValueError, match=r"^recipe\.options[^\n]*$") as caught:
        checked(optimizer=optimizer, options=options)
    assert all(word in str(caught.value) for word in (optimizer, *options))


def test_an_optimiser_for_matrices_only_is_refused():
    """Networks have biases: an optimiser that cannot train a vector (Muon) is refused before anything trains."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=r"^recipe\.opti[^\n]*Muon[^\n]*$"):
        checked(optimizer="Muon")


# The optimiser


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {}), ("SGD", {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        ("Adam", {}), ("Adam", {"betas": [0.8, 0.99], "eps": 1e-3, "weight_decay": 0.1}),
        ("AdamW", {}), ("AdamW", {"weight_decay": 0.3, "amsgrad": True}),
    ],
)  # fmt: skip
def test_builds_the_optimiser_of_torch(optimizer, options):
    """The class asked for, with lr and every option handed on; its steps are those of torch's plain loop."""
    rng = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(4, 3, generator=rng), torch.randn(5, 4, 3, generator=rng)
    ours, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    built = checked(optimizer=optimizer, lr=0.05, options=options).build([ours])
    oracle = getattr(torch.optim, optimizer)([plain], lr=0.05, foreach=False, **options)
    assert type(built) is type(oracle)
    (group,) = built.param_groups
    (expected,) = oracle.param_groups
    assert {name: group[name] for name in ("lr", *options)} == {name: expected[name] for name in ("lr", *options)}
    for gradient in gradients:
        ours.grad, plain.grad = gradient.clone(), gradient.clone()
        built.step()
        oracle.step()
    assert not torch.equal(ours, start)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_checking_draws_no_random_numbers():
    """Resolving a recipe leaves torch's global generator as it was."""
    before = torch.random.get_rng_state()
    checked(optimizer="Adam")
    assert torch.equal(before, torch.random.get_rng_state())

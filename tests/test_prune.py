"""Polynomial schedule: the closed form, and gradual pruning as one training that goes on."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import Bench

from lth.branch.one_shot import OneShot
from lth.criterion.magnitude import Magnitude
from lth.criterion.movement import Movement
from lth.perform import value
from lth.prune.linear import Linear
from lth.prune.polynomial import Polynomial
from lth.recipe import Recipe, Step
from lth.rewind.gradual import Gradual
from lth.tickets import iterative


def test_polynomial_by_hand():
    """s * 7/8 half-way; with three rounds s * 19/27, s * 26/27, s. One round is the target at once."""
    assert Polynomial(0.8, 2)() == [0.7, 0.8]
    assert Polynomial(0.54, 3)() == [0.38, 0.52, 0.54]
    assert Polynomial(0.9, 1)() == [0.9]
    assert Polynomial(0.0, 5)() == []


def test_steps_shrink():
    """Each level removes less than the one before, by the cubic law: (1 - t / n)^3 of the target is still to go."""
    levels = [0.0, *Polynomial(0.9, 20)()]
    steps = [b - a for a, b in itertools.pairwise(levels)]
    assert len(levels) == 21 and steps == sorted(steps, reverse=True)
    assert [(0.9 - s) / 0.9 for s in levels] == pytest.approx([((20 - t) / 20) ** 3 for t in range(21)])


def test_linear_takes_as_many_weights_at_each_level():
    """numpy's linspace without its ends: 70, 71, ... percent of MNIST-1D's hundred levels."""
    assert Linear(0.98989898989899, 98)() == pytest.approx(np.linspace(0, 1, 100)[1:-1], abs=1e-11)
    assert Linear(0.9, 3)() == [0.3, 0.6, 0.9] and Linear(0.0, 3)() == [] and Linear(0.5, 1)() == [0.5]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 100_000])
def test_wrong_rounds_are_named(wrong):
    with pytest.raises(ValueError, match=rf"^prune\.num_rounds={wrong} [^\n]*$"):
        Polynomial(0.9, wrong)


def test_gradual_pruning_is_one_training(bench: Bench):
    """Three levels pruned at steps 10, 17 and 24 of 40: each starts from the very state that the one before ended in,
    its mask drawn from that state; together they are as long as the dense training, at the rates of the schedule."""
    bench.recipe = Recipe("Adam", 0.01, 20, 40, 10, schedule=Step([20], 0.1))
    bench.rewind, bench.branches = Gradual(10, "7it"), {}
    entries = [*iterative(bench.lab(), Polynomial(0.6, 3)())]
    assert not bench.run(entries)
    dense, before = entries[0].run, entries[0].run.at(10)
    assert [(e.rewind_step, e.run.num_steps) for e in entries[1:]] == [(10, 7), (17, 7), (24, 16)]
    for level, entry in enumerate(entries[1:], start=1):
        assert entry.run.start.key == before.key == entry.run.mask.inputs["state"].key
        start, end = (value(stage, bench.store, bench.context) for stage in (entry.run.start, entry.run.end))
        mask = value(entry.run.mask, bench.store, bench.context)
        assert (start.step, end.step) == (
            entry.rewind_step,
            entry.rewind_step + entry.run.num_steps,
        ) and start.optimizer
        assert mask.num_kept == round((1 - 0.6 * (1 - (1 - level / 3) ** 3)) * mask.num_total)
        before = entry.run.end
    assert end.step == dense.num_steps == 40


def test_one_shot_beside_gradual_pruning_leaves_dense_at_the_same_step(bench: Bench):
    """Its mask is drawn, and it goes on, where the first level does: at the state of step 10, not at the end."""
    bench.recipe, bench.rewind, bench.branches = Recipe("Adam", 0.01, 20, 40, 10), Gradual(10, 7), {"it": OneShot()}
    entries = list(iterative(bench.lab(), [0.1, 0.3]))
    state = entries[0].run.at(10)
    for entry in (entry for entry in entries if entry.branch == "it"):
        assert entry.run.start.key == state.key == entry.run.mask.inputs["state"].key


def test_gradual_pruning_without_a_mask_is_the_dense_training(bench: Bench):
    """Where nothing is removed, cutting and going on changes no bit (law 1): the last level ends where dense ends."""
    bench.recipe, bench.rewind, bench.branches = Recipe("Adam", 0.01, 20, 40, 10), Gradual(10, 7), {}
    bench.pattern = Nothing()
    entries = [*iterative(bench.lab(), [0.1, 0.2, 0.3])]
    assert not bench.run(entries)
    last, dense = (value(entry.run.end, bench.store, bench.context) for entry in (entries[-1], entries[0]))
    assert all(torch.equal(last.params[name], tensor) for name, tensor in dense.params.items())


@dataclass(frozen=True)
class Nothing:
    """A pattern that removes nothing."""

    def __call__(self, scores, mask, sparsity, model):
        return mask


@pytest.mark.parametrize(
    ("rewind", "criterion", "said"),
    [
        (Gradual(40, 1), Magnitude(), r"rewind\.begin=40 is past the end of training \(recipe\.steps=40\)"),
        (Gradual(30, 5), Magnitude(), r"rewind\.every=5 prunes 3 levels up to step 40, past the end"),
        (Gradual(30, 0), Magnitude(), r"rewind\.every=0 must be at least 1it"),
        (Gradual(10, 5), Movement(), r"rewind=gradual prunes within a training"),
    ],
)
def test_what_gradual_pruning_cannot_do_is_named(bench: Bench, rewind, criterion, said):
    bench.rewind, bench.criterion = rewind, criterion
    with pytest.raises(ValueError, match=said):
        list(iterative(bench.lab(), [0.1, 0.2, 0.3]))

"""Polynomial schedule: the closed form, and gradual pruning as one training that goes on."""

import itertools

import pytest
import torch
from conftest import Bench

from lth.perform import value
from lth.prune.polynomial import Polynomial
from lth.recipe import Recipe, Step
from lth.rewind.none import Keep
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


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 100_000])
def test_wrong_rounds_are_named(wrong):
    with pytest.raises(ValueError, match=rf"^prune\.num_rounds={wrong} [^\n]*$"):
        Polynomial(0.9, wrong)


def test_gradual_pruning_is_one_training(bench: Bench):
    """With rewind=none each level starts from the very state the one before ended in, moments and step count with it,
    at the schedule's last rate; the sparsity of what is trained follows the schedule."""
    bench.recipe = Recipe("Adam", 0.01, 20, 40, 10, schedule=Step([20], 0.1))
    bench.rewind, bench.branches = Keep(steps=7), {}
    entries = [*iterative(bench.lab(), Polynomial(0.6, 3)())]
    assert not bench.run(entries)
    for level, (before, entry) in enumerate(itertools.pairwise(entries), start=1):
        assert entry.run.start.key == before.run.end.key
        start, end = (value(stage, bench.store, bench.context) for stage in (entry.run.start, entry.run.end))
        mask = value(entry.run.mask, bench.store, bench.context)
        assert (start.step, end.step) == (40 + 7 * (level - 1), 40 + 7 * level)
        assert start.optimizer and all(torch.isfinite(moment).all() for moment in start.optimizer.values())
        assert mask.num_kept == round((1 - 0.6 * (1 - (1 - level / 3) ** 3)) * mask.num_total)
        assert bench.lab().recipe.rate(start.step) == bench.lab().recipe.rate(end.step) == pytest.approx(0.001)

"""The controls beside a ticket: what each keeps of it, what it changes, and what it shares."""

import copy
import dataclasses

import pytest
import torch
from conftest import Bench

from lth.branch import chosen_levels
from lth.branch.dense_order import DenseOrder
from lth.branch.layerwise_shuffle import LayerwiseShuffle, shuffled_mask, shuffled_state
from lth.branch.one_shot import OneShot
from lth.branch.random_mask_global import RandomMaskGlobal, shuffled_globally
from lth.branch.sign_flip import SignFlip, flipped
from lth.branch.sign_only import SignOnly, signs
from lth.cell import stored
from lth.criterion.random import Random
from lth.mask import Mask
from lth.perform import value
from lth.plan import plan
from lth.prune.one_shot import OneShot as OneRound
from lth.recipe import Recipe
from lth.rewind.early import Early
from lth.rewind.init import Init
from lth.rewind.learning_rate import LearningRate
from lth.rewind.none import Keep
from lth.state import TrainState
from lth.tickets import Entry, iterative

MASK = Mask({"a": torch.arange(12).reshape(3, 4) % 3 == 0, "b": torch.tensor([[True, False]])})
STATE = TrainState(
    5,
    {"a": torch.arange(12.0).reshape(3, 4), "a.bias": torch.arange(3.0), "b": torch.tensor([[7.0, 8.0]])},
    {"mean": torch.arange(4.0)},
    {
        "a/exp_avg": torch.arange(12.0).reshape(3, 4) + 100,
        "a/step": torch.tensor(5.0),
        "a/row": torch.arange(3.0).reshape(3, 1),
        "a.bias/exp_avg": torch.arange(3.0) + 100,
        "b/exp_avg": torch.tensor([[107.0, 108.0]]),
    },
)


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def pair(bench: Bench, branch, level: int = 2) -> tuple[Entry, Entry]:
    """(ticket, what the branch trains beside it) at one level."""
    bench.branches = {"it": branch}
    entries = bench.trainings()
    ticket = next(e for e in entries if e.branch == "ticket" and e.level == level)
    return ticket, next(e for e in entries if e.branch == "it" and e.level in (0, level))


def seen(bench: Bench, *stages) -> list:
    """Their values, computed."""
    assert not bench.run([], also=[found for stage in stages for found in stored(stage)])
    return [value(stage, bench.store, bench.context) for stage in stages]


def momentum(bench: Bench, rewind=None) -> Bench:
    """A bench whose rewind points have moments, where they are kept."""
    return dataclasses.replace(bench, recipe=Recipe("Adam", 0.01, 20, 40, 10), rewind=rewind or Early(15))


# random_mask_global


def test_random_mask_global_is_uniform_over_the_network(bench: Bench):
    """As many weights in all as the ticket. Where they lie is uniform: layer counts vary about their share, as the
    hypergeometric distribution says, and every position is kept equally often."""
    ticket = Mask({"a": torch.arange(30).reshape(5, 6) < 3, "b": torch.arange(10) < 9})
    drawn = [shuffled_globally.function(None, ticket, seed) for seed in range(2000)]
    assert {mask.num_kept for mask in drawn} == {12}
    in_b = torch.tensor([float(mask.counts()["b"]) for mask in drawn])
    mean, variance = 12 * 10 / 40, 12 * (10 / 40) * (30 / 40) * (28 / 39)
    assert abs(in_b.mean() - mean) < 5 * (variance / 2000) ** 0.5 and abs(in_b.var() / variance - 1) < 0.2
    often = sum(torch.cat([kept.reshape(-1) for kept in mask.values()]).double() for mask in drawn) / 2000
    assert (often - 0.3).abs().max() < 5 * (0.3 * 0.7 / 2000) ** 0.5


def test_random_mask_global_keeps_start_and_length(bench: Bench):
    """Only the mask is other than the ticket's; it is another one at each level, and layers lose their counts."""
    bench = momentum(bench)
    masks = []
    for level in (1, 2):
        ticket, control = pair(bench, RandomMaskGlobal(), level)
        assert control.run.start.key == ticket.run.start.key
        assert (control.run.order, control.run.num_steps) == (ticket.run.order, ticket.run.num_steps)
        theirs, ours = seen(bench, ticket.run.mask, control.run.mask)
        assert ours.num_kept == theirs.num_kept and ours.counts() != theirs.counts()
        masks.append(ours)
    assert not masks[1].inside(masks[0])


# layerwise_shuffle


def test_layerwise_shuffle_moves_mask_weights_and_moments_together():
    """Each position's mask bit, weight and moment of the weight's shape come from one and the same other position of
    that layer. The rest stays: biases and theirs, buffers, step counts, factored moments."""
    before = copy.deepcopy(STATE)
    mask, state = shuffled_mask.function(None, MASK, 3), shuffled_state.function(None, STATE, MASK, 3)
    source = state.params["a"].long()  # STATE's weights say where they stood
    assert not torch.equal(state.params["a"], STATE.params["a"])
    assert torch.equal(source.reshape(-1).sort().values, torch.arange(12))
    assert torch.equal(mask["a"], MASK["a"].reshape(-1)[source])
    assert torch.equal(state.optimizer["a/exp_avg"], source + 100.0)
    assert torch.equal(state.optimizer["b/exp_avg"], state.params["b"] + 100)
    assert torch.equal(mask["b"], state.params["b"] == 7)
    for name in ("a/step", "a/row", "a.bias/exp_avg"):
        assert torch.equal(state.optimizer[name], STATE.optimizer[name])
    assert torch.equal(state.params["a.bias"], STATE.params["a.bias"]) and equal(state.buffers, STATE.buffers)
    assert state.step == 5 and state.optimizer.keys() == STATE.optimizer.keys() and equal(before.params, STATE.params)


def test_layerwise_shuffle_is_uniform():
    """Every position of a layer is kept equally often, whatever the ticket's mask; layers are shuffled apart."""
    drawn = [shuffled_mask.function(None, MASK, seed) for seed in range(2000)]
    often = sum(mask["a"].double() for mask in drawn) / 2000
    assert (often - 1 / 3).abs().max() < 5 * (2 / 9 / 2000) ** 0.5
    mask = Mask({"a": torch.arange(50) < 25, "b": torch.arange(50) < 25})
    shuffled = shuffled_mask.function(None, mask, 0)
    assert not torch.equal(shuffled["a"], shuffled["b"])


@pytest.mark.parametrize("rewind", [Init(), Early(15), LearningRate("10it")], ids=["init", "early", "learning_rate"])
def test_layerwise_shuffle_has_the_tickets_values(bench: Bench, rewind):
    """In each layer the surviving (weight, moment, moment) triples are the ticket's own, at other positions; and it
    trains from there, as long as the ticket."""
    bench = momentum(bench, rewind)
    ticket, control = pair(bench, LayerwiseShuffle())
    assert not bench.run([control])
    mask, start, other_mask, other = seen(bench, *(s for e in (ticket, control) for s in (e.run.mask, e.run.start)))
    assert other_mask != mask and other.step == start.step and other.optimizer.keys() == start.optimizer.keys()
    assert bool(start.optimizer) == (rewind != Init())

    def triples(mask: Mask, state: TrainState, name: str) -> list:
        moments = [state.optimizer[f"{name}/{m}"] for m in ("exp_avg", "exp_avg_sq")] if state.optimizer else []
        return sorted(zip(*(tensor[mask[name]].tolist() for tensor in (state.params[name], *moments)), strict=True))

    for name in mask:
        assert triples(mask, start, name) == triples(other_mask, other, name)
    assert (control.run.order, control.run.num_steps) == (ticket.run.order, ticket.run.num_steps)


# sign_only and sign_flip


def test_sign_only_by_hand():
    """Weights 3, -1, 0, -2, -0 and 0 have the mean 0 and the variance (9 + 1 + 4) / 6: each becomes plus or minus its
    root, 0 and -0 plus; removed ones count."""
    weights = torch.tensor([[3.0, -1.0, 0.0], [-2.0, -0.0, 0.0]])
    mask = Mask({"a": torch.tensor([[True, False, True], [True, True, False]])})
    state = TrainState(4, {"a": weights, "bias": torch.ones(2)}, {"mean": torch.ones(2)}, {"a/m": weights})
    found = signs.function(None, state, mask)
    c = (14 / 6) ** 0.5
    assert torch.equal(found.params["a"], torch.tensor([[c, -c, c], [-c, c, c]]))
    assert torch.equal(found.params["bias"], state.params["bias"]) and equal(found.buffers, state.buffers)
    assert (found.step, found.optimizer) == (4, {})


def test_sign_only_has_a_constant_a_layer(bench: Bench):
    """In a ticket: signs of the start, one magnitude in each layer and others in another; its mask."""
    ticket, control = pair(momentum(bench), SignOnly())
    assert not bench.run([control])
    mask, start, state = seen(bench, ticket.run.mask, ticket.run.start, control.run.start)
    constants = {name: state.params[name].abs().unique() for name in mask}
    assert all(len(constant) == 1 and constant > 0 for constant in constants.values())
    assert len({float(constant) for constant in constants.values()}) == len(mask)
    assert all(torch.equal(state.params[name].sign(), start.params[name].sign()) for name in mask)
    assert control.run.mask.key == ticket.run.mask.key and control.run.num_steps == ticket.run.num_steps == 25


def test_sign_flip_by_hand():
    """0 flips none and 1 flips all; in between each weight by itself, that often; magnitudes stay. Moments are reset;
    biases, buffers and step are the start's."""
    for probability, sign in ((0.0, 1), (1.0, -1)):
        state = flipped.function(None, STATE, MASK, probability, 0)
        assert all(torch.equal(state.params[name], sign * STATE.params[name]) for name in MASK)
        assert torch.equal(state.params["a.bias"], STATE.params["a.bias"]) and equal(state.buffers, STATE.buffers)
        assert (state.step, state.optimizer) == (5, {})
    ones = TrainState(0, {"a": torch.ones(10_000), "b": torch.ones(10_000)})
    mask = Mask({name: tensor > 0 for name, tensor in ones.params.items()})
    assert all((flipped.function(None, ones, mask, 1.0, 1).params[name] == -1).all() for name in mask)
    for probability in (0.1, 0.5):
        flips = [flipped.function(None, ones, mask, probability, 1).params[name] < 0 for name in mask]
        assert all(abs(flip.double().mean() - probability) < 0.025 for flip in flips)
        both = (flips[0] & flips[1]).double().mean()  # of independent layers
        assert abs(both - probability**2) < 0.025


def test_sign_flip_is_the_ticket_at_0_and_differs_by_level(bench: Bench):
    """Without a flip it is the ticket, number for number, where there are no moments to reset; it has the ticket's
    mask, and draws anew for each level."""
    ticket, control = pair(bench, SignFlip(0.0))
    assert not bench.run([ticket, control])
    assert bench.numbers([ticket]) == bench.numbers([control]) and control.run.mask.key == ticket.run.mask.key
    signs_at = []
    for level in (1, 2):
        ticket, control = pair(bench, SignFlip(), level)
        start, state = seen(bench, ticket.run.start, control.run.start)
        assert all(torch.equal(state.params[n].abs(), start.params[n].abs()) for n in start.params)
        signs_at.append(state.params["1.weight"] == start.params["1.weight"])
    assert not torch.equal(*signs_at)


@pytest.mark.parametrize("probability", [-0.1, 2, True, "x", float("nan"), None])
def test_sign_flip_refuses(probability):
    """What is no probability is refused in one line that names the key."""
    with pytest.raises(ValueError, match=r"^branch\.sign_flip\.probability=[^\n]* must be in \[0, 1\]$"):
        SignFlip(probability)


# dense_order


@pytest.mark.parametrize(
    "rewind, k", [(Init(), 0), (Early(15), 15), (Early(15, "reset"), 15), (Keep("25it"), 0), (LearningRate("10it"), 10)]
)
def test_dense_order_is_dense_but_for_the_order(bench: Bench, rewind, k):
    """It leaves the dense run at its state of step k, moments kept, and takes the rest of the schedule in an order of
    its own: what stands in the two runs' names differs in that alone. One row, at level 0, however many levels."""
    bench = momentum(bench, rewind)
    bench.branches = {"it": DenseOrder()}
    entries = bench.trainings()
    (control,) = [e for e in entries if e.branch == "it"]
    dense = entries[0].run
    assert (control.level, control.sparsity, control.ticket) == (0, 0.0, None)
    assert control.rewind_step == k
    assert control.run.start.key == dense.at(k).key and control.run.num_steps == 40 - k
    assert dataclasses.replace(control.run, start=dense.start, order=dense.order, num_steps=40).unit == dense.unit
    assert control.run.order != dense.order
    here, there = seen(bench, control.run.end, dense.end)
    assert here.step == there.step == 40 and not equal(here.params, there.params)


def test_dense_order_in_the_dense_order_is_dense(bench: Bench):
    """Nothing else sets them apart: in the dense run's own order it ends where that ends, bit for bit."""
    bench = momentum(bench)
    _, control = pair(bench, DenseOrder())
    dense = bench.trainings()[0].run
    here, there = seen(bench, dataclasses.replace(control.run, order=dense.order).end, dense.end)
    assert equal(here.params, there.params) and equal(here.optimizer, there.optimizer)


# one_shot


@pytest.mark.parametrize("criterion", [None, Random()], ids=["magnitude", "random"])
@pytest.mark.parametrize("rewind", [Init(), Early(15), Keep("25it")], ids=["init", "early", "none"])
def test_one_shot_is_the_schedule_of_that_name(bench: Bench, criterion, rewind):
    """At every level it is, by name and so bit for bit, the ticket of prune=one_shot at that sparsity. At level 1 that
    is the iterative ticket too, which leaves nothing to train; at level 2 its mask is another one."""
    bench = dataclasses.replace(momentum(bench, rewind), criterion=criterion or bench.criterion)
    alone = dataclasses.replace(bench, branches={}).lab()
    for level in (1, 2):
        ticket, control = pair(bench, OneShot(), level)
        _, single = iterative(alone, OneRound(ticket.sparsity)())
        assert control.run.result.key == single.run.result.key and control.sparsity == ticket.sparsity
        assert (control.run.result.key == ticket.run.result.key) == (level == 1)
    theirs, ours = seen(bench, ticket.run.mask, control.run.mask)
    assert ours.num_kept == theirs.num_kept and (criterion is None or ours != theirs)
    pair(bench, OneShot())
    todo = plan([[entry.stage for entry in bench.trainings()]], bench.store)
    assert len(todo.trainings) + todo.stored == 4  # dense, tickets of level 1 and 2, one shot at level 2


# branch.levels


def test_levels_are_found_by_four_digits():
    """A sparsity as a table prints it is enough; of two that near the nearer; what is farther is no level."""
    sparsities = [0.5, 0.969696969697, 0.969729, 0.98]
    assert chosen_levels([0.9697], sparsities) == {2} and chosen_levels([0.96973, 0.5], sparsities) == {1, 3}
    assert chosen_levels("every:3", sparsities) == {3, 4} and chosen_levels("all", sparsities) is None
    for wrong in (0.9696, 0.97, 0.0, 1):
        with pytest.raises(ValueError, match=r"^branch\.levels: [^\n]*$"):
            chosen_levels([wrong], sparsities)

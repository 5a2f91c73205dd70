"""Law 3: a mask keeps exactly what it is asked to, inside the mask it was drawn from, ties broken by position."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from lth.mask import Mask, num_kept, prunable, top_k
from lth.pattern.unstructured import SCOPES, Unstructured
from lth.quotas import quotas

MODEL = nn.Sequential()  # unstructured never looks at the network
quick = settings(max_examples=150, deadline=None, derandomize=True)
SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0])  # few values, many ties
FLOATS = st.one_of(SCORES, st.floats(-(2.0**99), 2.0**99, width=32))


@st.composite
def layers(draw, least: int = 0):
    """(scores, mask) of one to four layers; `least`: weights that each layer keeps at the least."""
    scores, kept = {}, {}
    tied = draw(st.booleans())
    for index in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        size = math.prod(shape)
        values = [1.0] * size if tied else draw(st.lists(SCORES, min_size=size, max_size=size))
        bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        bits = [bit or i < least for i, bit in enumerate(bits)]
        scores[f"{index}.weight"] = torch.tensor(values).reshape(shape)
        kept[f"{index}.weight"] = torch.tensor(bits).reshape(shape)
    first = next(iter(kept.values()))
    first.view(-1)[0] = True  # a mask keeps at least one weight
    return scores, Mask(kept)


SPARSITIES = st.one_of(st.sampled_from([0.0, 0.5, 1e-9, 1 - 1e-9]), st.floats(0, 1, exclude_max=True))


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def assert_best(scores, before, after) -> None:
    """Of the candidates of one ranking, the best are kept, and of equal ones those that stand first."""
    ranks = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    candidates = [i for i in ranks if before[i]]
    assert set(np.flatnonzero(after.numpy()).tolist()) == set(candidates[: int(after.sum())])


def oracle(sparsity: float, total: int) -> int:
    return max(1, round((1 - sparsity) * total))


# The pattern


@quick
@given(layers(), SPARSITIES)
def test_global_keeps_the_best_of_all(case, sparsity):
    """Exactly the count, nested, the best of all layers together; ValueError only where fewer weights survive."""
    scores, mask = case
    count = oracle(sparsity, mask.num_total)
    if count > mask.num_kept:
        with pytest.raises(ValueError, match=f"cannot keep {count} "):
            Unstructured("global")(scores, mask, sparsity, MODEL)
        return
    drawn = Unstructured("global")(scores, mask, sparsity, MODEL)
    assert drawn.num_kept == count
    assert drawn.inside(mask)
    assert_best(flat(scores), flat(mask), flat(drawn))


@quick
@given(layers(least=1), SPARSITIES, st.sampled_from([0, 0.5, 1]))
def test_layerwise_keeps_the_best_of_each_layer(case, sparsity, output):
    """Exactly the count, nested, at least 1 a layer, the best of each; ValueError only where that cannot be."""
    scores, mask = case
    count = oracle(sparsity, mask.num_total)
    if not len(mask) <= count <= mask.num_kept:
        with pytest.raises(ValueError, match=f"cannot keep {count} "):
            Unstructured("layerwise", output)(scores, mask, sparsity, MODEL)
        return
    drawn = Unstructured("layerwise", output)(scores, mask, sparsity, MODEL)
    assert drawn.num_kept == count
    assert drawn.inside(mask)
    assert min(drawn.counts().values()) >= 1
    for name in mask:
        assert_best(scores[name].reshape(-1), mask[name].reshape(-1), drawn[name].reshape(-1))


@quick
@given(layers(least=1), st.lists(st.floats(0, 0.9), min_size=2, max_size=4), st.sampled_from(SCOPES))
def test_levels_are_nested(case, sparsities, scope):
    """Level n + 1 lies inside level n, and asking twice for one sparsity changes nothing."""
    scores, _ = case
    mask = Mask({name: torch.ones_like(score) for name, score in scores.items()})
    for sparsity in sorted(sparsities):
        if num_kept(sparsity, mask.num_total) < len(mask):
            return
        level = Unstructured(scope)(scores, mask, sparsity, MODEL)
        assert level.inside(mask)
        assert Unstructured(scope)(scores, level, sparsity, MODEL) == level
        mask = level


@pytest.mark.parametrize("scope", SCOPES)
def test_two_of_ten_equal_scores_are_two(scope):
    """The field's threshold bug: asked to prune 2 of 10 equal scores, prune the last 2 and not 3 or 10."""
    mask = Mask({"weight": torch.ones(10)})
    drawn = Unstructured(scope)({"weight": torch.full((10,), 0.5)}, mask, 0.2, MODEL)
    assert drawn["weight"].tolist() == [True] * 8 + [False] * 2


def test_a_global_tie_falls_to_the_first_layer():
    """Position counts over all layers: equal scores survive in the first ones."""
    mask = Mask({"a": torch.ones(2, 2), "b": torch.ones(4)})
    drawn = Unstructured("global")({name: torch.zeros(mask[name].shape) for name in mask}, mask, 0.375, MODEL)
    assert drawn.counts() == {"a": 4, "b": 1}
    assert drawn["b"].tolist() == [True, False, False, False]


@pytest.mark.parametrize(("output", "counts"), [(0.5, (480, 240, 90)), (1, (486, 243, 81)), (0, (473, 237, 100))])
def test_layerwise_by_hand(output, counts):
    """190 of 600 + 300 + 100 weights go: p = 190 / 950 at half the rate for the last, 190 / 1000 at the same rate,
    190 / 900 where it is left alone."""
    mask = Mask({"a": torch.ones(20, 30), "b": torch.ones(300), "out": torch.ones(10, 10)})
    scores = {name: torch.rand(mask[name].shape) for name in mask}
    assert tuple(Unstructured("layerwise", output)(scores, mask, 0.19, MODEL).counts().values()) == counts


def test_an_empty_layer_is_no_reason_to_stop():
    """What scope=global emptied stays empty: the next global level is drawn from the other layers."""
    mask = Mask({"a": torch.zeros(4), "b": torch.ones(4)})
    drawn = Unstructured("global")({"a": torch.ones(4), "b": torch.arange(4.0)}, mask, 0.75, MODEL)
    assert drawn["b"].tolist() == [False, False, True, True]
    assert drawn.counts()["a"] == 0


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9, 0.99])
def test_global_equals_torch(sparsity):
    """Without ties, the global mask is that of torch.nn.utils.prune.global_unstructured (L1)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 30), nn.Linear(30, 7))
    weights = prunable(model)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    assert flat(scores).unique().numel() == flat(scores).numel()
    drawn = Unstructured("global")(scores, Mask.dense(model), sparsity, MODEL)
    modules = [(model.get_submodule(name.removesuffix(".weight")), "weight") for name in weights]
    prune.global_unstructured(modules, prune.L1Unstructured, amount=drawn.num_total - drawn.num_kept)
    for name, (module, _) in zip(weights, modules, strict=True):
        assert torch.equal(drawn[name], module.weight_mask.bool())


def test_inputs_stay_as_they_were():
    """Drawing a mask changes neither the scores nor the mask it is drawn from."""
    scores = {"a": torch.rand(3, 4), "b": torch.rand(5)}
    mask = Mask({"a": torch.ones(3, 4), "b": torch.tensor([1, 1, 0, 1, 0])})
    before = {name: score.clone() for name, score in scores.items()}, Mask(mask)
    for scope in SCOPES:
        Unstructured(scope)(scores, mask, 0.5, MODEL)
    assert mask == before[1]
    assert all(torch.equal(scores[name], before[0][name]) for name in scores)


@pytest.mark.parametrize("wrong", [{"scope": "local"}, {"output": -0.1}, {"output": 1.5}, {"output": "half"}])
def test_wrong_settings_are_named(wrong):
    """One line that names the key and its value."""
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^pattern\.{key}={value} [^\n]*$"):
        Unstructured(**wrong)


# Erdos-Renyi-Kernel, and as many in each layer


def drawn_counts(scope, shapes, sparsity, rates=None) -> list[int]:
    """Weights kept of dense layers of these shapes, of which each has lower scores than the next one."""
    mask = Mask({f"{i}.weight": torch.ones(shape) for i, shape in enumerate(shapes)})
    scores = {name: torch.full(kept.shape, float(i)) for i, (name, kept) in enumerate(mask.items())}
    return list(Unstructured(scope, rates=rates or {})(scores, mask, sparsity, MODEL).counts().values())


def erk(shapes, density: float) -> list[float]:
    """Weights by layer in closed form: eps = (total - the full layers' sizes) / (sum of n_in + n_out + kernel over the
    others), the layers with the highest raw density (n_in + n_out + kernel) / size becoming full one by one."""
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    order = sorted(range(len(shapes)), key=lambda i: -raw[i])
    total = density * sum(map(math.prod, shapes))
    for num_full in range(len(shapes)):
        full, rest = order[:num_full], order[num_full:]
        eps = (total - sum(math.prod(shapes[i]) for i in full)) / sum(sum(shapes[i]) for i in rest)
        if all(eps * raw[i] <= 1 for i in rest):
            break
    return [math.prod(shape) if i in full else eps * sum(shape) for i, shape in enumerate(shapes)]


RESNET = [
    (16, 3, 3, 3),
    *[(16, 16, 3, 3)] * 6,
    (32, 16, 3, 3),
    *[(32, 32, 3, 3)] * 5,
    (64, 32, 3, 3),
    (64, 64, 3, 3),
    (10, 64),
]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9, 0.98])
@pytest.mark.parametrize("shapes", [RESNET, [(300, 784), (100, 300), (10, 100)]])
def test_erk_in_closed_form(shapes, sparsity):
    """Within one weight of the closed form in each layer, exact in all."""
    counts = drawn_counts("erk", shapes, sparsity)
    assert sum(counts) == round((1 - sparsity) * sum(map(math.prod, shapes)))
    assert all(abs(count - ideal) <= 1 for count, ideal in zip(counts, erk(shapes, 1 - sparsity), strict=True))


def test_erk_by_hand():
    """LeNet-300-100 at 90%: 110 output weights at raw density 0.11, so eps = 26620 / (1084 + 400 + 110) fills the last
    layer; the rest, 25620, is 1084 : 400."""
    assert 26620 / (1084 + 400 + 110) * 0.11 > 1
    assert drawn_counts("erk", [(300, 784), (100, 300), (10, 100)], 0.9) == [round(25620 * 1084 / 1484), 6906, 1000]


def test_balanced_by_hand():
    """60 of 100 + 10 + 30: the small layer is full, the others keep 25 each; 3 of them: one each."""
    assert drawn_counts("balanced", [(10, 10), (2, 5), (5, 6)], 80 / 140) == [25, 10, 25]
    assert drawn_counts("balanced", [(10, 10), (2, 5), (5, 6)], 0) == [100, 10, 30]
    assert drawn_counts("balanced", [(10, 10), (2, 5), (5, 6)], 137 / 140) == [1, 1, 1]


@quick
@given(layers(least=1), SPARSITIES, st.sampled_from(["erk", "balanced"]))
def test_filled_layers_keep_the_best(case, sparsity, scope):
    """Exactly the count, nested, at least 1 a layer, the best of each; a layer that has more left keeps no fewer
    weights (balanced) than another one, but for rounding."""
    scores, mask = case
    count = oracle(sparsity, mask.num_total)
    if not len(mask) <= count <= mask.num_kept:
        with pytest.raises(ValueError, match=f"cannot keep {count} "):
            Unstructured(scope)(scores, mask, sparsity, MODEL)
        return
    drawn = Unstructured(scope)(scores, mask, sparsity, MODEL)
    assert drawn.num_kept == count and drawn.inside(mask) and min(drawn.counts().values()) >= 1
    for name in mask:
        assert_best(scores[name].reshape(-1), mask[name].reshape(-1), drawn[name].reshape(-1))
    if scope == "balanced":
        spare = [n for name, n in drawn.counts().items() if n < mask.counts()[name]]
        assert not spare or max(drawn.counts().values()) - min(spare) <= 1


# Layers with a rate of their own


@pytest.mark.parametrize("scope", SCOPES)
def test_a_layer_at_rate_0_is_left_dense(scope):
    """The first layer loses nothing while the others have something to lose, then what must be."""
    shapes = [(6, 5), (10, 10), (10, 7)]
    for sparsity in (0.1, 0.4, 0.7, 0.84):
        counts = drawn_counts(scope, shapes, sparsity, {"0.weight": 0})
        assert counts[0] == 30 and sum(counts) == round((1 - sparsity) * 200)
    counts = drawn_counts(scope, shapes, 0.9, {"0.*": 0})
    assert counts == ([20, 0, 0] if scope == "global" else [18, 1, 1])


def test_layerwise_rates_by_hand():
    """140 of 400 weights go: p * (100 + 100 / 2 + 200 * 1) = 140, p = 0.4; the last match counts."""
    mask = Mask({name: torch.ones(size) for name, size in (("a", 100), ("b", 100), ("c", 200))})
    scores = {name: torch.rand(kept.shape) for name, kept in mask.items()}
    pattern = Unstructured(rates={"*": 1, "b": 0.5})
    assert list(pattern(scores, mask, 0.35, MODEL).counts().values()) == [60, 80, 120]


def test_a_rate_of_no_layer_is_named():
    mask = Mask({"conv1.weight": torch.ones(4), "out.weight": torch.ones(4)})
    with pytest.raises(
        ValueError, match=r"^pattern\.rates\.conv\.weight=0 names no layer; did you mean conv1\.weight\?$"
    ):
        Unstructured(rates={"conv.weight": 0})({name: torch.ones(4) for name in mask}, mask, 0.5, MODEL)


@pytest.mark.parametrize(
    ("scope", "rate"), [("layerwise", -1), ("layerwise", 2), ("layerwise", "x"), ("global", 0.5), ("erk", 0.5)]
)
def test_wrong_rates_are_named(scope, rate):
    with pytest.raises(ValueError, match=rf"^pattern\.rates\.a={rate} must be [^\n]*$"):
        Unstructured(scope, rates={"a": rate})


# Quotas


class Shrinking(nn.Module):
    """8 x 8 positions, then 4 x 4, then one: the same weight costs 64, 16 and 1 multiply-adds."""

    input_shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm, self.out = nn.BatchNorm2d(6), nn.Linear(96, 3)

    def forward(self, x):
        return self.out(self.norm(self.two(self.one(x).relu())).relu().flatten(1))


TIMES = {"one.weight": 64, "two.weight": 16, "out.weight": 1}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7])
def test_a_budget_of_multiply_adds_is_filled(scope, sparsity):
    """The most weights that fit: what is drawn for one more does not; counted layer by layer by hand. Nested."""
    torch.manual_seed(0)
    model = Shrinking()
    dense, scores = Mask.dense(model), {name: torch.rand(weight.shape) for name, weight in prunable(model).items()}

    def cost(mask: Mask) -> int:
        return sum(count * TIMES[name] for name, count in mask.counts().items())

    pattern = Unstructured(scope, budget="flops")
    assert cost(dense) == 36 * 64 + 216 * 16 + 288
    drawn = pattern(scores, dense, sparsity, model)
    most = round((1 - sparsity) * cost(dense))
    assert cost(drawn) <= most and pattern(scores, drawn, sparsity, model) == drawn
    if sparsity:
        one_more = 1 - (drawn.num_kept + 1) / dense.num_total
        assert cost(Unstructured(scope)(scores, dense, one_more, model)) > most
    assert pattern(scores, drawn, 0.8, model).inside(drawn)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_budget_of_parameters_spares_what_cannot_be_pruned(scope):
    """540 weights and 4 + 6 + 12 + 3 = 25 others: of 565 parameters half is 282, of which 257 are weights."""
    model = Shrinking()
    dense, scores = Mask.dense(model), {name: torch.rand(weight.shape) for name, weight in prunable(model).items()}
    pattern = Unstructured(scope, budget="parameters")
    assert pattern(scores, dense, 0.5, model).num_kept == 257
    with pytest.raises(ValueError, match=r"cannot keep 6 parameters: 25 of them cannot be pruned"):
        pattern(scores, dense, 0.99, model)


def test_quotas_by_hand():
    """LeNet-300-100 to 80%: p solves 235200 (1-p) + 30000 (1-p) + 1000 (1-p/2) = 212960, so p = 53240 / 265700."""
    p = 53240 / 265700
    ideal = [235200 * (1 - p), 30000 * (1 - p), 1000 * (1 - p / 2)]
    assert [round(x, 2) for x in ideal] == [188071.48, 23988.71, 899.81]
    # the floors leave two weights over, which the largest remainders take
    assert quotas([235200, 30000, 1000], 212960, [1, 1, 0.5]) == [188071, 23989, 900]
    # p = 1/2 takes half of each layer and a quarter of the output; what is left over falls to the first of equals
    assert quotas([8, 4, 4], 9, [1, 1, 0.5]) == [4, 2, 3]
    assert quotas([3, 3, 3], 4, [1, 1, 1]) == [2, 1, 1]


@quick
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
def test_quotas_sum_exactly_and_stay_in_bounds(survivors, output, fraction):
    """sum(quotas) is the total, 1 <= quota <= survivors, in every layer and at both ends."""
    total = round(len(survivors) + fraction * (sum(survivors) - len(survivors)))
    counts = quotas(survivors, total, [1.0] * (len(survivors) - 1) + [output])
    assert sum(counts) == total
    assert all(1 <= count <= limit for count, limit in zip(counts, survivors, strict=True))


def test_quotas_of_an_empty_layer():
    """A layer that has nothing left keeps nothing, or the call is refused: never more than survives."""
    try:
        counts = quotas([0, 8, 4], 6, [1, 1, 1])
    except ValueError:
        return
    assert counts == [0, 4, 2]


@pytest.mark.parametrize("total", [2, 13])
def test_quotas_refuse_what_cannot_be(total):
    """Fewer than one weight a layer, or more than survive, is a ValueError of one line."""
    with pytest.raises(ValueError, match=rf"^cannot keep {total} of 12 weights in 3 layers[^\n]*$"):
        quotas([4, 4, 4], total, [1, 1, 0.5])


@quick
@given(
    st.lists(st.integers(100_000, 2_000_000), min_size=2, max_size=4),
    st.integers(50_000, 500_000),
    st.floats(0.05, 0.95),
)
def test_the_output_is_pruned_at_half_the_rate(hidden, last, density):
    """Of large layers, the output loses half the fraction of its survivors that the others lose."""
    survivors = [*hidden, last]
    counts = quotas(survivors, round(density * sum(survivors)), [1.0] * len(hidden) + [0.5])
    rates = [1 - count / limit for count, limit in zip(counts, survivors, strict=True)]
    if max(rates[:-1]) > 1 - 1e-4:
        return  # the others are used up; the output has to make up for it
    assert max(rates[:-1]) - min(rates[:-1]) < 1e-4
    assert rates[-1] == pytest.approx(rates[0] / 2, abs=1e-4)


@pytest.mark.parametrize("output", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("survivors", [[100, 50], [60, 30, 10], [10, 10, 40]])
def test_quotas_are_monotone(survivors, output):
    """A larger total never takes from a layer, but for the one weight that rounding by largest remainder may move."""
    rates = [1.0] * (len(survivors) - 1) + [output]
    ladder = [quotas(survivors, total, rates) for total in range(len(survivors), sum(survivors) + 1)]
    for fewer, more in itertools.pairwise(ladder):
        assert all(a - b <= 1 for a, b in zip(fewer, more, strict=True)), (fewer, more)


# The exact selection


@quick
@given(
    st.lists(st.tuples(FLOATS, st.booleans()), min_size=1, max_size=40),
    st.data(),
)
def test_top_k_against_sorting(entries, data):
    """The mask of a stable sort of the candidates by falling score."""
    scores, kept = (torch.tensor(column) for column in zip(*entries, strict=True))
    candidates = [i for i, (_, here) in enumerate(entries) if here]
    if not candidates:
        return
    k = data.draw(st.integers(1, len(candidates)))
    chosen = sorted(candidates, key=lambda i: -scores[i].item())[:k]
    assert top_k(scores, kept, k).nonzero().flatten().tolist() == sorted(chosen)


@pytest.mark.parametrize("k", [-1, 4])
def test_top_k_refuses_what_cannot_be(k):
    """k outside 0 to the number of candidates is a ValueError that names both."""
    with pytest.raises(ValueError, match=f"cannot keep {k} weights of 3; choose 0 to 3"):
        top_k(torch.arange(4.0), torch.tensor([True, True, False, True]), k)


@quick
@given(st.one_of(st.sampled_from([0.0, 1 - 1e-12]), st.floats(0, 1, exclude_max=True)), st.integers(1, 10**9))
def test_num_kept_is_the_law(sparsity, total):
    """max(1, round((1 - sparsity) * total)), from all to one."""
    assert num_kept(sparsity, total) == oracle(sparsity, total)
    assert 1 <= num_kept(sparsity, total) <= total
    assert num_kept(0, total) == total


# The mask


@quick
@given(layers())
def test_mask_round_trip(case):
    """unpack(pack()) is the same mask, one bit a weight."""
    _, mask = case
    tensors, meta = mask.pack()
    again = Mask.unpack(tensors, meta)
    assert again == mask
    assert [tuple(again[name].shape) for name in again] == [tuple(mask[name].shape) for name in mask]
    assert sum(tensor.nbytes for tensor in tensors.values()) == sum(-(-kept.numel() // 8) for kept in mask.values())


def test_mask_is_immutable():
    """Neither what it was made of nor what it gives away can change it."""
    source = {"a": torch.tensor([True, False, True])}
    mask = Mask(source)
    same = Mask(source)
    source["a"].fill_(False)
    source["b"] = torch.ones(2)
    mask["a"].fill_(False)
    for tensor in mask.values():
        tensor.fill_(False)
    for tensor in mask.pack()[0].values():
        tensor.zero_()
    dict(mask)["a"].logical_not_()
    assert mask == same
    assert mask["a"].tolist() == [True, False, True]
    assert (mask.num_kept, mask.num_total, len(mask)) == (2, 3, 1)
    with pytest.raises(TypeError):
        mask["a"] = torch.ones(3)
    with pytest.raises(TypeError):
        hash(mask)


def test_apply_zeroes_whatever_stood_there():
    """Removed weights become 0 even where they are NaN or infinite; kept ones stay, bit for bit."""
    weight = torch.tensor([[math.nan, 1.0, -math.inf], [-2.0, math.nan, 3.0]])
    Mask({"w": torch.tensor([[0, 1, 0], [1, 0, 0]])}).apply_({"w": weight, "other": torch.ones(1)})
    assert weight.tolist() == [[0.0, 1.0, 0.0], [-2.0, 0.0, 0.0]]
    parameter = nn.Parameter(torch.ones(2))
    Mask({"w": torch.tensor([0, 1])}).apply_({"w": parameter})
    assert parameter.tolist() == [0.0, 1.0]
    assert parameter.requires_grad


def test_mask_counts():
    """sparsity, counts and sizes of a mask drawn by hand; an empty mask is refused."""
    mask = Mask({"a": torch.tensor([[1, 0], [1, 1]]), "b": torch.tensor([0, 0, 0, 1])})
    assert mask.sparsity == 0.5
    assert mask.counts() == {"a": 3, "b": 1}
    assert Mask.dense(nn.Linear(3, 2)).sparsity == 0
    with pytest.raises(ValueError, match="keeps 0 of 4"):
        Mask({"a": torch.zeros(4)})
    with pytest.raises(ValueError, match="keeps 0 of 0"):
        Mask({})


def test_equal_and_inside():
    """Equal: same names, shapes and bits. Inside: the same parameters, and nothing kept that the other removed."""
    wide = Mask({"a": torch.tensor([1, 1, 0]), "b": torch.tensor([1])})
    narrow = Mask({"a": torch.tensor([0, 1, 0]), "b": torch.tensor([1])})
    other = Mask({"a": torch.tensor([1, 0, 1]), "b": torch.tensor([1])})
    assert wide == Mask(wide)
    assert narrow.inside(wide)
    assert not wide.inside(narrow)
    assert wide != narrow
    assert wide != other  # as many, elsewhere
    assert wide != Mask({"a": torch.tensor([1, 1, 0])})
    assert not Mask({"a": torch.tensor([1, 1, 0])}).inside(wide)
    assert wide != "mask"


@pytest.mark.parametrize("shape", [[1, 3], [3, 1], [2]])
def test_masks_of_other_shapes_differ(shape):
    """The same parameters have the same shapes: nothing is broadcast, nothing raises."""
    one, other = Mask({"w": torch.ones(3)}), Mask({"w": torch.ones(shape)})
    small = Mask({"w": torch.tensor([1, 1, 0])})
    assert one != other
    assert small != other
    assert not small.inside(other)
    assert not other.inside(one)


def test_prunable_are_linear_and_convolutional_weights():
    """No bias, no normalisation; in module order; a bare layer has its weight named as torch names it."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    assert list(prunable(model)) == ["0.weight", "4.weight"]
    assert all(weight is dict(model.named_parameters())[name] for name, weight in prunable(model).items())
    assert list(prunable(nn.Linear(2, 2))) == ["weight"]
    assert list(prunable(nn.ConvTranspose1d(2, 2, 1))) == ["weight"]


# torch's own pruning


@pytest.mark.parametrize("levels", [1, 2])
def test_masks_go_to_torch_and_back(levels):
    """A mask put on a model is read again; what torch pruned is read, and further masks stay inside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    mask = Mask.dense(model)
    for level in range(1, levels + 1):
        scores = {name: weight.detach().abs() for name, weight in prunable(model).items()}
        mask = Unstructured("global")(scores, mask, 0.3 * level, MODEL)
        mask.export_(model)
    assert Mask.of_pruned(model) == mask
    model(torch.randn(2, 1, 4, 4)).sum().backward()
    assert all((weight[~mask[name]] == 0).all() for name, weight in prunable(model).items())
    assert {name for name, _ in model.named_parameters()} == {"0.bias", "0.weight_orig", "2.bias", "2.weight_orig"}
    assert Mask.of_pruned(nn.Linear(2, 2)) == Mask.dense(nn.Linear(2, 2))


def test_torch_prunes_half_of_one_layer():
    """Only one layer was pruned: the other counts as whole."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    prune.l1_unstructured(model[0], "weight", amount=3)
    read = Mask.of_pruned(model)
    assert read.counts() == {"0.weight": 5, "1.weight": 4}
    removed = model[0].weight_orig.detach().abs()[~read["0.weight"]]
    assert removed.max() < model[0].weight.detach().abs()[read["0.weight"]].min()

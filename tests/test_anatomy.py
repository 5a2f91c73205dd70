"""Anatomy against paths enumerated one by one, and numbers counted by hand."""

import itertools
import math

import pytest
import torch
from conftest import Bench
from test_pattern_channel import NETS, Plain, Residual, mlp
from torch import nn

from lth.anatomy import jaccard, paths
from lth.branch.anatomy import Anatomy, anatomy
from lth.criterion.random import Random
from lth.graph import follow
from lth.mask import Mask
from lth.perform import value
from lth.prune.iterative import Iterative
from lth.tickets import iterative


def test_two_layers_by_hand():
    """3-3-2: neuron 0 has fan-in and fan-out, neuron 1 no fan-in, neuron 2 no fan-out; logit 1 hangs on neuron 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    mask = Mask({
        "1.weight": torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]), "3.weight": torch.tensor([[1, 0, 0], [0, 1, 0]]),
    })  # fmt: skip
    on, dead = paths(mask, follow(model))
    assert on["1.weight"].tolist() == [[True, False, True], [False] * 3, [False] * 3]
    assert on["3.weight"].tolist() == [[True, False, False], [False] * 3]
    assert dead == {"1.weight": 2, "3.weight": 1}


# Edges by hand: from a tensor's channel to another's, through (layer, row, column) or, in a shortcut, nothing
def edges_of(name, mask):
    def layer(source, target, name, repeat=1):
        pairs = mask[f"{name}.weight"].flatten(2).any(2) if mask[f"{name}.weight"].dim() > 2 else mask[f"{name}.weight"]
        for row, column in pairs.nonzero().tolist():
            yield (source, column // repeat), (target, row), (name, row, column)

    def same(source, target, count, shift=0):
        yield from (((source, i), (target, i + shift), None) for i in range(count))

    if name == "mlp":
        return [*layer("x", "1", "1"), *layer("1", "3", "3"), *layer("3", "logits", "5")]
    if name == "plain":
        return [*layer("x", "a", "a"), *layer("a", "b", "b"), *layer("b", "c", "c", 4), *layer("c", "logits", "d")]
    short = [*layer("A", "B", "short")] if name == "residual_b" else [*same("A", "B", 4, 2)]
    return [
        *layer("x", "stem", "stem"), *layer("stem", "a1", "a1"), *layer("a1", "a2", "a2"), *same("stem", "A", 4),
        *same("a2", "A", 4), *layer("A", "b1", "b1"), *layer("b1", "b2", "b2"), *same("b2", "B", 8), *short,
        *layer("B", "logits", "out"),
    ]  # fmt: skip


def walked(edges):
    """Every path from an input to a logit, walked one by one: the weights that were passed on one that arrived."""
    after = {}
    for source, target, weight in edges:
        after.setdefault(source, []).append((target, weight))
    passed = set()

    def walk(node, taken):
        if node[0] == "logits":
            passed.update(taken)
        for target, weight in after.get(node, ()):
            walk(target, [*taken, weight])

    for node in {source for source, _, _ in edges if source[0] == "x"}:
        walk(node, [])
    return passed - {None}


@pytest.mark.parametrize("sparsity", [0.4, 0.65])
@pytest.mark.parametrize("name", NETS)
def test_paths_one_by_one(name, sparsity):
    """The weights on a path are those of the paths that were walked; a unit through which none goes is dead."""
    model, rng = NETS[name][0](), torch.Generator().manual_seed(4)
    dense = Mask.dense(model)
    # kernels are kept whole or not at all, so that rows and columns, not positions, are sparse
    pairs = {n: torch.rand(kept.shape[:2], generator=rng) > sparsity for n, kept in dense.items()}
    mask = Mask({n: pairs[n].reshape(*pairs[n].shape, *[1] * (kept.dim() - 2)) & kept for n, kept in dense.items()})
    on, dead = paths(mask, follow(model))
    passed = walked(edges_of(name, mask))
    assert 0 < len(passed) < sum(int(pair.sum()) for pair in pairs.values())
    for weight, kept in on.items():
        layer = weight.removesuffix(".weight")
        found = kept.flatten(2).any(2) if kept.dim() > 2 else kept
        assert {(layer, *at) for at in found.nonzero().tolist()} == {p for p in passed if p[0] == layer}
        assert torch.equal(kept, mask[weight] & found.reshape(*found.shape, *[1] * (kept.dim() - 2)))
    if name in ("mlp", "plain"):  # in a chain, a unit with a path through it has a row with a weight on one
        assert dead == {weight: int((~kept.flatten(1).any(1)).sum()) for weight, kept in on.items()}


def test_a_shortcut_keeps_a_block_alive():
    """With a whole branch removed the shortcut still leads on: nothing else dies, and the branch's units do."""
    model = Residual("A")
    kept = dict(Mask.dense(model))
    kept["a1.weight"] = torch.zeros_like(kept["a1.weight"])
    on, dead = paths(Mask(kept), follow(model))
    assert dead == {"stem.weight": 0, "a1.weight": 5, "a2.weight": 4, "b1.weight": 0, "b2.weight": 0, "out.weight": 0}
    assert not on["a2.weight"].any() and all(on[n].all() for n in ("stem.weight", "b1.weight", "b2.weight"))


@torch.no_grad()
@pytest.mark.parametrize("build", [mlp, Plain, Residual])
def test_weights_on_no_path_do_nothing(build):
    """Without the weights on no path logits differ by a constant, since what dead units emit is always the same."""
    torch.manual_seed(6)
    model = build().double().eval()
    mask = Mask({name: torch.rand(kept.shape) < 0.3 for name, kept in Mask.dense(model).items()})
    x = torch.randn(6, *model.input_shape, dtype=torch.float64)
    mask.apply_(dict(model.named_parameters()))
    before = model(x)
    Mask(paths(mask, follow(model))[0]).apply_(dict(model.named_parameters()))
    after = model(x)
    torch.testing.assert_close(before - before[:1], after - after[:1], rtol=1e-12, atol=1e-12)


def test_jaccard_by_hand():
    """{0, 1, 2} and {1, 2, 3} of five share 2 of 4, by chance 9/5 of 6 - 9/5. None where both are empty."""
    one = Mask({"a": torch.tensor([1, 1, 1, 0, 0]), "b": torch.zeros(2)})
    other = Mask({"a": torch.tensor([0, 1, 1, 1, 0]), "b": torch.zeros(2)})
    assert jaccard(one, other, one) == (0.5, pytest.approx(1.8 / 4.2))
    assert jaccard(one, one, one)[0] == 1
    assert jaccard(one, other, ["b"]) == (None, None)


def test_chance_is_the_expectation():
    """Over all pairs of masks of 2 and 3 of 5 weights, |A and B| and |A or B| on the average."""
    masks = [
        [Mask({"w": torch.tensor([i in c for i in range(5)])}) for c in itertools.combinations(range(5), k)]
        for k in (2, 3)
    ]
    pairs = [(a, b) for a in masks[0] for b in masks[1]]
    both = sum(int((a["w"] & b["w"]).sum()) for a, b in pairs)
    either = sum(int((a["w"] | b["w"]).sum()) for a, b in pairs)
    assert [jaccard(a, b, a)[1] for a, b in pairs] == pytest.approx([both / either] * len(pairs))


def test_branch(bench: Bench):
    """One row a level: the counts of its own mask; overlap 1 with one-shot at level 1, less later; in replicate 1 also
    that with replicate 0's mask of the same level."""
    bench.branches = {"anatomy": Anatomy(of=["ticket", "dense"])}
    bench.criterion = Random()  # whose scores are another draw at each level, and those of level 1 for one shot
    entries = bench.trainings(0.36, replicates=2)
    assert not bench.run(entries)
    found = {(e.replicate, e.level, e.of): bench.store.read(e.stage) for e in entries if e.branch == "anatomy"}
    masks = {
        (e.replicate, e.level): value(e.run.mask, bench.store, bench.context) for e in entries if e.branch == "ticket"
    }
    assert {key[2] for key in found} == {"ticket", "dense"} and len(masks) == 4
    for (replicate, level, of), numbers in found.items():
        if of == "dense":
            assert numbers["effective_sparsity"] == numbers["dead_units"] == 0 and "one_shot_jaccard" not in numbers
            continue
        mask = masks[replicate, level]
        assert numbers["num_kept"] == mask.num_kept and numbers["layers"] == list(mask)
        on, dead = paths(mask, follow(bench.model((1, 4, 4), 3)))
        assert numbers["effective_sparsity"] == pytest.approx(
            1 - sum(int(k.sum()) for k in on.values()) / mask.num_total
        )
        assert numbers["effective_sparsity"] >= 1 - mask.num_kept / mask.num_total - 1e-12
        assert numbers["dead_units"] == sum(numbers["layer_dead_units"]) == sum(dead.values())
        assert numbers["collapsed_layers"] == 0 and len(numbers["layer_sparsity"]) == 2
        assert (numbers["one_shot_jaccard"] == 1) == (level == 1)
        if replicate:
            a, b = (torch.cat([k.flatten() for k in masks[r, level].values()]) for r in (0, 1))
            assert numbers["replicate_0_jaccard"] == pytest.approx(int((a & b).sum()) / int((a | b).sum()))
            assert 0 < numbers["replicate_0_chance"] < 1
        else:
            assert "replicate_0_jaccard" not in numbers


def test_what_cannot_be_followed_has_no_paths(bench: Bench):
    """A network that the graph cannot follow has its counts, and null for what paths would say."""

    class Strange:
        def model(self, *about):
            return nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2))

    mask = Mask({"1.weight": torch.zeros(4, 4), "3.weight": torch.eye(4)[:2]})
    numbers = anatomy.function(Strange(), None, None, mask, {})
    assert numbers["effective_sparsity"] is numbers["dead_units"] is None and "layer_dead_units" not in numbers
    assert (
        numbers["collapsed_layers"] == 1
        and numbers["layer_sparsity"] == [1, 0.75]
        and math.isclose(numbers["num_kept"], 2)
    )


def test_replicate_0_costs_nothing_more(bench: Bench):
    """The chain that replicate 1 asks of replicate 0 is, stage for stage, replicate 0's own."""
    bench.branches = {"anatomy": Anatomy()}
    levels = Iterative(0.5)()
    own = {e.run.mask.key for e in iterative(bench.lab(0), levels) if e.branch == "ticket"}
    asked = [
        e.stage.inputs["others"]["replicate_0"].key for e in iterative(bench.lab(1), levels) if e.branch == "anatomy"
    ]
    assert set(asked) == own and len(asked) == len(levels)

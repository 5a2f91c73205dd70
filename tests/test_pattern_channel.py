"""Channels: groups enumerated by hand, the order of removal counted anew from scratch, and a network that is really
smaller."""

import pytest
import torch
from conftest import Bench
from torch import nn
from torch.nn import functional
from torch.nn.functional import conv2d, linear

from lth.graph import INPUT, ZERO, coupled, follow, positions
from lth.mask import Mask, prunable
from lth.pattern.channel import Channel
from lth.perform import value


class Plain(nn.Module):
    """conv 2-4, norm, pool, conv 4-6, norm, 2 x 2 positions flattened, 24-5, 5-3."""

    def __init__(self):
        super().__init__()
        self.input_shape = (2, 8, 8)
        self.a, self.na, self.b, self.nb = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6)
        self.c, self.d = nn.Linear(24, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = functional.max_pool2d(self.na(self.a(x)).relu(), 2)
        x = functional.relu(self.nb(self.b(x)))
        return self.d(self.c(torch.flatten(x, 1)).relu())


class Residual(nn.Module):
    """A stem, a block with an identity shortcut, a block 4-8 of stride 2 with option A or B, a mean, logits."""

    def __init__(self, option: str = "A"):
        super().__init__()
        self.input_shape, self.option = (3, 6, 6), option
        self.stem, self.n0 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a1, self.n1, self.a2, self.n2 = self.block(4, 5, 4, 1)
        self.b1, self.n3, self.b2, self.n4 = self.block(4, 6, 8, 2)
        if option == "B":
            self.short, self.n5 = nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 3)

    @staticmethod
    def block(num_in, middle, num_out, stride):
        one, two = nn.Conv2d(num_in, middle, 3, stride, 1), nn.Conv2d(middle, num_out, 3, 1, 1)
        return one, nn.BatchNorm2d(middle), two, nn.BatchNorm2d(num_out)

    def forward(self, x):
        x = self.n0(self.stem(x)).relu()
        x = functional.relu(self.n2(self.a2(self.n1(self.a1(x)).relu())) + x)
        if self.option == "A":
            short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        else:
            short = self.n5(self.short(x))
        x = functional.relu(self.n4(self.b2(self.n3(self.b1(x)).relu())) + short)
        return self.out(x.mean((2, 3)))


def mlp():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model.input_shape = (3, 2, 2)
    return model


# Groups by hand: the rows {layer: rows} that make a group, and the columns {layer: columns} that read it
def of_mlp():
    yield from (({"1": [i]}, {"3": [i]}) for i in range(6))
    yield from (({"3": [i]}, {"5": [i]}) for i in range(4))


def of_plain():
    yield from (({"a": [i]}, {"b": [i]}) for i in range(4))
    yield from (({"b": [i]}, {"c": [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]}) for i in range(6))
    yield from (({"c": [i]}, {"d": [i]}) for i in range(5))


def of_residual_a():
    """Channel i of the stem and the first block is channel i + 2 of the second."""
    for i in range(4):
        yield {"stem": [i], "a2": [i], "b2": [i + 2]}, {"a1": [i], "b1": [i], "out": [i + 2]}
    yield from (({"a1": [i]}, {"a2": [i]}) for i in range(5))
    yield from (({"b1": [i]}, {"b2": [i]}) for i in range(6))
    yield from (({"b2": [i]}, {"out": [i]}) for i in (0, 1, 6, 7))


def of_residual_b():
    for i in range(4):
        yield {"stem": [i], "a2": [i]}, {"a1": [i], "b1": [i], "short": [i]}
    yield from (({"a1": [i]}, {"a2": [i]}) for i in range(5))
    yield from (({"b1": [i]}, {"b2": [i]}) for i in range(6))
    yield from (({"b2": [i], "short": [i]}, {"out": [i]}) for i in range(8))


NETS = {
    "mlp": (mlp, of_mlp, {"1": 1, "3": 1, "5": 1}),
    "plain": (Plain, of_plain, {"a": 36, "b": 4, "c": 1, "d": 1}),
    "residual_a": (Residual, of_residual_a, {"stem": 36, "a1": 36, "a2": 36, "b1": 9, "b2": 9, "out": 1}),
    "residual_b": (
        lambda: Residual("B"), of_residual_b,
        {"stem": 36, "a1": 36, "a2": 36, "short": 9, "b1": 9, "b2": 9, "out": 1},
    ),
}  # fmt: skip
each_net = pytest.mark.parametrize("name", NETS)


def by_name(groups) -> list[str]:
    return sorted(str([sorted(part.items()) for part in group]) for group in groups)


@each_net
def test_groups_by_hand(name):
    """Each group is made by the rows, and read by the columns, that were enumerated by hand."""
    build, groups, _ = NETS[name]
    graph = follow(build())
    group, found = coupled(graph), {}
    for step in graph.steps:
        if step.name:
            layer = step.name.removesuffix(".weight")
            for which, units in enumerate((step.made, step.sources)):
                for i, g in enumerate(group[units]):
                    found.setdefault(g, ({}, {}))[which].setdefault(layer, []).append(i)
    hidden = [parts for g, parts in found.items() if g not in {ZERO, INPUT, *group[graph.outputs]}]
    assert by_name(hidden) == by_name(groups())


@each_net
def test_positions_by_hand(name):
    build, _, expected = NETS[name]
    assert positions(build()) == {f"{layer}.weight": count for layer, count in expected.items()}


def without(mask: Mask, gone) -> dict:
    """The mask's tensors without some groups' rows and columns."""
    kept = {name: mask[name] for name in mask}
    for rows, columns in gone:
        for layer, at in rows.items():
            kept[f"{layer}.weight"][at] = False
        for layer, at in columns.items():
            kept[f"{layer}.weight"][:, at] = False
    return kept


def one_by_one(scores, mask, sparsity, groups, norm, scope, budget, times):
    """The same rule, removing one group after the other and counting the whole mask each time."""

    def alive(group):
        return any(mask[f"{layer}.weight"][at].any() for layer, at in group[0].items())

    def value(group):
        s = torch.cat([scores[f"{n}.weight"][at][mask[f"{n}.weight"][at]].double() for n, at in group[0].items()])
        return {"l1": s.abs().sum(), "l2": s.norm(), "mean": s.mean()}[norm].item()

    def cost(kept):
        return sum(
            int(tensor.sum()) * (times[name.removesuffix(".weight")] if budget == "flops" else 1)
            for name, tensor in kept.items()
        )

    position = {str(group): i for i, group in enumerate(groups)}
    gone, ranked = [g for g in groups if not alive(g)], [g for g in groups if alive(g)]
    ranked.sort(key=lambda g: (round(value(g), 9), -position[str(g)]))
    if scope == "layerwise":
        layers, share = [next(iter(g[0])) for g in ranked], {}
        for i, g in enumerate(ranked):
            share[str(g)] = (layers[: i + 1].count(layers[i])) / layers.count(layers[i])
        ranked.sort(key=lambda g: (share[str(g)], -position[str(g)]))
    if budget == "channels":
        target = max(1, round((1 - sparsity) * len(groups)))
    else:
        target = max(1, round((1 - sparsity) * cost({name: torch.ones_like(mask[name]) for name in mask})))
    for g in ranked:
        others = [h for h in ranked if h not in gone and h != g]
        if not all(any(layer in h[0] for h in others) for layer in g[0]):
            continue
        rest = without(mask, [*gone, g])
        size = len(groups) - len(gone) - 1 if budget == "channels" else cost(rest)
        if size < target:
            break
        gone.append(g)
    return Mask(without(mask, gone))


@pytest.mark.parametrize(
    ("norm", "scope", "budget"),
    [
        ("l1", "global", "weights"), ("l1", "global", "channels"), ("l2", "layerwise", "channels"),
        ("l2", "global", "flops"), ("mean", "layerwise", "flops"), ("mean", "global", "weights"),
    ],
)  # fmt: skip
@each_net
def test_channels_go_in_order(name, norm, scope, budget):
    """Down a ladder, with new scores full of ties at each level, the mask of the rule followed one group at a time."""
    build, groups, times = NETS[name]
    model, rng = build(), torch.Generator().manual_seed(5)
    mask, groups = Mask.dense(model), list(groups())
    weights = {n: w.shape for n, w in prunable(model).items()}
    # position: by the first layer that makes a group, in the order of computation, then by row
    groups.sort(key=lambda g: min((list(times).index(n), at[0]) for n, at in g[0].items()))
    for sparsity in (0.0, 0.25, 0.4, 0.6):
        scores = {n: torch.randint(-2, 3, shape, generator=rng).float() / 4 for n, shape in weights.items()}
        drawn = Channel(norm, scope, budget)(scores, mask, sparsity, model)
        assert drawn == one_by_one(scores, mask, sparsity, groups, norm, scope, budget, times)
        assert drawn.inside(mask)
        mask = drawn


@each_net
def test_sparsity_is_met_from_above(name):
    """weights: at least round((1 - s) * total), and never more than the largest group beyond; channels: exactly."""
    build, groups, _ = NETS[name]
    torch.manual_seed(1)
    model = build()
    dense, scores = Mask.dense(model), {n: w.detach() for n, w in prunable(model).items()}
    largest = max(dense.num_total - Mask(without(dense, [g])).num_kept for g in groups())
    for sparsity in (0.1, 0.3, 0.5):
        kept = Channel()(scores, dense, sparsity, model).num_kept
        assert 0 <= kept - round((1 - sparsity) * dense.num_total) < largest
        drawn = Channel(budget="channels")(scores, dense, sparsity, model)
        left = [g for g in groups() if any(drawn[f"{layer}.weight"][at].any() for layer, at in g[0].items())]
        assert len(left) == round((1 - sparsity) * len(list(groups())))


def trained(model: nn.Module) -> nn.Module:
    """A network in float64 whose norms do something, in eval mode."""
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.3)
    return model.double().eval()


def normed(x, norm, at):
    scale = norm.weight[at] / (norm.running_var[at] + norm.eps).sqrt()
    return (x - norm.running_mean[at][:, None, None]) * scale[:, None, None] + norm.bias[at][:, None, None]


def smaller(model, alive, x):
    """The output of the network with only the `alive` channels of each layer: no mask, smaller tensors."""
    if isinstance(model, Plain):
        a, b, c = (alive[name] for name in "abc")
        x = functional.max_pool2d(normed(conv2d(x, model.a.weight[a], model.a.bias[a]), model.na, a).relu(), 2)
        x = normed(conv2d(x, model.b.weight[b][:, a], model.b.bias[b]), model.nb, b).relu().flatten(1)
        columns = [4 * i + p for i in b for p in range(4)]
        x = linear(x, model.c.weight[c][:, columns], model.c.bias[c]).relu()
        return linear(x, model.d.weight[:, c], model.d.bias)
    s, a1, b1, b2 = (alive[name] for name in ("stem", "a1", "b1", "b2"))
    x = normed(conv2d(x, model.stem.weight[s], None, 1, 1), model.n0, s).relu()
    y = normed(conv2d(x, model.a1.weight[a1][:, s], model.a1.bias[a1], 1, 1), model.n1, a1).relu()
    x = (normed(conv2d(y, model.a2.weight[s][:, a1], model.a2.bias[s], 1, 1), model.n2, s) + x).relu()
    y = normed(conv2d(x, model.b1.weight[b1][:, s], model.b1.bias[b1], 2, 1), model.n3, b1).relu()
    y = normed(conv2d(y, model.b2.weight[b2][:, b1], model.b2.bias[b2], 1, 1), model.n4, b2)
    if model.option == "B":
        y = y + normed(conv2d(x, model.short.weight[b2][:, s], None, 2), model.n5, b2)
    else:
        for j, channel in enumerate(b2):
            if channel - 2 in s:
                y[:, j] += x[:, s.index(channel - 2), ::2, ::2]
    return linear(y.relu().mean((2, 3)), model.out.weight[:, b2], model.out.bias)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("name", ["plain", "residual_a", "residual_b"])
@torch.no_grad()
def test_the_mask_is_a_smaller_network(name, sparsity):
    """In float64 and eval mode the masked network and the really smaller one give the same logits: what the norm of a
    removed channel still emits reaches nothing."""
    build, _, _ = NETS[name]
    torch.manual_seed(3)
    model = trained(build())
    mask = Channel()({n: w.detach() for n, w in prunable(model).items()}, Mask.dense(model), sparsity, model)
    alive = {n.removesuffix(".weight"): [i for i, row in enumerate(k) if row.any()] for n, k in mask.items()}
    x = torch.randn(5, *model.input_shape, dtype=torch.float64)
    expected = smaller(model, alive, x)
    mask.apply_(dict(model.named_parameters()))
    assert min(len(rows) for rows in alive.values()) < max(len(rows) for rows in alive.values())
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@each_net
def test_one_channel_a_layer_stays(name):
    """What would empty a layer is refused, with what can be kept; just above it every layer keeps one channel."""
    build, _, _ = NETS[name]
    model = build()
    scores = {n: torch.zeros(w.shape) for n, w in prunable(model).items()}
    with pytest.raises(ValueError, match=r"^cannot keep 1 of \d+ weights in whole channels, [^\n]*$") as refused:
        Channel()(scores, Mask.dense(model), 0.9999, model)
    least = int(str(refused.value).split("; ")[1].split()[0])
    dense = Mask.dense(model)
    drawn = Channel()(scores, dense, 1 - least / dense.num_total, model)
    assert drawn.num_kept == least and min(drawn.counts().values()) > 0


def test_mean_keeps_the_sign():
    """l1 takes a large negative score for a large one, mean does not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    scores = {"1.weight": torch.tensor([[-3.0, -3.0], [1.0, 1.0]]), "2.weight": torch.zeros(1, 2)}
    for norm, stays in (("l1", 0), ("l2", 0), ("mean", 1)):
        assert Channel(norm)(scores, Mask.dense(model), 0.5, model)["1.weight"][:, 0].tolist() == [
            stays == 0,
            stays == 1,
        ]


class Applied(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between, forward=None):
        super().__init__()
        self.one, self.between, self.two = nn.Conv2d(1, 4, 3), between, nn.Conv2d(4, 4, 3)
        self.function = forward or (lambda x, between: between(x))

    def forward(self, x):
        return self.two(self.function(self.one(x), self.between))


@pytest.mark.parametrize(
    ("between", "function", "said"),
    [
        (nn.GroupNorm(2, 4), None, "between (GroupNorm)"),
        (nn.Conv2d(4, 4, 3, groups=2), None, "between (Conv2d)"),
        (nn.Softmax(1), None, "between (Softmax)"),
        (nn.Linear(4, 4), None, "between (Linear)"),
        (nn.Flatten(0), None, "between (Flatten)"),
        (nn.BatchNorm2d(4), lambda x, n: n(functional.pad(x[:, :2], (0, 0, 0, 0, 1, 1))), "between (BatchNorm2d)"),
        (nn.Identity(), lambda x, _: x * 2, "mul (mul)"),
        (nn.Identity(), lambda x, _: x[:, : x.size(1)], "getitem (getitem)"),
        (nn.Identity(), lambda x, _: x if x.sum() > 0 else -x, "Applied: "),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_named(between, function, said):
    """One line that names the layer."""
    model = Applied(between, function)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        Channel()({n: w.detach() for n, w in prunable(model).items()}, Mask.dense(model), 0.5, model)
    assert f"cannot follow channels through {said}" in str(refused.value)


def test_a_layer_used_twice_couples_its_outputs():
    """f(f(x)): its rows are its own columns, so they go together."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.two(self.two(self.one(x)).relu()))

    model = Twice()
    scores = {n: torch.arange(w.numel()).reshape(w.shape) * 1.0 for n, w in prunable(model).items()}
    drawn = Channel(budget="channels")(scores, Mask.dense(model), 0.5, model)
    assert [drawn[f"{layer}.weight"].any(1).tolist() for layer in ("one", "two")] == [[False, False, True, True]] * 2
    assert drawn["two.weight"].any(0).tolist() == drawn["out.weight"].any(0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("wrong", [{"norm": "max"}, {"scope": "erk"}, {"budget": "bytes"}])
def test_wrong_settings_are_named(wrong):
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^pattern\.{key}={value} is not one of: [^\n]*$"):
        Channel(**wrong)


def test_a_study_of_channels(bench: Bench):
    """Tickets of whole neurons, nested, from a study with budget=flops: rows are whole where their inputs are alive."""
    bench.pattern, bench.branches = Channel(budget="flops"), {}
    entries = bench.trainings(0.36)
    assert not bench.run(entries)
    masks = [value(e.run.mask, bench.store, bench.context) for e in entries if e.run.mask]
    for mask in masks:
        alive = mask["1.weight"].all(1)
        assert torch.equal(alive, mask["1.weight"].any(1)) and torch.equal(mask["3.weight"], alive.expand(3, 8))
    assert [int(mask["1.weight"].any(1).sum()) for mask in masks] == [7, 6]  # of 8, at 0.2 and 0.36
    assert masks[1].inside(masks[0])


def test_networks_of_a_study_know_their_input_shape(bench: Bench):
    assert positions(bench.context.model(bench.model, bench.source)) == {"1.weight": 1, "3.weight": 1}


def test_flops_want_an_input_shape():
    model = mlp()
    del model.input_shape
    with pytest.raises(ValueError, match=r"^[^\n]*no input_shape[^\n]*$"):
        Channel(budget="flops")({}, Mask.dense(model), 0.5, model)

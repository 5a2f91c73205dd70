"""N:M against brute force: of all masks of a few groups that keep the promise, the one of the highest total score."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lth.mask import Mask, num_kept, prunable
from lth.pattern.n_m import NofM


def network(*shapes):
    """Layers of these weight shapes, with scores of 1 .. 3 (many ties) or all different."""
    return nn.Sequential(*(nn.Linear(s[1], s[0]) if len(s) == 2 else nn.Conv2d(s[1], s[0], s[2:]) for s in shapes))


def groups_of(mask: Mask, m: int):
    return torch.cat([kept.flatten(1).reshape(-1, m) for kept in mask.values() if kept[0].numel() % m == 0]).sum(1)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 4)])
def test_against_all_masks(n, m):
    """Three groups of distinct scores: below 1 - n/m every group keeps at least n, above at most n, and no mask that
    does so and keeps as many has a higher sum."""
    model = nn.Linear(m, 3, bias=False)
    scores = torch.rand((3, m), generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    within = [c for k in range(m + 1) for c in itertools.combinations(range(m), k)]
    for count in range(1, 3 * m + 1):
        fits = (lambda k: k >= n) if count > 3 * n else (lambda k: k <= n)
        allowed = [c for c in within if fits(len(c))]
        best = max(
            (choice for choice in itertools.product(allowed, repeat=3) if sum(map(len, choice)) == count),
            key=lambda choice: sum(scores[row, list(c)].sum().item() for row, c in enumerate(choice)),
        )
        drawn = NofM(n, m)({"weight": scores}, Mask.dense(model), 1 - count / (3 * m), model)
        assert [tuple(row.nonzero().flatten().tolist()) for row in drawn["weight"]] == list(best)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_levels_are_exact_and_nested(data):
    """Over random shapes, scores with ties and ladders: the exact number of the layers that hold the pattern, the
    others whole, each level inside the one before, and the bound of its side in every group."""
    n, m = data.draw(st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 5), (1, 3)]))
    sizes = st.integers(1, 4)
    shapes = [(data.draw(sizes), m * data.draw(sizes)), (data.draw(sizes), m, 2, 1), (2, m + 1)]
    model, rng = network(*shapes), torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    mask = Mask.dense(model)
    size = sum(kept.numel() for kept in [*mask.values()][:2])
    for sparsity in sorted(data.draw(st.lists(st.floats(0, 0.99), min_size=1, max_size=4))):
        scores = {name: torch.randint(0, 3, kept.shape, generator=rng).float() for name, kept in mask.items()}
        drawn = NofM(n, m)(scores, mask, sparsity, model)
        count, groups = num_kept(sparsity, size), groups_of(drawn, m)
        assert [*drawn.counts().values()][2] == 2 * (m + 1) and drawn.num_kept == count + 2 * (m + 1)
        assert drawn.inside(mask)
        assert groups.min() >= n if count > size * n / m else groups.max() <= n
        mask = drawn


def test_two_four_is_exact_at_a_half():
    """At sparsity 0.5 each group of 2:4 keeps two, the first two of equal scores, in PyTorch's order of a kernel."""
    model = network((3, 8), (2, 4, 3, 3))
    scores = {name: torch.zeros(weight.shape) for name, weight in prunable(model).items()}
    drawn = NofM()(scores, Mask.dense(model), 0.5, model)
    for kept in drawn.values():
        assert kept.flatten().tolist() == [True, True, False, False] * (kept.numel() // 4)


def test_what_does_not_hold_is_left():
    """A first convolution of 3 * 3 * 3 and a transposed one stay whole; sparsity is of the rest."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2))
    scores = {name: torch.rand(weight.shape) for name, weight in prunable(model).items()}
    drawn = NofM()(scores, Mask.dense(model), 0.75, model)
    assert list(drawn.counts().values()) == [108, 36, 64]


def test_more_than_n_in_a_group_is_never_the_way_out():
    """From a mask that has emptied a group, a number that the others cannot fill with n each is refused."""
    model = nn.Linear(4, 2, bias=False)
    mask = Mask({"weight": torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])})
    with pytest.raises(ValueError, match="cannot keep 4 weights of 2"):
        NofM()({"weight": torch.ones(2, 4)}, mask, 0.5, model)


@pytest.mark.parametrize(
    ("wrong", "key"), [({"n": 5}, "n=5"), ({"n": 0}, "n=0"), ({"m": 1, "n": 1}, "m=1"), ({"n": 3, "m": 2}, "n=3")]
)
def test_wrong_settings_are_named(wrong, key):
    with pytest.raises(ValueError, match=rf"^pattern\.{key} must be [^\n]*$"):
        NofM(**wrong)


def test_no_layer_that_m_divides():
    model = network((2, 6), (1, 2))
    with pytest.raises(
        ValueError, match=r"^pattern\.m=4 divides the rows of no layer; they are 0\.weight 6, 1\.weight 2$"
    ):
        NofM()({name: torch.zeros(w.shape) for name, w in prunable(model).items()}, Mask.dense(model), 0.5, model)


def test_layers_that_stay_dense_are_named():
    """In one line, by name and length of row; nothing where all hold the pattern."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 8), nn.Linear(8, 3))
    assert NofM(2, 4).note(model) == "pattern.m=4 does not divide the rows of 0.weight (27): left dense"
    assert NofM(1, 3).note(model) == "pattern.m=3 does not divide the rows of 2.weight (32), 3.weight (8): left dense"
    assert NofM(2, 4).note(model[1:]) == ""

"""Augmentation: torchvision's own crops and flips given the same offsets, uniform draws, and a function of (order seed,
step) alone."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as functional
from conftest import blobs

import lth.data
from lth.data import Augment, Data, Pixels, Split, cut, move
from lth.model.mlp import Mlp
from lth.recipe import Recipe
from lth.seeds import generator
from lth.state import TrainState
from lth.train import measure, train


def images(num: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 256, (num, *shape), generator=generator(seed), dtype=torch.uint8)


def pictures(num_train: int = 23) -> Data:
    """Images of two channels whose first pixel says which one it is."""
    x = images(num_train, 2, 5, 6)
    part = Split(x, torch.arange(num_train) % 3)
    return Data(part, part[:4], part[4:9], 3)


# One batch


@pytest.mark.parametrize(("padding", "shape"), [(0, (3, 5, 6)), (2, (1, 5, 6)), (4, (3, 32, 32)), (5, (2, 5, 7))])
def test_move_is_torchvisions(padding, shape):
    """pad, crop and hflip of torchvision at every offset, flipped and not, bit for bit."""
    side = 2 * padding + 1
    top, left, flipped = (part.flatten() for part in torch.meshgrid(*map(torch.arange, (side, side, 2)), indexing="ij"))
    x = images(len(top), *shape)
    for moved, image, i, j, flip in zip(
        move(x, top, left, flipped.bool(), padding), x, top, left, flipped, strict=True
    ):
        expected = functional.crop(functional.pad(image, padding), int(i), int(j), *shape[1:])
        assert torch.equal(moved, functional.hflip(expected) if flip else expected)


def test_move_by_hand():
    """[[1, 2], [3, 4]] padded by one: the window at (0, 1) holds the padding above 1 and 2; mirrored, 2 and 1."""
    x = torch.tensor([[[[1, 2], [3, 4]]]] * 2, dtype=torch.uint8)
    moved = move(x, torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([False, True]), 1)
    assert moved[:, 0].tolist() == [[[0, 0], [1, 2]], [[0, 0], [2, 1]]]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_cut_is_a_square(size):
    """Against numpy's slices: size x size pixels from size // 2 before the centre on, in the image, and no others."""
    row, column = (part.flatten() for part in torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij"))
    x = images(42, 2, 6, 7)
    expected = x.numpy().copy()
    for image, i, j in zip(expected, row.tolist(), column.tolist(), strict=True):
        top, left = i - size // 2, j - size // 2
        image[:, max(top, 0) : top + size, max(left, 0) : left + size] = 0
    assert (cut(x, row, column, size).numpy() == expected).all()
    assert (cut(x, row, column, size)[:, 0] == 0).sum((1, 2)).max() == min(size, 6) * min(size, 7)


def test_draws_are_uniform():
    """18,000 draws: each offset, flip and centre as often as any other (chi-squared, 0.1% point), and no two alike."""
    drawn = Augment(crop=4, flip=True).draw(18_000, 5, 6, generator(7))
    critical = {9: 26.1, 2: 10.8, 5: 18.5, 6: 20.5}
    for numbers, ends in zip(drawn, (9, 9, 2, 5, 6), strict=True):
        counts = torch.bincount(numbers, minlength=ends).double()
        assert len(counts) == ends
        assert ((counts - 18_000 / ends) ** 2 / (18_000 / ends)).sum() < critical[ends]
    joint = torch.bincount(drawn[0] * 9 + drawn[1], minlength=81).double()  # the two offsets are independent
    assert ((joint - 18_000 / 81) ** 2 / (18_000 / 81)).sum() < 124.8
    assert not Augment(crop=0, flip=False).draw(100, 5, 6, generator(7))[:3].any()


def test_one_option_does_not_move_another():
    """The same crops with and without flip, and with and without cutout."""
    plain, flipped = (Augment(2, flip).draw(50, 5, 6, generator(3)) for flip in (False, True))
    assert torch.equal(plain[:2], flipped[:2]) and torch.equal(plain[3:], flipped[3:])


# In batches (law 1)


def several(data: Data, order_seed: int, step: int, num: int, batch_size: int = 7) -> list[torch.Tensor]:
    return [batch.x for batch in itertools.islice(data.batches(order_seed, batch_size, step), num)]


@pytest.mark.parametrize("augment", [Augment(crop=1), Augment(flip=True), Augment(cutout=2), Augment(2, True, 3)])
def test_cut_is_whole(augment):
    """batches(step=k) goes on with the very pixels of the whole; another order and another step have others."""
    data = replace(pictures(), augment=augment).normalised("cpu")
    whole = several(data, 5, 0, 12)
    for step in range(10):
        assert all(map(torch.equal, several(data, 5, step, 2), whole[step : step + 2]))
    part = Split(pictures().train.x[:1].expand(23, -1, -1, -1), data.train.y)
    same = Data(part, part, part, 3, augment)
    first, other = (several(same.normalised("cpu"), order, 0, 12, batch_size=23) for order in (5, 6))
    for i, j in itertools.combinations(range(12), 2):  # of one image: what differs is the augmentation
        assert not torch.equal(first[i], first[j])
    assert not any(map(torch.equal, first, other))


def test_black_is_black_before_normalisation():
    """Padding raw images with 0 and then normalising is what a batch holds, but for rounding of numpy's
    statistics; cutout is 0 afterwards."""
    raw = replace(pictures(), augment=Augment(3, True, 2))
    ready = raw.normalised("cpu")
    x = raw.train.x.numpy().astype(np.float64)
    mean, std = (torch.from_numpy(f(x, (0, 2, 3), keepdims=True)).float() for f in (np.mean, np.std))
    top, left, flipped, row, column = Augment(3, True, 2).draw(7, 5, 6, generator(lth.data.seed(5, 9, "augment")))
    (plain,) = several(replace(raw, augment=None), 5, 9, 1)
    padded = torch.nn.functional.pad(plain, (3, 3, 3, 3))
    windows = torch.stack([p[:, i : i + 5, j : j + 6] for p, i, j in zip(padded, top, left, strict=True)])
    windows = torch.where(flipped.bool()[:, None, None, None], windows.flip(3), windows)
    expected = cut((windows.float() - mean) / std, row, column, 2)
    (found,) = several(ready, 5, 9, 1)
    assert (found == 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_other_splits_are_never_augmented():
    """Validation, test and the training split as a whole hold what they held, and the statistics too."""
    plain = pictures().normalised("cpu")
    ready = replace(pictures(), augment=Augment(4, True, 3)).normalised("cpu")
    next(ready.batches(0, 7))
    for part, other in zip((ready.train, ready.val, ready.test), (plain.train, plain.val, plain.test), strict=True):
        assert torch.equal(part[:].x, other.x) and torch.equal(part.y, other.y)


def test_global_generators_stay():
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    next(replace(pictures(), augment=Augment(2, True, 2)).normalised("cpu").batches(0, 7))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def shaped(*shape: int) -> Data:
    part = Split(images(3, *shape), torch.arange(3))
    return Data(part, part, part, 3)


@pytest.mark.parametrize("name", ["crop", "cutout"])
@pytest.mark.parametrize("value", [-1, 6])
def test_what_cannot_be_cropped_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^dataset\.{name}={value} must be 0 to 5 [^\n]*$"):
        replace(Augment(), **{name: value}).on(shaped(3, 5, 6))


@pytest.mark.parametrize("augment", [Augment(crop=1), Augment(flip=True), Augment(cutout=1)])
def test_signals_are_no_images(augment):
    """A vector has no sides to crop: one line; with all off there is nothing to refuse, and nothing is augmented."""
    with pytest.raises(ValueError, match=r"^dataset\.\w+=\w+ must be [^\n]* \(1, 40\)[^\n]*$"):
        augment.on(shaped(1, 40))
    assert Augment().on(shaped(1, 40)).augment is None
    assert augment.on(shaped(1, 4, 4)).augment == augment


# Resident as uint8


def test_uint8_is_the_same_bits(monkeypatch):
    """A data set too large for float32 gives the batches, parts and slices of one that is not, to the last bit."""
    data = pictures(40)
    small = data.normalised("cpu")
    splits = data.train, data.val, data.test
    as_floats = 4 * sum(part.x.numel() for part in splits)
    monkeypatch.setattr(lth.data, "RESIDENT", as_floats - 1)
    large = data.normalised("cpu")
    for part, other, raw in zip(
        (large.train, large.val, large.test), (small.train, small.val, small.test), splits, strict=True
    ):
        assert isinstance(part.x, Pixels) and part.x.raw.data_ptr() == raw.x.data_ptr()  # on a CPU not even copied
        assert len(part.x) == len(other.x) and torch.equal(part[1:3].x, other[1:3].x)
        assert all(map(torch.equal, part.x.split(3), other.x.split(3)))
    assert all(map(torch.equal, several(large, 1, 0, 8), several(small, 1, 0, 8)))
    monkeypatch.setattr(lth.data, "RESIDENT", as_floats)
    assert isinstance(data.normalised("cpu").train.x, torch.Tensor)


def test_training_on_uint8_is_the_same_bits(monkeypatch):
    """A training and its numbers, on data resident as uint8 and as float32."""
    found = []
    for resident in (0, 2**28):
        monkeypatch.setattr(lth.data, "RESIDENT", resident)
        data = blobs().normalised("cpu")
        torch.manual_seed(0)
        model = Mlp([8])((1, 4, 4), 3)
        recipe = Recipe("Adam", 0.01, 20, 30, 10).on(len(data.train.y))
        history = [history for _, _, history in train(model, TrainState.of(model), None, recipe, data, 0, 30)][-1]
        found.append((measure(model, None, history, data, 0), copy.deepcopy(model.state_dict())))
    (numbers, weights), (others, same) = found
    assert numbers == others and all(torch.equal(weights[name], same[name]) for name in weights)

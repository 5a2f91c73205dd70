"""Numerics: what is computed in half precision and what is not, and that a cut is a whole in each."""

import dataclasses

import pytest
import torch
from conftest import Bench
from test_train import final, half, same, started
from torch import nn
from torch.nn.functional import cross_entropy

from lth.numerics import KINDS, applied
from lth.recipe import Recipe
from lth.state import TrainState

RECIPE = Recipe("SGD", 0.05, 20, 30, 10, options={"momentum": 0.9, "weight_decay": 0.01})


@pytest.mark.parametrize("numerics", KINDS)
def test_what_is_computed_in_which_numbers(numerics):
    """Convolution and matrix product in half precision, weights, their gradients and the logits in float32."""
    model, _ = started("conv")
    seen = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: seen.update({name: output.dtype}))
    logits = applied(model, numerics)(torch.randn(20, 1, 4, 4))
    cross_entropy(logits, torch.arange(20) % 3).backward()
    assert seen["0"] == seen["4"] == KINDS[numerics] and logits.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("numerics", ["bf16", "fp16"])
def test_cut_is_whole_in_half_precision(numerics):
    """Law 1 and law 2: with the moments, the averages and the loss scale that a state carries."""
    recipe = dataclasses.replace(RECIPE, ema=0.9, clip=0.5, accumulate=2)
    model, start = started("conv")
    mask = half(model)
    whole = final(applied(model, numerics), start, 30, recipe, mask)
    fresh = applied(started("conv")[0], numerics)
    middle = TrainState.unpack(*final(fresh, start, 13, recipe, mask).pack())
    assert same(final(fresh, middle, 30, recipe, mask), whole)
    assert not any(whole.params[name][~kept].any() for name, kept in mask.items())
    assert not same(final(started("conv")[0], start, 30, recipe, mask), whole)  # it is another run than in float32


@pytest.mark.parametrize("numerics", ["bf16", "fp16"])
def test_half_precision_is_near(numerics):
    """Ten steps lie as near to those in float32 as the rounding of the format, 2^-8 or 2^-11, lets them; what is
    clipped is the gradient itself, not the scaled one."""
    model, start = started("mlp")
    recipe = dataclasses.replace(RECIPE, clip=0.5)
    exact = final(model, start, 10, recipe, None)
    rounded = final(applied(model, numerics), start, 10, recipe, None)
    moved = sum((exact.params[name] - tensor).square().sum() for name, tensor in start.params.items()).sqrt()
    apart = sum((exact.params[name] - tensor).square().sum() for name, tensor in rounded.params.items()).sqrt()
    assert 0 < apart < {"bf16": 2**-4, "fp16": 2**-7}[numerics] * moved


def test_an_overflow_is_a_step_not_taken():
    """fp16: where the scaled gradient is not finite the weights stay and the scale is halved. The state has it."""
    model, start = started("mlp")
    model = applied(model, "fp16")
    huge = dataclasses.replace(start, optimizer={"/scale": torch.tensor([2.0**120, 5.0])})
    after = final(model, huge, 1, RECIPE, None)
    assert all(torch.equal(after.params[name], tensor) for name, tensor in start.params.items())
    assert after.optimizer["/scale"].tolist() == [2.0**119, 0.0]
    usual = final(model, start, 2, RECIPE, None)
    assert usual.optimizer["/scale"][1] == 2  # steps since it grew
    assert "/scale" not in final(applied(model, "bf16"), start, 2, RECIPE, None).optimizer


class Faint(nn.Module):
    """A linear network whose logits are a millionth of what they were: its gradients are that small, too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 3, bias=False)

    def forward(self, x):
        return self.linear(x.flatten(1)) * 1e-6


def test_small_gradients_survive_in_fp16():
    """Gradients below the smallest number of float16, 6e-8, are zero there unscaled; scaled they are as in float32."""
    start, recipe = (
        TrainState(0, {"linear.weight": torch.zeros(3, 16)}),
        dataclasses.replace(RECIPE, lr=1.0, options={}),
    )
    exact, scaled = (
        final(applied(Faint(), numerics), start, 1, recipe, None).params["linear.weight"]
        for numerics in ("reference", "fp16")
    )
    assert 0 < exact.abs().min() < 6e-8
    torch.testing.assert_close(scaled, exact, rtol=0.01, atol=1e-9)


def test_numerics_are_in_the_key(bench: Bench):
    """Another run, another key, for each of them; the first weights are the same stage."""
    labs = [dataclasses.replace(bench.lab(), numerics=numerics) for numerics in KINDS]
    runs = [lab.run(lab.origin, None, 40) for lab in labs]
    assert len({run.result.key for run in runs}) == len({run.end.key for run in runs}) == 3
    assert len({run.start.key for run in runs}) == 1


def test_a_study_in_bf16(bench: Bench, monkeypatch):
    """Through the executor: trainings compute in what the lab says, and give what a lab in float32 nearly does."""
    lab = bench.lab()
    monkeypatch.setattr(bench, "lab", lambda replicate=0: dataclasses.replace(lab, numerics="bf16"))
    entries = bench.trainings(0.2)
    assert not bench.run(entries) and all(entry.run.numerics == "bf16" for entry in entries if entry.run)
    monkeypatch.undo()
    exact = bench.trainings(0.2)
    assert not bench.run(exact)
    for rounded, plain in zip(bench.numbers(entries), bench.numbers(exact), strict=True):
        assert rounded["test_loss"] != plain["test_loss"] == pytest.approx(rounded["test_loss"], rel=0.2)

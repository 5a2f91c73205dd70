"""Numerics: what is computed in which precision, through which back end, and that a cut is a whole in each."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Bench
from test_train import final, half, same, started
from torch import nn
from torch.nn.functional import cross_entropy

import lth.machine
import lth.numerics
import lth.perform
import lth.state
from lth.device import Device
from lth.engine.sequential import Sequential
from lth.numerics import ERROR, GEMMS, KINDS, applied, computing, fastest, gemm_of, probe
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


def switches() -> list[str]:
    """What torch does with float32: products on a CPU and on a GPU, convolutions on a GPU."""
    backends = torch.backends
    return [s.fp32_precision for s in (backends.mkldnn.matmul, backends.cuda.matmul, backends.cudnn.conv)]


@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize("numerics", KINDS)
def test_what_torch_is_told(numerics, gemm):
    """TF32 is on for tf32 alone, for convolutions too; what was set before is set again, also after an error."""
    before = switches()
    with pytest.raises(ZeroDivisionError), computing("tf32"), computing(numerics, gemm):
        inside = switches()
        raise ZeroDivisionError
    assert inside == [GEMMS[gemm], *["tf32" if numerics == "tf32" else "ieee"] * 2] and switches() == before


@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize("numerics", ["fast", "bf16", "fp16"])
def test_cut_is_whole(numerics, gemm):
    """Law 1 and law 2: with the moments, the averages and the loss scale that a state carries."""
    with computing(numerics, gemm):
        _cut_is_whole(numerics)


def _cut_is_whole(numerics):
    recipe = dataclasses.replace(RECIPE, ema=0.9, clip=0.5, accumulate=2)
    model, start = started("conv")
    mask = half(model)
    whole = final(applied(model, numerics), start, 30, recipe, mask)
    fresh = applied(started("conv")[0], numerics)
    middle = TrainState.unpack(*final(fresh, start, 13, recipe, mask).pack())
    assert same(final(fresh, middle, 30, recipe, mask), whole)
    assert not any(whole.params[name][~kept].any() for name, kept in mask.items())
    if numerics != "fast":  # it is another run than in float32
        assert not same(final(started("conv")[0], start, 30, recipe, mask), whole)


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
    assert len({run.result.key for run in runs}) == len({run.end.key for run in runs}) == len(KINDS)
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


# fast


def double(a, b):
    return (a.double() @ b.double()).float()


def rounded(a, b):
    return double(a.bfloat16(), b.bfloat16())


@pytest.fixture
def costing(monkeypatch):
    """costing(seconds, product): the product, that long by the probe's clock, which stands still beside it."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(lth.numerics, "time", clock)

    def costs(seconds, product):
        def timed(a, b):
            clock.now += seconds
            return product(a, b)

        return timed

    return costs


def test_the_probe_takes_the_fastest_of_what_is_accurate(costing):
    own = costing(0.010, torch.matmul)
    found = probe({"own": own, "fast": costing(0.005, double), "faster": costing(0.002, double)})
    assert found["choice"] == "faster" and found["gains"] == pytest.approx({"own": 1, "fast": 2, "faster": 5})
    assert found["seconds"] == pytest.approx({"own": 0.06, "fast": 0.03, "faster": 0.012})
    assert probe({"own": own, "slow": costing(0.020, double)})["choice"] == "own"
    assert probe({"own": own, "little": costing(0.0095, double)})["choice"] == "own"
    assert probe({"own": own, "enough": costing(0.0085, double)})["choice"] == "enough"
    assert probe({"own": own, "another name": costing(0.002, torch.matmul)})["choice"] == "own"


def test_the_probe_takes_nothing_inexact_however_fast(costing):
    bad = {"rough": costing(0.001, rounded), "off": costing(0.002, lambda a, b: 1.00001 * double(a, b))}
    found = probe({"own": costing(0.010, torch.matmul), **bad})
    assert found["choice"] == "own" and found["gains"]["rough"] == pytest.approx(10)
    assert 2**-11 < found["errors"]["rough"] < 2**-8  # of two factors with 8 bits, each rounded by up to 2^-9
    assert found["errors"]["off"] == pytest.approx(1e-5, rel=0.05) and found["errors"]["own"] < 2**-20
    assert probe({"own": costing(0.010, torch.matmul), **bad, "good": costing(0.005, double)})["choice"] == "good"


def test_one_disturbed_round_does_not_choose(costing):
    """Medians over rounds: something else ran while the first was timed for once."""
    pauses = iter([0.0] * 6 + [0.1] + [0.0] * 1000)  # the first six check
    disturbed = lambda a, b: costing(next(pauses), torch.matmul)(a, b)  # noqa: E731
    found = probe({"own": costing(0.001, disturbed), "equal": costing(0.001, double)})
    assert found["choice"] == "own" and found["rounds"] > 2 and found["gains"]["equal"] == pytest.approx(1)


@pytest.mark.parametrize("rough", range(6))
def test_the_probe_checks_every_product(costing, rough):
    """Forwards and both ways backwards, at both shapes: one inexact product of the six is found."""
    calls = []

    def sometimes(a, b):
        calls.append(None)
        return (rounded if (len(calls) - 1) % 6 == rough else torch.matmul)(a, b)

    found = probe({"own": costing(0.01, torch.matmul), "sometimes": costing(0.001, sometimes)})
    assert found["choice"] == "own" and found["errors"]["sometimes"] > 2**-11 > ERROR * found["errors"]["own"]


def test_what_the_probe_multiplies_is_a_linear_layer_forwards_and_backwards():
    """Against autograd: the operands, in their layouts, are those of nn.functional.linear and of its two gradients."""
    seen = []
    probe({"own": lambda a, b: (seen.append((a, b)), a @ b)[1]})
    for forward, to_x, to_w in zip(*[iter(seen[:6])] * 3, strict=True):
        x, w = forward[0].clone().requires_grad_(), forward[1].T.clone().requires_grad_()
        torch.nn.functional.linear(x, w).backward(to_x[0])
        torch.testing.assert_close(to_x[0] @ to_x[1], x.grad)
        torch.testing.assert_close(to_w[0] @ to_w[1], w.grad)
    assert [tuple(a.shape) for a, _ in seen[:6:3]] == [(128, 784), (512, 512)]


def record_of(root: Path) -> Path:
    (file,) = (root / "machines").rglob("*.json")
    return file


def test_the_probe_runs_once_a_machine(tmp_path: Path, monkeypatch):
    """Its choice is recorded with times and errors and taken again; another torch, or a damaged record, probes anew."""
    times, here = [], lth.machine.machine()

    def count(products):
        times.append(probe({name: products[name] for name in products}))
        return times[-1] | {"choice": ["onednn", "blas"][len(times) % 2]}

    monkeypatch.setattr(lth.numerics, "probe", count)
    first = fastest(tmp_path)
    assert first == fastest(tmp_path) == "blas" and len(times) == 1
    found = json.loads(record_of(tmp_path).read_text())["found"]
    assert found["seconds"].keys() == found["errors"].keys() == GEMMS.keys() and 0 < found["errors"]["onednn"] < 1
    record_of(tmp_path).write_bytes(b"{}")
    assert fastest(tmp_path) == fastest(tmp_path) == "onednn" and len(times) == 2
    monkeypatch.setattr(lth.machine, "machine", lambda: here | {"torch": "2.10.0"})
    assert fastest(tmp_path) == "blas" and len(times) == 3
    assert [gemm_of(*asked, tmp_path) for asked in (("fast", "cpu"), ("reference", "cpu"), ("fast", "cuda:0"))] == [
        "blas", None, None,
    ]  # fmt: skip


def test_fast_takes_back_ends_of_full_accuracy_alone(tmp_path: Path):
    """On the machine that runs this test: the product through the choice, against one in float64."""
    rng = torch.Generator().manual_seed(1)
    a, b = torch.randn(200, 400, generator=rng), torch.randn(400, 100, generator=rng)
    with computing("fast", fastest(tmp_path)):
        found = (a @ b).double()
    exact = a.double() @ b.double()
    assert (found - exact).norm() / exact.norm() < 2**-20


@pytest.mark.parametrize("model_name", ["mlp", "conv"])
@pytest.mark.parametrize("gemm", GEMMS)
def test_fast_is_near_reference(gemm, model_name, tmp_path: Path):
    """Ten steps: bit for bit through torch's own back end where no images are laid out, else within the rounding
    of float32."""
    model, start = started(model_name)
    with computing():
        exact = final(model, start, 10, RECIPE, None)
    chosen = gemm if gemm == "blas" else fastest(tmp_path)
    with computing("fast", chosen):
        found = final(applied(started(model_name)[0], "fast"), start, 10, RECIPE, None)
    assert same(found, exact) or chosen != "blas" or model_name == "conv"
    for name, tensor in exact.params.items():
        torch.testing.assert_close(found.params[name], tensor, rtol=1e-4, atol=1e-5)


def studied(bench: Bench, monkeypatch, gemm: str) -> list:
    lab = bench.lab()
    monkeypatch.setattr(bench, "lab", lambda replicate=0: dataclasses.replace(lab, numerics="fast"))
    monkeypatch.setattr(lth.perform, "gemm_of", lambda numerics, device, root: gemm)
    return bench.trainings(0.2)


@pytest.mark.parametrize("gemm", GEMMS)
def test_a_study_in_fast(bench: Bench, monkeypatch, gemm):
    """Training, evaluation and test see the back end, which the manifest says; what is not training is in reference."""
    seen = {"train": set(), "evaluate": set(), "compute": set()}
    for module, name in ((Sequential, "step"), (lth.state, "score"), (lth.perform, "compute")):
        whole, key = getattr(module, name), {"step": "train", "score": "evaluate"}.get(name, name)
        spy = lambda *a, whole=whole, key=key: (seen[key].add(switches()[0]), whole(*a))[1]  # noqa: E731
        monkeypatch.setattr(module, name, spy)
    entries, before = studied(bench, monkeypatch, gemm), switches()
    assert not bench.run(entries) and switches() == before
    assert seen == {"train": {GEMMS[gemm]}, "evaluate": {GEMMS[gemm]}, "compute": {"ieee"}}
    for entry in entries:
        assert bench.store.manifest(entry.run.result.key)["gemm"] == gemm
    assert "gemm" not in bench.store.manifest(entries[-1].run.mask.key)


def test_a_training_that_raises_leaves_torch_as_it_was(bench: Bench, monkeypatch):
    def raises(*_):
        raise ZeroDivisionError(str(switches()))

    entries, before = studied(bench, monkeypatch, "onednn"), switches()
    monkeypatch.setattr(Sequential, "step", raises)
    failures = bench.run(entries)
    assert "ZeroDivisionError: ['bf16', 'ieee', 'ieee']" in {failure.cause for failure in failures.values()}
    assert switches() == before


@pytest.mark.parametrize("numerics", KINDS)
def test_layout(numerics):
    """Images channels last but for reference, on a CPU and elsewhere (shapes alone)."""
    layout = lambda net: net[0].weight.is_contiguous(memory_format=torch.channels_last)  # noqa: E731
    here = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert not layout(here)
    assert layout(applied(here, numerics)) == (numerics != "reference")
    there = nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"))
    assert layout(applied(there, numerics)) == (numerics != "reference")


def test_what_a_gpu_alone_has_is_refused_elsewhere(monkeypatch):
    assert Device("cpu").numerics == "fast"
    for numerics, other in (("tf32", "fast"), ("fp16", "bf16")):
        with pytest.raises(
            ValueError, match=rf"^device.numerics={numerics} is for device=cuda, this is cpu; use {other}$"
        ):
            Device("cpu", numerics=numerics)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Device(numerics="tf32").numerics == "tf32"

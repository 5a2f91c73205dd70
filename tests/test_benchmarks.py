"""The benchmark table: its arithmetic by hand, its short rows run small, a loss that differs fails a row."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import datasets

from lth.data import Data, Split
from tests.benchmarks import __main__ as command
from tests.benchmarks import peer, profiled, setting, study_rows
from tests.benchmarks.measure import Line, Losses, Options, Ratio, mean_loss, pairwise, per_second, table


def test_pairwise():
    """9/3, 2/1, 4/4 have the median 2; the ratio of the medians, 4/3, would be another number."""
    assert pairwise([9.0, 2.0, 4.0], [3.0, 1.0, 4.0]) == Ratio(2.0, 1.0, 3.0, 3)
    assert per_second(10, [1.0, 5.0, 2.0]) == 5.0
    with pytest.raises(ValueError):
        pairwise([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("theirs", "mine", "differ"),
    [(2.0, 2.19, False), (2.0, 1.81, False), (2.0, 2.21, True), (2.0, 1.79, True), (2.0, math.nan, True),
     (math.nan, math.nan, True), (math.inf, math.inf, True)],
)  # fmt: skip
def test_losses_differ(theirs, mine, differ):
    """10% of 2 is 0.2, either way; what is not finite is near nothing."""
    line = Line("C0", "work", losses=Losses(theirs, mine, 0.1))
    assert line.failed == differ
    assert ("FAILED" in table([line])) == differ
    assert not Line("C0", "no losses").failed


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.delenv("OPEN_LTH", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return command.main()


@pytest.mark.slow
def test_rows_run(monkeypatch, tmp_path, capsys):
    """C1, a peer in a process of its own, and C7: table and JSON have all that a reader must know; two loops written
    apart from each other come to the same loss, further down than chance, ln 10."""
    file = tmp_path / "table.json"
    assert run(monkeypatch, "C1", "C7", "--rounds", "1", "--scale", "0.04", "--out", str(file)) == 0
    shown, record = capsys.readouterr().out, json.loads(file.read_text())
    assert {line["row"] for line in record["lines"]} == {"C1", "C7"}
    known = {"cpu", "cores", "isa", "gpu", "threads", "torch", "commit", "date", "load_before", "load_after", "rounds"}
    assert known < record.keys() and record["threads"] == 1 and record["rounds"] == 1
    assert record["gemm_gflops"].keys() == {"128x784x300", "1024x1024x1024"}
    for line in record["lines"]:
        assert line["ratio"]["n"] == 1 and line["ratio"]["median"] == pytest.approx(line["ours"] / line["baseline"])
        assert not line["failed"] and max(line["losses"]["ours"], line["losses"]["baseline"]) < 0.95 * math.log(10)
        assert line["work"] in shown
    assert record["lines"][0]["against"] == "peer-style loop"
    losses = record["lines"][0]["losses"]  # five data orders were within 0.3% after 9 steps, 0.8% after 46
    assert losses["ours"] == pytest.approx(losses["baseline"], rel=0.01)


@pytest.mark.slow
def test_a_loss_that_differs_fails_the_row(monkeypatch, capsys):
    """The masked side trains at a hundredth of the rate: as fast, and wrong."""
    honest = setting.Ours.__init__

    def slower(self, *arguments, **options):
        honest(self, *arguments, **options)
        if options.get("mask", "the setting's") is not None:
            object.__setattr__(self._recipe, "lr", 0.001)

    monkeypatch.setattr(setting.Ours, "__init__", slower)
    assert run(monkeypatch, "C7", "--rounds", "1", "--scale", "0.04") == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["C3x"], "C3x"), (["--rounds", "0"], "--rounds=0"), (["--scale", "0"], "--scale=0"), (["--scale", "nan"], "nan")],
)
def test_bad_arguments(monkeypatch, capsys, arguments, word):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2 and word in capsys.readouterr().err


def test_rows_without_a_gpu(monkeypatch):
    """They say so, and measure nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for row in ("G1", "G2", "G3"):
        (line,) = command.ROWS[row](Options())
        assert line.row == row and line.ours is None and "no GPU" in table([line])


@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_the_other_side(monkeypatch, tmp_path, channels):
    """torchvision reads back every pixel and label of what is written in its formats."""
    rng = torch.Generator().manual_seed(0)
    side = 28 if channels == 1 else 32

    def drawn(num: int) -> Split:
        x = torch.randint(0, 256, (num, channels, side, side), generator=rng, dtype=torch.uint8)
        return Split(x, torch.randint(0, 10, (num,), generator=rng))

    data = Data(drawn(23), drawn(1), drawn(7), 10)
    setting.write(data, tmp_path)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: True)
    for train, part in ((True, data.train), (False, data.test)):
        if channels == 1:
            found = datasets.MNIST(tmp_path / "mnist", train)
            assert torch.equal(found.data, part.x.squeeze(1))
        else:
            found = datasets.CIFAR10(tmp_path / "cifar10", train)
            assert np.array_equal(found.data, part.x.permute(0, 2, 3, 1).numpy())
        assert list(map(int, found.targets)) == part.y.tolist()


def test_first_weights(tmp_path):
    """A model of the other side takes the weights it is given, one after another, and gets its masks."""
    given = {
        "weight.0": torch.tensor([[1.0, 2.0]]),
        "weight.1": torch.tensor([3.0]),
        "mask.0": torch.tensor([[0.0, 1.0]]),
    }
    save_file(given, tmp_path / "weights.safetensors")
    model = torch.nn.Linear(2, 1)
    (mask,) = peer.give(model, {"weights": str(tmp_path / "weights.safetensors")})
    assert torch.equal(model.weight, given["weight.0"]) and torch.equal(model.bias, given["weight.1"])
    assert torch.equal(mask, given["mask.0"])


def test_repeated_digits():
    """With a size asked for the examples come again in their order, and 10,000 to test."""
    once, again = setting.digits(Options()), setting.digits(Options(), 8000)
    n = len(once.train.y)
    assert (len(again.train.y), len(again.test.y)) == (8000, 10_000)
    assert torch.equal(again.train.x[n : 2 * n], once.train.x) and torch.equal(again.train.y[:n], once.train.y)


def test_mean_loss():
    """The mean over examples, not over batches of 2 and 1. Logits (0, 0): ln 2; (0, ln 3) and class 1: ln 4/3."""
    model = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.weight[1] = math.log(3)
    x, y = torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([0, 1, 1])
    found = mean_loss(model, [(x[:2], y[:2]), (x[2:], y[2:])])
    assert found == pytest.approx((2 * math.log(2) + math.log(4 / 3)) / 3)


def test_trainings_of_jobs():
    """Of one level: three times dense and its own. 15 levels x 5 seeds: 3 x 5 x (2 + 3 + ... + 16)."""
    assert study_rows.trainings(1, 1) == 6
    assert study_rows.trainings(5, 15) == 2025


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_peak_memory():
    """Of a grandchild that held 300 MB for a moment and gave them back: what getrusage says at its end."""
    usage = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    held = f"import resource, time; x = b'1' * 300_000_000; del x; print({usage}, flush=True); time.sleep(1)"
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {between!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True) as process:
        peaks = study_rows.peak_memory(process, 0.05)
        assert process.stdout
        said = int(process.stdout.read()) * 1024 / 1e9
    workers = [peak for (kind, _), peak in peaks.items() if kind == "worker"]
    assert len(peaks) == 2 and len(workers) == 1
    assert workers[0] == pytest.approx(said, rel=0.02) and workers[0] > 0.3


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["aten::addmm", "aten::linear"], "model: products"),
        (["aten::mm", "autograd::engine::evaluate_function: AddmmBackward0"], "model: products"),
        (["aten::convolution_backward"], "model: products"),
        (["aten::baddbmm"], "model: products"),
        (["aten::mul_"], "mask"),
        (["aten::relu"], "model: the rest"),
        (["aten::addmm", "aten::linear", "evaluation"], "evaluation"),
        (["aten::index_select", "data"], "data"),
        (["aten::mul_", "aten::_foreach_mul_"], "mask"),
        (["aten::_foreach_mul_", "Optimizer.step#SGD.step"], "optimiser"),
    ],
)
def test_parts_of_a_profile(names, expected):
    assert profiled.part(names) == expected


def test_shares_of_a_profile():
    """Of 4 seconds 1 and 2 are told of, the fourth quarter is Python's."""
    assert profiled.shares({"a": 1.0, "b": 2.0}, 4.0) == {"b": 0.5, "a": 0.25, "Python": 0.25}

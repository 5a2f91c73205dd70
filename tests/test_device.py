"""Device: which GPUs, how many workers, and which worker on which. Without a GPU: torch's counts are replaced."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

import lth.execute
from lth.device import Device, of_worker
from lth.engine.choice import Choice
from lth.machine import num_cores
from lth.workers import Pool


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): as many are visible."""

    def visible(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return visible


@pytest.mark.parametrize("kind", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("count", "options", "workers", "devices"),
    [
        (1, {}, 1, ["cuda:0"]),
        (4, {}, 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (4, {"index": 2}, 1, ["cuda:2"]),
        (4, {"index": 0}, 1, ["cuda:0"]),
        (2, {"workers": 5}, 5, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
        (2, {"workers": 2, "index": 1}, 2, ["cuda:1", "cuda:1"]),
        (2, {"workers": 0}, 0, []),
    ],
)
def test_one_worker_on_each_gpu(gpus, kind, count, options, workers, devices):
    gpus(count)
    device = Device(kind, **options)
    assert device.kind == "cuda" and device.workers == workers
    assert [of_worker(number, device.name) for number in range(workers)] == devices
    assert torch.device(device.name) == torch.device(
        "cuda", options.get("index")
    )  # of this process: the first, or that


@pytest.mark.parametrize("kind", ["auto", "cuda"])
@pytest.mark.parametrize("index", [-1, 2])
def test_a_gpu_that_is_not_there_is_refused(gpus, kind, index):
    gpus(2)
    with pytest.raises(ValueError, match=rf"^device.index={index} must be 0 to 1, or null for all GPUs$"):
        Device(kind, index)


def test_a_cpu_has_one_worker_a_core(gpus):
    gpus(2)
    device = Device("cpu")
    assert device.workers == num_cores() and of_worker(3, device.name) == device.name == "cpu"
    gpus(0)
    assert Device(index=7).name == "cpu"


def test_a_worker_computes_where_its_number_says(gpus, monkeypatch, tmp_path):
    """execute's worker, whose pipe is closed at once: what it would compute in."""
    gpus(2)
    contexts, choices, (theirs, ours) = [], {"shape": Choice("lockstep", 2)}, multiprocessing.Pipe()
    ours.close()
    monkeypatch.setattr(lth.execute, "Context", lambda *about, choices: contexts.append((*about, choices)))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process goes on to hear Ctrl-C
    for number, name in ((1, "cuda"), (1, "cuda:0"), (1, "cpu")):
        lth.execute._work(theirs, number, tmp_path, {}, name, choices, 30.0)
    assert contexts == [("cuda:1", {}, choices), ("cuda:0", {}, choices), ("cpu", {}, choices)]


def _say_number(pipe, number: int, offset: int) -> None:
    while True:
        unit, stages = pipe.recv()
        if stages == f"die {number}":
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send((unit, "done", number + offset))


def test_workers_are_numbered_and_a_replacement_takes_the_number():
    pool = Pool(3, _say_number, (10,))

    def ask(words: dict[str, str]) -> dict[str, tuple]:
        for unit, word in words.items():
            pool.start(unit, word)  # type: ignore[arg-type]
        found, until = {}, time.monotonic() + 60
        while len(found) < len(words) and time.monotonic() < until:
            found |= {unit: tuple(rest) for unit, *rest in pool.events(0.1)}
        return found

    try:
        all_three = {"done 10", "done 11", "done 12"}
        assert {f"{how} {who}" for how, who in ask({"a": "", "b": "", "c": ""}).values()} == all_three
        dead = ask(dict.fromkeys("def", "die 1"))
        assert sorted(map(str, dead.values())) == ["('died', 'signal 9')", "('done', 10)", "('done', 12)"]
        assert {f"{how} {who}" for how, who in ask({"g": "", "h": "", "i": ""}).values()} == all_three
    finally:
        pool.close()

"""Data-parallel training: ranks that share every batch are one process, in float64 to 1e-10, and torchrun end to end.

Ranks are two processes joined by gloo on this machine, started once for this file. test_torchrun.py runs main.py.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import Bench, write_images
from test_train import data, final, half, started
from torch import nn

import lth.perform
from lth import parallel
from lth.criterion.movement import Movement
from lth.data import Augment, Data, Pixels, Split, Stream
from lth.dataset.fake import Fake
from lth.dataset.imagenet import Imagenet
from lth.device import Device
from lth.execute import _ReadOnly, execute, follow
from lth.mask import Mask
from lth.model.mlp import Mlp
from lth.model.resnet_cifar import Resnet
from lth.plan import plan
from lth.recipe import Recipe
from lth.state import TrainState, evaluate
from lth.store import Store
from lth.train import train
from lth.workers import _context

NUM_RANKS = 2


def _rank(pipe: Any, rank: int, meeting: str) -> None:
    """A rank's life: functions in, their results out."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=NUM_RANKS)
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                pipe.send(function(*arguments))
            except Exception as error:
                pipe.send(error)
    os._exit(0)  # without the other rank there is no orderly end of the group


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Iterator[Callable]:
    """ranks(function, *arguments): what the function returns on each rank; an error raised there is raised here."""
    start = _context()  # a process that has imported torch already
    meeting = str(tmp_path_factory.mktemp("ranks") / "meeting")
    pipes, processes = [], []
    for rank in range(NUM_RANKS):
        ours, theirs = start.Pipe()
        processes.append(start.Process(target=_rank, args=(theirs, rank, meeting), daemon=True))
        processes[-1].start()
        pipes.append(ours)

    def call(function: Callable, *arguments: Any) -> list[Any]:
        for pipe in pipes:
            pipe.send((function, arguments))
        found = []
        for pipe in pipes:
            assert pipe.poll(60), "a rank waits for the other for ever"
            found.append(pipe.recv())
        for result in found:
            if isinstance(result, Exception):
                raise result
        return found

    yield call
    for process in processes:
        process.kill()
        process.join()


# Training


def images() -> Data:
    """Augmented images of 8 x 8 pixels in float64, 120 to train on; what is held out does not divide by two."""
    fake = Fake([3, 8, 8], 4, 201, 51, 30)(Path()).normalised("cpu")
    augmented = dataclasses.replace(fake, augment=Augment(2, True, 3))

    def wide(part: Split) -> Split:
        pixels: Any = Pixels((part.x * 64).clamp(-128, 127).add(128).to(torch.uint8), WIDE * 128, WIDE * 64)
        return Split(pixels, part.y)

    return dataclasses.replace(augmented, train=wide(fake.train), val=wide(fake.val), test=wide(fake.test))


WIDE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def numbers() -> Data:
    """The blobs of all tests in float64."""
    whole = data()
    train_, val, test = (Split(part.x.double(), part.y) for part in (whole.train, whole.val, whole.test))
    return dataclasses.replace(whole, train=train_, val=val, test=test)


def files(folder: Path) -> Data:
    """A stream of images of differing sizes, read as 8 x 8 and normalised in float64."""
    whole = Imagenet([0.5] * 3, [0.25] * 3, str(folder), size=8, resize=9, num_val=9, threads=1)(Path())
    parts: Any = (Split(Stream(x, WIDE * 128, WIDE * 64), y) for x, y in (whole.train, whole.val, whole.test))  # type: ignore[arg-type]
    return Data(*parts, whole.num_classes)


def trained(name: str, folder: Path) -> dict[str, Any]:
    """Ten steps under a mask, with all that a recipe has: every number that comes of it."""
    given, model = {
        "mlp": lambda: (numbers(), Mlp([8])((1, 4, 4), 3)),
        "resnet_20": lambda: (images(), Resnet(20, "B")((3, 8, 8), 4)),
        "stream": lambda: (files(folder), Mlp([8])((3, 8, 8), 2)),
    }[name]()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.2 + (parameter.ndim == 1))
    model.double()
    moved = {name: torch.zeros_like(weight) for name, weight in lth.mask.prunable(model).items()}
    options = {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    more: dict[str, Any] = {"label_smoothing": 0.1, "clip": 1.0, "ema": 0.8, "accumulate": 2}
    recipe = Recipe("SGD", 0.05, 20, 10, 5, options=options, **more).on(len(given.train.y))
    start, end, points = TrainState.of(model), None, []
    for _, state, history in train(model, start, half(model), recipe, given, 5, 10, movement=moved):
        end, points = state(), history.points
    assert end is not None
    test = evaluate(model, given.test, 7)
    return {
        **end.pack()[0], **{f"movement:{name}": tensor for name, tensor in moved.items()},
        **{f"{key} at {point['step']}": value for point in points for key, value in point.items()},
        "test_loss": test[0], "test_accuracy": test[1],
    }  # fmt: skip


def trained_together(name: str, folder: Path) -> dict[str, Any]:
    with parallel.together():
        return trained(name, folder)


@pytest.mark.parametrize("name", ["mlp", pytest.param("resnet_20", marks=pytest.mark.slow), "stream"])
def test_ranks_are_one_process(ranks, name, tmp_path):
    """Two ranks on their shares give the weights, batch norm's statistics, moments, movement, losses and accuracies of
    one process on whole batches: float64, where rounding is all that may differ. Between ranks no bit does."""
    if name == "stream":
        write_images(tmp_path, 20)
    alone, (first, second) = trained(name, tmp_path), ranks(trained_together, name, tmp_path)
    assert alone.keys() == first.keys() == second.keys()
    for key, expected in alone.items():
        assert torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])), key
        # the loss of each step is recorded as float32
        tolerance = 1e-6 if key.startswith("train_loss") else 1e-10
        torch.testing.assert_close(first[key], expected, rtol=tolerance, atol=tolerance, msg=key)
    assert first["params:0.weight" if name == "resnet_20" else "params:1.weight"].dtype == torch.float64


def float32_together() -> TrainState:
    model, start = started("mlp")
    recipe = Recipe("SGD", 0.1, 20, 10, 10, options={"momentum": 0.9, "weight_decay": 0.01})
    with parallel.together():
        return final(model, start, 10, recipe, half(model))


def test_ranks_are_one_process_in_float32(ranks):
    """As networks are trained: within 1e-6 after ten steps of an MLP. Pruned weights stay zero (law 2)."""
    model, start = started("mlp")
    mask = half(model)
    recipe = Recipe("SGD", 0.1, 20, 10, 10, options={"momentum": 0.9, "weight_decay": 0.01})
    alone = final(model, start, 10, recipe, mask)
    for state in ranks(float32_together):
        for name, parameter in alone.params.items():
            torch.testing.assert_close(state.params[name], parameter, rtol=0, atol=1e-6)
        assert all(bool((state.params[name][~kept] == 0).all()) for name, kept in mask.items())


def differing(rank_differs: int) -> str:
    """What training says where one rank's mask has one weight more."""
    model, start = started("mlp")
    kept = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in Mask.dense(model).items()}
    kept["1.weight"][0, 0] = dist.get_rank() == rank_differs
    recipe = Recipe("SGD", 0.1, 20, 10, 10)
    try:
        with parallel.together():
            final(model, start, 10, recipe, Mask(kept))
    except parallel.MismatchError as error:
        return f"{error}, {parallel.world()}"
    return ""


def test_ranks_start_alike_or_not_at_all(ranks):
    """Where masks differ both ranks raise, one line that names the rank, are out of it again, and can go on."""
    for said in ranks(differing, 1):
        assert said.startswith("rank 1 starts from another mask or state than rank 0; ")
        assert said.endswith("(0, 1)") and "\n" not in said and len(said) <= 200
    assert ranks(differing, NUM_RANKS) == ["", ""]  # no such rank: all alike


# Its parts


def normalised(kind: str, shape: tuple[int, ...], options: dict) -> list[torch.Tensor]:
    """Batch norm twice over a batch, or over this rank's share of it: outputs, statistics, gradients by the input (of
    the share) and by its own parameters (summed over ranks). Two thirds of the batch stand far from the rest."""
    rng = torch.Generator().manual_seed(0)
    layer = getattr(nn, kind)(shape[1], dtype=torch.float64, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=rng)
    x = torch.randn(shape, generator=rng, dtype=torch.float64)
    x[: len(x) * 2 // 3] += 100
    slope = torch.randn(shape, generator=rng, dtype=torch.float64)
    parallel.join(layer)
    x, slope = parallel.share(x).clone().requires_grad_(), parallel.share(slope)
    layer(x.detach())
    y = layer(x)
    (y * slope).sum().backward()
    grads = [parallel.sum_(parameter.grad) for parameter in layer.parameters() if parameter.grad is not None]
    assert x.grad is not None
    return [y.detach(), x.grad, *layer.buffers(), *grads]


def normalised_together(*arguments: Any) -> list[torch.Tensor]:
    with parallel.together():
        return normalised(*arguments)


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        ("BatchNorm1d", (6, 3), {}),
        ("BatchNorm1d", (2, 3), {"affine": False}),  # one example a rank
        ("BatchNorm2d", (6, 3, 4, 5), {"momentum": None, "eps": 0.1}),
        ("BatchNorm2d", (6, 3, 4, 5), {"track_running_stats": False}),
    ],
)
def test_batch_norm_is_over_the_whole_batch(ranks, kind, shape, options):
    """Outputs, gradients and running statistics are those of torch's batch norm on the whole batch."""
    y, slope, *rest = normalised(kind, shape, options)
    for rank, (y_rank, slope_rank, *rest_rank) in enumerate(ranks(normalised_together, kind, shape, options)):
        torch.testing.assert_close(y_rank, y[rank::NUM_RANKS], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(slope_rank, slope[rank::NUM_RANKS], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(rest_rank, rest, rtol=1e-10, atol=1e-10)


def evaluated(batch_size: int) -> tuple[float, float]:
    model, _ = started("conv")
    with parallel.together():
        return evaluate(model, data().val[:7], batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_is_shared(ranks, batch_size):
    """Each example once, whatever the pieces, some of which leave a rank nothing; all ranks get equal numbers."""
    model, _ = started("conv")
    loss, accuracy = evaluate(model, data().val[:7])
    first, second = ranks(evaluated, batch_size)
    assert first == second
    assert first[0] == pytest.approx(loss, rel=1e-6) and first[1] == accuracy


def shares() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensor = torch.arange(5.0)
    with parallel.together():
        mine = parallel.share(tensor)
        mean = torch.full((2, 2), float(dist.get_rank() + 1))
        parallel.average_([None, mean[0]])
    return mine, mean, parallel.share(tensor)


def test_share_and_average_by_hand(ranks):
    """Examples are dealt in turn; (1 + 2) / 2 = 1.5; alone nothing is dealt."""
    for rank, (mine, mean, alone) in enumerate(ranks(shares)):
        assert mine.tolist() == [[0, 2, 4], [1, 3]][rank] and alone.tolist() == [0, 1, 2, 3, 4]
        assert mean.tolist() == [[1.5, 1.5], [rank + 1, rank + 1]]


# Execution


def bench_at(root: str) -> Bench:
    return Bench(Store(root), model=Mlp([8]), criterion=Movement(), recipe=Recipe("SGD", 0.05, 20, 40, 10))


def study(root: str, spoil: bool) -> dict[str, str]:
    """A study by rank 0, which rank 1 follows; with `spoil`, into other masks. Returns the failures."""
    bench = bench_at(root)
    if dist.get_rank():
        honest = lth.perform.train_together

        def other(model, lanes, *rest):
            return honest(model, [dataclasses.replace(lane, mask=lane.mask and half(model)) for lane in lanes], *rest)

        if spoil:
            lth.perform.train_together = other
        try:
            follow()
        finally:
            lth.perform.train_together = honest
        return {}
    trainings = bench.trainings(0.36)
    ends = [entry.run.end for entry in trainings if entry.run]
    todo = plan([[entry.stage for entry in trainings]], bench.store, along=ends)
    failures = execute(todo, bench.store, bench.context, 0, lambda *event: None)
    parallel.tell(None)
    return {key: failure.cause for key, failure in failures.items()}


def test_a_study_is_that_of_one_process(ranks, tmp_path):
    """Levels, controls and a criterion that reads the training: the stages of one process, to rounding."""
    assert ranks(study, str(tmp_path / "ranks"), False) == [{}, {}]
    both, alone = bench_at(str(tmp_path / "ranks")), bench_at(str(tmp_path / "alone"))
    trainings = alone.trainings(0.36)
    assert not alone.run(trainings)
    for entry, one, two in zip(trainings, alone.numbers(trainings), both.numbers(trainings), strict=True):
        assert one["num_kept"] == two["num_kept"] and len(one["curve"]) == len(two["curve"]) == 4
        assert two["test_loss"] == pytest.approx(one["test_loss"], abs=1e-4), entry
    assert not plan([[entry.stage for entry in trainings]], both.store).units
    assert not list((both.store.root / "work").glob("*"))


def test_a_rank_that_differs_fails_its_runs_alone(ranks, tmp_path):
    """Rank 1 trains under masks of its own: runs under a mask fail, each with the reason, the dense one is there."""
    failures, _ = ranks(study, str(tmp_path), True)
    bench = bench_at(str(tmp_path))
    for entry in bench.trainings(0.36):
        assert bench.store.holds(entry.stage.key) == (entry.level == 0)
        assert (entry.stage.key in failures) == (entry.level > 0)
    assert {cause.partition(";")[0] for cause in failures.values()} == {
        "MismatchError: rank 1 starts from another mask or state than rank 0"
    }


def test_other_ranks_write_nothing(tmp_path, bench):
    """What another rank computes it neither commits nor keeps as a checkpoint."""
    store = _ReadOnly(tmp_path / "none")
    stage = bench.trainings()[0].stage
    store.commit(stage, TrainState(0, {}), {})
    store.checkpoint(stage.key, 1, ({}, {}))
    store.finished(stage.key)
    assert not store.root.exists()


def test_a_rank_that_leaves_a_run_ends_all(bench, monkeypatch):
    """After an error within a run that others are in there is no next unit; one outside of it fails alone."""

    def perform(stages, *rest):
        raise OSError("no space\nleft")

    todo = plan([[entry.stage for entry in bench.trainings()]], bench.store)
    monkeypatch.setattr(lth.execute, "perform", perform)
    monkeypatch.setattr(parallel, "_joined", False)  # and puts that back
    monkeypatch.setattr(parallel, "world", lambda: (0, 2) if parallel._joined else (0, 1))
    monkeypatch.setattr(parallel, "tell", lambda message: message)
    assert execute(todo, bench.store, bench.context, 0, lambda *event: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    start = bench.trainings()[0].run.start
    bench.store.commit(start, lth.perform.compute(start, bench.store, bench.context), {})
    todo = plan([[bench.trainings()[0].stage]], bench.store)
    with pytest.raises(parallel.RankError, match=r"^rank 0 left a training: OSError: no space left$"):
        execute(todo, bench.store, bench.context, 0, lambda *event: None)


# What cannot be


def test_batch_must_be_a_multiple_of_the_world_size(monkeypatch):
    recipe = Recipe("SGD", 0.1, 60, 10, 10)
    for size, fits in [(1, True), (2, True), (8, False), (60, True), (120, False)]:
        monkeypatch.setenv("WORLD_SIZE", str(size))
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(
                ValueError, match=rf"^recipe.batch_size=60 must be a multiple of the world size {size}: "
            )
        ):
            recipe.on(200)


def test_device_of_a_rank(monkeypatch):
    """No workers, the GPU of its number; what several ranks cannot train on is refused."""
    assert Device("cpu", workers=3).workers == 3
    for name, number in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, number)
    assert Device("cpu", workers=3).workers == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (Device().name, Device("cuda").name, Device("cuda").workers) == ("cuda:1", "cuda:1", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"^device=cuda: 2 ranks on 1 GPUs here;"):
        Device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"^device=mps trains in one process;"):
        Device("mps")

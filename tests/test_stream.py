"""Streams: torchvision's own transforms given the same numbers, the batches of a step whatever came before it, and
nothing held or left behind beyond what is read ahead."""

import gc
import pickle
import re
import shutil
import threading
import time
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Bench, write_images
from PIL import Image
from test_bad_input import refused as command_refused
from test_formats import refused
from test_main import run, run_here
from torch import nn
from torchvision import transforms
from torchvision.transforms.v2 import functional

import lth.data
import lth.stream
import main
from lth.connectivity import disagreement, interpolate
from lth.criterion import sample
from lth.data import Data, Split, Stream
from lth.dataset.altered import Altered
from lth.dataset.imagenet import Imagenet
from lth.landscape import sharpness
from lth.mask import Mask
from lth.model.mlp import Mlp
from lth.plan import measure_step
from lth.recipe import Recipe
from lth.seeds import generator, permutation, seed
from lth.state import TrainState, evaluate
from lth.store import Store
from lth.stream import AHEAD, NUMBERS, TRIES, Files, box, decode
from lth.train import train

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """<folder>/imagenet: 2 classes of 9 images to train on, and 9 to test on."""
    root = tmp_path_factory.mktemp("stream")
    write_images(root / "imagenet")
    return root


TINY = Imagenet(MEAN, STD, size=12, resize=14, num_val=4, threads=3)


def load(folder: Path, **fields) -> Data:
    return replace(TINY, **fields)(folder)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The names of the files that are opened, in that order."""
    found = []

    def note(path):
        found.append(Path(path).name)
        return decode(path)

    monkeypatch.setattr(lth.stream, "decode", note)
    return found


def names(files: Files, chosen) -> list[str]:
    return [files.names[i].decode().rpartition("/")[2] for i in chosen]


def pixels(files: Files, position: int) -> torch.Tensor:
    """The image of a file as PIL decodes it, uint8 [3, height, width]."""
    with Image.open(Path(files.root, files.names[position].decode())) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


# Transforms


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (224, 224), (30, 500), (500, 30), (7, 3), (1, 1)])
def test_box_is_torchvisions(monkeypatch, shape):
    """RandomResizedCrop.get_params of torchvision, whose generator gives the numbers that ours are made of. Of one
    pixel or of none a box of none is refused; where no try fits, the middle is taken."""
    crop = transforms.RandomResizedCrop(224)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_(low + (high - low) * next(tries)))
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor(int(high * next(corner))))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for numbers in torch.rand(300, NUMBERS, generator=generator(1)).tolist():
            tries, corner = iter(numbers), iter(numbers[2 * TRIES :])
            assert box(*shape, numbers) == crop.get_params(torch.empty(3, *shape), crop.scale, crop.ratio)
    finally:
        torch.set_default_dtype(before)


def test_training_images_are_torchvisions(folder):
    """resized_crop and horizontal_flip of the box that numbers choose, drawn by (order seed, step), then normalised."""
    data = load(folder).normalised("cpu")
    files = data.train.x.raw
    for step, (x, y) in enumerate(islice(data.batches(5, 7), 4)):
        chosen = permutation(5, step // 2, 14)[step % 2 * 7 :][:7]
        drawn = torch.rand(7, NUMBERS, generator=generator(seed(5, step, "augment")), dtype=torch.float64).tolist()
        assert torch.equal(y, data.train.y[chosen]) and x.dtype == torch.float32
        for image, position, numbers in zip(x, chosen, drawn, strict=True):
            with Image.open(Path(files.root, files.names[position].decode())) as whole:
                expected = functional.resized_crop(
                    whole.convert("RGB"), *box(whole.height, whole.width, numbers), [12, 12]
                )
            expected = functional.horizontal_flip(expected) if numbers[-1] < 0.5 else expected
            expected = functional.normalize(functional.to_dtype(functional.to_image(expected), scale=True), MEAN, STD)
            torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)


def test_half_is_mirrored(folder):
    """Of one image cut 600 times over, mirrored and not come as often as a coin's sides (chi-squared, 0.1% point)."""
    files = load(folder).train.x[:1]
    rng, again = generator(3), generator(3)
    for _, images in files.ahead([(torch.zeros(600, dtype=torch.int64), rng)]):
        pass
    plain, mirrored, whole = 0, 0, pixels(files, 0)
    for image, numbers in zip(images, torch.rand(600, NUMBERS, generator=again, dtype=torch.float64), strict=True):
        part = functional.to_pil_image(functional.crop(whole, *box(*whole.shape[1:], numbers.tolist())))
        expected = functional.pil_to_tensor(functional.resize(part, [12, 12]))
        plain += torch.equal(image, expected)
        mirrored += torch.equal(image, expected.flip(2))
    assert plain + mirrored >= 600 and (plain - mirrored) ** 2 / 600 < 10.8


def test_evaluation_is_torchvisions(folder):
    """Resize, CenterCrop, ToTensor and Normalize; the same by index, by slice and by batches, in all splits."""
    data = load(folder).normalised("cpu")
    whole = transforms.Compose(
        [transforms.Resize(14), transforms.CenterCrop(12), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    for part in (data.train, data.val, data.test):
        files = part.x.raw
        expected = []
        for i in range(len(files)):
            expected.append(whole(transforms.ToPILImage()(pixels(files, i))))
        expected, index = torch.stack(expected), torch.tensor([3, 0, 3])
        torch.testing.assert_close(part.x[:], expected, rtol=1e-5, atol=1e-5)
        assert part.x.shape == (len(part.x), 3, 12, 12) == expected.shape
        for found in (part.x[index], part.x.index_select(0, index), part[index].x):
            assert torch.equal(found, part.x[:][index])
        assert torch.equal(torch.cat(list(part.x.split(5))), part.x[:])
        assert [len(x) for x in part.x.split(3)] == [len(x) for x in expected.split(3)]


def test_labels_and_splits(folder):
    """Classes in the order of their names, every file in one split, val/ the test split, hidden files none."""
    data = load(folder)
    assert [len(part.y) for part in (data.train, data.val, data.test)] == [14, 4, 18] and data.num_classes == 2
    for part in (data.train, data.val, data.test):
        assert [f"n0{label + 1}" for label in part.y] == [name.decode().split("/")[1] for name in part.x.names]
    held = sorted([*data.train.x.names, *data.val.x.names])
    on_disk = sorted(str(path.relative_to(folder / "imagenet")) for path in folder.glob("imagenet/train/*/*"))
    assert [name.decode() for name in held] == on_disk and data.input_shape == (3, 12, 12)
    assert (load(folder, split_seed=1).train.x.names != data.train.x.names).any()


# Training (law 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)
    )


def last(data, start, stop: int, before=None):
    for _, state, history in train(network(), start, None, Recipe("Adam", 0.01, 4, 9, 2), data, 7, stop, (), before):
        end = state()
    return end, history


def same(a: TrainState, b: TrainState) -> bool:
    one, two = a.pack()[0], b.pack()[0]
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_training_is_that_of_resident_batches(folder):
    """Nine steps over three epochs from the files, and from tensors that held the same batches: state and curve alike,
    to the bit."""
    stream = load(folder).normalised("cpu")
    batches = list(islice(stream.batches(7, 4), 9))

    class ByHand(Data):
        def batches(self, order_seed, batch_size, step=0):
            return iter([*batches, batches[0]][step:])

    resident = ByHand(*(Split(part.x[:], part.y) for part in (stream.train, stream.val, stream.test)), 2)
    start = TrainState.of(network())
    (end, history), (expected, other) = (last(data, start, 9) for data in (stream, resident))
    assert same(end, expected) and history.points == other.points and len(history.points) == 5
    assert not same(end, start)


def test_cut_is_whole(folder):
    """Trained to an evaluation step and on equals trained through, bit for bit, at each place to cut."""
    data, start = load(folder).normalised("cpu"), TrainState.of(network())
    whole, history = last(data, start, 8)
    for step in (2, 4, 6):
        half, before = last(data, start, step)
        end, after = last(data, half, 8, before)
        assert same(end, whole) and after.points == history.points


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_resumed_run_opens_the_files_of_its_step(folder, opened, step):
    """From step k on the files of batch k come first, then those that are read ahead, each once, and no other."""
    data = load(folder, threads=1).normalised("cpu")
    expected = []
    for later in range(step, step + AHEAD + 1):
        expected += permutation(7, later // 3, 14)[later % 3 * 4 :][:4].tolist()
    batches = data.batches(7, 4, step)
    next(batches)
    time.sleep(0.1)
    batches.close()
    wanted = names(data.train.x.raw, expected)
    assert opened == wanted[: len(opened)] and len(opened) >= 4 * AHEAD


# Read ahead


def test_batches_come_in_order_however_slow_their_files(folder, monkeypatch):
    """Earlier files are the slower ones; the batches are those of one thread, in order."""
    expected = [x for x, _ in islice(load(folder, threads=1).normalised("cpu").batches(1, 3), 6)]
    data, delays = load(folder, threads=8).normalised("cpu"), chain([0.05, 0.02, 0.01], repeat(0))

    def slowly(path):
        time.sleep(next(delays))
        return decode(path)

    monkeypatch.setattr(lth.stream, "decode", slowly)
    for (x, _), other in zip(data.batches(1, 3), expected, strict=False):
        assert torch.equal(x, other)


def test_no_more_than_ahead_is_read(folder, opened):
    """However long a step takes, AHEAD batches are read beside the one in use, of a training and of an evaluation."""
    data = load(folder).normalised("cpu")
    for batches in (data.batches(1, 2), data.test.x.split(2)):
        opened.clear()
        for used in range(1, 5):
            next(batches)
            deadline = time.monotonic() + 5
            while len(opened) < 2 * (used + AHEAD) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert len(opened) == 2 * (used + AHEAD)
        del batches


def test_no_thread_is_left(folder):
    """Not when an iterator is closed, dropped, at its end, or left by an exception."""
    data, before = load(folder).normalised("cpu"), threading.active_count()
    batches = data.batches(1, 4)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    part = data.test.x.split(4)
    next(part)
    assert threading.active_count() > before
    del part
    gc.collect()
    assert threading.active_count() == before
    assert len(list(data.test.batches(5))) == 4 and len(data.test[:3].y) == 3
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        for _ in data.batches(1, 4):
            1 / 0  # noqa: B018
    gc.collect()
    assert threading.active_count() == before


def test_no_global_generator_is_read(folder):
    before = torch.get_rng_state()
    next(load(folder).normalised("cpu").batches(1, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_worker_is_sent_is_small(folder):
    """Names and sizes in one array each: a few hundred bytes and 48 a file here, whatever the images."""
    data = load(folder)
    data = replace(data, train=Split(data.train.x[torch.arange(10_000) % 14], torch.arange(10_000) % 2))
    assert len(pickle.dumps(data)) < 10_000 * (24 + 8 + 8 + 8)
    again = pickle.loads(pickle.dumps(data))
    assert again.digest == data.digest and torch.equal(
        again.normalised("cpu").test.x[:], data.normalised("cpu").test.x[:]
    )


# The key


def test_digest_knows_the_files_and_how_they_are_read(folder, tmp_path):
    """Added, renamed, longer, in another class, another size, statistics or split seed: another digest; moved: none."""
    shutil.copytree(folder / "imagenet", tmp_path / "imagenet")
    whole = load(tmp_path).digest
    digests = {whole}

    def changed() -> bool:
        digests.add(load(tmp_path).digest)
        return len(digests) == changes

    for changes, (old, new) in enumerate(
        [("val/n01/n01_0.png", "val/n01/n01_00.png"), ("train/n02/n02_5.JPEG", "train/n01/n02_5.JPEG")], start=2
    ):
        (tmp_path / "imagenet" / old).rename(tmp_path / "imagenet" / new)
        assert changed()
    for path in ("train/n01/n01_3.png", "val/n02/n02_1.JPEG"):
        changes += 1
        with (tmp_path / "imagenet" / path).open("ab") as file:
            file.write(b"\0")
        assert changed()
    changes += 1
    shutil.copy(folder / "imagenet" / "val/n01/n01_1.JPEG", tmp_path / "imagenet" / "train/n01/new.JPEG")
    assert changed()
    for fields in ({"size": 11}, {"resize": 15}, {"mean": [0.5] * 3}, {"std": [0.5] * 3}, {"split_seed": 1}):
        changes += 1
        digests.add(load(tmp_path, **fields).digest)
        assert len(digests) == changes, fields
    shutil.copytree(folder / "imagenet", tmp_path / "elsewhere" / "moved")
    assert load(tmp_path, path=str(tmp_path / "elsewhere" / "moved"), threads=1).digest == whole
    (tmp_path / "elsewhere" / "moved" / "train" / "n01" / ".DS_Store").write_bytes(b"x")
    assert load(tmp_path / "elsewhere", path="moved").digest == whole


# What else reads data


def resident(data: Data) -> Data:
    """The images of a stream as tensors."""
    return Data(*(Split(part.x[:], part.y) for part in (data.train, data.val, data.test)), data.num_classes)


def test_evaluation_takes_a_stream_in_pieces(folder, monkeypatch):
    """At most CHUNK images at a time; loss and accuracy are those of the whole split at once."""
    data, seen, model = load(folder).normalised("cpu"), [], network()
    monkeypatch.setattr(lth.data, "CHUNK", 4)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    loss, accuracy = evaluate(model, data.test)
    assert seen == [4, 4, 4, 4, 2]
    expected = evaluate(model, resident(data).test)
    assert seen[5:] == [18] and (loss, accuracy) == pytest.approx(expected, rel=1e-6)


def test_measurements_are_those_of_tensors(folder):
    """Batch norm estimated anew, disagreement, sharpness, and the sample of a criterion: as of the images in memory."""
    stream = load(folder).normalised("cpu")
    kept, model, states = resident(stream), network(), [TrainState.of(network())]
    states.append(replace(states[0], params={n: t + 0.3 * torch.randn(t.shape, generator=generator(2))
                                             for n, t in states[0].params.items()}))  # fmt: skip
    found = []
    for data in (stream, kept):
        points = interpolate(model, *states, 3, data.train, data.test, 2, 3)
        rises = sharpness(model, Mask.dense(model), data.train[:6], [0.1], 2, generator(0))
        batches = sample(data.train, generator(1), 2, 0, 2)
        found.append((points, disagreement(model, *states, data.test), rises, [y.tolist() for _, y in batches]))
        found[-1][0].append(torch.stack([x for x, _ in batches]).sum().item())
    assert found[0] == found[1]


def test_altered_streams(folder):
    """A subset and noisy labels as of images in memory, each with a digest of its own; pixels are not shuffled."""
    whole = load(folder)
    half, noisy = (Altered(TINY, **fields)(folder) for fields in ({"subset": 0.5}, {"label_noise": 0.9}))
    assert set(half.train.x.names) < set(whole.train.x.names) and len(half.train.y) == 7 == len(half.train.x)
    assert torch.equal(half.normalised("cpu").val.x[:], whole.normalised("cpu").val.x[:])
    for name, label in zip(half.train.x.names, half.train.y, strict=True):
        assert whole.train.y[whole.train.x.names == name].tolist() == [label]
    assert (noisy.train.x.names == whole.train.x.names).all() and (noisy.train.y != whole.train.y).any()
    assert len({whole.digest, half.digest, noisy.digest}) == 3
    assert refused(Altered(TINY, shuffle_pixels=True), folder).startswith("dataset.shuffle_pixels=true must be false")


@pytest.mark.slow
def test_workers_give_the_bytes_of_one_process(folder, tmp_path):
    """A pruned level in two worker processes and in this one, and a step measured for the plan."""
    recipe, stored = Recipe("Adam", 0.01, 5, 4, 2), []
    for name, workers in (("one", 0), ("two", 2)):
        bench = Bench(Store(tmp_path / name), load(folder), Mlp([4]), recipe, branches={})
        trainings = bench.trainings(0.2)
        assert not bench.run(trainings, workers)
        stored.append(bench.numbers(trainings))
        assert measure_step(trainings[0].run, bench.context, bench.store)[0] > 0
    assert stored[0] == stored[1] and len(stored[0]) == 2


# What cannot be read


@pytest.mark.parametrize("kind", ["text", "cut", "empty", "gone"])
def test_a_file_that_is_no_image_is_named(folder, tmp_path, kind):
    """When it is read, and not before: one line with its name, from training and from evaluation; no thread is left."""
    shutil.copytree(folder / "imagenet", tmp_path / "imagenet")
    data, before = load(tmp_path).normalised("cpu"), threading.active_count()
    for part, read in ((data.train, lambda: list(islice(data.batches(0, 7), 2))), (data.test, lambda: data.test.x[:])):
        path = tmp_path / "imagenet" / part.x.raw.names[2].decode()
        if kind == "gone":
            path.unlink()
        else:
            path.write_bytes({"text": b"read me", "cut": path.read_bytes()[:40], "empty": b""}[kind])
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is no image, or a damaged one \([^\n]+\)$"):
            read()
        assert threading.active_count() == before
    assert len(load(tmp_path).train.y) in (13, 14)


BAD = [
    ({"size": 0}, "dataset.size=0 must be at least 1"),
    ({"size": 15}, "dataset.resize=14 must be at least 15"),
    ({"threads": 0}, "dataset.threads=0 must be at least 1"),
    ({"mean": [0.5]}, "dataset.mean=[0.5] must be 3 numbers"),
    ({"std": [0.5, 0.5, 0.0]}, "dataset.std=[0.5, 0.5, 0.0] must be 3 numbers"),
    ({"num_val": 18}, "dataset.num_val=18 "),
    ({"path": "nowhere"}, "dataset.path=nowhere in data_dir="),
]


@pytest.mark.parametrize(("fields", "expected"), BAD)
def test_settings_that_cannot_be(folder, fields, expected):
    assert refused(replace(TINY, **fields), folder).startswith(expected)


def test_folders_that_are_no_imagenet(tmp_path):
    """No val/, one class, a class without images, other classes to test on: one line that says what to put where."""
    write_images(tmp_path / "imagenet", names=("cat",), parts=("train",))
    assert refused(TINY, tmp_path).endswith("has no folder val/; put each image there as val/<class>/<image>")
    write_images(tmp_path / "imagenet", names=("cat", "dog"), parts=("val",))
    assert "at least 2 classes; there are cat: 9" in refused(TINY, tmp_path)
    (tmp_path / "imagenet" / "train" / "dog").mkdir()
    assert "at least 2 classes; there are cat: 9, dog: 0" in refused(TINY, tmp_path)
    (tmp_path / "imagenet" / "train" / "dog").rename(tmp_path / "imagenet" / "train" / "emu")
    shutil.copy(next((tmp_path / "imagenet" / "train" / "cat").iterdir()), tmp_path / "imagenet" / "train" / "emu")
    assert "must hold the same classes; dog is in one of them only" in refused(TINY, tmp_path)


# Commands

LINE = (
    "dataset=imagenet dataset.size=12 dataset.resize=14 dataset.num_val=4 dataset.threads=2 model=mlp model.hidden=[4] "
    "recipe.steps=2ep recipe.batch_size=5 recipe.eval_every=2it prune.sparsity=0.2 branch=[] replicates=1 device=cpu "
    "wandb=disabled hydra.run.dir=job"
)


def test_two_places_are_two_data_sets(folder, tmp_path, monkeypatch):
    """A sweep over dataset.path reads each place, once, though no key says where it is."""
    write_images(tmp_path / "other", seed=1)
    monkeypatch.setattr(main, "_loaded", {})
    one, other = (
        main._load(replace(TINY, path=str(path)), folder) for path in (folder / "imagenet", tmp_path / "other")
    )
    assert one.digest != other.digest and main._load(replace(TINY, path=str(folder / "imagenet")), folder) is one


@pytest.mark.slow
def test_a_command_trains_from_files(tmp_path):
    """Ten images a class: a dense network and a ticket, of which the files and no path are in the key."""
    write_images(tmp_path / "data" / "imagenet", num=10)
    ran = run_here(f"{LINE} data_dir=data", tmp_path)
    assert ran.code in (0, None), ran.err
    rows = ran.rows("job")
    assert [row["branch"] for row in rows] == ["dense", "ticket"]
    assert all(row["steps"] == 6 and 0 <= row["test_accuracy"] <= 1 for row in rows)  # 16 // 5 steps an epoch
    (tmp_path / "data" / "imagenet").rename(tmp_path / "mine")
    again = run_here(f"{LINE} dataset.path={tmp_path}/mine", tmp_path)
    assert ran.plan[1] == 2 and again.plan[1] == 0


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_command_ends_at_a_damaged_file(tmp_path, part):
    """Met while training or testing, it is the one line that says why; nothing is written as a result."""
    root = write_images(tmp_path / "data" / "imagenet", num=10)
    for path in sorted((root / part / "n01").iterdir()):
        path.write_bytes(b"read me")
    ran = run_here(f"{LINE} data_dir=data", tmp_path)
    assert ran.code not in (0, None) and re.search(r"n01_\d.\w+ is no image, or a damaged one", ran.err), ran.err
    assert "Traceback" not in ran.err + ran.out


def test_a_command_without_the_files(tmp_path):
    said = command_refused("dataset=imagenet", tmp_path)
    assert "has no folder train/; put each image there as train/<class>/<image>" in said


@pytest.mark.slow
def test_a_command_with_workers_gives_the_rows_of_one_process(tmp_path):
    """`python main.py` in a process of its own, its workers reading the files; seconds apart the rows are alike."""
    write_images(tmp_path / "data" / "imagenet", num=10)
    here = run_here(f"{LINE} data_dir=data store=one", tmp_path)
    line = LINE.replace("hydra.run.dir=job", "hydra.run.dir=other")
    ran = run(f"{line} data_dir=data store=two device.workers=2", tmp_path)
    assert ran.code == 0, ran.err
    rows = [[{**row, "overrides": 0, "seconds": 0} for row in found] for found in (here.rows("job"), ran.rows("other"))]
    assert rows[0] == rows[1] and len(rows[0]) == 2


def test_a_stream_is_told_apart():
    """Only Files become a Stream."""
    part = Split(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert not isinstance(Data(part, part, part, 1).normalised("cpu").train.x, Stream)

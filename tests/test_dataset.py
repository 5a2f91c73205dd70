"""Data: files in MNIST's format load as they were written, what is missing is refused, and a batch is a function of
(order seed, step)."""

import gc
import itertools
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from lth.data import Data, Split, split
from lth.dataset.digits import Digits
from lth.dataset.download import reachable
from lth.dataset.fashion_mnist import FashionMnist
from lth.dataset.mnist import Mnist

KINDS = {"MNIST": Mnist, "FashionMNIST": FashionMnist}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A proxy of the machine that runs the tests would answer for a mirror."""
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps its first one, with the proxies of that moment


def write_idx(path: Path, array: np.ndarray) -> None:
    """One file of the MNIST format: 0, 0, 8 (uint8), number of dimensions, big-endian sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_images(data_dir: Path, name: str, seed: int = 0) -> list[np.ndarray]:
    """60 images to train on and 20 to test on, as torchvision would have downloaded them."""
    rng = np.random.default_rng(seed)
    arrays = []
    for size in (60, 20):
        arrays += [rng.integers(0, 256, (size, 28, 28), np.uint8), rng.permutation(size).astype(np.uint8) % 10]
    for file, array in zip(FILES, arrays, strict=True):
        write_idx(data_dir / name / "raw" / file, array)
    return arrays


def rows(*splits: Split) -> list[bytes]:
    """Every example of some splits as bytes, pixels and label, sorted."""
    return sorted(x.numpy().tobytes() + bytes([int(y)]) for part in splits for x, y in zip(*part, strict=True))


def test_digits_are_those_of_scikit_learn():
    """Read from its file, without loading it, they are what load_digits() gives: every pixel, every label."""
    from sklearn.datasets import load_digits

    data, (x, y) = Digits()(Path()), load_digits(return_X_y=True)
    theirs = Split(torch.from_numpy(x.reshape(-1, 1, 8, 8).astype(np.uint8)), torch.from_numpy(y))
    assert rows(data.train, data.val, data.test) == rows(theirs) and len(theirs.y) == 1797


def no_answer(wait) -> None:
    """What a connection to a host that swallows packets comes to."""
    wait(60)
    raise TimeoutError


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# Files of the MNIST format


@pytest.mark.parametrize("name", KINDS)
def test_idx_files_load_as_they_were_written(tmp_path, name):
    """Pixels and labels of the files; the test split is the files' own test part, in its order; val is held out of
    the training part, every example of which is in one split."""
    train_x, train_y, test_x, test_y = write_images(tmp_path, name)
    data = KINDS[name](num_val=7)(tmp_path)
    assert [len(part.y) for part in (data.train, data.val, data.test)] == [53, 7, 20]
    assert data.input_shape == (1, 28, 28)
    assert data.num_classes == 10
    assert torch.equal(data.test.x, torch.from_numpy(test_x).unsqueeze(1))
    assert data.test.y.tolist() == test_y.tolist()
    written = sorted(x.tobytes() + bytes([y]) for x, y in zip(train_x, train_y, strict=True))
    assert rows(data.train, data.val) == written
    assert {(part.x.dtype, part.y.dtype) for part in (data.train, data.val)} == {(torch.uint8, torch.int64)}


def test_the_two_do_not_mix(tmp_path):
    """mnist and fashion_mnist in one data_dir are two data sets, and the split seed deals only the training part."""
    for seed, name in enumerate(KINDS):
        write_images(tmp_path, name, seed)
    first, second, dealt = Mnist(7)(tmp_path), FashionMnist(7)(tmp_path), Mnist(7, split_seed=1)(tmp_path)
    assert len({first.digest, second.digest, dealt.digest}) == 3
    assert rows(first.test) == rows(dealt.test)
    assert rows(first.val) != rows(dealt.val)
    assert Mnist(7)(tmp_path).digest == first.digest


@pytest.mark.parametrize("num_val", [0, -1, 60, 10**9, 2.5, "many"])
def test_wrong_num_val_is_named(tmp_path, num_val):
    """A validation split that is empty, leaves nothing to train on or is no whole number: one line that names it."""
    write_images(tmp_path, "MNIST")
    with pytest.raises(ValueError, match=rf"^dataset\.num_val={num_val} [^\n]*$"):
        Mnist(num_val)(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\3" + struct.pack(">3I", 60, 28, 28) + bytes(100)])
def test_a_damaged_file_is_named(tmp_path, content):
    """A file cut short (an interrupted download, a full disk) is one line that names where it lies."""
    write_images(tmp_path, "MNIST")
    (tmp_path / "MNIST" / "raw" / FILES[0]).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^[^\n]*{re.escape(str(tmp_path))}[^\n]*$"):
        Mnist(7)(tmp_path)


# What is not there


def mirrors(monkeypatch, name: str, urls: list[str]) -> None:
    import torchvision.datasets

    monkeypatch.setattr(getattr(torchvision.datasets, name), "mirrors", urls)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("missing", [FILES, FILES[2:3]])
def test_missing_data_and_no_network(tmp_path, monkeypatch, name, missing):
    """One line that names data_dir, at once, and no folder is left; what was there stays."""
    mirrors(monkeypatch, name, [f"http://127.0.0.1:{closed_port()}/"])
    data_dir = tmp_path / "data"
    if missing != FILES:
        write_images(data_dir, name)
        (data_dir / name / "raw" / missing[0]).unlink()
    before, started = sorted(tmp_path.rglob("*")), time.monotonic()
    with pytest.raises(ValueError, match=rf"^{name} [^\n]*data_dir={re.escape(str(data_dir))}\b[^\n]*$"):
        KINDS[name](7)(data_dir)
    assert time.monotonic() - started < 5
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_silent_network(tmp_path, monkeypatch):
    """Where name servers and mirrors never answer, the refusal comes within 5 seconds all the same."""
    silence = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *address, **options: no_answer(silence.wait))
    started = time.monotonic()
    try:
        with pytest.raises(ValueError, match=r"^MNIST [^\n]*$"):
            Mnist(7)(tmp_path / "data")
        assert time.monotonic() - started < 5
    finally:
        silence.set()
    assert not (tmp_path / "data").exists()


class Liar(BaseHTTPRequestHandler):
    """A captive portal: 200 and a page, or 404, or a line cut short, whatever is asked for."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.send_response(404 if kind == "gone" else 200)
        self.send_header("Content-Length", "1000" if kind == "cut" else "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *line):
        pass


# torchvision drops the answer of a mirror that says 404 without closing it: collected below, while this test runs
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["gone", "portal", "cut"])
def test_a_download_that_fails(tmp_path, monkeypatch, kind):
    """A mirror that answers with anything but the file: one line that names data_dir, and nothing that a later load
    would take for data."""
    with HTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        mirrors(monkeypatch, "MNIST", [f"http://127.0.0.1:{server.server_port}/{kind}/"])
        try:
            with pytest.raises(ValueError, match=rf"^MNIST [^\n]*data_dir={re.escape(str(tmp_path))}/data\b[^\n]*$"):
                Mnist(7)(tmp_path / "data")
        finally:
            server.shutdown()
            thread.join()
    gc.collect()
    assert not [path for path in tmp_path.rglob("*") if path.name in FILES]
    if kind == "gone":
        assert not (tmp_path / "data").exists()


# reachable()


def test_reachable():
    """A listening socket is reachable, a closed port is not, and one of several is enough."""
    closed = f"http://127.0.0.1:{closed_port()}/x"
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        assert reachable([listening])
        assert reachable([closed, listening])
        assert reachable([listening, closed])
    assert not reachable([closed])
    assert not reachable(["http://name.invalid/"], seconds=0.5)
    assert not reachable([])


def test_a_quick_refusal_does_not_hide_a_slow_mirror(monkeypatch):
    """Every host is heard: one that refuses at once says nothing about one that takes its time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        slow, connect = server.getsockname()[1], socket.create_connection

        def create(address, timeout):
            if address[1] == slow:
                time.sleep(0.1)
            return connect(address, timeout)

        monkeypatch.setattr(socket, "create_connection", create)
        assert reachable([f"http://127.0.0.1:{closed_port()}/", f"http://127.0.0.1:{slow}/"])


def test_ports_of_urls(monkeypatch):
    """443 for https, 80 for http, the one that is written where one is."""
    asked = []

    def note(address, timeout):
        asked.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", note)
    assert not reachable(["https://a.example/x", "http://b.example", "http://c.example:8080/"])
    assert sorted(asked) == [("a.example", 443), ("b.example", 80), ("c.example", 8080)]


def test_a_proxy_answers_for_everybody(monkeypatch):
    """Behind a proxy only a download can tell."""
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"http": "http://proxy.example:3128"})
    assert reachable([f"http://127.0.0.1:{closed_port()}/"])


def test_a_silent_mirror_does_not_hide_a_good_one(monkeypatch):
    """The first mirror swallows packets, as behind a firewall; the second takes the connection."""
    silence, connect = threading.Event(), socket.create_connection

    def create(address, timeout):
        return connect(address, timeout) if address[0] == "127.0.0.1" else no_answer(silence.wait)

    monkeypatch.setattr(socket, "create_connection", create)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            urls = ["http://silent.example/", f"http://127.0.0.1:{server.getsockname()[1]}/"]
            started = time.monotonic()
            assert reachable(urls, seconds=0.3)
            assert time.monotonic() - started < 3
    finally:
        silence.set()


SILENT = """
import socket, sys, time
from lth.dataset.digits import Digits
from lth.dataset.download import reachable
def silent(*address, **options):
    time.sleep(5)
    raise TimeoutError
socket.create_connection = silent
print(reachable(["http://silent.example/"], seconds=0.1), flush=True)
"""


@pytest.mark.slow
def test_a_silent_mirror_does_not_hold_up_the_end():
    """A process that asked in vain ends without waiting for the name server."""
    command = [sys.executable, "-c", SILENT]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "False\n"
        answered = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - answered < 3


# Splits


def numbered(num_train: int = 23, num_classes: int = 5) -> Data:
    """Data whose pixel is its number, so that a batch says which examples are in it."""
    x = torch.arange(num_train, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    part = Split(x, torch.arange(num_train) % num_classes)
    return Data(part, part[:3], part[3:5], num_classes)


def test_split_deals_every_example_once():
    """Sizes as asked, every example in exactly one split, the split seed says which."""
    pool = numbered(40).train
    data, again, other = (split(pool, 6, 9, seed, 5) for seed in (0, 0, 1))
    assert [len(part.y) for part in (data.train, data.val, data.test)] == [25, 6, 9]
    assert rows(data.train, data.val, data.test) == rows(pool)
    assert data.digest == again.digest
    for part, dealt in zip((data.train, data.val, data.test), (other.train, other.val, other.test), strict=True):
        assert rows(part) != rows(dealt)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (20, 20), (39, 2), (-1, 5)])
def test_split_refuses_what_leaves_nothing(sizes):
    """One line that names both sizes and what there is."""
    with pytest.raises(ValueError, match=rf"^dataset\.num_val={sizes[0]} and num_test={sizes[1]} [^\n]* 40 [^\n]*$"):
        split(numbered(40).train, *sizes, 0, 5)


def test_digest_knows_every_byte():
    """One pixel, one label, an example in another split, another number of classes: another digest."""
    data = numbered()
    digests = {data.digest, replace(data, num_classes=6).digest, replace(data, val=data.test, test=data.val).digest}
    for name in ("train", "val", "test"):
        for field in ("x", "y"):
            part = getattr(data, name)
            changed = getattr(part, field).clone()
            changed.view(-1)[-1] ^= 1
            digests.add(replace(data, **{name: part._replace(**{field: changed})}).digest)
    moved = Split(data.train.x[1:], data.train.y[1:])
    digests.add(
        replace(data, train=moved, val=Split(*map(torch.cat, zip(data.val, data.train[:1], strict=True)))).digest
    )
    flat = Split(data.train.x.reshape(1, 23, 1, 1), data.train.y)
    digests.add(replace(data, train=flat).digest)
    assert len(digests) == 3 + 6 + 2
    assert numbered().digest == data.digest


def test_normalised_is_numpys():
    """(x - mean) / std by channel of the training split, in every split; the raw data stay as they are."""
    rng = np.random.default_rng(0)
    scale = np.array([10, 100, 255]).reshape(1, 3, 1, 1)
    arrays = [(rng.random((size, 3, 4, 5)) * scale).astype(np.uint8) for size in (30, 10, 8)]
    parts = [Split(torch.from_numpy(x), torch.from_numpy(rng.integers(0, 3, len(x)))) for x in arrays]
    data = Data(*parts, 3)
    before, ready = data.digest, data.normalised("cpu")
    mean = arrays[0].astype(np.float64).mean((0, 2, 3), keepdims=True)
    std = arrays[0].astype(np.float64).std((0, 2, 3), keepdims=True)
    for part, x, raw in zip((ready.train, ready.val, ready.test), arrays, parts, strict=True):
        assert part.x.dtype == torch.float32
        np.testing.assert_allclose(part.x.numpy(), (x - mean) / std, rtol=1e-5, atol=1e-5)
        assert torch.equal(part.y, raw.y)
    assert Data(*parts, 3).digest == before


def test_normalised_constant_channel():
    """A channel without variance becomes 0 and not NaN."""
    part = Split(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert Data(part, part, part, 1).normalised("cpu").train.x.abs().max() == 0


# Batches (law 1)


def numbers(batch: Split) -> list[int]:
    return batch.x.flatten().tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 7, 12, 23])
def test_batches_from_any_step_are_the_tail_of_the_whole(batch_size):
    """batches(order, B, k) goes on where the first k batches of batches(order, B) end, in whichever epoch."""
    data = numbered()
    whole = [numbers(batch) for batch in itertools.islice(data.batches(5, batch_size), 40)]
    for step in range(37):
        part = [numbers(batch) for batch in itertools.islice(data.batches(5, batch_size, step), 3)]
        assert part == whole[step : step + 3]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 12, 23])
def test_an_epoch_visits_an_example_at_most_once(batch_size):
    """per_epoch * B distinct examples an epoch, in batches of B, each with its own label."""
    data, per_epoch = numbered(), 23 // batch_size
    batches = list(itertools.islice(data.batches(0, batch_size), 3 * per_epoch))
    for batch in batches:
        assert len(batch.y) == batch_size
        assert batch.y.tolist() == [number % 5 for number in numbers(batch)]
    for epoch in range(3):
        seen = [n for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for n in numbers(batch)]
        assert len(set(seen)) == len(seen) == per_epoch * batch_size


def test_epochs_and_seeds_have_orders_of_their_own():
    """Each epoch of each order seed shuffles anew, also where seed + epoch is the same; equal seeds are equal."""
    data = numbered(200)
    orders = [
        tuple(n for batch in itertools.islice(data.batches(seed, 20, 10 * epoch), 10) for n in numbers(batch))
        for seed in range(6)
        for epoch in range(6)
    ]
    assert len(set(orders)) == 36
    assert tuple(range(200)) not in orders
    assert numbers(next(data.batches(3, 20))) == list(orders[18][:20])


def test_every_example_comes_first_as_often():
    """Shuffling is uniform: in 2,300 epochs each of 23 examples is first in about 100 (chi-squared, 0.1% point)."""
    data = numbered()
    counts = torch.zeros(23)
    for epoch in range(2300):
        counts[next(data.batches(1, 23, epoch)).x[0].item()] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 48.3


def test_batches_leave_the_global_generators_alone():
    """Order comes from generators of its own."""
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    next(numbered().batches(0, 4, 9))
    split(numbered().train, 2, 2, 0, 5)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()

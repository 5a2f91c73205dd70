"""Data sets: files of each format, written here, load as they were written; what is wrong with them is one line."""

import gzip
import hashlib
import io
import pickle
import re
import tarfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image
from safetensors.torch import save_file
from test_bad_input import refused as command_refused
from test_dataset import closed_port, rows, write_images
from test_main import run_here
from torch import nn

import lth.dataset.cifar
import lth.dataset.fashion_mnist
import lth.dataset.mnist
import lth.dataset.svhn
import main
from lth.data import Augment, Source
from lth.dataset.altered import Altered
from lth.dataset.cifar import Cifar
from lth.dataset.fake import Fake
from lth.dataset.fashion_mnist import FashionMnist
from lth.dataset.folder import Folder
from lth.dataset.mnist import Mnist
from lth.dataset.mnist1d import Mnist1d
from lth.dataset.svhn import Svhn
from lth.dataset.tensors import Tensors
from lth.dataset.tiny_imagenet import TinyImagenet
from lth.perform import Context


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A proxy of the machine that runs the tests would answer for a mirror."""
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps its first one, with the proxies of that moment


def examples(num: int, num_classes: int, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels, every class among them."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, *shape), np.uint8), rng.permutation(np.arange(num) % num_classes)


def as_rows(x: np.ndarray, y: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() + bytes([label]) for image, label in zip(x, y, strict=True))


def refused(dataset, data_dir: Path) -> str:
    """The one line that refuses a data set."""
    with pytest.raises(ValueError) as caught:
        dataset(data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# CIFAR and SVHN: what torchvision downloads


def write_cifar(root: Path, num_classes: int, monkeypatch) -> tuple[np.ndarray, ...]:
    """Pickled batches of a CIFAR of 100 + 30 images, as its authors wrote them, whose sums torchvision then expects."""
    kind, label = {10: (torchvision.datasets.CIFAR10, "labels"), 100: (torchvision.datasets.CIFAR100, "fine_labels")}[
        num_classes
    ]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    x, y = examples(100 * num_classes // 10, num_classes, 3, 32, 32)
    test_x, test_y = examples(3 * num_classes, num_classes, 3, 32, 32, seed=1)

    def write(name: str, value: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(value, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    lists = {}
    for which, images, labels in (("train_list", x, y), ("test_list", test_x, test_y)):
        names = [name for name, _ in getattr(kind, which)]
        parts = zip(names, np.array_split(images, len(names)), np.array_split(labels, len(names)), strict=True)
        lists[which] = [
            [name, write(name, {"data": part.reshape(len(part), -1), label: where.tolist()})]
            for name, part, where in parts
        ]
    meta = write(kind.meta["filename"], {kind.meta["key"]: [str(i) for i in range(num_classes)]})
    for name, value in {**lists, "meta": kind.meta | {"md5": meta}}.items():
        monkeypatch.setattr(kind, name, value)
    return x, y, test_x, test_y


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar_loads_as_it_was_written(tmp_path, monkeypatch, num_classes):
    """Pixels by channel, row and column, the fine labels of CIFAR-100; test in its order, val held out of the rest."""
    x, y, test_x, test_y = write_cifar(tmp_path, num_classes, monkeypatch)
    data = Cifar(num_classes, num_val=7)(tmp_path)
    assert data.input_shape == (3, 32, 32) and data.num_classes == num_classes and len(data.val.y) == 7
    assert torch.equal(data.test.x, torch.from_numpy(test_x)) and data.test.y.tolist() == test_y.tolist()
    assert rows(data.train, data.val) == as_rows(x, y)
    assert data.augment == Augment(crop=4, flip=True)
    plain = Cifar(num_classes, 7, crop=0, flip=False)(tmp_path)
    assert plain.augment is None and plain.digest == data.digest


def write_svhn(root: Path, monkeypatch) -> tuple[np.ndarray, ...]:
    """MATLAB files as SVHN has them: X [height, width, channel, n], y [n, 1] in 1 to 10, where 10 is the digit 0."""
    (root / "SVHN").mkdir(parents=True)
    lists, written = dict(torchvision.datasets.SVHN.split_list), []
    for seed, name in enumerate(("train", "test")):
        x, y = examples(40, 10, 3, 32, 32, seed=seed)
        path = root / "SVHN" / lists[name][1]
        scipy.io.savemat(path, {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]})
        lists[name] = [*lists[name][:2], hashlib.md5(path.read_bytes()).hexdigest()]
        written += [x, y]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    return tuple(written)


def test_svhn_loads_as_it_was_written(tmp_path, monkeypatch):
    """Images turned upright, 10 is the digit 0."""
    x, y, test_x, test_y = write_svhn(tmp_path, monkeypatch)
    data = Svhn(num_val=7)(tmp_path)
    assert torch.equal(data.test.x, torch.from_numpy(test_x)) and data.test.y.tolist() == test_y.tolist()
    assert data.test.x.is_contiguous() and data.num_classes == 10 and data.augment is None
    assert rows(data.train, data.val) == as_rows(x, y)


@pytest.mark.parametrize("name", ["cifar", "svhn"])
def test_a_file_whose_sum_is_wrong_is_not_read(tmp_path, monkeypatch, name):
    """A pickle or an archive that is not the one torchvision knows is named, and not unpickled."""
    if name == "cifar":
        write_cifar(tmp_path, 10, monkeypatch)
        dataset, path = Cifar(num_val=7), tmp_path / "cifar-10-batches-py" / "data_batch_3"
    else:
        write_svhn(tmp_path, monkeypatch)
        dataset, path = Svhn(7), tmp_path / "SVHN" / "test_32x32.mat"
    path.write_bytes(b"cos\nabort\n(tR.")  # a pickle that would end this process
    said = refused(dataset, tmp_path)
    assert str(path.parent) in said and "damaged" in said and "download=True" not in said


def test_cifar_10_or_100(tmp_path):
    assert refused(Cifar(20), tmp_path) == "dataset.num_classes=20 must be 10 or 100, as CIFAR has them"


class Mirror(BaseHTTPRequestHandler):
    """Serves files by the end of their URL, and counts how often it was asked for one."""

    served, asked = {}, 0

    def do_GET(self):
        type(self).asked += self.headers.get("Method") != "HEAD"  # torchvision asks so where a redirection leads
        content = self.served.get(self.path[1:]) or self.served[self.path.rpartition("/")[2]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *line):
        pass


TAR = "cifar-10-python.tar.gz"
DATA_SETS = {"CIFAR10": Cifar(num_val=7), "MNIST": Mnist(7), "FashionMNIST": FashionMnist(7), "SVHN": Svhn(7)}
HOMES = {"CIFAR10": lth.dataset.cifar, "MNIST": lth.dataset.mnist, "FashionMNIST": lth.dataset.fashion_mnist,
         "SVHN": lth.dataset.svhn}  # fmt: skip


def trust(name: str, monkeypatch, md5: bool = True, sha256: bool = True) -> None:
    """Make sums of a data set's archives those of what the mirror serves."""
    kind, home = getattr(torchvision.datasets, name), HOMES[name]
    if md5:
        sums = {file: hashlib.md5(content).hexdigest() for file, content in Mirror.served.items()}
        if name == "CIFAR10":
            monkeypatch.setattr(kind, "tgz_md5", sums[TAR])
        elif name == "SVHN":
            lists = {part: [url, file, sums.get(file)] for part, (url, file, _) in kind.split_list.items()}
            monkeypatch.setattr(kind, "split_list", lists)
        else:
            monkeypatch.setattr(kind, "resources", [(file, sums[file]) for file, _ in kind.resources])
    if sha256:
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in Mirror.served.items()}
        monkeypatch.setattr(home, "SHA256", {10: sums[TAR]} if name == "CIFAR10" else sums)


def pack(folder: Path, *others: tarfile.TarInfo) -> bytes:
    """A .tar.gz of a folder by its name, after other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for other in others:
            archive.addfile(other, io.BytesIO(b"evil" * (other.size // 4)))
        archive.add(folder, folder.name)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    """The address of a mirror on this machine, of all data sets; it serves what a test puts into Mirror.served."""
    monkeypatch.setattr(Mirror, "served", {})
    monkeypatch.setattr(Mirror, "asked", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url + TAR)
        for kind in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
            monkeypatch.setattr(kind, "mirrors", [url])
        lists = {part: [url + file, file, md5] for part, (_, file, md5) in torchvision.datasets.SVHN.split_list.items()}
        monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
        yield url
        server.shutdown()
        thread.join()


@pytest.fixture
def mirror(tmp_path, monkeypatch, server):
    """A mirror of CIFAR-10 whose archive holds the files of `write_cifar` and has the sums that are expected."""
    write_cifar(tmp_path / "made", 10, monkeypatch)
    Mirror.served[TAR] = pack(tmp_path / "made" / "cifar-10-batches-py")
    trust("CIFAR10", monkeypatch)


def test_two_at_once_download_once(tmp_path, mirror):
    """A sweep's processes wait for the one that downloads: one request, the same data, no lock left."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: Cifar(num_val=7)(tmp_path / "data"), range(2)))
    assert Mirror.asked == 1 and len({data.digest for data in found}) == 1 and len(found) == 2
    assert found[0].digest == Cifar(num_val=7)(tmp_path / "made").digest
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}


@pytest.mark.parametrize("what", ["cut short", "another archive"])
def test_an_archive_whose_sum_is_wrong_is_not_unpacked(tmp_path, mirror, what):
    """One line; no archive, no file of it, no folder, and nothing outside of it stays."""
    made = tmp_path / "made" / "cifar-10-batches-py"
    Mirror.served[TAR] = pack(made, tarfile.TarInfo("../../evil")) if what == "another archive" else pack(made)[:1000]
    said = refused(Cifar(num_val=7), tmp_path / "deep" / "data")
    assert said.startswith("CIFAR10 cannot be downloaded") and f"data_dir={tmp_path}/deep/data" in said
    assert not (tmp_path / "deep").exists() and not list(tmp_path.rglob("evil"))


def serve(name: str, tmp_path: Path, monkeypatch) -> None:
    """Put a small data set on the mirror, with sums that are expected."""
    if name == "CIFAR10":
        write_cifar(tmp_path / "made", 10, monkeypatch)
        Mirror.served[TAR] = pack(tmp_path / "made" / "cifar-10-batches-py")
    elif name == "SVHN":
        write_svhn(tmp_path / "made", monkeypatch)
        Mirror.served.update({path.name: path.read_bytes() for path in (tmp_path / "made" / "SVHN").iterdir()})
    else:
        write_images(tmp_path / "made", name)
        raw = (tmp_path / "made" / name / "raw").iterdir()
        Mirror.served.update({f"{path.name}.gz": gzip.compress(path.read_bytes(), mtime=0) for path in raw})
    trust(name, monkeypatch)


@pytest.mark.parametrize("name", DATA_SETS)
def test_sha256_is_checked_where_md5_is_right(tmp_path, monkeypatch, server, name):
    """What is served with the right sums loads as it was made. One byte of the last archive another, its MD5 sum made
    to match: one line that says SHA-256, and nothing of that archive stays."""
    serve(name, tmp_path, monkeypatch)
    data = DATA_SETS[name](tmp_path / "data")
    assert data.digest == DATA_SETS[name](tmp_path / "made").digest
    wrong = sorted(Mirror.served)[-1]
    good = Mirror.served[wrong]
    Mirror.served[wrong] = good[:9] + bytes([good[9] ^ 1]) + good[10:]  # of a gzip header: the system it was made on
    trust(name, monkeypatch, sha256=False)
    said = refused(DATA_SETS[name], tmp_path / "other")
    found, asked = (hashlib.sha256(content).hexdigest()[:12] for content in (Mirror.served[wrong], good))
    assert said == (f"{name} cannot be downloaded to data_dir={tmp_path}/other: "
                    f"{wrong}: its SHA-256 is {found}..., not {asked}...")  # fmt: skip
    left = [path.name for path in (tmp_path / "other").rglob("*") if path.is_file()]
    assert wrong not in left and wrong.removesuffix(".gz") not in left and "data_batch_1" not in left


def test_the_next_mirror_is_asked(tmp_path, monkeypatch, server):
    """Where the first one serves something else; and where both do, the line says so of the file."""
    serve("MNIST", tmp_path, monkeypatch)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{server}bad/", server])
    Mirror.served["bad/t10k-images-idx3-ubyte.gz"] = b"hello"
    assert Mnist(7)(tmp_path / "data").digest == Mnist(7)(tmp_path / "made").digest and Mirror.asked == 5
    Mirror.served["t10k-images-idx3-ubyte.gz"] = b"hello"
    said = refused(Mnist(7), tmp_path / "other")
    assert said.endswith("/other: t10k-images-idx3-ubyte.gz: File not found or corrupted.")
    trust("MNIST", monkeypatch, sha256=False)
    before, said = Mirror.asked, refused(Mnist(7), tmp_path / "other")
    assert "its SHA-256 is 2cf24dba5fb0..., not " in said  # that of hello, as sha256sum says
    assert Mirror.asked == before + 2  # what the first one left is not taken for the second one's


@pytest.mark.parametrize("kind", ["outside", "absolute", "link"])
def test_an_archive_writes_nothing_outside(tmp_path, monkeypatch, mirror, kind):
    """Members that would go elsewhere, in an archive whose sums are right, are passed over; so is whatever else it
    holds. A file that is a link, even to a good place, is none: one line, and nothing stays."""
    made, data_dir = tmp_path / "made" / "cifar-10-batches-py", tmp_path / "deep" / "data"
    evil = tarfile.TarInfo({"outside": "../evil", "absolute": f"{tmp_path}/evil"}.get(kind, f"{made.name}/test_batch"))
    evil.size = 4
    if kind == "link":
        evil.type, evil.linkname, evil.size = tarfile.SYMTYPE, "../../evil", 0
        (tmp_path / "deep").mkdir()
        (made / "test_batch").unlink()
    Mirror.served[TAR] = pack(made, evil, tarfile.TarInfo(f"{made.name}/more"))
    trust("CIFAR10", monkeypatch)
    if kind == "link":
        said = refused(Cifar(num_val=7), data_dir)
        assert said.endswith(f": {TAR} lacks cifar-10-batches-py/test_batch")
        assert not [path for path in data_dir.rglob("*") if path.is_file() or path.is_symlink()]
    else:
        assert Cifar(num_val=7)(data_dir).digest == Cifar(num_val=7)(tmp_path / "made").digest
        assert {path.name for path in (data_dir / made.name).iterdir()} == {path.name for path in made.iterdir()}
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "more")]


def test_files_that_are_there_are_not_downloaded(tmp_path, monkeypatch, server):
    """Unpacked by others, as a package of a distribution may have them: read as they are. One that is missing is
    fetched alone, and the others keep their bytes."""
    serve("FashionMNIST", tmp_path, monkeypatch)
    data = FashionMnist(7)(tmp_path / "made")
    assert Mirror.asked == 0
    raw = tmp_path / "made" / "FashionMNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").unlink()
    times = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    assert FashionMnist(7)(tmp_path / "made").digest == data.digest and Mirror.asked == 1
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_interrupted_download_leaves_nothing(tmp_path, monkeypatch, mirror):
    """Ctrl-C while it unpacks: neither half a file nor the archive nor the lock, and the next command downloads."""

    def interrupt(packed, file):
        file.write(packed.read(100))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Cifar(num_val=7)(tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(Cifar(num_val=7)(tmp_path / "data").train.y) == 93


@pytest.mark.parametrize(("dataset", "name"), [(Cifar(10), "CIFAR10"), (Cifar(100), "CIFAR100"), (Svhn(), "SVHN")])
def test_missing_and_no_network(tmp_path, monkeypatch, dataset, name):
    """One line that names data_dir; no folder is made."""
    kind = getattr(torchvision.datasets, name)
    closed = f"http://127.0.0.1:{closed_port()}/x"
    monkeypatch.setattr(kind, "url", closed, raising=False)
    if name == "SVHN":
        lists = {which: [closed, *others] for which, (_, *others) in kind.split_list.items()}
        monkeypatch.setattr(kind, "split_list", lists)
    said = refused(dataset, tmp_path / "data")
    assert said.startswith(f"{name} is not in data_dir={tmp_path}/data and its mirrors cannot be reached")
    assert not (tmp_path / "data").exists()


# Folders of images


def write_folder(root: Path, num: int = 6, names: tuple = ("cat", "dog", "emu"), size: tuple = (8, 8), seed: int = 0):
    """num PNGs a class; returns them by class, uint8 [num, 3, height, width]."""
    rng, written = np.random.default_rng(seed), {}
    for name in names:
        (root / name).mkdir(parents=True)
        written[name] = rng.integers(0, 256, (num, *size, 3), np.uint8)
        for i, image in enumerate(written[name]):
            Image.fromarray(image).save(root / name / f"{i}.png")
    return {name: images.transpose(0, 3, 1, 2) for name, images in written.items()}


def labelled(written: dict) -> list[bytes]:
    return as_rows(
        np.concatenate(list(written.values())), np.repeat(range(len(written)), [*map(len, written.values())])
    )


def test_folder_is_dealt(tmp_path):
    """A subfolder a class, in the order of their names; what nobody split is dealt; hidden files are no images."""
    written = write_folder(tmp_path / "mine")
    (tmp_path / "mine" / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "mine" / ".git").mkdir()
    data = Folder("mine", 8, 4, 5, flip=True)(tmp_path)
    assert [len(part.y) for part in (data.train, data.val, data.test)] == [9, 4, 5]
    assert rows(data.train, data.val, data.test) == labelled(written) and data.num_classes == 3
    assert data.augment == Augment(flip=True)


@pytest.mark.parametrize("own", [("train", "test"), ("train", "val"), ("train", "test", "val")])
def test_folder_has_splits_of_its_own(tmp_path, own):
    """test/ is the test split and val/ the validation split; one alone is the test split, and val is of train/."""
    written = {name: write_folder(tmp_path / "mine" / name, seed=seed) for seed, name in enumerate(own)}
    data = Folder(str(tmp_path / "mine"), 8, 4, 99)(tmp_path / "elsewhere")
    assert rows(data.test) == labelled(written[own[1]])
    if len(own) == 3:
        assert rows(data.val) == labelled(written["val"]) and rows(data.train) == labelled(written["train"])
    else:
        assert len(data.val.y) == 4 and rows(data.train, data.val) == labelled(written["train"])


def test_folder_resizes(tmp_path):
    """The shorter side becomes `size`, the middle stays: of 16 x 64 pixels, white in the middle 16, white is left; grey
    becomes RGB."""
    write_folder(tmp_path, names=("a", "b"))
    wide = np.zeros((16, 64), np.uint8)
    wide[:, 24:40] = 255
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    data = Folder(str(tmp_path), 8, 1, 1)(tmp_path)
    images = torch.cat([part.x for part in (data.train, data.val, data.test)])
    assert sum(bool((image[:, :, 1:7] == 255).all()) for image in images) == 1  # its outermost columns are blended


@pytest.mark.parametrize("kind", ["text", "cut", "empty"])
def test_a_file_that_is_no_image_is_named(tmp_path, kind):
    write_folder(tmp_path)
    path = tmp_path / "dog" / "3.png"
    path.write_bytes({"text": b"read me", "cut": path.read_bytes()[:60], "empty": b""}[kind])
    assert refused(Folder(str(tmp_path), 8, 2, 2), tmp_path).startswith(f"{path} is no image, or a damaged one")


def test_folders_that_are_no_data_set(tmp_path):
    """One class, a class without images, other classes to test on than to train on, no folder at all: one line each."""
    write_folder(tmp_path / "one", names=("cat",))
    assert "at least 2 classes; there are cat: 6" in refused(Folder("one", 8, 2, 2), tmp_path)
    (tmp_path / "one" / "dog").mkdir()
    assert "cat: 6, dog: 0" in refused(Folder("one", 8, 2, 2), tmp_path)
    for name, classes in (("train", ("cat", "dog")), ("test", ("cat", "emu"))):
        write_folder(tmp_path / "two" / name, names=classes)
    assert "must hold the same classes; dog is in one of them only" in refused(Folder("two", 8, 2, 2), tmp_path)
    said = refused(Folder("three", 8, 2, 2), tmp_path)
    assert said == f"dataset.path=three is no folder in data_dir={tmp_path}"
    assert refused(Folder("two", 0, 2, 2), tmp_path).startswith("dataset.size=0 must")


def test_tiny_imagenet_loads_as_it_was_written(tmp_path):
    """Its val part is the test split, labelled by its table; boxes and tables are no images."""
    root, rng = tmp_path / "tiny-imagenet-200", np.random.default_rng(0)
    written = write_folder(root / "train", names=("n01", "n02"), size=(64, 64))
    for name in written:
        for i in range(6):
            old = root / "train" / name / f"{i}.png"
            (root / "train" / name / "images").mkdir(exist_ok=True)
            old.rename(root / "train" / name / "images" / f"{name}_{i}.JPEG")  # PNG inside: no loss, PIL does not mind
        (root / "train" / name / f"{name}_boxes.txt").write_text("0 0 1 1")
    (root / "val" / "images").mkdir(parents=True)
    test = rng.integers(0, 256, (4, 64, 64, 3), np.uint8)
    for i, image in enumerate(test):
        Image.fromarray(image).save(root / "val" / "images" / f"val_{i}.JPEG", format="PNG")
    table = "".join(f"val_{i}.JPEG\t{('n02', 'n01')[i % 2]}\t0\t0\t1\t1\n" for i in range(4))
    (root / "val" / "val_annotations.txt").write_text(table)
    data = TinyImagenet(num_val=3)(tmp_path)
    assert rows(data.train, data.val) == labelled(written) and len(data.val.y) == 3
    assert rows(data.test) == as_rows(test.transpose(0, 3, 1, 2), np.array([1, 0, 1, 0]))
    assert data.augment == Augment(crop=4, flip=True)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\n")
    assert "val_annotations.txt is not as" in refused(TinyImagenet(num_val=3), tmp_path)


# Tensors


def write_tensors(path: Path, **arrays) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_tensors_load_as_they_were_written(tmp_path, suffix):
    """x and y dealt, or x_test and y_test as the test split in their order; the path may be anywhere."""
    x, y = examples(20, 4, 2, 3, 5)
    path = write_tensors(tmp_path / f"mine{suffix}", x=x, y=y)
    data = Tensors(path.name, 3, 4)(tmp_path)
    assert [len(part.y) for part in (data.train, data.val, data.test)] == [13, 3, 4]
    assert rows(data.train, data.val, data.test) == as_rows(x, y) and data.num_classes == 4
    other_x, other_y = examples(8, 4, 2, 3, 5, seed=1)
    path = write_tensors(tmp_path / f"both{suffix}", x=x, y=y, x_test=other_x, y_test=other_y)
    data = Tensors(str(path), 3, 99)(tmp_path / "elsewhere")
    assert torch.equal(data.test.x, torch.from_numpy(other_x)) and data.test.y.tolist() == other_y.tolist()
    assert rows(data.train, data.val) == as_rows(x, y)


def test_float_vectors_are_signals(tmp_path):
    """[n, length] is one channel; float64 becomes float32."""
    x, y = np.random.default_rng(0).normal(size=(20, 7)), np.arange(20) % 2
    data = Tensors(str(write_tensors(tmp_path / "mine.npz", x=x, y=y)), 3, 4)(tmp_path)
    assert data.input_shape == (1, 7) and data.train.x.dtype == torch.float32
    again = torch.cat([part.x for part in (data.train, data.val, data.test)]).sum()
    torch.testing.assert_close(again, torch.tensor(x.sum(), dtype=torch.float32))


X, Y = examples(20, 4, 2, 3, 5)
BAD = {
    "no y": ({"x": X}, "y"),
    "lengths": ({"x": X, "y": Y[:19]}, "x must be uint8 or finite floats"),
    "one-hot": ({"x": X, "y": np.eye(4)[Y]}, "x must be uint8 or finite floats"),
    "whole pixels": ({"x": X.astype(np.int64), "y": Y}, "x must be uint8 or finite floats"),
    "not finite": ({"x": np.where(X > 3, np.nan, X), "y": Y}, "x must be uint8 or finite floats"),
    "nothing": ({"x": X[:0], "y": Y[:0]}, "x must be uint8 or finite floats"),
    "scalars": ({"x": X[:, 0, 0, 0], "y": Y}, "x must be uint8 or finite floats"),
    "one class": ({"x": X, "y": Y * 0}, "there are [0]"),
    "from one": ({"x": X, "y": Y + 1}, "there are [1, 2, 3, 4]"),
    "a gap": ({"x": X, "y": Y + (Y == 3)}, "there are [0, 1, 2, 4]"),
    "negative": ({"x": X, "y": Y - 1}, "there are [-1, 0, 1, 2]"),
    "floats": ({"x": X, "y": Y / 1.0}, "y must hold the classes"),
    "test class": ({"x": X, "y": Y, "x_test": X, "y_test": Y % 3}, "there are [0, 1, 2]"),
    "no y_test": ({"x": X, "y": Y, "x_test": X}, "y_test"),
    "test shape": ({"x": X, "y": Y, "x_test": X[:, :, :2], "y_test": Y}, "(2, 2, 5), x of (2, 3, 5)"),
    "pickle": ({"x": X.astype(object), "y": Y}, "allow_pickle=False"),
}


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_are_no_data_set(tmp_path, name):
    arrays, said = BAD[name]
    line = refused(Tensors(write_tensors(tmp_path / "mine.npz", **arrays).name, 3, 4), tmp_path)
    assert line.startswith("dataset.path=mine.npz cannot be used: ") and said in line


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".csv"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut short", b"\xff" * 100])
def test_damaged_tensors_are_named(tmp_path, suffix, content):
    (tmp_path / f"mine{suffix}").write_bytes(content)
    assert refused(Tensors(f"mine{suffix}", 3, 4), tmp_path).startswith(f"dataset.path=mine{suffix} ")


# Made, not read


def test_fake_is_learnt_by_class_means():
    """The nearest class mean of the training split names nearly all of the test split; sizes, shape and classes are as
    asked, and another seed is other data."""
    data = Fake([2, 6, 5], 4, 403, 50, 60)(Path())
    assert data.input_shape == (2, 6, 5) and data.num_classes == 4
    counts = sum(torch.bincount(part.y) for part in (data.train, data.val, data.test))
    assert counts.tolist() == [101, 101, 101, 100] and len(data.test.y) == 60
    x = data.train.x.float()
    means = torch.stack([x[data.train.y == label].mean(0) for label in range(4)])
    nearest = torch.cdist(data.test.x.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == data.test.y).float().mean() > 0.95
    assert 45 < (x - means[data.train.y]).std() < 62  # 60, less what is cut off at 0 and 255
    assert len({Fake(split_seed=seed, num_examples=2000)(Path()).digest for seed in (0, 0, 1)}) == 2
    assert Fake([1, 40], crop=0)(Path()).input_shape == (1, 40)


@pytest.mark.parametrize("field", [{"shape": []}, {"shape": [3, 0, 3]}, {"num_classes": 1}, {"num_classes": 7000}])
def test_fake_refuses(field):
    ((name, value),) = field.items()
    assert refused(Fake(**field), Path()).startswith(f"dataset.{name}={value} must be ")


@pytest.mark.slow
def test_mnist1d_is_the_authors():
    """make_dataset's own numbers, as float32; the global generators stay as they were."""
    data_of = pytest.importorskip("mnist1d.data")
    made = data_of.make_dataset(data_of.get_dataset_args())
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    data = Mnist1d(num_val=300)(Path())
    assert (np.random.get_state()[1] == before).all()
    assert data.input_shape == (1, 40) and [len(part.y) for part in (data.train, data.val)] == [3700, 300]
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(made["x_test"]).float())
    assert data.test.y.tolist() == made["y_test"].tolist()


# Altered


PLAIN = Fake([1, 8, 8], num_examples=1797, num_val=200, num_test=400)  # 1,197 to train on


def both(**fields) -> tuple:
    """A data set, plain and altered."""
    return PLAIN(Path()), Altered(PLAIN, **fields)(Path())


def test_altered_by_nothing_is_the_data_set():
    plain, same = both()
    assert plain.digest == same.digest


def test_subset_keeps_a_fraction():
    """The exact number, in the order they stood, each once; a smaller subset inside a larger one; val and test stay."""
    plain, half = both(subset=0.5)
    _, tenth = both(subset=0.1)
    assert [len(data.train.y) for data in (plain, half, tenth)] == [1197, 598, 120]
    whole = [row.numpy().tobytes() for row in plain.train.x.flatten(1)]
    places = [[whole.index(row.numpy().tobytes()) for row in data.train.x.flatten(1)] for data in (half, tenth)]
    assert all(place == sorted(set(place)) for place in places) and set(places[1]) < set(places[0])
    assert places[0] != list(range(598))
    assert all(
        torch.equal(plain.train.y[place], data.train.y) for place, data in zip(places, (half, tenth), strict=True)
    )
    assert torch.equal(half.val.x, plain.val.x) and torch.equal(half.test.y, plain.test.y)
    assert both(subset=0.5, split_seed=1)[1].digest != half.digest == both(subset=0.5)[1].digest


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_label_noise_redraws_a_fraction(fraction):
    """9/10 of the redrawn labels differ; they are uniform, as is what is added to them (chi-squared,
    0.1% point); no image
    and no label of another split changes."""
    plain, noisy = both(label_noise=fraction)
    changed = plain.train.y != noisy.train.y
    expected = 0.9 * round(fraction * 1197)
    assert abs(int(changed.sum()) - expected) <= 4 * (0.09 * fraction * 1197) ** 0.5
    if fraction:
        away = torch.bincount((noisy.train.y - plain.train.y)[changed] % 10, minlength=10)[1:].double()
        assert ((away - away.mean()) ** 2 / away.mean()).sum() < 26.1
    if fraction == 1:
        assert ((torch.bincount(noisy.train.y, minlength=10) - 119.7) ** 2 / 119.7).sum() < 27.9
    assert torch.equal(plain.train.x, noisy.train.x)
    assert torch.equal(plain.val.y, noisy.val.y) and torch.equal(plain.test.y, noisy.test.y)


def test_shuffled_pixels_are_one_permutation(tmp_path):
    """Of images whose pixel is its position, all come out alike, in every split and channel, none in its order."""
    x = np.broadcast_to(np.arange(30, dtype=np.uint8).reshape(1, 1, 5, 6), (20, 2, 5, 6))
    write_tensors(tmp_path / "mine.npz", x=x, y=np.arange(20) % 2)
    data = Altered(Tensors("mine.npz", 3, 4), shuffle_pixels=True)(tmp_path)
    images = torch.cat([part.x for part in (data.train, data.val, data.test)]).flatten(2)
    order = images[0, 0].tolist()
    assert sorted(order) == list(range(30)) != order
    assert all(channel.tolist() == order for image in images for channel in image)


@pytest.mark.parametrize("field", [{"subset": 0.0}, {"subset": 1.5}, {"label_noise": -0.1}, {"label_noise": 1.1}])
def test_altered_refuses(field):
    ((name, value),) = field.items()
    assert refused(Altered(PLAIN, **field), Path()).startswith(f"dataset.{name}={value} must be in ")


def test_altered_says_whose_key_is_wrong():
    """A key of the inner data set is named as it is typed; only a data set can be altered."""
    assert refused(Altered(replace(PLAIN, num_val=0)), Path()).startswith("dataset.of.num_val=0 and num_test=400 ")
    for of in (3, Altered(PLAIN)):
        with pytest.raises(ValueError, match=r"^dataset\.of=[^\n]* must be another data set[^\n]*$"):
            Altered(of)


# Commands


def test_prefetch_loads_and_ends(tmp_path):
    """A line a data set, exit 0, nothing written; a sweep says each once, and leaves no file."""
    ran = run_here("dataset=digits prefetch=true", tmp_path, workers=None)
    assert ran.code in (0, None) and not list(tmp_path.rglob("*"))
    assert re.fullmatch(r"digits: 1,197 train, 200 val, 400 test examples of 1 x 8 x 8 in 10 classes, .*\n", ran.out)
    ran = run_here("-m dataset=digits prune.sparsity=0.5,0.8 prefetch=true", tmp_path, workers=None)
    assert ran.code in (0, None) and len(ran.out.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


COMMANDS = """
    dataset=fake dataset.crop=40                                        | dataset.crop=40 must be 0 to 32
    dataset=folder                                                      | dataset.path has no default
    dataset=tensors dataset.path=file                                   | dataset.path=file is no .npz
    dataset=altered dataset@dataset.of=digits dataset.of.num_val=0      | dataset.of.num_val=0
    dataset=altered dataset@dataset.of=cifa10                           | did you mean cifar10?
    dataset=fake dataset.shape=32                                       | dataset.shape=32 must be
"""


@pytest.mark.parametrize("line", [line.strip() for line in COMMANDS.strip().splitlines()])
def test_a_command_is_refused(tmp_path, line):
    words, _, expected = (part.strip() for part in line.partition("|"))
    assert expected in command_refused(words, tmp_path)


def test_a_model_that_cannot_take_the_data_is_named():
    """A network is tried on two examples of the data's shape: what torch says, after both names and the shape."""
    source = Source(None, "", 10, (3, 8, 8), 4)
    with pytest.raises(ValueError, match=r"^model=conv cannot take dataset=fake, inputs of shape \(3, 8, 8\) [^\n]*$"):
        main._check_model(lambda *_: nn.Conv2d(1, 4, 3), Context(), source, {"model": "conv", "dataset": "fake"})
    main._check_model(lambda *_: nn.Conv2d(3, 4, 3), Context(), source, {})

"""One training as both sides of a comparison do it: the same examples, first weights, mask, recipe and steps.

What differs: each side draws a data order, crops and flips of its own.
"""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import pad

from lth.data import Augment, Data, Split
from lth.dataset.fashion_mnist import FashionMnist
from lth.dataset.mnist_5k import Mnist5k
from lth.engine.choice import engines
from lth.mask import Mask
from lth.model.mlp import Mlp, ResidualMlp
from lth.model.resnet_cifar import Resnet
from lth.model.torchvision import Torchvision
from lth.numerics import KINDS, applied, computing, fastest
from lth.recipe import Recipe
from lth.state import Lane, TrainState
from lth.store import Store
from lth.train import train_together
from tests.benchmarks.measure import ROOT, Options, gemm_probe, mean_loss

NETWORKS: dict[str, Any] = {  # drawn as open_lth draws them, whose ResNet-20 has projections for shortcuts
    "lenet_300_100": Mlp([300, 100], "kaiming_normal"),
    "resnet_20": Resnet(20, shortcut="B", norm_init="uniform"),
    "mlp_100_100": Mlp([100, 100]),
    "residual_500": ResidualMlp(500),
    "resnet_18": Torchvision("resnet18", stem="cifar"),
}


def digits(options: Options, num_train: int | None = None) -> Data:
    """mnist_5k, or Fashion-MNIST where data_dir has it; with num_train repeated, or cut, to so many, 10,000 to test."""
    data = FashionMnist()(options.data_dir) if options.data_dir else Mnist5k()(Path())
    if num_train is None:
        return data

    def sized(split: Split, size: int) -> Split:
        return split[torch.arange(size) % len(split.y)]

    test = sized(data.test, options.scaled(10_000))
    return dataclasses.replace(data, train=sized(data.train, num_train), test=test)


def colour() -> Data:
    """mnist_5k in the shape of CIFAR-10, three equal channels, 32 x 32, cropped and mirrored: a network learns it in a
    few steps, noise it would not. Ten examples to validate on, which our loop does at its end."""
    data = Mnist5k(num_val=10)(Path())
    splits = (Split(pad(part.x, [2] * 4).repeat(1, 3, 1, 1), part.y) for part in (data.train, data.val, data.test))
    return Augment(crop=4, flip=True).on(Data(*splits, data.num_classes))


@dataclasses.dataclass(frozen=True)
class Setting:
    """sparsity: of a random mask, uniform over all prunable weights; 0: none."""

    network: str
    data: Data
    recipe: Recipe
    sparsity: float = 0.8

    @property
    def num_steps(self) -> int:
        return int(self.recipe.steps)

    def start(self) -> tuple[nn.Module, Mask]:
        """A new network and its mask, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = NETWORKS[self.network](self.data.input_shape, self.data.num_classes)
            dense = Mask.dense(model)
            return model, Mask({name: torch.rand(kept.shape) >= self.sparsity for name, kept in dense.items()})


class Ours:
    """Called, it trains `width` runs side by side through `lth.train`, and saves the end in `store` where there is one.
    mask: instead of the setting's; None: none."""

    def __init__(self, setting: Setting, numerics: str = "reference", device: str = "cpu", store: Path | None = None,
                 engine: str = "sequential", width: int = 1, mask: Mask | str | None = "the setting's"):  # fmt: skip
        model, own = setting.start()
        start = TrainState.of(model)
        self.model = applied(model.to(device), numerics)
        self._data = setting.data.normalised(device)
        self._recipe = setting.recipe.on(len(setting.data.train.y))
        self._lanes = [(start, own if isinstance(mask, str) else mask, order) for order in range(width)]
        self._store, self._engine = store and Store(store), engines(self.model, self._recipe)[engine]
        gemm = fastest(Path(tempfile.mkdtemp())) if (numerics, device) == ("fast", "cpu") else None
        self._computing = partial(computing, numerics, gemm)

    def __call__(self) -> None:
        steps, lanes = int(self._recipe.steps), [Lane(*lane) for lane in self._lanes]
        with self._computing():
            for reached in train_together(self.model, lanes, self._recipe, self._data, steps, self._engine):
                if reached.step < steps:
                    continue
                if self._store:
                    self._store.checkpoint("0" * 64, steps, reached.state().pack())
                reached.show()
        if self._data.train.y.is_cuda:
            torch.cuda.synchronize()

    def loss(self) -> float:
        """After a call."""
        return mean_loss(self.model, self._data.test.batches(self._recipe.batch_size))


class Peer:
    """Called, the other side trains once, in a process of its own. whole: with its evaluations and saves."""

    def __init__(self, setting: Setting, folder: Path, options: Options, whole: bool = False):
        self.name = "open_lth" if options.open_lth else "peer-style loop"
        folder.mkdir(parents=True)
        model, mask = setting.start()
        weights = {f"weight.{i}": weight.detach().clone() for i, weight in enumerate(model.parameters())}
        masks = {f"mask.{i}": kept.float() for i, kept in enumerate(mask.values())}
        save_file(weights | masks, folder / "weights.safetensors")
        write(setting.data, folder / "open_lth_datasets")
        recipe = setting.recipe
        std, mean = torch.std_mean(setting.data.train.x / 255, (0, 2, 3), correction=0)
        job = {
            "open_lth": str(options.open_lth) if options.open_lth else None, "network": setting.network,
            "folder": str(folder), "weights": str(folder / "weights.safetensors"), "whole": whole,
            "mean": mean.tolist(), "std": std.tolist(),
            "optimizer": recipe.optimizer, "lr": recipe.lr, "options": recipe.options, "steps": setting.num_steps,
            "batch_size": recipe.batch_size, "threads": torch.get_num_threads(),
        }  # fmt: skip
        alone = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.peer", json.dumps(job)]
        self._process = subprocess.Popen(command, cwd=ROOT, env=os.environ | alone, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def _ask(self, word: str) -> str:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}; what it said stands above")
        return answer

    def __call__(self) -> None:
        self._ask("run")

    def loss(self) -> float:
        """After a call."""
        return float(self._ask("loss"))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # the end of its input is the end of it


def write(data: Data, folder: Path) -> None:
    """Training and test split as the files of MNIST, or where images have three channels of CIFAR-10."""
    if data.input_shape[0] == 1:
        raw = folder / "mnist/MNIST/raw"
        raw.mkdir(parents=True)
        for name, part in (("train", data.train), ("t10k", data.test)):
            for kind, array in (("images-idx3", part.x.squeeze(1).numpy()), ("labels-idx1", part.y.numpy())):
                head = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
                (raw / f"{name}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
        return
    batches = folder / "cifar10/cifar-10-batches-py"
    batches.mkdir(parents=True)
    parts = {f"data_batch_{i + 1}": part for i, part in enumerate(torch.arange(len(data.train.y)).chunk(5))}
    for name, part in [*((name, data.train[chosen]) for name, chosen in parts.items()), ("test_batch", data.test)]:
        rows = {"data": part.x.flatten(1).numpy(), "labels": part.y.tolist()}
        (batches / name).write_bytes(pickle.dumps(rows))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(data.num_classes)]}))


def numerics() -> tuple[list[str], str]:
    """Those worth timing on this CPU, and a word on those that are not: bf16 that is no faster than float32."""
    rates = gemm_probe()["1024x1024x1024"]
    names = [name for name in ("fast", "bf16") if name in KINDS]
    if rates["bfloat16"] > rates["float32"]:
        return names, ""
    bf16, float32 = (f"{rates[name]:.0f}" for name in ("bfloat16", "float32"))
    return [name for name in names if name != "bf16"], f"bf16 not measured: {bf16} GF/s here, float32 {float32}"

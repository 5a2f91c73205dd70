"""digits: 1,797 real 8 x 8 digits of scikit-learn (Alpaydin & Kaynak 1998), pixels 0 to 16. No download."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from lth.data import Data, Split, split


@dataclass(frozen=True)
class Digits:
    """num_val, num_test: examples held out for validation and test. split_seed: which ones."""

    num_val: int = 200
    num_test: int = 400
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        # sklearn.datasets.load_digits() reads this file, and takes a second to import
        found = find_spec("sklearn")
        if found is None or found.origin is None:
            raise ValueError("dataset=digits is in scikit-learn, which is not installed; pip install scikit-learn")
        with gzip.open(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as lines:
            table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
        pool = Split(table[:, :-1].to(torch.uint8).reshape(-1, 1, 8, 8), table[:, -1].to(torch.int64))
        return split(pool, self.num_val, self.num_test, self.split_seed, num_classes=10)

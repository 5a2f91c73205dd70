"""mnist1d: MNIST-1D (Greydanus & Kobak 2024, https://arxiv.org/abs/2011.14439), 4,000 + 1,000 signals of 40 points in
ten classes, made by the authors' package: templates padded, scaled, sheared, shifted, with noise. No download.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lth.data import Data, Split, split


@dataclass(frozen=True)
class Mnist1d:
    """seed: of the signals (the authors' data have 42). num_val: examples of the training part held out."""

    seed: int = 42
    num_val: int = 400
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        from mnist1d.data import get_dataset_args, make_dataset  # never its get_dataset, which downloads a pickle

        settings = get_dataset_args()
        settings.seed = self.seed
        before = random.getstate(), np.random.get_state()
        try:
            made = make_dataset(settings)  # seeds the global generators
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
        pool, test = (
            Split(torch.from_numpy(made[x]).float().unsqueeze(1), torch.from_numpy(made[y]).long())
            for x, y in (("x", "y"), ("x_test", "y_test"))
        )
        return split(pool, self.num_val, 0, self.split_seed, num_classes=10, test=test)

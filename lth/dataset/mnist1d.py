"""mnist1d: MNIST-1D (Greydanus & Kobak 2024, https://arxiv.org/abs/2011.14439), 4,000 + 1,000 signals of 40 points in
ten classes, made by the authors' package: templates padded, scaled, sheared, shifted, with noise. No download.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

        settings: Any = get_dataset_args()
        settings.seed = self.seed
        before = random.getstate(), np.random.get_state()
        made = make_dataset(settings)  # which seeds the global generators
        random.setstate(before[0])
        np.random.set_state(before[1])
        x, test_x = (torch.from_numpy(made[name]).float().unsqueeze(1) for name in ("x", "x_test"))
        y, test_y = (torch.from_numpy(made[name]).long() for name in ("y", "y_test"))
        return split(Split(x, y), self.num_val, 0, self.split_seed, num_classes=10, test=Split(test_x, test_y))

"""altered: another data set with its labels, size or pixels changed, each a function of split_seed alone.

label_noise and shuffle_pixels are the randomisation tests of Zhang et al. 2017 (https://arxiv.org/abs/1611.03530).
Validation and test labels stay as they are.

    python main.py dataset=altered dataset@dataset.of=cifar10 dataset.label_noise=0.2
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lth.data import Data, Split
from lth.seeds import generator, seed


@dataclasses.dataclass(frozen=True)
class Altered:
    """of: the data set. subset: fraction of its training split that is kept, in (0, 1], a smaller one inside a larger.
    label_noise: fraction of the labels kept, in [0, 1], that are drawn anew from all classes alike, and so may come out
    the same; Zhang et al. draw each with that probability, here the number is exact. shuffle_pixels: one permutation of
    the positions for all images of all splits, the channels of a pixel together."""

    of: Any
    subset: float = 1.0
    label_noise: float = 0.0
    shuffle_pixels: bool = False
    split_seed: int = 0

    def __post_init__(self) -> None:
        if not type(self.of).__module__.startswith("lth.dataset.") or isinstance(self.of, Altered):
            raise ValueError(f"dataset.of={self.of} must be another data set: dataset@dataset.of=cifar10")

    def __call__(self, data_dir: Path) -> Data:
        try:
            data = self.of(data_dir)
        except ValueError as error:
            raise ValueError(re.sub(r"\bdataset\.(?=\w+=)", "dataset.of.", str(error))) from error
        (x, y), num_train = data.train, round(self.subset * len(data.train.y))
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"dataset.label_noise={self.label_noise} must be in [0, 1]")
        if not 1 <= num_train <= len(y):
            raise ValueError(f"dataset.subset={self.subset} must be in (0, 1] and keep at least 1 of {len(y)} examples")
        if num_train < len(y):
            kept = torch.randperm(len(y), generator=self._rng("subset"))[:num_train].sort().values
            x, y = x[kept], y[kept]
        rng = self._rng("label_noise")
        redrawn = torch.randperm(num_train, generator=rng)[: round(self.label_noise * num_train)]
        y = y.index_copy(0, redrawn, torch.randint(data.num_classes, (len(redrawn),), generator=rng))
        parts = [Split(x, y), data.val, data.test]
        if self.shuffle_pixels:
            if not isinstance(x, Tensor):
                raise ValueError("dataset.shuffle_pixels=true must be false for a data set that stays in its files")
            size = x[0, 0].numel()
            order = torch.randperm(size, generator=self._rng("shuffle_pixels"))
            parts = [Split(part.x.flatten(2)[:, :, order].view(part.x.shape), part.y) for part in parts]
        return Data(*parts, data.num_classes, data.augment)

    def _rng(self, name: str) -> torch.Generator:
        return generator(seed(self.split_seed, 0, name))

"""fake: noise around a mean image a class, drawn from a seed: to measure speed at a shape. No download.

x = round(mean_y + 60 * N(0, 1)) cut to [0, 255],   mean_y ~ U{60, ..., 195} pixel by pixel
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from lth.data import Augment, Data, Split, split
from lth.seeds import generator


@dataclass(frozen=True)
class Fake:
    """shape: (channels, height, width) or (channels, length). num_examples: in all, as many of each class as can be.
    split_seed: what is drawn, and which are held out. crop, flip, cutout: of training batches."""

    shape: list[int] = field(default_factory=lambda: [3, 32, 32])
    num_classes: int = 10
    num_examples: int = 6000
    num_val: int = 500
    num_test: int = 1000
    split_seed: int = 0
    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, data_dir: Path) -> Data:
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"dataset.shape={self.shape} must be 2 or more sizes of at least 1, such as [3, 32, 32]")
        if not 2 <= self.num_classes <= self.num_examples:
            raise ValueError(f"dataset.num_classes={self.num_classes} must be 2 to num_examples={self.num_examples}")
        rng = generator(self.split_seed)
        means = torch.randint(60, 196, (self.num_classes, *self.shape), generator=rng)
        y = torch.arange(self.num_examples) % self.num_classes
        x = torch.empty(self.num_examples, *self.shape, dtype=torch.uint8)
        for label, mean in enumerate(means):  # class by class: as floats all would take four times the memory
            noise = torch.randn(x[label :: self.num_classes].shape, generator=rng)
            x[label :: self.num_classes] = (mean + 60 * noise).round().clamp(0, 255)
        data = split(Split(x, y), self.num_val, self.num_test, self.split_seed, self.num_classes)
        return Augment(self.crop, self.flip, self.cutout).on(data)

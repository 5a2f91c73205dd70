"""Augmentation of a batch of 128 images of 3 x 32 x 32: ours against torchvision's, image by image as a loader does it.

pytest -n 0 -s tests/benchmarks/test_bench_augment.py
"""

import time

import torch
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToPILImage, ToTensor

from lth.data import Augment, Pixels
from lth.seeds import generator, seed
from tests.benchmarks.measure import ratios

MEAN, STD = torch.full((1, 3, 1, 1), 120.0), torch.full((1, 3, 1, 1), 60.0)
RAW = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
MOVED = [RandomCrop(32, padding=4), RandomHorizontalFlip()]
NORMALISED = Normalize([120 / 255] * 3, [60 / 255] * 3)


def ours() -> torch.Tensor:
    """Pick, crop, flip and normalise."""
    return Augment(crop=4, flip=True)(Pixels(RAW, MEAN, STD), torch.arange(128), generator(seed(0, 17, "augment")))


def test_against_pil():
    """The field's way: PIL images through torchvision.transforms. Ours takes under 3 ms a batch on one core."""
    images, transform = [ToPILImage()(x) for x in RAW], Compose([*MOVED, ToTensor(), NORMALISED])
    ratio = ratios("crop, flip and normalise against torchvision on PIL images",
                   lambda: torch.stack([transform(image) for image in images]), ours, rounds=15)  # fmt: skip
    times = []
    for _ in range(30):
        started = time.perf_counter()
        ours()
        times.append(time.perf_counter() - started)
    print(f"ours: {min(times) * 1e3:.2f} ms a batch (fastest of 30)")
    assert ratio > 3 and min(times) < 3e-3


def test_against_tensors():
    """torchvision.transforms on each tensor by itself."""
    transform = Compose([*MOVED, lambda x: x / 255, NORMALISED])
    ratio = ratios("crop, flip and normalise against torchvision on tensors",
                   lambda: torch.stack([transform(x) for x in RAW]), ours, rounds=15)  # fmt: skip
    assert ratio > 3

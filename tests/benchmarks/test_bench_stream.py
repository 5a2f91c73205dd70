"""Images read from files, 256 of 500 x 375 at 224 x 224: the stream on 1 and 2 threads against one image after another.

pytest -n 0 -s tests/benchmarks/test_bench_stream.py
"""

import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from lth.data import Data
from lth.dataset.imagenet import Imagenet
from tests.benchmarks.measure import ratios

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCHES = 4  # of 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("stream"), np.random.default_rng(0)
    for part, num in (("train", 130), ("val", 1)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(num):
                small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
                small.resize((500, 375), Image.Resampling.BICUBIC).save(root / part / name / f"{i}.JPEG", quality=90)
    return root


@pytest.mark.parametrize("threads", [1, 2])
def test_against_a_loop(folder, threads):
    """The field's transforms on PIL images, one after another, against batches of a stream."""
    torch.set_num_threads(1)
    paths = sorted(folder.glob("train/*/*"))[: 64 * BATCHES]
    transform = Compose([RandomResizedCrop(224), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)])
    data: Data = replace(Imagenet(MEAN, STD), path=str(folder), num_val=1, threads=threads)(folder).normalised("cpu")

    def loop() -> None:
        for i in range(BATCHES):
            images = []
            for path in paths[64 * i : 64 * (i + 1)]:
                with Image.open(path) as image:
                    images.append(transform(image.convert("RGB")))
            torch.stack(images)

    def ours() -> None:
        for _ in islice(data.batches(0, 64), BATCHES):
            pass

    ratio = ratios(f"a stream on {threads} threads against a PIL loop", loop, ours, rounds=5)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        ours()
        times.append(time.perf_counter() - started)
    print(f"ours: {64 * BATCHES / min(times):.0f} images/s (fastest of 3)")
    assert ratio > 0.5

"""Stream: images too many for memory are read from their files where a tensor would be, a few batches ahead.

    training      a random part of the image at size x size pixels, mirrored or not: 0.08 to 1 of its area, width /
                  height from 3/4 to 4/3, log-uniform (torchvision's RandomResizedCrop and its defaults)
    all the rest  shorter side `resize` pixels, the middle size x size

What is drawn for a batch is a function of its generator alone, and what is read of the batches asked for: a training
that goes on at step k opens the files of step k first (design law 1). Decoded by PIL, as `folder` does it.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from lth.parallel import share

AHEAD = 2  # batches read before they are asked for; so AHEAD + 1 are held, at 38 MB for 256 images of 224 x 224
SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # torchvision.transforms.RandomResizedCrop
NUMBERS = 2 * TRIES + 3  # area and ratio of each try, top, left, mirrored


def decode(path: str | Path) -> Any:
    """The image of a file as PIL has it, RGB. Raises ValueError, one line, at what is no image."""
    from torchvision.datasets.folder import pil_loader

    try:
        return pil_loader(str(path))
    except Exception as error:  # on a damaged file PIL raises almost anything
        raise ValueError(f"{path} is no image, or a damaged one ({' '.join(str(error).split())[:80]})") from error


def box(height: int, width: int, numbers: Sequence[float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the part of an image that NUMBERS numbers in [0, 1) choose, as RandomResizedCrop
    does: the first of TRIES that lies within, or else the largest one in the middle of a ratio that is allowed."""
    for first, second in zip(numbers[0 : 2 * TRIES : 2], numbers[1 : 2 * TRIES : 2], strict=True):
        area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * first)
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** second
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            top, left = numbers[2 * TRIES : 2 * TRIES + 2]
            return int(top * (height - high + 1)), int(left * (width - wide + 1)), high, wide
    high, wide = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - high) // 2, (width - wide) // 2, high, wide


@dataclass(frozen=True, eq=False)
class Files:
    """The images of a split on the disk, read as a uint8 tensor [n, 3, size, size] on a device would be.

    names: paths in root, bytes [n], in one array: small to send to a worker. sizes: of the files, int64 [n] bytes.
    mean, std: by channel, of pixels in [0, 1], what the images are normalised by; they are not read for it.
    threads: that decode. Indexed, it is the files of those examples, and nothing is read.
    """

    root: str
    names: np.ndarray
    sizes: np.ndarray
    size: int
    resize: int
    mean: list[float]
    std: list[float]
    threads: int
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), 3, self.size, self.size

    def to(self, device: torch.device | str) -> "Files":
        """The same files, read onto a device."""
        return replace(self, device=device)

    def __getitem__(self, index: slice | Tensor) -> "Files":
        kept = index.cpu().numpy() if isinstance(index, Tensor) else index
        return replace(self, names=self.names[kept], sizes=self.sizes[kept])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        ((_, images),) = self.ahead([(index, None)])
        return images

    def split(self, size: int) -> Iterator[Tensor]:
        return (images for _, images in self.ahead((part, None) for part in torch.arange(len(self)).split(size)))

    def listing(self) -> bytes:
        """What a key knows of them: names and sizes of the files, in order, and how they are read."""
        how = f"{self.size} {self.resize} {self.mean} {self.std} {SCALE} {RATIO} {len(self)}"
        return b"\0".join([how.encode(), *self.names.tolist(), self.sizes.tobytes()])

    def ahead(self, batches: Iterable[tuple[Tensor, Generator | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        """(chosen, their images) of each batch: positions `chosen`, int64 [n], and the generator from which their
        random parts are drawn, or None for the middle; of several ranks, this one's share of it. AHEAD batches are in
        work while one is used; no thread is left when the iterator is closed. Raises ValueError, one line, at a file
        that is no image."""
        # Threads: a training runs in a daemonic process, which may have no children, and PIL leaves Python's lock to
        # the others while it decodes and resizes
        pool = ThreadPoolExecutor(self.threads)

        def submit(batch: tuple[Tensor, Generator | None]) -> tuple[Tensor, Tensor, list[Future]]:
            chosen, rng = batch
            # drawn for the whole batch, whoever takes which part of it
            drawn = share(torch.rand(len(chosen), NUMBERS, generator=rng, dtype=torch.float64)).tolist() if rng else ()
            chosen = share(chosen)
            images = torch.empty(len(chosen), *self.shape[1:], dtype=torch.uint8)
            places = zip(images, chosen.tolist(), drawn or [None] * len(chosen), strict=True)
            return chosen, images, [pool.submit(self._read, *place) for place in places]

        submitted = map(submit, batches)
        try:
            waiting = deque(islice(submitted, AHEAD))
            while waiting:
                chosen, images, read = waiting.popleft()
                for future in read:
                    future.result()
                waiting.extend(islice(submitted, 1))
                yield chosen, images.to(self.device)
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, into: Tensor, position: int, numbers: Sequence[float] | None) -> None:
        from torchvision.transforms.functional import center_crop, hflip, pil_to_tensor, resize, resized_crop

        image = decode(Path(self.root, os.fsdecode(self.names[position])))
        if numbers is None:
            image = center_crop(resize(image, [self.resize]), [self.size])
        else:
            image = resized_crop(image, *box(image.height, image.width, numbers), [self.size, self.size])
            image = hflip(image) if numbers[-1] < 0.5 else image
        into.copy_(pil_to_tensor(image))

"""Data: images and labels in three splits, and the minibatch of a step.

The test split is touched once per trained network (design law 8); every choice uses the validation split. Which
examples go where is fixed by a split seed; the normalisation comes from the training split. Batches are a function of
(order seed, step), never of an iterator's history (design law 1): epoch e visits permutation(order seed, e), the last
incomplete batch of an epoch is dropped. So is augmentation: it is drawn from seed(order seed, step, "augment"), and no
other split ever sees it. Where several ranks train one network, each gets its share of that batch.

On the device a data set is float32 where it is not augmented and takes at most RESIDENT bytes so, else uint8 that is
normalised as it is read: a quarter of the memory, the same bits, and on one thread 1.6% of a step of LeNet-300-100 at
batch 60. Images too many for memory stay in their files, see lth/stream.py.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lth.parallel import share
from lth.seeds import generator, permutation, seed
from lth.stream import Files

RESIDENT = 256 * 2**20  # all of MNIST is 210 MiB as float32, CIFAR-10 703
CHUNK = 256  # images of a stream at a time where nothing is trained: 154 MB at 224 x 224


class Split(NamedTuple):
    """x: uint8 [n, channels, height, width] (or float [n, ...] once normalised); y: int64 [n] in [0, num_classes)."""

    x: Tensor
    y: Tensor

    def __getitem__(self, index):  # type: ignore[override]
        return Split(self.x[index], self.y[index])

    def batches(self, batch_size: int) -> Iterator["Split"]:
        """The examples in order, batch_size at a time; of a stream, whose images are made for it, at most CHUNK."""
        streamed = isinstance(self.x, Stream)
        size = min(batch_size, CHUNK) if streamed else batch_size
        images = self.x.split(size) if streamed else map(share, self.x.split(size))  # a stream reads its share alone
        return starmap(Split, zip(images, map(share, self.y.split(size)), strict=True))


class Pixels:
    """uint8 images that are float32 where they are read: (x - mean) / std by channel. Read as a tensor would be."""

    def __init__(self, raw: Any, mean: Tensor, std: Tensor):
        self.raw, self.mean, self.std, self.shape = raw, mean, std, raw.shape

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean).div_(self.std)  # of what `-` has made anew

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index) -> Tensor:
        return self.normalise(self.raw[index])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        return self.normalise(self.raw.index_select(dim, index))

    def split(self, size: int) -> Iterator[Tensor]:
        return map(self.normalise, self.raw.split(size))


class Stream(Pixels):
    """Images that are read from their Files where they are asked for, and then as Pixels are."""

    def __getitem__(self, index) -> Tensor:
        part = self.raw[index]
        return self.normalise(part.index_select(0, torch.arange(len(part))))


def move(x: Tensor, top: Tensor, left: Tensor, flipped: Tensor, padding: int = 0) -> Tensor:
    """Each image of a batch padded with 0 on all sides, a window of its own size cut out, and that mirrored.

    x: [n, channels, height, width]. top, left: int64 [n] in [0, 2 * padding], the window's corner. flipped: bool [n].
    """
    n, channels, height, width = x.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = pad(x, [padding] * 4)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    # whole rows first, then pixels of these: a sixth of the time of taking each pixel by all its indices
    first = torch.arange(n * channels, device=x.device).view(n, channels, 1) * tall
    kept = padded.view(-1, wide).index_select(0, (first + rows[:, None]).flatten()).view(n, channels, height, wide)
    return kept.gather(3, columns[:, None, None].expand(x.shape))


def cut(x: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """A square of size x size pixels, from size // 2 before (row, column), int64 [n], on, set to 0 in each image."""

    def within(centre: Tensor, length: int) -> Tensor:
        offset = torch.arange(length, device=x.device) - centre[:, None] + size // 2
        return (offset >= 0) & (offset < size)

    square = within(row, x.shape[2])[:, :, None] & within(column, x.shape[3])[:, None]
    return x.masked_fill(square[:, None], 0)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random crop, horizontal flip and cutout of a training batch.

    crop: black pixels of padding on each side, of which a window is cut out (4: Lee et al. 2015,
    https://arxiv.org/abs/1409.5185, and He et al. 2016). flip: mirrored with probability 1/2. cutout: side of a square
    around a random pixel set to 0, which is the mean of the training split once normalised (DeVries & Taylor 2017,
    https://arxiv.org/abs/1708.04552: 16 on CIFAR-10, 8 on CIFAR-100). Deviation: an odd side is as long as it says,
    where the authors' code takes one pixel less.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def on(self, data: "Data") -> "Data":
        """Data whose training batches are augmented so, or as they were where all is off.

        Raises ValueError, one line, where their examples cannot be.
        """
        shape = data.input_shape
        most = min(shape[1:]) if len(shape) == 3 else 0  # what has no height and width is cropped by nothing
        for name in ("crop", "cutout"):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(
                    f"dataset.{name}={getattr(self, name)} must be 0 to {most} pixels, for inputs of shape {shape}"
                )
        if self.flip and most == 0:
            raise ValueError(f"dataset.flip={self.flip} must be false for inputs of shape {shape}, which are no images")
        return data if self == Augment() else dataclasses.replace(data, augment=self)

    def draw(self, num: int, height: int, width: int, rng: torch.Generator) -> Tensor:
        """top, left, flipped, row, column: int64 [5, num]. All are drawn, so that one option does not move another."""
        ends = 2 * self.crop + 1, 2 * self.crop + 1, 2 if self.flip else 1, height, width
        return torch.stack([torch.randint(end, (num,), generator=rng) for end in ends])

    def __call__(self, pixels: Pixels, chosen: Tensor, rng: torch.Generator) -> Tensor:
        """The images of a batch, augmented and normalised: moved as uint8, a quarter of the bytes and of the time."""
        # drawn for the whole batch, whoever takes which part of it
        drawn = self.draw(len(chosen), pixels.shape[2], pixels.shape[3], rng)
        x = pixels.raw.index_select(0, share(chosen))
        top, left, flipped, row, column = (share(numbers) for numbers in drawn.to(x.device))
        x = pixels.normalise(move(x, top, left, flipped.bool(), self.crop) if self.crop or self.flip else x)
        return cut(x, row, column, self.cutout) if self.cutout else x


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Three splits of raw examples, on the CPU as uint8 (or float32), and how batches of the first are augmented; or on
    the disk as Files, whose training batches are cut out at random and mirrored."""

    train: Split
    val: Split
    test: Split
    num_classes: int
    augment: Augment | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one example."""
        return tuple(self.train.x.shape[1:])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every byte of every split: what a key knows of the data.

        Deviation: of Files it is of their names and sizes in bytes and of how they are read, not of their pixels.
        """
        digest = hashlib.sha256(f"{self.num_classes}".encode())
        for tensor in (tensor for split in (self.train, self.val, self.test) for tensor in split):
            if isinstance(tensor, Files):
                digest.update(tensor.listing())
                continue
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)  # no copy of what may be gigabytes
        return digest.hexdigest()

    def normalised(self, device: torch.device | str) -> "Data":
        """The same data resident on a device, each channel (x - mean) / std of the training split, float32.

        Files stay on the disk, and have the mean and std that they say.
        """
        splits: Any = self.train, self.val, self.test
        kind, small, files = Pixels, False, splits[0].x
        if isinstance(files, Files):
            kind = Stream
            mean, std = (
                255 * torch.tensor(numbers).reshape(1, 3, 1, 1).to(device) for numbers in (files.mean, files.std)
            )
        else:
            channels = [torch.std_mean(channel.float(), correction=0) for channel in self.train.x.unbind(1)]
            shape = (1, -1, *[1] * (self.train.x.ndim - 2))
            std, mean = (torch.stack(numbers).reshape(shape).to(device) for numbers in zip(*channels, strict=True))
            std = std.clamp_min(1e-12)
            small = self.augment is None and 4 * sum(part.x.numel() for part in splits) <= RESIDENT

        def ready(part: Split) -> Split:
            pixels: Any = kind(part.x.to(device), mean, std)
            return Split(pixels[:] if small else pixels, part.y.to(device))

        train, val, test = map(ready, splits)
        return Data(train, val, test, self.num_classes, self.augment)

    def batches(self, order_seed: int, batch_size: int, step: int = 0) -> Iterator[Split]:
        """The minibatches of steps `step`, step + 1, ... without end; of normalised data where they are augmented."""
        train: Any = self.train
        steps = self._steps(order_seed, batch_size, step)
        if isinstance(train.x, Stream):
            drawn = ((chosen, generator(seed(order_seed, step, "augment"))) for step, chosen in steps)
            for chosen, images in train.x.raw.ahead(drawn):
                yield Split(train.x.normalise(images), train.y.index_select(0, chosen.to(train.y.device)))
        for step, chosen in steps:
            if self.augment is None:
                x = train.x.index_select(0, share(chosen))
            else:
                x = self.augment(train.x, chosen, generator(seed(order_seed, step, "augment")))
            yield Split(x, train.y.index_select(0, share(chosen)))

    def _steps(self, order_seed: int, batch_size: int, step: int) -> Iterator[tuple[int, Tensor]]:
        """(step, the positions of its examples) from a step on, without end; a stream looks them up on the CPU."""
        place = "cpu" if isinstance(self.train.x, Stream) else self.train.y.device
        per_epoch = len(self.train.y) // batch_size
        while True:
            epoch, first = divmod(step, per_epoch)
            order = permutation(order_seed, epoch, len(self.train.y)).to(place)
            for index in range(first, per_epoch):
                yield epoch * per_epoch + index, order[index * batch_size : (index + 1) * batch_size]
            step = (epoch + 1) * per_epoch


def split(pool: Split, num_val: int, num_test: int, seed: int, num_classes: int, test: Split | None = None) -> Data:
    """Deal `pool` into test (unless the data set brings its own), validation and training split, by a split seed.

    Raises ValueError, one line, when nothing would be left to train on.
    """
    for name, number in (("num_val", num_val), ("num_test", num_test)):
        if not isinstance(number, int):
            raise ValueError(f"dataset.{name}={number} must be a whole number")
    num_total, num_test = len(pool.y), 0 if test is not None else num_test
    if num_val < 1 or (test is None and num_test < 1) or num_val + num_test >= num_total:
        raise ValueError(
            f"dataset.num_val={num_val} and num_test={num_test} must each be at least 1 and leave some of "
            f"{num_total} examples to train on"
        )
    order = torch.randperm(num_total, generator=generator(seed))
    return Data(
        train=pool[order[num_val + num_test :]],
        val=pool[order[num_test : num_test + num_val]],
        test=test if test is not None else pool[order[:num_test]],
        num_classes=num_classes,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set as stages name it: the configured dataset and the digest of what it loads."""

    dataset: object
    digest: str
    num_train: int
    input_shape: tuple[int, ...]
    num_classes: int

"""Data: images and labels in three splits, and the minibatch of a step.

The test split is touched once per trained network (design law 8); every choice uses the validation split. Which
examples go where is fixed by a split seed; the normalisation comes from the training split. Batches are a function of
(order seed, step), never of an iterator's history (design law 1): epoch e visits permutation(order seed, e), the last
incomplete batch of an epoch is dropped.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lth.seeds import generator, permutation


class Split(NamedTuple):
    """x: uint8 [n, channels, height, width] (or float [n, ...] once normalised); y: int64 [n] in [0, num_classes)."""

    x: Tensor
    y: Tensor

    def __getitem__(self, index):  # type: ignore[override]
        return Split(self.x[index], self.y[index])


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Three splits of raw images, on the CPU as uint8."""

    train: Split
    val: Split
    test: Split
    num_classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one example."""
        return tuple(self.train.x.shape[1:])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every byte of every split: what a key knows of the data."""
        digest = hashlib.sha256(f"{self.num_classes}".encode())
        for tensor in (tensor for split in (self.train, self.val, self.test) for tensor in split):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def normalised(self, device: torch.device | str) -> "Data":
        """The same data resident on a device as float32, each channel (x - mean) / std of the training split."""
        channels = [torch.std_mean(channel.float(), correction=0) for channel in self.train.x.unbind(1)]
        shape = (1, -1, *[1] * (self.train.x.ndim - 2))
        std, mean = (torch.stack(numbers).reshape(shape).to(device) for numbers in zip(*channels, strict=True))

        def ready(split: Split) -> Split:
            return Split((split.x.to(device, torch.float32) - mean) / std.clamp_min(1e-12), split.y.to(device))

        return Data(ready(self.train), ready(self.val), ready(self.test), self.num_classes)

    def batches(self, order_seed: int, batch_size: int, step: int = 0) -> Iterator[Split]:
        """The minibatches of steps `step`, step + 1, ... without end."""
        per_epoch = len(self.train.y) // batch_size
        while True:
            epoch, first = divmod(step, per_epoch)
            order = permutation(order_seed, epoch, len(self.train.y)).to(self.train.y.device)
            for index in range(first, per_epoch):
                chosen = order[index * batch_size : (index + 1) * batch_size]
                yield Split(self.train.x.index_select(0, chosen), self.train.y.index_select(0, chosen))
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

"""One replicate number -> named, independent generators.

    seed(base, replicate, names) = first 63 bits of sha256("base/replicate/name/name...")

Every random choice of a replicate (initial weights, data order, random masks, ...) draws from its own name, so that
adding a new one leaves all others as they were. Generators live on the CPU: their numbers are the same on each device.
"""

import hashlib

import torch


def seed(base: int, replicate: int, *names: str | int) -> int:
    """A seed in [0, 2^63) for one named use within one replicate of a study with seed `base`."""
    text = "/".join(str(part) for part in (base, replicate, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int) -> torch.Generator:
    """A generator of its own; the global ones stay untouched."""
    return torch.Generator().manual_seed(seed)


def permutation(order_seed: int, epoch: int, size: int) -> torch.Tensor:
    """The order of the training examples in one epoch, [size] int64: a function of (order seed, epoch) alone."""
    return torch.randperm(size, generator=generator(seed(order_seed, epoch, "order")))

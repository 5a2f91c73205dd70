"""tensors: your own examples from one file, .npz or .safetensors, that holds x and y, and x_test and y_test or not.

x: uint8, or floats, [n, channels, height, width], [n, channels, length] or [n, length]. y: whole numbers [n], the
classes 0, 1, ... each at least once. Nothing in a file is executed: .npz is read without pickle.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lth.data import Augment, Data, Split, split


@dataclass(frozen=True)
class Tensors:
    """path: in data_dir, or absolute; the numbers are in the key, not where they lie. num_val, num_test: examples held
    out of x and y; num_test where there is no x_test. crop, flip, cutout: of training batches."""

    path: str = field(metadata={"key": False})
    num_val: int
    num_test: int
    split_seed: int = 0
    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, data_dir: Path) -> Data:
        path = Path(data_dir, self.path)
        if not path.is_file() or path.suffix not in (".npz", ".safetensors"):
            raise ValueError(f"dataset.path={self.path} is no .npz or .safetensors file in data_dir={data_dir}")
        try:
            if path.suffix == ".npz":
                with path.open("rb") as file, np.load(file) as arrays:
                    named = {name: torch.from_numpy(arrays[name]) for name in arrays}
            else:
                named = load_file(path)
            pool = _split(named["x"], named["y"], None)
            num_classes = len(pool.y.unique())
            test = _split(named["x_test"], named["y_test"], pool) if "x_test" in named else None
        except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
            raise ValueError(f"dataset.path={self.path} cannot be used: {' '.join(str(error).split())}") from error
        data = split(pool, self.num_val, self.num_test, self.split_seed, num_classes, test=test)
        return Augment(self.crop, self.flip, self.cutout).on(data)


def _split(x: Tensor, y: Tensor, like: Split | None) -> Split:
    """x and y as a split whose examples and classes are those of `like`. Raises ValueError."""
    given = f"x is {x.dtype} {list(x.shape)}, y {y.dtype} {list(y.shape)}".replace("torch.", "")
    x = x if x.dtype == torch.uint8 else x.float() if x.is_floating_point() else x.bool()[:0]
    x = x.unsqueeze(1) if x.ndim == 2 else x
    if x.ndim < 3 or not len(x) == len(y) == y.numel() or x.numel() == 0 or not x.isfinite().all():
        raise ValueError(f"x must be uint8 or finite floats [n, ...], y whole numbers [n], n at least 1; {given}")
    kept = like.y.unique() if like else torch.arange(int(y.max()) + 1)
    if y.is_floating_point() or len(kept) < 2 or not torch.equal(y.unique().long(), kept):
        raise ValueError(f"y must hold the classes 0, 1, ..., each of them, at least 2, and y_test the same; "
                         f"there are {y.unique()[:10].tolist()}")  # fmt: skip
    if like and x.shape[1:] != like.x.shape[1:]:
        raise ValueError(f"x_test holds examples of shape {tuple(x.shape[1:])}, x of {tuple(like.x.shape[1:])}")
    return Split(x.contiguous(), y.long())

"""imagenet: ILSVRC 2012 (Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575), or any folder of images too large
for memory, read from its files while it is trained on (see lth/stream.py).

<path>/train/<class>/<image> and <path>/val/<class>/<image>, as torchvision's ImageFolder has them. Labels of its test
part are not public: as is usual, its val part is the test split, and the validation split is of its train part.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lth.data import Data, Split, split
from lth.dataset.folder import check_classes
from lth.stream import Files


@dataclass(frozen=True)
class Imagenet:
    """path: in data_dir, or absolute; names and sizes of the files are in the key, not where they lie. size: of an
    image, in pixels; resize: of its shorter side before the middle is cut out, where it is not trained on. mean, std:
    by channel, of pixels in [0, 1]. num_val: images of train/ held out. threads: that decode, in each worker."""

    mean: list[float]
    std: list[float]
    path: str = field(default="imagenet", metadata={"key": False})
    size: int = 224
    resize: int = 256
    num_val: int = 10000
    split_seed: int = 0
    threads: int = field(default=8, metadata={"key": False})

    def __call__(self, data_dir: Path) -> Data:
        root = Path(data_dir, self.path)
        for part in ("train", "val"):
            if not (root / part).is_dir():
                where = f"dataset.path={self.path} in data_dir={data_dir}"
                raise ValueError(f"{where} has no folder {part}/; put each image there as {part}/<class>/<image>")
        for name, least in (("size", 1), ("resize", self.size), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"dataset.{name}={getattr(self, name)} must be at least {least}")
        for name, above in (("mean", -1), ("std", 0)):
            if len(numbers := getattr(self, name)) != 3 or not all(above < number <= 1 for number in numbers):
                raise ValueError(f"dataset.{name}={numbers} must be 3 numbers, of red, green and blue, in units of 255")
        found = {root / part: _list(root, part) for part in ("train", "val")}
        check_classes(found)
        pool, test = (self._split(root, named) for named in found.values())
        return split(pool, self.num_val, 0, self.split_seed, len(found[root / "train"]), test=test)

    def _split(self, root: Path, named: dict[str, list[tuple[bytes, int]]]) -> Split:
        names, sizes = zip(*(file for files in named.values() for file in files), strict=True)
        how = self.size, self.resize, self.mean, self.std, self.threads
        x = Files(str(root), np.array(names), np.array(sizes), *how)
        y = torch.arange(len(named)).repeat_interleave(torch.tensor([*map(len, named.values())]))
        return Split(x, y)  # type: ignore[arg-type]


def _list(root: Path, part: str) -> dict[str, list[tuple[bytes, int]]]:
    """(path in root, bytes) of the files of each class, classes and files sorted by name, hidden ones left out."""
    found = {}  # by os.scandir: a sixth of the time of pathlib for the 1.3 million files
    for name in sorted(path.name for path in (root / part).glob("[!.]*") if path.is_dir()):
        with os.scandir(root / part / name) as files:
            plain = [file for file in files if not file.name.startswith(".") and file.is_file()]
            found[name] = sorted((os.fsencode(f"{part}/{name}/{file.name}"), file.stat().st_size) for file in plain)
    return found

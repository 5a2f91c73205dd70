"""folder: your own images, a subfolder a class, as torchvision's ImageFolder has them.

<path>/train/<class>/<image> with test/ and val/ beside train/, or with one of them, which is the test split; or
<path>/<class>/<image>. What is not there is dealt from the rest. Each image becomes RGB, its shorter side `size`
pixels, its middle kept.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lth.data import Augment, Data, Split, split


@dataclass(frozen=True)
class Folder:
    """path: in data_dir, or absolute; the pixels are in the key, not where they lie. size: of an image, in pixels.
    num_val, num_test: examples held out where there is no val/ or test/. crop, flip, cutout: of training batches."""

    path: str = field(metadata={"key": False})
    size: int
    num_val: int
    num_test: int
    split_seed: int = 0
    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, data_dir: Path) -> Data:
        root = Path(data_dir, self.path)
        if not root.is_dir():
            raise ValueError(f"dataset.path={self.path} is no folder in data_dir={data_dir}")
        if self.size < 1:
            raise ValueError(f"dataset.size={self.size} must be at least 1 pixel")
        places = [
            root / name for name in ("train", "test", "val") if (root / "train").is_dir() and (root / name).is_dir()
        ]
        listed = [classes(place) for place in places or [root]]
        for place, named in zip(places, listed, strict=False):
            if odd := sorted(named.keys() ^ listed[0].keys()):
                raise ValueError(f"{places[0]} and {place} must hold the same classes; {odd[0]} is in one of them only")
        pool, *own = [read(named, self.size) for named in listed]
        if len(own) == 2:
            data = Data(pool, own[1], own[0], len(listed[0]))
        else:
            data = split(pool, self.num_val, self.num_test, self.split_seed, len(listed[0]), *own)
        return Augment(self.crop, self.flip, self.cutout).on(data)


def classes(place: Path) -> dict[str, list[Path]]:
    """The files of each class, classes and files sorted by name, hidden ones left out. Raises ValueError for none."""
    folders = sorted(path for path in place.glob("[!.]*") if path.is_dir())
    found = {folder.name: sorted(path for path in folder.rglob("[!.]*") if path.is_file()) for folder in folders}
    if len(found) < 2 or not all(found.values()):
        counts = ", ".join(f"{name}: {len(paths)}" for name, paths in list(found.items())[:5]) or "none"
        raise ValueError(f"{place} must hold a folder of images for each of at least 2 classes; there are {counts}")
    return found


def read(named: dict[str, list[Path]], size: int) -> Split:
    """The images of each class as a split, classes numbered in their order. Raises ValueError at what is no image."""
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    def pixels(path: Path) -> Tensor:
        try:
            image: Any = pil_loader(str(path))
        except Exception as error:  # on a damaged file PIL raises almost anything
            raise ValueError(f"{path} is no image, or a damaged one ({' '.join(str(error).split())})") from error
        return pil_to_tensor(center_crop(resize(image, [size]), [size, size]))

    y = torch.tensor([label for label, paths in enumerate(named.values()) for _ in paths])
    with ThreadPoolExecutor() as pool:  # a decoder leaves Python's lock to the others
        return Split(torch.stack(list(pool.map(pixels, [path for paths in named.values() for path in paths]))), y)

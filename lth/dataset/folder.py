"""folder: your own images, a subfolder a class, as torchvision's ImageFolder has them.

<path>/train/<class>/<image> with test/ and val/ beside train/, or with one of them, which is the test split; or
<path>/<class>/<image>. What is not there is dealt from the rest. Each image becomes RGB, its shorter side `size`
pixels, its middle kept.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lth.data import Augment, Data, Split, split
from lth.stream import decode


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
        check_classes(dict(zip(places, listed, strict=False)))
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
    check_classes({place: found})
    return found


def check_classes(found: Mapping[Path, Mapping[str, list]]) -> None:
    """Raises ValueError, one line, unless each place has at least 2 classes, each with files, and all have the same."""
    for place, named in found.items():
        if len(named) < 2 or not all(named.values()):
            counts = ", ".join(f"{name}: {len(files)}" for name, files in list(named.items())[:5]) or "none"
            raise ValueError(f"{place} must hold a folder of images for each of at least 2 classes; there are {counts}")
        first = next(iter(found))
        if odd := sorted(named.keys() ^ found[first].keys()):
            raise ValueError(f"{first} and {place} must hold the same classes; {odd[0]} is in one of them only")


def read(named: dict[str, list[Path]], size: int) -> Split:
    """The images of each class as a split, classes numbered in their order. Raises ValueError at what is no image."""
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    def pixels(path: Path) -> Tensor:
        return pil_to_tensor(center_crop(resize(decode(path), [size]), [size, size]))

    y = torch.tensor([label for label, paths in enumerate(named.values()) for _ in paths])
    with ThreadPoolExecutor() as pool:  # a decoder leaves Python's lock to the others
        return Split(torch.stack(list(pool.map(pixels, [path for paths in named.values() for path in paths]))), y)

"""tiny_imagenet: 200 classes of ImageNet at 64 x 64 (Le & Yang 2015, http://cs231n.stanford.edu/tiny-imagenet-200.zip),
100,000 + 10,000, from the folders of that archive; nothing is downloaded, since nobody publishes a sum of it.

Its test part has no labels: as is usual, its val part is the test split, the validation split is of its training part.
"""

from dataclasses import dataclass
from pathlib import Path

from lth.data import Augment, Data, split
from lth.dataset.folder import classes, read


@dataclass(frozen=True)
class TinyImagenet:
    """num_val: examples of the training part held out for validation. crop, flip, cutout: of training batches."""

    num_val: int = 10000
    split_seed: int = 0
    crop: int = 4
    flip: bool = True
    cutout: int = 0

    def __call__(self, data_dir: Path) -> Data:
        root = Path(data_dir, "tiny-imagenet-200")
        if not root.is_dir():
            raise ValueError(f"{root.name} is no folder in data_dir={data_dir}; unpack {root.name}.zip there")
        named = {
            name: [path for path in paths if path.suffix == ".JPEG"] for name, paths in classes(root / "train").items()
        }
        test: dict[str, list[Path]] = {name: [] for name in named}
        try:
            for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
                image, name = line.split("\t")[:2]
                test[name].append(root / "val" / "images" / image)
        except (OSError, ValueError, LookupError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{root}/val/val_annotations.txt is not as {root.name}.zip has it ({said})") from error
        data = split(read(named, 64), self.num_val, 0, self.split_seed, len(named), test=read(test, 64))
        return Augment(self.crop, self.flip, self.cutout).on(data)

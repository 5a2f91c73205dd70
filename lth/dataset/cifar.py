"""cifar10, cifar100: 50,000 + 10,000 photographs of 3 x 32 x 32 in 10 or 100 classes (Krizhevsky 2009,
https://www.cs.toronto.edu/~kriz/cifar.html), downloaded by torchvision on first use.

The test split is CIFAR's own; the validation split is taken from its training part.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lth.data import Augment, Data, Split, split
from lth.dataset.download import Archive, parts

SHA256 = {  # of the archive, by num_classes
    # github.com/keras-team/keras at 7e4b17c5, keras/src/datasets/cifar10.py, for the URL that torchvision has, too; and
    # github.com/pytorch/vision at 0b02d420, torchvision/prototype/datasets/_builtin/cifar.py
    10: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    # keras at 69b9ad08, keras/src/datasets/cifar100.py; and torchvision as above
    100: "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}


@dataclass(frozen=True)
class Cifar:
    """num_classes: 10 or 100. num_val: examples of the training part held out for validation. crop, flip, cutout: how
    training batches are augmented."""

    num_classes: int = 10
    num_val: int = 5000
    split_seed: int = 0
    crop: int = 4
    flip: bool = True
    cutout: int = 0

    def __call__(self, data_dir: Path) -> Data:
        import torchvision.datasets

        if self.num_classes not in (10, 100):
            raise ValueError(f"dataset.num_classes={self.num_classes} must be 10 or 100, as CIFAR has them")
        name, root = f"CIFAR{self.num_classes}", Path(data_dir)
        kind = getattr(torchvision.datasets, name)
        names = [file for file, _ in (*kind.train_list, *kind.test_list)]
        files = [root / kind.base_folder / file for file in (*names, kind.meta["filename"])]
        archive = Archive(root / kind.filename, [kind.url], kind.tgz_md5, SHA256[self.num_classes], files)
        found = parts(name, root, [archive], lambda train: kind(root, train))
        pool, test = (
            Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
            for part in found
        )
        data = split(pool, self.num_val, 0, self.split_seed, self.num_classes, test=test)
        return Augment(self.crop, self.flip, self.cutout).on(data)

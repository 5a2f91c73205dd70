"""svhn: house numbers in street photographs, one digit an image of 3 x 32 x 32 (Netzer et al. 2011,
http://ufldl.stanford.edu/housenumbers), 73,257 + 26,032, downloaded by torchvision on first use.

The test split is SVHN's own; the validation split is taken from its training part. Its 531,131 extra images are not
used.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lth.data import Augment, Data, Split, split
from lth.dataset.download import Archive, parts

# github.com/tensorflow/datasets at 333639b3, tensorflow_datasets/url_checksums/svhn_cropped.txt, for torchvision's
# URLs; the same sums in github.com/pytorch/vision at 05caddc3, torchvision/prototype/datasets/_builtin/svhn.py
SHA256 = {
    "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


@dataclass(frozen=True)
class Svhn:
    """num_val: examples of the training part held out for validation. crop, flip, cutout: how training batches are
    augmented; a mirrored digit is another one."""

    num_val: int = 5000
    split_seed: int = 0
    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, data_dir: Path) -> Data:
        from torchvision.datasets import SVHN

        root, which = Path(data_dir) / "SVHN", {True: "train", False: "test"}
        archives = [
            Archive(root / name, [url], md5, SHA256[name], [root / name])
            for url, name, md5 in (SVHN.split_list[part] for part in which.values())
        ]
        found = parts("SVHN", Path(data_dir), archives, lambda train: SVHN(root, which[train]))
        pool, test = (Split(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels)) for part in found)
        data = split(pool, self.num_val, 0, self.split_seed, num_classes=10, test=test)
        return Augment(self.crop, self.flip, self.cutout).on(data)

"""svhn: house numbers in street photographs, one digit an image of 3 x 32 x 32 (Netzer et al. 2011,
http://ufldl.stanford.edu/housenumbers), 73,257 + 26,032, downloaded by torchvision on first use.

The test split is SVHN's own; the validation split is taken from its training part. Its 531,131 extra images are not
used.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lth.data import Augment, Data, Split, split
from lth.dataset.download import parts


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
        urls, names, _ = zip(*(SVHN.split_list[part] for part in which.values()), strict=True)
        found = parts("SVHN", Path(data_dir), [root / name for name in names], list(urls), [],
                      lambda train, download: SVHN(root, which[train], download=download))  # fmt: skip
        pool, test = (Split(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels)) for part in found)
        data = split(pool, self.num_val, 0, self.split_seed, num_classes=10, test=test)
        return Augment(self.crop, self.flip, self.cutout).on(data)

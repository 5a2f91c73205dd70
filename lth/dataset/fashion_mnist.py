"""fashion_mnist: Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747), 60,000 + 10,000 images of 28 x 28,
downloaded by torchvision on first use. Test split its own, validation split taken from its training part."""

from dataclasses import dataclass
from pathlib import Path

from lth.data import Data
from lth.dataset.mnist import idx


@dataclass(frozen=True)
class FashionMnist:
    """num_val: examples of the training part held out for validation."""

    num_val: int = 5000
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        return idx("FashionMNIST", Path(data_dir), self.num_val, self.split_seed)

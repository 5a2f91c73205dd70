"""fashion_mnist: Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747), 60,000 + 10,000 images of 28 x 28,
downloaded by torchvision on first use. Test split its own, validation split taken from its training part."""

from dataclasses import dataclass
from pathlib import Path

from lth.data import Data
from lth.dataset.mnist import idx

# github.com/tensorflow/datasets at 333639b3, tensorflow_datasets/url_checksums/fashion_mnist.txt, for torchvision's
# mirror; the same sums in github.com/keras-team/keras at 75565fb8, keras/src/datasets/fashion_mnist.py
SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


@dataclass(frozen=True)
class FashionMnist:
    """num_val: examples of the training part held out for validation."""

    num_val: int = 5000
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        return idx("FashionMNIST", SHA256, Path(data_dir), self.num_val, self.split_seed)

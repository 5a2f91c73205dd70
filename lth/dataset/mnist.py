"""mnist: all of MNIST (LeCun et al. 1998), 60,000 + 10,000 digits of 28 x 28, downloaded by torchvision on first use.

The test split is MNIST's own; the validation split is taken from its training part.
"""

from dataclasses import dataclass
from pathlib import Path

from lth.data import Data, Split, split
from lth.dataset.download import Archive, parts

# github.com/pytorch/vision at 01c11a05, torchvision/prototype/datasets/_builtin/mnist.py, for torchvision's mirrors;
# the same sums in github.com/tensorflow/datasets at 31f1255e, tensorflow_datasets/url_checksums/mnist.txt
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


@dataclass(frozen=True)
class Mnist:
    """num_val: examples of the training part held out for validation (Frankle & Carbin 2019 hold out 5,000)."""

    num_val: int = 5000
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        return idx("MNIST", SHA256, Path(data_dir), self.num_val, self.split_seed)


def idx(name: str, sums: dict[str, str], data_dir: Path, num_val: int, split_seed: int) -> Data:
    """A data set in MNIST's file format by its torchvision name. sums: SHA-256 of its archives."""
    import torchvision.datasets

    kind, raw = getattr(torchvision.datasets, name), data_dir / name / "raw"
    archives = [
        Archive(raw / file, [mirror + file for mirror in kind.mirrors], md5, sums[file], [(raw / file).with_suffix("")])
        for file, md5 in kind.resources
    ]
    found = parts(name, data_dir, archives, lambda train: kind(data_dir, train))
    pool, test = (Split(part.data.unsqueeze(1), part.targets.long()) for part in found)
    return split(pool, num_val, 0, split_seed, len(found[0].classes), test=test)

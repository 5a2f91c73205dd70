"""mnist: all of MNIST (LeCun et al. 1998), 60,000 + 10,000 digits of 28 x 28, downloaded by torchvision on first use.

The test split is MNIST's own; the validation split is taken from its training part.
"""

from dataclasses import dataclass
from pathlib import Path

from lth.data import Data, Split, split
from lth.dataset.download import parts


@dataclass(frozen=True)
class Mnist:
    """num_val: examples of the training part held out for validation (Frankle & Carbin 2019 hold out 5,000)."""

    num_val: int = 5000
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        return idx("MNIST", Path(data_dir), self.num_val, self.split_seed)


def idx(name: str, data_dir: Path, num_val: int, split_seed: int) -> Data:
    """A data set in MNIST's file format by its torchvision name."""
    import torchvision.datasets

    kind, raw = getattr(torchvision.datasets, name), data_dir / name / "raw"
    archives = [raw / archive for archive, _ in kind.resources]
    files = [path.with_suffix("") for path in archives]
    found = parts(
        name, data_dir, files, kind.mirrors, archives, lambda *which: kind(data_dir, which[0], download=which[1])
    )
    pool, test = (Split(part.data.unsqueeze(1), part.targets.long()) for part in found)
    return split(pool, num_val, 0, split_seed, len(found[0].classes), test=test)

"""mnist: all of MNIST (LeCun et al. 1998), 60,000 + 10,000 digits of 28 x 28, downloaded by torchvision on first use.

The test split is MNIST's own; the validation split is taken from its training part.
"""

import contextlib
import queue
import socket
import threading
import time
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from lth.data import Data, Split, split


@dataclass(frozen=True)
class Mnist:
    """num_val: examples of the training part held out for validation (Frankle & Carbin 2019 hold out 5,000)."""

    num_val: int = 5000
    split_seed: int = 0

    def __call__(self, data_dir: Path) -> Data:
        return idx("MNIST", Path(data_dir), self.num_val, self.split_seed)


def idx(name: str, data_dir: Path, num_val: int, split_seed: int) -> Data:
    """A data set in MNIST's file format by its torchvision name, from `data_dir`, downloaded there if it is not.

    Raises ValueError, one line, where it is neither there nor to be had.
    """
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name)
    raw = data_dir / name / "raw"
    wanted = [raw / Path(archive).stem for archive, _ in kind.resources]
    if not all(path.is_file() for path in wanted):
        if not reachable(kind.mirrors):
            raise ValueError(f"{name} is not in data_dir={data_dir} and its mirrors cannot be reached; "
                             f"put {wanted[0].name} and its three fellows into {raw}")  # fmt: skip
        made = [folder for folder in (raw, *raw.parents) if not folder.exists()]
        try:
            kind(data_dir, download=True)
        except (OSError, RuntimeError, EOFError, HTTPException, zlib.error) as error:
            for archive, _ in kind.resources:
                (raw / archive).unlink(missing_ok=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # leaves what is not empty
            reason = " ".join(str(error).split())
            raise ValueError(f"{name} cannot be downloaded to data_dir={data_dir}: {reason}") from error
    try:
        parts = [kind(data_dir, train=train) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise ValueError(f"{name} in {raw} is damaged ({' '.join(str(error).split())}); delete it there") from error
    pool, test = (Split(part.data.unsqueeze(1), part.targets.long()) for part in parts)
    return split(pool, num_val, 0, split_seed, len(kind.classes), test=test)


def reachable(urls: list[str], seconds: float = 2.0) -> bool:
    """True if one of the hosts takes a connection, or a proxy stands between and nobody can say."""
    if urllib.request.getproxies():
        return True
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def connect(url: str) -> None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with socket.create_connection((parts.hostname or "", port), timeout=seconds):
                answers.put(True)
        except OSError:
            answers.put(False)

    for url in urls:  # daemons: a name server that never answers must not hold us up
        threading.Thread(target=connect, args=(url,), daemon=True).start()
    deadline = time.monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0.0, deadline - time.monotonic())) for _ in urls)
    return False

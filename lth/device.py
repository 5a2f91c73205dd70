"""Device: where to compute, in what numbers, and with how many workers. Its class (cpu, cuda, mps) and its numerics are
in a key, the rest is not."""

import os
from dataclasses import dataclass

import torch

from lth.engine import NAMES
from lth.machine import num_cores
from lth.numerics import KINDS
from lth.parallel import local_rank, num_ranks


@dataclass(frozen=True)
class Device:
    """kind: auto (cuda, then mps, then cpu), cpu, cuda or mps. index: the one GPU to use; None: all that are visible,
    worker i on the i-th, and the first for what this process does itself.

    workers: processes that train side by side, each with one intra-op thread, so that results do not depend on their
    number; auto: one a core on a CPU, one on each GPU; 0: none, everything in this process, for debuggers.
    numerics: of training and of its evaluation: fast, reference, bf16, or on a GPU tf32 and fp16 (lth/numerics.py).
    engine: how steps are computed: sequential, lockstep, graph or sparse (lth/engine); auto: what a measurement found
    fastest here, for plans that take long enough. Results are equal within the rounding of float32, so not told apart.
    Under torchrun a rank has no workers, and the GPU of its number.
    """

    kind: str = "auto"
    index: int | None = None
    workers: int | str = "auto"
    numerics: str = "fast"
    engine: str = "auto"

    def __post_init__(self) -> None:
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if self.kind != "auto" and self.kind not in available:
            raise ValueError(f"device.kind={self.kind} is not one of: auto, cpu, cuda, mps")
        if not available.get(self.kind, True):
            raise ValueError(f"device={self.kind} is not available here; use device=auto or device=cpu")
        if self.workers != "auto" and (not isinstance(self.workers, int) or self.workers < 0):
            raise ValueError(f"device.workers={self.workers} must be auto or a whole number of at least 0")
        if self.kind == "auto":
            found = "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
            object.__setattr__(self, "kind", found)
        if self.numerics not in KINDS:
            raise ValueError(f"device.numerics={self.numerics} is not one of: {', '.join(KINDS)}")
        if self.numerics in ("tf32", "fp16") and self.kind != "cuda":
            other = "fast" if self.numerics == "tf32" else "bf16"
            raise ValueError(f"device.numerics={self.numerics} is for device=cuda, this is {self.kind}; use {other}")
        if self.engine not in NAMES:
            raise ValueError(f"device.engine={self.engine} is not one of: {', '.join(NAMES)}")
        num_gpus = torch.cuda.device_count() if self.kind == "cuda" else 1
        if self.kind == "cuda" and self.index is not None and not 0 <= self.index < num_gpus:
            raise ValueError(f"device.index={self.index} must be 0 to {num_gpus - 1}, or null for all GPUs")
        if self.workers == "auto":
            several = num_gpus if self.index is None else 1
            object.__setattr__(self, "workers", num_cores() if self.kind == "cpu" else several)

        if num_ranks() > 1:
            here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
            if self.kind == "mps":
                raise ValueError("device=mps trains in one process; run it without torchrun, or with device=cpu")
            if self.kind == "cuda" and here > gpus:
                raise ValueError(f"device=cuda: {here} ranks on {gpus} GPUs here; take --nproc_per_node={gpus}")
            object.__setattr__(self, "index", local_rank())
            object.__setattr__(self, "workers", 0)

    @property
    def name(self) -> str:
        """As torch names it, to which cuda is the first."""
        return self.kind if self.kind != "cuda" or self.index is None else f"cuda:{self.index}"


def of_worker(number: int, name: str) -> str:
    """The device of a worker: where all GPUs are asked for, the one of its number, and so on around."""
    return f"cuda:{number % torch.cuda.device_count()}" if name == "cuda" else name

"""What all benchmarks share: interleaved rounds, ratios pair by pair, a loss check, and the machine it ran on."""

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lth.device import num_cores

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options:
    """rounds: of a comparison. scale: multiplies steps, levels and replicates, to try a row out; 1 is the row itself.
    data_dir: where FashionMNIST/raw lies; None: mnist_5k. open_lth: a checkout of it; None: a loop in its style."""

    rounds: int = 7
    scale: float = 1.0
    data_dir: Path | None = None
    open_lth: Path | None = None

    def scaled(self, number: int, least: int = 1) -> int:
        return max(least, round(number * self.scale))


class Ratio(NamedTuple):
    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"x{self.median:.2f} ({self.low:.2f} to {self.high:.2f}, n={self.n})"


class Losses(NamedTuple):
    """Mean cross-entropy of both networks on the test split after as many steps, in nats."""

    baseline: float
    ours: float
    tolerance: float  # of ours, relative to the baseline's

    @property
    def differ(self) -> bool:
        """A fast step is worth nothing where it learns something else; nothing is near a loss that is not finite."""
        return not abs(self.ours - self.baseline) <= self.tolerance * abs(self.baseline)


@dataclass(frozen=True)
class Line:
    """A row of the table, or one of several of the same row. baseline, ours: medians, in `unit`."""

    row: str
    work: str
    against: str = ""
    target: str = ""
    unit: str = ""
    baseline: float | None = None
    ours: float | None = None
    ratio: Ratio | None = None
    losses: Losses | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.losses is not None and self.losses.differ


def pairwise(baseline: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Of baseline / ours, round by round: what slows a machine for a while slows both sides of a pair."""
    found = [a / b for a, b in zip(baseline, ours, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found), len(found))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(
    baseline: Callable[[], object], ours: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of both in each round, after one to warm up."""
    baseline(), ours()
    pairs = [(timed(baseline), timed(ours)) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def ratios(name: str, baseline: Callable[[], object], ours: Callable[[], object], rounds: int = 7) -> float:
    """Median of baseline time / our time over interleaved rounds; prints it with its range."""
    ratio = pairwise(*interleaved(baseline, ours, rounds))
    print(f"\n{name}: {ratio}, {torch.get_num_threads()} thread, torch {torch.__version__}")
    return ratio.median


def per_second(amount: float, seconds: Sequence[float]) -> float:
    return amount / statistics.median(seconds)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable) -> float:
    """Mean cross-entropy over batches, batch norm by the batch: after a few steps its running means say little."""
    model.train()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for x, y in batches:
        total += cross_entropy(model(x.to(device)), y.to(device), reduction="sum").item()
        count += len(y)
    return total / count


# The machine


def machine() -> dict:
    """What a number was measured on, and when."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": num_cores(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "commit": found.stdout.strip() or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def load_average() -> float:
    """Processes that ran or waited in the last minute, on average."""
    return os.getloadavg()[0]


SHAPES = (128, 784, 300), (1024, 1024, 1024)  # the largest product of LeNet-300-100 at batch 128; what a core can do


def gemm_probe(seconds: float = 0.2) -> dict[str, dict[str, float]]:
    """10^9 floating-point operations per second of x @ w.T by shape and number format, here and now."""
    found: dict[str, dict[str, float]] = {}
    for m, k, n in SHAPES:
        rates = found[f"{m}x{k}x{n}"] = {}
        for kind in (torch.float32, torch.bfloat16):
            x, w = torch.rand(m, k).to(kind), torch.rand(n, k).to(kind)
            x @ w.T  # warm up
            calls, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                x @ w.T
                calls += 1
            rates[str(kind)[6:]] = 2e-9 * m * k * n * calls / (time.perf_counter() - started)
    return found


# The table


def table(lines: Sequence[Line]) -> str:
    """Fixed-width text, a line each."""
    head = ("row", "work", "against", "theirs", "ours", "ratio", "target", "loss, theirs / ours", "")
    cells = [head]
    for line in lines:
        loss = ""
        if line.losses:
            loss = f"{line.losses.baseline:.3f} / {line.losses.ours:.3f}"
        note = "FAILED: the losses differ" if line.failed else line.note
        numbers = (_number(line.baseline, line.unit), _number(line.ours, line.unit), str(line.ratio or ""))
        cells.append((line.row, line.work, line.against, *numbers, line.target, loss, note))
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _number(number: float | None, unit: str) -> str:
    if number is None:
        return ""
    digits = 0 if not math.isfinite(number) or number >= 100 else 2
    return f"{number:,.{digits}f} {unit}"

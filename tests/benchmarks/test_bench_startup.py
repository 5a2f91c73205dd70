"""What a command costs that trains nothing, beside `import torch` alone: --help, and a sweep served from the store.

pytest -n 0 -s tests/benchmarks/test_bench_startup.py

Ratios of whole processes, interleaved: processor seconds, which a neighbour's work hardly moves, and seconds beside
them. Each is held to what it was when it was last made less, with 25% slack.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import main

MAIN = str(Path(main.__file__).absolute())
TORCH = ["-c", "import torch"]
SWEEP = [
    *("-m", "prune.sparsity=0.5,0.8,0.9", "recipe.steps=20", "model=mlp", "model.hidden=[20]", "device=cpu"),
    "wandb=disabled",
]
ROUNDS = 5
HELP, SERVED = 0.48, 2.73  # median ratios on two CPU cores with other work, torch 2.14.1


def spent(words: list[str], cwd: Path) -> tuple[float, float]:
    """(processor seconds, seconds) of `python WORDS`, a process of its own."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    known = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    subprocess.run([sys.executable, *words], cwd=cwd, env=known, check=True, capture_output=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def ratio(name: str, words: list[str], cwd: Path) -> float:
    """Median over interleaved rounds of processor seconds of a command / those of `import torch`; prints it."""
    rounds = [(spent(words, cwd), spent(TORCH, cwd)) for _ in range(ROUNDS)]
    found = [ours[0] / torch[0] for ours, torch in rounds]
    beyond = statistics.median(ours[1] - torch[1] for ours, torch in rounds)
    median = statistics.median(found)
    print(f"\n{name}: x{median:.2f} of import torch (min {min(found):.2f}, max {max(found):.2f}, n={ROUNDS}); "
          f"{beyond:+.2f} s beside its {statistics.median(torch[1] for _, torch in rounds):.2f} s")  # fmt: skip
    return median


def test_help(tmp_path):
    """It need not load torch."""
    assert ratio("--help", [MAIN, "--help"], tmp_path) < 1.25 * HELP


def test_served_sweep(tmp_path):
    """Three cells, three replicates, 120 trainings, all stored: composed, planned, read, drawn and told."""
    spent([MAIN, *SWEEP], tmp_path)
    assert ratio("served sweep", [MAIN, *SWEEP], tmp_path) < 1.25 * SERVED

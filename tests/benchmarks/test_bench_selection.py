"""Selection over 25 million scores on one thread: time, as a ratio against what threshold pruning takes and against
torch.topk, and peak memory beyond the scores.

pytest -n 0 -s tests/benchmarks/test_bench_selection.py
"""

import time
import tracemalloc

import pytest
import torch

from lth.mask import Mask, top_k
from lth.pattern.unstructured import Unstructured
from tests.benchmarks.measure import ratios

SIZE = 25_000_000


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_selection(density):
    """The exact mask takes at most twice the time of the threshold mask it replaces, and at most one second."""
    scores, kept = torch.rand(SIZE, generator=torch.Generator().manual_seed(0)), torch.ones(SIZE, dtype=torch.bool)
    k = round(density * SIZE)

    def threshold() -> torch.Tensor:
        return scores >= scores.kthvalue(SIZE - k + 1).values

    def sorting() -> torch.Tensor:
        return torch.zeros(SIZE, dtype=torch.bool).index_fill_(0, scores.topk(k, sorted=False).indices, True)

    assert ratios(f"top_k against a kthvalue threshold, {density}", threshold, lambda: top_k(scores, kept, k), 5) > 0.5
    ratios(f"top_k against torch.topk, {density}", sorting, lambda: top_k(scores, kept, k), 5)
    started = time.perf_counter()
    assert int(top_k(scores, kept, k).sum()) == k
    seconds = time.perf_counter() - started
    print(f"top_k, {SIZE:,} scores: {seconds:.2f} s")
    assert seconds < 1.0


@pytest.mark.parametrize("tied", [False, True])
def test_memory(tied):
    """numpy's share of the peak beyond scores and mask, which holds all of top_k but its result: under 3 times the
    scores, ties or not; and of a global pattern with torch's beside it, by the process's own high-water mark."""
    scores = torch.zeros(SIZE) if tied else torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    kept = torch.ones(SIZE, dtype=torch.bool)
    tracemalloc.start()
    top_k(scores, kept, SIZE // 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\ntop_k, tied={tied}: {peak / scores.nbytes:.2f} times the scores")
    assert peak < 3 * scores.nbytes


def test_global_pattern():
    """A network of 25 million weights in 50 layers, dense to 90%: the whole pattern, masks copied in and out."""
    scores = {f"{i}.weight": torch.rand(500, 1000) for i in range(50)}
    mask = Mask({name: torch.ones_like(score) for name, score in scores.items()})
    times = []
    for _ in range(3):
        started = time.perf_counter()
        Unstructured("global")(scores, mask, 0.9, torch.nn.Sequential())
        times.append(time.perf_counter() - started)
    print(f"\nunstructured, global, 25,000,000 weights: {min(times):.2f} s")

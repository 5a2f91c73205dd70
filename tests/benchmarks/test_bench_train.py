"""Short benchmarks, as ratios against a baseline interleaved in the same run; each prints what it measured.

pytest -n 0 -s tests/benchmarks
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lth.data import Data
from lth.dataset.mnist_5k import Mnist5k
from lth.mask import Mask
from lth.model.mlp import Mlp
from lth.recipe import Recipe
from lth.state import TrainState
from lth.train import train

STEPS = 100


def ratios(name: str, baseline: Callable[[], object], ours: Callable[[], object], rounds: int = 7) -> float:
    """Median of baseline time / our time over interleaved rounds; prints it with its range."""
    baseline(), ours()  # warm up
    found = []
    for _ in range(rounds):
        times = []
        for work in (baseline, ours):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        found.append(times[0] / times[1])
    median = statistics.median(found)
    print(f"\n{name}: x{median:.2f} (min {min(found):.2f}, max {max(found):.2f}, n={rounds}, "
          f"{torch.get_num_threads()} thread, torch {torch.__version__})")  # fmt: skip
    return median


def setting() -> tuple[Data, torch.nn.Module, TrainState, Recipe, Mask]:
    data = Mnist5k()(None).normalised("cpu")  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = Mlp([300, 100])((1, 28, 28), 10)
    recipe = Recipe("Adam", 1.2e-3, 60, STEPS, STEPS).on(len(data.train.y))
    mask = Mask({name: torch.rand(kept.shape) < 0.2 for name, kept in Mask.dense(model).items()})
    return data, model, TrainState.of(model), recipe, mask


def ours(
    data: Data, model: torch.nn.Module, start: TrainState, recipe: Recipe, mask: Mask | None
) -> Callable[[], None]:
    def work() -> None:
        for _ in train(model, start, mask, recipe, data, 0, STEPS):
            pass

    return work


def test_masked_step_against_dense_step():
    """A masked step costs little more than a dense one (target: at most 2%; 25% slack in this short form)."""
    data, model, start, recipe, mask = setting()
    ratio = ratios("masked step against dense step", ours(data, model, start, recipe, None),
                   ours(data, model, start, recipe, mask))  # fmt: skip
    assert ratio > 1 / 1.27


def test_resident_loop_against_peer_style_loop():
    """Our loop against a peer-style one written for the purpose: DataLoader, weight * mask after each step."""
    data, model, start, recipe, mask = setting()

    def peer() -> None:
        loader = DataLoader(TensorDataset(*data.train), batch_size=60, shuffle=True, drop_last=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
        masks = dict(mask)
        step = 0
        while step < STEPS:
            for x, y in loader:
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
                for name, parameter in model.named_parameters():
                    if name in masks:
                        parameter.data *= masks[name]
                step += 1
                if step == STEPS:
                    break

    assert ratios("resident loop against DataLoader loop", peer, ours(data, model, start, recipe, mask)) > 1.0

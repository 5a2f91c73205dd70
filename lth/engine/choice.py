"""Which engine trains the runs of one shape: the fastest, as measured here, once for a store and a machine.

Against `sequential` a candidate is timed in turns, and must give its losses. What is slower, differs or raises is not
taken. `lockstep` doubles the number of runs side by side until model-steps per second stop growing or memory ends;
`sparse` is tried on random masks, and taken from the sparsity on from which it is always faster.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lth.data import Data
from lth.engine import Engine
from lth.engine.graph import Graph
from lth.engine.lockstep import Lockstep
from lth.engine.perceptrons import Perceptrons
from lth.engine.sequential import Sequential
from lth.engine.sparse import Sparse
from lth.machine import recalled
from lth.mask import Mask
from lth.parallel import num_ranks
from lth.recipe import Recipe
from lth.state import Lane, TrainState

SPARSITIES = 0.8, 0.9, 0.95, 0.98  # at which `sparse` is tried
ROUNDS, SECONDS = 3, 0.05  # of a measurement: turns, and how long one takes
GAIN = 1.1  # what must be faster is so by this factor
MOST = 256  # runs side by side


@dataclass(frozen=True)
class Choice:
    """engine: its name, for masks below the sparsity `sparse_from`; for the others it is `sparse`. width: how many runs
    it trains side by side. gain: its model-steps per second, those of `sequential` 1."""

    engine: str = "sequential"
    width: int = 1
    sparse_from: float = 1.0
    gain: float = 1.0

    def of(self, model: nn.Module, recipe: Recipe, mask: Mask | None, begun: str = "") -> tuple[type[Engine], int]:
        """(engine, how many runs side by side) for a run under this mask; a run that an engine has `begun` goes on with
        it, where it is able to."""
        sparse = mask is not None and mask.sparsity >= self.sparse_from
        able = engines(model, recipe)
        engine = able.get(begun) or able["sparse" if sparse else self.engine]
        return engine, self.width if engine.name in ("lockstep", "graph") else 1


def engines(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """The engines that can train this network by this recipe where it is, by name: several ranks have but one."""
    found: dict[str, Any] = {"sequential": Sequential}
    if num_ranks() > 1:
        return found
    if lockstep := next((kind for kind in (Perceptrons, Lockstep) if kind.fits(model, recipe)), None):
        found["lockstep"] = lockstep
    found |= {kind.name: kind for kind in (Graph, Sparse) if kind.fits(model, recipe)}
    return found


def check(name: str, model: nn.Module, recipe: Recipe) -> None:
    """Raises ValueError, one line, where device.engine=`name` cannot train this network by this recipe."""
    able = engines(model, recipe)
    if name not in ("auto", *able):
        where = f"{num_ranks()} ranks" if num_ranks() > 1 else next(model.parameters()).device.type
        raise ValueError(
            f"device.engine={name} cannot train this network by this recipe on {where}; "
            f"of auto, {', '.join(able)} take one"
        )


def chosen(name: str, root: Path, about: Any, model: nn.Module, recipe: Recipe, data: Data) -> Choice:
    """The choice for device.engine=`name` and the shape that `about` describes, recorded in a store's folder `root`."""
    able = engines(model, recipe)
    if name == "sequential" or (name == "auto" and len(able) == 1):
        return Choice()
    if name == "sparse":
        return Choice("sparse")
    found = recalled(root, "engine", [about, name], lambda: _measure(name, able, model, recipe, data))
    return Choice(**found["choice"])


def _measure(name: str, able: dict[str, Any], model: nn.Module, recipe: Recipe, data: Data) -> dict:
    """{"choice": fields of a Choice, "ratios": what was measured, "refused": why an engine was not taken}; ratios are
    of model-steps per second: of lockstep by sequential, of sparse by the choice before it."""
    bench, dense = _Bench(model, recipe, data), Mask.dense(model)
    ratios: dict[str, float] = {}
    refused: dict[str, str] = {}
    engine, width, gain = "sequential", 1, 1.0
    for kind in (able[each] for each in ("lockstep", "graph") if each in able and name in ("auto", each)):
        if kind is Lockstep and bench.device == "cpu" and name == "auto":
            continue  # vmap over runs loses there, x0.2 (ResNet-20) to x0.9 (LeNet-300-100)
        here, ratio = 1, 0.0
        try:
            bench.agree(kind, dense)
            ratio = ratios[f"{kind.name} 1"] = bench.ratio((kind, dense, 1), (Sequential, dense, 1))
            while here < MOST:
                bench.stand_alone(kind, dense, 2 * here)
                grown = bench.ratio((kind, dense, 2 * here), (kind, dense, here))
                ratios[f"{kind.name} {2 * here}"] = ratio * grown
                if grown < GAIN:
                    break
                here, ratio = 2 * here, ratio * grown
        except (RuntimeError, ValueError) as error:  # out of memory among them, which leaves the width before it
            if not ratio and name == kind.name:
                raise
            refused[f"{kind.name} {2 * here}" if ratio else kind.name] = _line(error)
        if ratio > gain or name == kind.name:
            engine, width, gain = kind.name, here, ratio
    sparse_from = 1.0
    try:
        for sparsity in reversed(SPARSITIES) if "sparse" in able and name == "auto" else ():
            mask = _random(dense, sparsity)
            bench.agree(Sparse, mask)
            ratios[f"sparse {sparsity}"] = bench.ratio((Sparse, mask, 1), (able[engine], mask, width))
            if ratios[f"sparse {sparsity}"] < GAIN:
                break
            sparse_from = sparsity
    except (RuntimeError, ValueError) as error:
        sparse_from, refused["sparse"] = 1.0, _line(error)
    return {"choice": asdict(Choice(engine, width, sparse_from, gain)), "ratios": ratios, "refused": refused}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _random(dense: Mask, sparsity: float) -> Mask:
    generator = torch.Generator().manual_seed(0)
    return Mask({name: torch.rand(kept.shape, generator=generator) >= sparsity for name, kept in dense.items()})


class _Bench:
    """Engines timed on steps of a fresh network."""

    def __init__(self, model: nn.Module, recipe: Recipe, data: Data):
        self._model, self._recipe, self._data = model, recipe, data
        self._start, self.device = TrainState.of(model), data.train.y.device.type
        self._close = 1e-3 if getattr(model, "numerics", "reference") in ("reference", "fast") else 3e-2

    def _going(self, kind: type[Engine], mask: Mask, orders: Sequence[int]) -> tuple[Engine, Iterator[Tensor]]:
        """(engine, losses of its steps), for a run of each data order."""
        engine = kind(self._model, [Lane(self._start, mask, order) for order in orders], self._recipe)
        batches = [self._data.batches(order, self._recipe.batch_size, 0) for order in orders]
        return engine, (engine.step([*some], self._recipe.rate(0)).view(-1) for some in zip(*batches, strict=True))

    def agree(self, kind: type[Engine], mask: Mask) -> None:
        """Raises ValueError unless three steps have the losses of `sequential`."""
        ours, theirs = (torch.cat([*islice(self._going(k, mask, [0])[1], 3)]) for k in (kind, Sequential))
        if not torch.allclose(ours, theirs, rtol=self._close):
            raise ValueError(f"losses {ours.tolist()} are not those of sequential, {theirs.tolist()}")

    def stand_alone(self, kind: type[Engine], mask: Mask, width: int) -> None:
        """Raises ValueError where, on a CPU, a run's weights after three steps depend in any bit on how many run beside
        it: then a resumed sweep, which puts others side by side, would not give its bytes again (law 6)."""
        if self.device != "cpu":
            return
        (one, alone), (all_, together) = (self._going(kind, mask, w) for w in ([width - 1], range(width)))
        for _ in range(3):
            next(alone)
            next(together)
        states = one.state(0, 3), all_.state(width - 1, 3)
        if not all(torch.equal(states[0].params[name], states[1].params[name]) for name in states[0].params):
            raise ValueError(f"{width} runs side by side have other bits than one alone")

    def _rate(self, kind: type[Engine], mask: Mask, width: int) -> float:
        """Model-steps per second."""
        _, steps = self._going(kind, mask, range(width))
        for _ in range(2):  # the first ones warm up
            next(steps)
        self._wait()
        started, number = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS or not number:
            next(steps)
            number += 1
        self._wait()
        return width * number / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ratio(self, one: tuple, other: tuple) -> float:
        """Rate of one (engine, mask, width) by that of another, the median of turns."""
        return statistics.median(self._rate(*one) / self._rate(*other) for _ in range(ROUNDS))

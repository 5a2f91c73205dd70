"""Engines: how a step of training is computed. All stand behind one loop (lth/train.py), and each equals `sequential`
within the rounding of float32, whatever runs it trains side by side (law 9).
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from lth.data import Split
from lth.recipe import Recipe
from lth.state import Lane, TrainState

NAMES = "auto", "sequential", "lockstep", "graph", "sparse"


class Engine(Protocol):
    """Runs of one shape in training: made of a model, lanes that start at one step, and a recipe. See Sequential."""

    name: ClassVar[str]

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe): ...

    def step(self, batches: Sequence[Split], rate: float) -> Tensor: ...

    def evaluate(self, split: Split) -> list[tuple[float, float]]: ...

    def weights(self, index: int) -> dict[str, Tensor]: ...

    def state(self, index: int, step: int) -> TrainState: ...

    def show(self, index: int) -> None: ...

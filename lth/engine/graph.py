"""`graph`: a whole step recorded once as a CUDA graph and replayed, so that the GPU does not wait for Python.

What is recorded is the step of another engine: `sequential` for one run, `lockstep` for several. Batches and the
learning rate are written to where the recorded step reads them. Recording takes steps of its own; what they changed is
set back afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lth.data import Split
from lth.engine.lockstep import Lockstep
from lth.engine.perceptrons import Perceptrons
from lth.engine.sequential import Sequential
from lth.recipe import Recipe
from lth.state import Lane, TrainState


class Graph:
    """Networks on a GPU whose step asks for nothing on the CPU, by optimisers whose moments begin at zero."""

    name: ClassVar[str] = "graph"

    @staticmethod
    def fits(model: nn.Module, recipe: Recipe) -> bool:
        gpu = next(model.parameters()).device.type == "cuda" and getattr(model, "numerics", "reference") != "fp16"
        zero = recipe.optimizer in ("SGD", "Adam", "AdamW") and not recipe.options.get("dampening")
        return gpu and zero and Lockstep.fits(model, recipe)

    def __init__(self, model: nn.Module, lanes: Sequence[Lane], recipe: Recipe):
        several = Perceptrons if Perceptrons.fits(model, recipe) else Lockstep
        self._inner: Any = (several if len(lanes) > 1 else Sequential)(model, lanes, recipe)
        for group in self._inner.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = next(model.parameters()).device.type == "cuda"
        self._replay: Callable[[], Any] | None = None
        self.evaluate, self.weights, self.show = self._inner.evaluate, self._inner.weights, self._inner.show

    def step(self, batches: Sequence[Split], rate: float) -> Tensor:
        if self._replay is None:
            self._batches = [Split(x.clone(), y.clone()) for x, y in batches]
            self._rate = torch.tensor(rate, device=batches[0].y.device)
            before = [(tensor, tensor.clone()) for tensor in self._tensors()]
            self._replay, self._losses = recorded(lambda: self._inner.step(self._batches, self._rate))
            for tensor in self._tensors():
                tensor.zero_()  # moments that the first step has made
            for tensor, value in before:
                tensor.copy_(value)
        for here, batch in zip(self._batches, batches, strict=True):
            here.x.copy_(batch.x)
            here.y.copy_(batch.y)
        self._rate.fill_(rate)
        self._replay()
        return self._losses

    def _tensors(self) -> list[Tensor]:
        """All that a step changes in place."""
        moments = [t for of in self._inner.optimizer.state.values() for t in of.values() if isinstance(t, Tensor)]
        return [tensor.detach() for tensor in (*self._inner.tensors(), *moments)]

    def state(self, index: int, step: int) -> TrainState:
        return self._inner.state(index, step)


def recorded(step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
    """(what does a step again, where its result will be). The step is done a few times before, as torch asks."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step()
    return graph.replay, losses

"""Init: rewind to the initial weights, k = 0 (Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Init:
    from_trained = False

    def step(self, recipe):
        return 0

    def __call__(self, point, trained):
        return point

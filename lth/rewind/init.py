"""Init: rewind to the initial weights, k = 0 (Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635)."""

from dataclasses import dataclass

from lth.rewind import at_end, fresh, remaining, throughout


@dataclass(frozen=True)
class Init:
    origin = fresh
    num_steps = remaining
    span = throughout
    leaves = at_end

    def step(self, recipe):
        return 0

    def __call__(self, dense, trained):
        return dense.at(0)

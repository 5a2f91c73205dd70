"""Magnitude: score = |w|, the criterion of Han et al. 2015 (https://arxiv.org/abs/1506.02626) and of the tickets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Magnitude:
    def __call__(self, model, state, mask, batches, rng):
        return {name: state.params[name].abs() for name in mask}

"""Magnitude: score = |w|, the criterion of Han et al. 2015 (https://arxiv.org/abs/1506.02626) and of the tickets; of
trained weights, or of theta_0, those the dense network began with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Magnitude:
    def __call__(self, model, state, mask, data, rng):
        return {name: state.params[name].abs() for name in mask}


@dataclass(frozen=True)
class MagnitudeAtInit:
    reads = ("origin",)

    def __call__(self, model, state, mask, data, rng, origin):
        return {name: origin.params[name].abs() for name in mask}

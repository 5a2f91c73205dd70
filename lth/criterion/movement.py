"""Movement (Sanh et al. 2020, https://arxiv.org/abs/2005.07683): score = - sum over steps of w * dL/dw, in the training
that the mask is drawn after: high where descent carried w away from zero. Deviations: the paper's scores mask the
network all along, and masked weights may return; here each level trains under its own mask. Steps count alike whatever
their learning rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Movement:
    reads = ("movement",)
    needs_training = True

    def __call__(self, model, state, mask, data, rng, movement):
        return {name: movement[name].clone() for name in mask}

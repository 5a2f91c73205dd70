"""What the first gradients say, g = dL/dw over a sample of the training split, in train mode.

    gradient   |w g|               change of L when w is removed (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771,
                                   who average squares over minibatches; here g is summed first, and |.| ranks alike)
    snip       |w g| / sum |w g|   connection sensitivity (Lee et al. 2019, https://arxiv.org/abs/1810.02340)
    grasp      w (H g)             keep the gradient flow (Wang et al. 2020, https://arxiv.org/abs/2002.07376)

The signs of GraSP: a step d changes the flow |g|^2 by 2 d' H g, so removing w, d = -w, changes it by -2 w (H g). The
paper's S = -w (H g) is half of that; the highest S are removed, which helps the flow or costs it least. Here the
highest survive: -S. g and H are of the kept prunable weights, of L with its logits divided by `temperature`. As in the
papers, SNIP and GraSP go with pattern.scope=global prune=one_shot prune.when=init.

The sample: num_batches of per_class examples of every class or, per_class=0, of batch_size of any. temperature > 0.
"""

from dataclasses import dataclass

from lth.criterion import check_counts, check_curvature, check_sample, copied, gradients, sample


@dataclass(frozen=True)
class Gradient:
    num_batches: int
    batch_size: int
    per_class: int

    __post_init__, check = check_counts, check_sample

    def __call__(self, model, state, mask, data, rng):
        network, weights = copied(model, mask)
        slopes = gradients(network, weights, sample(data, rng, self.num_batches, self.batch_size, self.per_class))
        return {name: (weight * slopes[name]).detach().abs() for name, weight in weights.items()}


@dataclass(frozen=True)
class Snip(Gradient):
    def __call__(self, model, state, mask, data, rng):
        found = super().__call__(model, state, mask, data, rng)
        scores = {name: score.cpu().double() for name, score in found.items()}
        total = sum(score.sum() for score in scores.values())
        return {name: score / total if total else score for name, score in scores.items()}  # all zero: they stay equal


@dataclass(frozen=True)
class Grasp:
    num_batches: int
    batch_size: int
    per_class: int
    temperature: float

    def __post_init__(self) -> None:
        check_counts(self)
        if not (isinstance(self.temperature, int | float) and self.temperature > 0):
            raise ValueError(f"criterion.temperature={self.temperature} must be a number above 0")

    def check(self, model, data):
        check_sample(self, model, data)
        check_curvature(self, model, data)

    def __call__(self, model, state, mask, data, rng):
        network, weights = copied(model, mask)
        batches = sample(data, rng, self.num_batches, self.batch_size, self.per_class)
        flow = gradients(network, weights, batches, self.temperature)
        mask.apply_(flow)
        products = gradients(network, weights, batches, self.temperature, along=flow)
        return {name: (weight * products[name]).detach() for name, weight in weights.items()}

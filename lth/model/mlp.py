"""Multilayer perceptron: linear layers with ReLU between them. LeNet-300-100 (LeCun et al. 1998) is hidden=[300, 100].

Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635, figure 2) use 784-300-100-10, 266,200 weights, Gaussian Glorot.

Residual, that of the lottery-ticket study on MNIST-1D (Greydanus & Kobak 2020, https://arxiv.org/abs/2011.14439), has
40-500-500-10, 275,000 weights: h = relu(W1 x + b1);  h = h + relu(W2 h + b2);  logits = W3 h + b3.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from lth.model import Residual, check, draw_


@dataclass(frozen=True)
class Mlp:
    """hidden: sizes of the hidden layers, [] for a linear classifier."""

    hidden: list[int]
    init: str = "xavier_normal"

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) and size >= 1 for size in self.hidden):
            raise ValueError(f"model.hidden={self.hidden} must be whole numbers of at least 1")
        check(self.init)

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for num_in, num_out in pairwise([math.prod(input_shape), *self.hidden, num_classes]):
            layers += [draw_(nn.Linear(num_in, num_out), self.init), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class ResidualMlp:
    """width: size of both hidden layers. init: null leaves weights and biases as torch draws them, both from
    U[-1, 1) / sqrt(fan_in)."""

    width: int
    init: str | None = None

    def __post_init__(self) -> None:
        check(self.init or "kaiming_normal", width=self.width)

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        second = Residual(nn.Linear(self.width, self.width), nn.ReLU())
        layers = [nn.Linear(math.prod(input_shape), self.width), nn.ReLU(), second, nn.Linear(self.width, num_classes)]
        network = nn.Sequential(nn.Flatten(), *layers)
        return network if self.init is None else draw_(network, self.init)

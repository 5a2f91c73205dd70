"""Multilayer perceptron: linear layers with ReLU between them. LeNet-300-100 (LeCun et al. 1998) is hidden=[300, 100].

Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635, figure 2) use 784-300-100-10, 266,200 weights, Gaussian Glorot.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn


@dataclass(frozen=True)
class Mlp:
    """hidden: sizes of the hidden layers, [] for a linear classifier.

    init: how weights are drawn, a function of torch.nn.init without its last underscore, such as xavier_normal
    (Gaussian Glorot), kaiming_normal, kaiming_uniform, orthogonal. Biases start at zero.
    """

    hidden: list[int]
    init: str = "xavier_normal"

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) and size >= 1 for size in self.hidden):
            raise ValueError(f"model.hidden={self.hidden} must be whole numbers of at least 1")
        try:
            with torch.random.fork_rng(devices=[]):
                getattr(nn.init, f"{self.init}_")(torch.empty(2, 2))  # on "meta" it would import torch._dynamo: 1 s
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"model.init={self.init} draws no weights in torch.nn.init; try xavier_normal or kaiming_normal"
            ) from error

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for num_in, num_out in pairwise([math.prod(input_shape), *self.hidden, num_classes]):
            linear = nn.Linear(num_in, num_out)
            getattr(nn.init, f"{self.init}_")(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

"""Networks. A configured model is called with (input_shape, num_classes) and returns a plain nn.Module that gives
[n, num_classes] logits: weights drawn from torch's global seed alone, prunable layers in order, the output layer last.

init: how the weights of linear and convolutional layers are drawn, a function of torch.nn.init without its last
underscore, such as xavier_normal (Gaussian Glorot), kaiming_normal (He et al. 2015), orthogonal; or one of them times a
scale above 0, kaiming_normal*0.5: each weight it draws is multiplied by that. Biases start at zero.
norm_init: scales of batch norms, ones, or uniform: U[0, 1), as open_lth draws them. Their shifts start at zero.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Residual(nn.Module):
    """y = layers(x) + shortcut(x), the identity where there is none."""

    def __init__(self, *layers: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.layers, self.shortcut = nn.Sequential(*layers), shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


def check(init: str = "xavier_normal", norm_init: str = "ones", **least_one: object) -> None:
    """Raises ValueError unless `init` and `norm_init` draw weights and the others are whole numbers of at least 1."""
    for name, number in least_one.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"model.{name}={number} must be a whole number of at least 1")
    try:
        with torch.random.fork_rng(devices=[]):
            for shape in ((2, 2), (2, 2, 1, 1)):  # a linear layer, a convolution
                _draw_(torch.empty(shape), init)  # on "meta" it would import torch._dynamo: 1 s
    except (AttributeError, TypeError, ValueError) as error:
        near = "try xavier_normal or kaiming_normal, or one times a scale above 0, kaiming_normal*0.5"
        raise ValueError(f"model.init={init} draws no weights in torch.nn.init; {near}") from error
    if norm_init not in ("ones", "uniform"):
        raise ValueError(f"model.norm_init={norm_init} is not one of: ones, uniform")


def _draw_(weight: Tensor, init: str) -> None:
    name, times, scale = init.partition("*")
    getattr(nn.init, f"{name}_")(weight)
    if times:
        if not 0 < float(scale) < math.inf:
            raise ValueError(f"scale={scale}")
        with torch.no_grad():
            weight.mul_(float(scale))


def draw_(network: Network, init: str, norm_init: str = "ones") -> Network:
    """Draw the weights of a network, or of one layer, in module order; returns it."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            _draw_(module.weight, init)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            getattr(nn.init, f"{norm_init}_")(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return network


def image(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of a data set. Raises ValueError where it has no images."""
    if len(input_shape) != 3:
        raise ValueError(f"this model takes images, channels x height x width; the data set has {list(input_shape)}")
    return input_shape[0], input_shape[1], input_shape[2]

"""Convolutional networks without shortcuts: groups of convolutions with ReLU, a 2 x 2 max-pool a group, linear layers.

Conv-2/4/6 (Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635, figure 2) have 4,300,992, 2,425,024 and 2,261,184
weights on CIFAR-10; the paper's 1.7M for Conv-6 does not follow from its own figure.

LeNet-5 (LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf) has 61,470. Deviations, the habit of
today: ReLU for tanh, max-pools for trained averages, a second convolution that sees all of the first, a linear output.

VGG (Simonyan & Zisserman 2015, https://arxiv.org/abs/1409.1556, table 1) as papers of tickets use it on small images,
with batch norm, a global average for the last pool and one linear layer: 14.7M weights for VGG-16 (Frankle et al. 2020,
https://arxiv.org/abs/1912.05671). Deviation: no biases before a batch norm, which takes them away; open_lth has them.

Where a side is down to one pixel pooling stops, so that small images will do.
"""

from dataclasses import dataclass

from torch import nn

from lth.model import check, draw_, image
from lth.model.mlp import Mlp


@dataclass(frozen=True)
class Conv:
    """channels: of the convolutions, group by group. kernel, padding: of each of them, in pixels. least: smaller images
    are centred in zeros, least x least. hidden: sizes of the linear layers before the last one. norm_init: null is a
    network without batch norm, which has a max-pool after the last group, too."""

    channels: list[list[int]]
    kernel: int
    padding: int
    least: int
    hidden: list[int]
    init: str = "xavier_normal"
    norm_init: str | None = None

    def __post_init__(self) -> None:
        check(self.init, self.norm_init or "ones", kernel=self.kernel, least=self.least)
        for size in (size for group in self.channels for size in group):
            check(channels=size)
        if self.padding < 0:
            raise ValueError(f"model.padding={self.padding} must be at least 0")
        Mlp(self.hidden, self.init)

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        (num_in, *sides), normed = image(input_shape), self.norm_init is not None
        (top, bottom), (left, right) = ((max(0, self.least - n) // 2, max(0, self.least - n + 1) // 2) for n in sides)
        layers: list[nn.Module] = [nn.ZeroPad2d((left, right, top, bottom))] if bottom or right else []
        sides = [max(side, self.least) for side in sides]
        for index, group in enumerate(self.channels, start=1):
            for size in group:
                layers.append(nn.Conv2d(num_in, size, self.kernel, padding=self.padding, bias=not normed))
                layers += [nn.BatchNorm2d(size), nn.ReLU()] if normed else [nn.ReLU()]
                num_in, sides = size, [side + 2 * self.padding - self.kernel + 1 for side in sides]
            if min(sides) < 1:
                size = " x ".join(map(str, input_shape[1:]))
                raise ValueError(f"images of {size} are too small for model.kernel={self.kernel}; try model.least")
            if normed and index == len(self.channels):
                layers, sides = [*layers, nn.AdaptiveAvgPool2d(1)], [1, 1]
            elif min(sides) > 1:
                layers, sides = [*layers, nn.MaxPool2d(2)], [side // 2 for side in sides]
        layers += Mlp(self.hidden, self.init)((num_in, *sides), num_classes).children()
        return draw_(nn.Sequential(*layers), self.init, self.norm_init or "ones")

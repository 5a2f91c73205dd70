"""Residual networks for small images: ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2) and its
wide, pre-activated form (Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146).

A 3 x 3 convolution, three groups of n blocks with 16w, 32w, 64w channels (w: the width), the first block of the second
and third group with stride 2, global average pool, one linear layer.

    ResNet, depth 6n + 2:          y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))
    pre-activated, depth 6n + 4:   a = relu(norm(x));   y = conv(relu(norm(conv(a)))) + shortcut(x)

Where shapes differ the shortcut is, A: every second pixel, then zeros for channels that are new, no parameters; B: a
1 x 1 convolution and a norm. In the pre-activated form it acts on a there, and B has no norm. Deviation: no dropout in
the wide form, which the paper has with it and without.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import pad

from lth.model import Residual, check, draw_, image


class _Subsample(nn.Module):
    """Option A: every stride-th pixel, num_new channels of zeros behind those of x."""

    def __init__(self, stride: int, num_new: int):
        super().__init__()
        self.stride, self.num_new = stride, num_new

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_new))


@dataclass(frozen=True)
class Resnet:
    """depth: 6n + 2, pre-activated 6n + 4. shortcut: A or B. width: multiplies all channels but, pre-activated, the 16
    of the first convolution."""

    depth: int
    shortcut: str = "A"
    width: int = 1
    preactivated: bool = False
    init: str = "kaiming_normal"
    norm_init: str = "ones"

    def __post_init__(self) -> None:
        check(self.init, self.norm_init, depth=self.depth, width=self.width)
        ends = 4 if self.preactivated else 2
        if self.depth <= ends or (self.depth - ends) % 6:
            raise ValueError(f"model.depth={self.depth} must be 6n + {ends}: {ends + 6}, {ends + 12}, {ends + 18}, ...")
        if self.shortcut not in ("A", "B"):
            raise ValueError(f"model.shortcut={self.shortcut} is not one of: A, B")

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        num_in = 16 if self.preactivated else 16 * self.width
        layers: list[nn.Module] = [_conv(image(input_shape)[0], num_in)]
        if not self.preactivated:
            layers += [nn.BatchNorm2d(num_in), nn.ReLU()]
        for group in range(3):
            num_out = 16 * self.width * 2**group
            for index in range(self.depth // 6):
                layers += self._block(num_in, num_out, 2 if group and not index else 1)
                num_in = num_out
        if self.preactivated:
            layers += [nn.BatchNorm2d(num_in), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_in, num_classes)]
        return draw_(nn.Sequential(*layers), self.init, self.norm_init)

    def _block(self, num_in: int, num_out: int, stride: int) -> list[nn.Module]:
        body = [_conv(num_in, num_out, stride), nn.BatchNorm2d(num_out), nn.ReLU(), _conv(num_out, num_out)]
        across = None
        if stride != 1 or num_in != num_out:
            projection, norm = _conv(num_in, num_out, stride, 1), [] if self.preactivated else [nn.BatchNorm2d(num_out)]
            across = nn.Sequential(projection, *norm) if self.shortcut == "B" else _Subsample(stride, num_out - num_in)
        if not self.preactivated:
            return [Residual(*body, nn.BatchNorm2d(num_out), shortcut=across), nn.ReLU()]
        before = [nn.BatchNorm2d(num_in), nn.ReLU()]
        return [*before, Residual(*body, shortcut=across)] if across else [Residual(*before, *body)]


def _conv(num_in: int, num_out: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, size, stride, padding=size // 2, bias=False)

"""Vision transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929), small and for small images.

    z = [class; x_1 E; ...; x_N E] + positions;   z = z + attention(norm(z));   z = z + W2 gelu(W1 norm(z))
    attention = softmax(Q K' / sqrt(width / num_heads)) V in each head, then W_o;   logits = W norm(z)[class]

The attention is two linear layers, Q K V in one and W_o, so that every matrix is prunable; the class token and the
positions, learned, are not. Deviation: no dropout, of which the paper has 0.1 on ImageNet.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lth.model import Residual, check, draw_, image


class Attention(nn.Module):
    """[n, tokens, width] -> the same shape."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads, self.qkv, self.out = num_heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [3, n, head, token, size]
        return self.out(scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2).flatten(2))


class _Network(nn.Module):
    def __init__(self, embed: nn.Module, num_patches: int, width: int, body: nn.Module, num_classes: int):
        super().__init__()
        self.token, self.positions = (nn.Parameter(torch.zeros(1, num, width)) for num in (1, num_patches + 1))
        self.embed, self.body, self.out = embed, body, nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        token = self.token.expand(patches.shape[0], -1, -1)
        return self.out(self.body(torch.cat([token, patches], 1) + self.positions)[:, 0])


@dataclass(frozen=True)
class Vit:
    """patch: side of a patch in pixels, divides the image. width: size of a token. depth: number of blocks, each of
    attention in num_heads heads, which divide the width, and an MLP of 4 * width."""

    patch: int
    width: int
    depth: int
    num_heads: int
    init: str = "xavier_uniform"

    def __post_init__(self) -> None:
        check(self.init, patch=self.patch, width=self.width, depth=self.depth, num_heads=self.num_heads)
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads={self.num_heads} must divide model.width={self.width}")

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        (channels, *sides), size = image(input_shape), self.width
        if any(side % self.patch for side in sides):
            raise ValueError(f"model.patch={self.patch} must divide the images, {sides[0]} x {sides[1]} pixels")
        body = nn.Sequential()
        for _ in range(self.depth):
            mlp = nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size)
            body.append(Residual(nn.LayerNorm(size), Attention(size, self.num_heads)))
            body.append(Residual(nn.LayerNorm(size), *mlp))
        embed, num_patches = nn.Conv2d(channels, size, self.patch, self.patch), sides[0] * sides[1] // self.patch**2
        network = _Network(embed, num_patches, size, body.append(nn.LayerNorm(size)), num_classes)
        nn.init.trunc_normal_(draw_(network, self.init).positions, std=0.02)  # as DeiT draws them
        return network

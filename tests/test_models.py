"""The networks of the papers: their weights counted in closed form, their passes by other implementations."""

import dataclasses
import sys
import urllib.error
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_contracts import CONF, made
from torch import nn
from torch.nn.functional import conv2d, gelu, layer_norm, pad

from lth.mask import Mask, prunable
from lth.model import draw_
from lth.model.conv import Conv
from lth.model.mlp import Mlp, ResidualMlp
from lth.model.resnet_cifar import Resnet
from lth.model.torchvision import Torchvision
from lth.model.vit import Attention, Vit

CIFAR = (3, 32, 32)


def member(name: str, **changes):
    """A member of conf/model with some fields changed."""
    return dataclasses.replace(made(CONF / "model" / f"{name}.yaml"), **changes)


def counts(network: nn.Module) -> tuple[int, int]:
    """(prunable weights, all parameters)."""
    return Mask.dense(network).num_total, sum(parameter.numel() for parameter in network.parameters())


# Counts


@pytest.mark.parametrize(("name", "convs", "pooled"), [("conv_2", [64] * 2, 16), ("conv_4", [64] * 2 + [128] * 2, 8),
                                                      ("conv_6", [64] * 2 + [128] * 2 + [256] * 2, 4)])  # fmt: skip
def test_conv_n_has_the_papers_weights(name, convs, pooled):
    """9 * in * out a convolution, then a layer of all pixels to 256, 256, 10 (Frankle & Carbin 2019, figure 2)."""
    expected = sum(9 * a * b for a, b in pairwise([3, *convs]))
    expected += pooled * pooled * convs[-1] * 256 + 256 * 256 + 256 * 10
    assert expected == {"conv_2": 4_300_992, "conv_4": 2_425_024, "conv_6": 2_261_184}[name]
    assert counts(member(name)(CIFAR, 10)) == (expected, expected + sum(convs) + 256 + 256 + 10)


def test_lenet_5_has_the_papers_layers():
    """Feature maps of 28, 14, 10 and 5 pixels a side from a digit (LeCun et al. 1998, figure 2): 400 inputs to 120."""
    network = member("lenet_5")((1, 28, 28), 10)
    assert counts(network) == (25 * 6 + 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10, 61_470 + 6 + 16 + 120 + 84 + 10)
    sides, x = [], torch.zeros(1, 1, 28, 28)
    for layer in network:
        x = layer(x)
        sides += [x.shape[-1]] if x.dim() == 4 and not isinstance(layer, nn.ReLU) else []
    assert sides == [32, 28, 14, 10, 5]


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnet_has_the_papers_parameters(depth, millions):
    """n blocks of two convolutions a group, with option A no others (He et al. 2016, table 6)."""
    n = (depth - 2) // 6
    weights = 9 * 3 * 16 + 9 * 16 * 16 * 2 * n + 9 * (16 * 32 + 32 * 32 * (2 * n - 1) + 32 * 64 + 64 * 64 * (2 * n - 1))
    weights += 64 * 10
    norms = 2 * 16 + 2 * 2 * n * (16 + 32 + 64)
    assert counts(member(f"resnet_{depth}")(CIFAR, 10)) == (weights, weights + norms + 10)
    assert round((weights + norms + 10) / 1e6, 1 if depth == 110 else 2) == millions
    across = 16 * 32 + 32 * 64
    if depth == 20:
        assert counts(member("resnet_20", shortcut="B")(CIFAR, 10))[0] == weights + across
        wide = counts(member("resnet_20", width=2)(CIFAR, 10))[0]
        assert wide == 2 * 9 * 3 * 16 + 2 * 64 * 10 + 4 * (weights - 9 * 3 * 16 - 64 * 10)


@pytest.mark.parametrize(("depth", "k", "millions"), [
    pytest.param(16, 8, 11.0), pytest.param(28, 10, 36.5, marks=pytest.mark.slow)])  # fmt: skip
def test_wide_resnet_has_the_papers_parameters(depth, k, millions):
    """As Zagoruyko & Komodakis 2016, table 4: n blocks a group, a 1 x 1 convolution in the first of each."""
    n, sizes = (depth - 4) // 6, [16, 16 * k, 32 * k, 64 * k]
    weights = 9 * 3 * 16 + 640 * k
    norms = 2 * 64 * k
    for before, size in pairwise(sizes):
        weights += 9 * before * size + 9 * size * size * (2 * n - 1) + before * size
        norms += 2 * before + 2 * size * (2 * n - 1)
    assert counts(member(f"wide_resnet_{depth}_{k}")(CIFAR, 10)) == (weights, weights + norms + 10)
    assert round((weights + norms + 10) / 1e6, 1) == millions


@pytest.mark.parametrize("depth", [11, 13, 16, pytest.param(19, marks=pytest.mark.slow)])
def test_vgg_has_the_papers_parameters(depth):
    """Simonyan & Zisserman 2015, table 1: layers with weights are depth - 3 convolutions and three linear ones; here
    one linear layer, and two norm parameters a channel. VGG-16: 14.7M (Frankle et al. 2020, table 1)."""
    extra = {11: [0, 0, 1, 1, 1], 13: [1] * 5, 16: [1, 1, 2, 2, 2], 19: [1, 1, 3, 3, 3]}[depth]
    convs = [size for size, more in zip((64, 128, 256, 512, 512), extra, strict=True) for _ in range(more + 1)]
    assert len(convs) == depth - 3
    weights = sum(9 * a * b for a, b in pairwise([3, *convs])) + 512 * 10
    parameters = weights + 2 * sum(convs) + 10
    assert counts(member(f"vgg_{depth}")(CIFAR, 10)) == (weights, parameters)
    assert depth != 16 or round(parameters / 1e6, 1) == 14.7


def test_vit_tiny_has_deits_parameters():
    """5.7M less what DeiT-Ti spends on ImageNet's patches, positions and classes: 12 blocks of 12 w^2 weights and 13 w
    others (Touvron et al. 2021, table 1)."""
    w = 192
    weights = 12 * 12 * w * w + 48 * w + 10 * w
    others = 12 * 13 * w + w + w + 65 * w + 2 * w + 10  # blocks; embedding, class token, positions, last norm, output
    assert counts(member("vit_tiny")(CIFAR, 10)) == (weights, weights + others)
    deit = 12 * (12 * w * w + 13 * w) + 3 * 16 * 16 * w + w + w + 197 * w + 2 * w + 1000 * (w + 1)
    assert round(deit / 1e6, 1) == 5.7
    assert counts(Vit(16, w, 12, 3)((3, 224, 224), 1000))[1] == deit


def test_mnist1d_mlp_has_the_papers_weights():
    """40-500-500-10."""
    weights = 40 * 500 + 500 * 500 + 500 * 10
    assert counts(member("mnist1d_mlp")((40,), 10)) == (weights, weights + 1010) and weights == 275_000


@pytest.mark.parametrize(("name", "millions"), [
    ("resnet_18", 11.69), pytest.param("resnet_34", 21.80, marks=pytest.mark.slow),
    pytest.param("resnet_50", 25.56, marks=pytest.mark.slow)])  # fmt: skip
def test_imagenet_resnets_have_torchvisions_parameters(name, millions):
    """As torchvision's table of weights says for 1,000 classes; the stem for CIFAR has 9 of 49 weights a filter."""
    total = counts(member(name)((3, 64, 64), 1000))[1]
    assert round(total / 1e6, 2) == millions
    assert total - counts(member(name, stem="cifar")((3, 32, 32), 1000))[1] == (49 - 9) * 3 * 64


# Passes


def by_hand(state: dict, x, n: int, shortcut: str | None):
    """A CIFAR ResNet in training mode from its weights in the order of their layers, n blocks a group.

    shortcut: A, B, or None for a pre-activated network whose width is not 1."""
    convs = iter([t for t in state.values() if t.dim() == 4])
    scales = iter([t for name, t in state.items() if t.dim() == 1 and name.endswith("weight")])
    shifts = iter([t for name, t in state.items() if t.dim() == 1 and name.endswith("bias")])
    *_, weight, bias = state.values()

    def norm(h):
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
        return (h - mean) / (var + 1e-5).sqrt() * next(scales)[:, None, None] + next(shifts)[:, None, None]

    def conv(h, stride=1):
        kernel = next(convs)
        return conv2d(h, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    h = conv(x) if shortcut is None else norm(conv(x)).clamp(min=0)
    for index in range(3 * n):
        stride = 2 if index in (n, 2 * n) else 1
        if shortcut is None:
            a = norm(h).clamp(min=0)
            inner = conv(norm(conv(a, stride)).clamp(min=0))
            h = inner + (conv(a, stride) if index % n == 0 else h)
            continue
        inner = norm(conv(norm(conv(h, stride)).clamp(min=0)))
        if stride == 2 and shortcut == "B":
            h = norm(conv(h, 2))
        elif stride == 2:
            rows, columns = torch.arange(0, h.shape[2], 2), torch.arange(0, h.shape[3], 2)
            h = h[:, :, rows][:, :, :, columns]
            h = torch.cat([h, torch.zeros_like(h)], 1)
        h = (inner + h).clamp(min=0)
    if shortcut is None:
        h = norm(h).clamp(min=0)
    return h.mean((2, 3)) @ weight.T + bias


def shaken(network: nn.Module) -> nn.Module:
    """In float64, with scales and shifts that are not 0 or 1."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return network.double()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 7)])
@pytest.mark.parametrize(("network", "n", "shortcut"), [
    (Resnet(20), 3, "A"), (Resnet(20, "B"), 3, "B"), (Resnet(8, "A", 2), 1, "A"),
    (Resnet(16, "B", 2, preactivated=True), 2, None)])  # fmt: skip
def test_resnet_is_the_papers(network, n, shortcut, shape):
    """The same logits as the formula written out, on even and on odd sides."""
    torch.manual_seed(0)
    model, x = shaken(network(shape, 5)), torch.randn(6, *shape, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_hand(dict(model.state_dict()), x, n, shortcut), rtol=1e-9, atol=1e-9)


def copied(network: nn.Module, other: nn.Module) -> nn.Module:
    """`other` with the parameters of a network, in their order."""
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            theirs.copy_(mine)
    return other.double()


def test_vgg_is_the_papers():
    """VGG-11 built by hand, with the 2 x 2 average of open_lth at its end, which on 32 x 32 is the global one."""
    layers, before = [], 3
    for size in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512):
        if size == "pool":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(before, size, 3, 1, 1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
            before = size
    other = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 5))
    model, x = shaken(member("vgg_11")(CIFAR, 5)), torch.randn(2, *CIFAR, dtype=torch.float64)
    torch.testing.assert_close(model(x), copied(model, other)(x), rtol=1e-9, atol=1e-9)


def test_conv_4_is_the_papers():
    """Frankle & Carbin 2019, figure 2, built by hand."""
    sizes = pairwise([3, 64, 64, 128, 128])
    convs = [[nn.Conv2d(a, b, 3, 1, "same"), nn.ReLU()] for a, b in sizes]
    layers = [*convs[0], *convs[1], nn.MaxPool2d(2), *convs[2], *convs[3], nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5)]
    model, x = shaken(member("conv_4")((3, 8, 8), 5)), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), copied(model, nn.Sequential(*layers))(x), rtol=1e-9, atol=1e-9)


def test_pooling_stops_at_one_pixel():
    """8 x 8 is pooled three times in VGG, 6 x 3 once: 6 -> 3, 3 -> 1."""
    pools = [sum(isinstance(m, nn.MaxPool2d) for m in member("vgg_11")((3, *side), 5)) for side in [(8, 8), (6, 3)]]
    assert pools == [3, 1]


def test_small_images_are_centred():
    """LeNet-5 sees a digit with two zeros on each side, and one more behind and below where that is not even."""
    x = torch.ones(1, 1, 28, 27)
    seen = member("lenet_5")((1, 28, 27), 10)[0](x)
    assert torch.equal(seen, pad(x, (2, 3, 2, 2)))


def test_residual_mlp_is_the_papers():
    """h = relu(W1 x + b1); h = h + relu(W2 h + b2); logits = W3 h + b3."""
    model, x = shaken(ResidualMlp(6)((1, 2, 2), 3)), torch.randn(5, 1, 2, 2, dtype=torch.float64)
    a, b, c, d, e, f = (parameter.detach() for parameter in model.parameters())
    h = (x.reshape(5, 4) @ a.T + b).clamp(min=0)
    h = h + (h @ c.T + d).clamp(min=0)
    torch.testing.assert_close(model(x), h @ e.T + f)


def test_attention_is_torchs():
    """As nn.MultiheadAttention with the same matrices."""
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    matrices = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    theirs.load_state_dict(matrices)
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_vit_is_the_papers():
    """Patches cut by hand, blocks of torch's own pre-norm encoder."""
    torch.manual_seed(0)
    model, x = Vit(2, 12, 2, 3)((3, 4, 6), 5).double(), torch.randn(4, 3, 4, 6, dtype=torch.float64)
    shaken(model)
    state = dict(model.state_dict())
    cut = torch.stack([x[:, :, i : i + 2, j : j + 2].flatten(1) for i in (0, 2) for j in (0, 2, 4)], 1)
    patches = cut @ state["embed.weight"].flatten(1).T + state["embed.bias"]
    z = torch.cat([state["token"].expand(4, 1, 12), patches], 1) + state["positions"]
    for index in range(2):
        block = nn.TransformerEncoderLayer(12, 3, 48, 0.0, gelu, batch_first=True, norm_first=True).double()
        mine = {n: t for n, t in state.items() if n.startswith((f"body.{2 * index}.", f"body.{2 * index + 1}."))}
        norm1, attention, norm2, mlp = ([*mine.values()][i:j] for i, j in ((0, 2), (2, 6), (6, 8), (8, 12)))
        with torch.no_grad():
            for mine, theirs in zip([*attention, *mlp, *norm1, *norm2], block.parameters(), strict=True):
                theirs.copy_(mine)
        z = block(z)
    z = layer_norm(z, (12,), state["body.4.weight"], state["body.4.bias"])
    torch.testing.assert_close(model(x), z[:, 0] @ state["out.weight"].T + state["out.bias"])


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_resnet_18_is_torchvisions(stem):
    """The same logits as torchvision.models.resnet18 with the same weights, its stem replaced by hand for CIFAR."""
    from torchvision.models import resnet18

    model, other = shaken(member("resnet_18", stem=stem)((3, 32, 32), 10)), resnet18(num_classes=10).double()
    if stem == "cifar":
        other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False, dtype=torch.float64), nn.Identity()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), other(x))


# Initial weights


def test_draws_are_torchs_own():
    """An Mlp draws layer by layer, as it always has: stored results keep their meaning."""
    torch.manual_seed(3)
    model = Mlp([5], "xavier_normal")((4,), 3)
    torch.manual_seed(3)
    for layer in (model[1], model[3]):
        expected = nn.init.xavier_normal_(nn.Linear(layer.in_features, layer.out_features).weight)
        assert torch.equal(layer.weight, expected) and not layer.bias.any()


@pytest.mark.parametrize("name", ["resnet_20", "vgg_11", "resnet_18", "wide_resnet_16_8"])
def test_initial_weights(name):
    """kaiming_normal: variance 2 / fan_in in every layer; norms at one, or uniform; all biases zero."""
    torch.manual_seed(0)
    changes = {"width": 2} if name == "wide_resnet_16_8" else {}
    for norm_init in ("ones", "uniform"):
        model = member(name, norm_init=norm_init, **changes)((3, 8, 8), 10)
        for weight in prunable(model).values():
            error = weight.var() * weight[0].numel() / 2 - 1
            assert abs(error) < 6 * (2 / weight.numel()) ** 0.5
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        scales = torch.cat([norm.weight.detach() for norm in norms])
        assert (scales == 1).all() if norm_init == "ones" else abs(scales.mean() - 0.5) < 0.05
        assert scales.min() >= 0 and scales.max() <= 1
        assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))


SCALED = [Mlp([5], "xavier_normal"), ResidualMlp(5, "orthogonal"), Conv([[3], [4]], 3, 1, 1, [5], norm_init="uniform"),
          Resnet(8), Vit(4, 12, 1, 3), Torchvision("squeezenet1_1", init="kaiming_uniform")]  # fmt: skip


@pytest.mark.parametrize("network", SCALED, ids=lambda network: type(network).__name__)
def test_a_scale_multiplies_what_is_drawn(network):
    """init*scale is the same draw times the scale, exactly, in every linear and convolutional layer of every kind of
    model; all other parameters, and what is drawn after them, are the same."""
    built, after = [], []
    for init in (network.init, f"{network.init}*0.3"):
        torch.manual_seed(0)
        built.append(dataclasses.replace(network, init=init)((3, 32, 32), 7))
        after.append(torch.get_rng_state())
    assert torch.equal(*after)
    drawn = prunable(built[0])
    assert len(drawn) >= 2 and all(weight.any() for weight in drawn.values())
    for (name, one), other in zip(built[0].named_parameters(), built[1].parameters(), strict=True):
        assert torch.equal(other, one.detach() * 0.3 if name in drawn else one), name
        assert other.requires_grad and other.is_leaf


@pytest.mark.parametrize("scale", ["", "0", "-1", "nan", "inf", "x", "2*2"])
def test_a_scale_is_a_number_above_0(scale):
    refused(lambda: Mlp([5], f"orthogonal*{scale}"), f"model.init=orthogonal*{scale} ", "above 0")


def test_one_word_for_layers_and_norms():
    """init=uniform is U[0, 1) for layers, too, and neither is drawn as the other."""
    model = draw_(nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.BatchNorm1d(4)), "uniform", "uniform")
    assert all(0 < p.std() < 0.5 for p in (model[0].weight, model[2].weight))


# What is refused


def refused(make, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    line = str(caught.value)
    assert "\n" not in line and len(line) <= 200 and all(word in line for word in words), line


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Resnet(21), ["model.depth=21", "6n + 2"]),
    (lambda: Resnet(2), ["model.depth=2", "6n + 2"]),
    (lambda: Resnet(20, preactivated=True), ["model.depth=20", "6n + 4"]),
    (lambda: Resnet(20, "C"), ["model.shortcut=C", "A, B"]),
    (lambda: Resnet(20, width=0), ["model.width=0"]),
    (lambda: Resnet(20, norm_init="zeros"), ["model.norm_init=zeros", "ones, uniform"]),
    (lambda: Resnet(20, init="eye"), ["model.init=eye", "kaiming_normal"]),
    (lambda: Resnet(20)((40,), 10), ["images", "[40]"]),
    (lambda: Conv([[4], [0]], 3, 1, 1, []), ["model.channels=0"]),
    (lambda: Conv([[4]], 0, 1, 1, []), ["model.kernel=0"]),
    (lambda: Conv([[4]], 3, -1, 1, []), ["model.padding=-1"]),
    (lambda: Conv([[4], [4]], 5, 0, 1, [])((1, 8, 9), 10), ["8 x 9", "model.kernel=5", "model.least"]),
    (lambda: Vit(4, 192, 2, 5), ["model.num_heads=5", "model.width=192"]),
    (lambda: Vit(5, 12, 2, 3)((3, 32, 30), 10), ["model.patch=5", "32 x 30"]),
    (lambda: ResidualMlp(0), ["model.width=0"]),
    (lambda: Torchvision("resnet19")(CIFAR, 10), ["model.name=resnet19", "resnet18"]),
    (lambda: Torchvision("resnet18", "IMAGENET1K_V7"), ["model.weights=IMAGENET1K_V7", "IMAGENET1K_V1"]),
    (lambda: Torchvision("squeezenet1_1", stem="cifar")(CIFAR, 10), ["model.stem=cifar", "model.name=squeezenet1_1"]),
    (lambda: Torchvision("resnet18", stem="small"), ["model.stem=small", "imagenet, cifar"]),
    (lambda: Torchvision("resnet18", "DEFAULT", init="orthogonal"), ["model.weights=DEFAULT", "model.init=null"]),
    (lambda: Torchvision("alexnet")((3, 8, 9), 10), ["model.name=alexnet", "8 x 9"]),
])  # fmt: skip
def test_what_cannot_work_is_refused(make, words):
    """One line that names the key as typed and what is allowed."""
    refused(make, *words)


# torchvision's weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's folder of downloads, empty, and no network."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")

    def fail(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_pretrained_weights(hub):
    """Those of the file but for an output layer of the data set's classes; DEFAULT goes by its own name."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    source = squeezenet1_1().state_dict()
    torch.save(source, hub / SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    configured = Torchvision("squeezenet1_1", "DEFAULT")
    assert configured.weights == "IMAGENET1K_V1"
    state = configured((3, 64, 64), 7).state_dict()
    *body, weight, bias = state
    assert all(torch.equal(state[name], source[name]) for name in body)
    assert state[weight].shape == (7, 512, 1, 1) and state[bias].shape == (7,)
    refused(lambda: configured((1, 64, 64), 7), "model.weights=IMAGENET1K_V1", "3 channels", "1")


class Trap:
    def __reduce__(self):
        return (Path(self.path).touch, ())


@pytest.mark.parametrize("content", [None, b"damaged", "trap"])
def test_weights_that_cannot_be_had(hub, content, tmp_path):
    """No network, a damaged file, a file that would execute something: one line that names the folder."""
    from torchvision.models import SqueezeNet1_1_Weights

    file = hub / SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    if content == "trap":
        Trap.path = str(tmp_path / "sprung")
        torch.save(Trap(), file)
    elif content:
        file.write_bytes(content)
    refused(
        lambda: Torchvision("squeezenet1_1", "DEFAULT")((3, 64, 64), 7), "model.weights=IMAGENET1K_V1", str(hub)[:40]
    )
    assert not (tmp_path / "sprung").exists()


FAMILIES = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
            "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "vgg11"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_has_other_names(name):
    """One channel, seven classes, a pass in training mode that draws nothing, for one network of each family."""
    model = Torchvision(name)((1, 96, 96), 7)
    assert next(iter(prunable(model).values())).shape[1] == 1
    x, state = torch.randn(2, 1, 96, 96), torch.get_rng_state()
    assert model.training and model(x).shape == (2, 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_torchvision_is_not_imported_before_a_call(monkeypatch):
    """Start-up stays light: naming a network of torchvision's does not load it."""
    monkeypatch.setitem(sys.modules, "torchvision", None)  # any import of it raises
    network = Torchvision("resnet18")
    with pytest.raises(ImportError):
        network(CIFAR, 10)

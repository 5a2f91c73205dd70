"""Numerics: in what numbers a network computes. They are in the key of a run, since they change its bits.

reference   float32, products and convolutions too: on a GPU without TF32, which torch would take for convolutions
fast        the same accuracy, images channels last (x1.2 for ResNet-20 on a CPU), on a CPU with products through the
            GEMM back end that a probe found fastest (`fastest`)
tf32        float32 whose products and convolutions read 10 bits of the mantissa; on a GPU
bf16        convolutions and matrix products in bfloat16, weights, gradients, batch norm and loss in float32
            (torch.autocast), images channels last
fp16        the same in float16, the loss scaled so that small gradients are not lost (Micikevicius et al. 2018,
            https://arxiv.org/abs/1710.03740); on a GPU, since a CPU has no arithmetic for it

The back end that `fast` took is in the rows and in the manifest of a run, not in its key: machines of two kinds may
share a store, and what they compute differs by the rounding of float32.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lth.machine import recalled

KINDS = {
    "fast": torch.float32,
    "reference": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def applied(network: nn.Module, numerics: str) -> nn.Module:
    """The network itself, from now on laid out, autocast and scaled for these numerics; it takes and gives float32."""
    network.numerics = numerics  # type: ignore[assignment]
    kind = KINDS[numerics]
    if numerics == "reference":
        return network
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if kind == torch.float32:
        return network
    forward = network.forward

    def mixed(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, kind):
            return forward(x).float()

    network.forward = mixed
    return network


def loss_scaler(network: nn.Module, start: Tensor | None) -> Any:
    """What scales the loss of fp16, and does nothing elsewhere. start: [scale, steps since it grew] to go on from."""
    enabled = getattr(network, "numerics", "reference") == "fp16"
    scaler = torch.amp.GradScaler(next(network.parameters()).device.type, enabled=enabled)
    if enabled and start is not None:
        scale, tracker = start.tolist()
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})
    return scaler


# Float32 products and convolutions, for all of a process

GEMMS = {"blas": "ieee", "onednn": "bf16"}  # by what torch is told: that bfloat16 would do, which oneDNN takes as leave


@contextlib.contextmanager
def computing(numerics: str = "reference", gemm: str | None = None) -> Iterator[None]:
    """Meanwhile this process computes products and convolutions of float32 as `numerics` has them, forwards and
    backwards, those of a CPU through the back end `gemm` of GEMMS (None: torch's own). Then all is set as it was.
    """
    gpu = "tf32" if numerics == "tf32" else "ieee"
    backends: Any = torch.backends
    wanted = ((backends.mkldnn.matmul, GEMMS[gemm or "blas"]), (backends.cuda.matmul, gpu), (backends.cudnn.conv, gpu))
    before = [(switch, switch.fp32_precision) for switch, _ in wanted]
    try:
        for switch, precision in wanted:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, precision in before:
            switch.fp32_precision = precision


def gemm_of(numerics: str, device: str, root: Path) -> str | None:
    """The GEMM back end of a training: `fastest` for fast on a CPU, None where there is no choice."""
    return fastest(root) if (numerics, device) == ("fast", "cpu") else None


# Batch 128 through the first layer of LeNet-300-100, and products as large as a CPU's cache: [m, k] by [n, k]^T
SHAPES = ((128, 784, 300), (512, 512, 512))
ERROR = 4.0  # times that of torch's own: an order of summation may cost as much, TF32 rounds 2^13 times as coarsely
GAIN = 1.1  # times as fast as torch's own: less is not worth other bits
SECONDS = 0.15  # of rounds


def fastest(root: Path) -> str:
    """The GEMM back end that is fastest on this machine at the accuracy of float32, as recorded in the store `root`."""
    products = {name: lambda a, b, name=name: _product(name, a, b) for name in GEMMS}
    about = {"back_ends": list(GEMMS), "shapes": SHAPES, "error": ERROR, "gain": GAIN}
    return recalled(root, "gemm", about, lambda: probe(products))["choice"]


def _product(gemm: str, a: Tensor, b: Tensor) -> Tensor:
    with computing(gemm=gemm):
        return a @ b


def probe(products: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> dict:
    """Time and check ways to multiply float32 matrices, by name; the first is the one the others are measured by.

    What a linear layer multiplies, x w^T forwards, g w and g^T x backwards, at SHAPES, in interleaved rounds. errors:
    the largest |product - exact| / |exact| (Frobenius) of a way, exact in float64; seconds: its median round; gains:
    the median, over rounds, of how many times as fast as the first it is. choice: of those with at most ERROR times the
    error of the first, the one that gains most, if that is GAIN or more; one that gives every bit of the first is never
    chosen, so that noise does not choose where torch has but one back end.
    """
    rng = torch.Generator().manual_seed(0)
    pairs = []
    for m, k, n in SHAPES:
        x, w, g = (torch.randn(size, generator=rng) for size in ((m, k), (n, k), (m, n)))
        pairs += [(x, w.T), (g, w), (g.T, x)]
    exact = [a.double() @ b.double() for a, b in pairs]
    found = {name: [product(a, b) for a, b in pairs] for name, product in products.items()}
    errors = {
        name: max(((z - y).norm() / y.norm()).item() for z, y in zip(answers, exact, strict=True))
        for name, answers in found.items()
    }
    rounds: list[dict[str, float]] = []
    begun = time.perf_counter()
    while not rounds or time.perf_counter() - begun < SECONDS:
        seconds = {}
        for name, product in products.items():
            started = time.perf_counter()
            for a, b in pairs:
                product(a, b)
            seconds[name] = time.perf_counter() - started
        rounds.append(seconds)
    first = next(iter(products))
    gains = {name: median(seconds[first] / seconds[name] for seconds in rounds) for name in products}
    other = [name for name in products if not all(map(torch.equal, found[name], found[first]))]  # else it is the first
    best = max([first, *(name for name in other if errors[name] <= ERROR * errors[first])], key=gains.__getitem__)
    return {
        "choice": best if gains[best] >= GAIN else first,
        "errors": errors,
        "gains": gains,
        "seconds": {name: median(seconds[name] for seconds in rounds) for name in products},
        "rounds": len(rounds),
    }

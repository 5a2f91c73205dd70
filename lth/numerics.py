"""Numerics: in what numbers a network computes. They are in the key of a run, since they change its bits.

reference   float32 as torch ships it
bf16        convolutions and matrix products in bfloat16, weights, gradients, batch norm and loss in float32
            (torch.autocast), images channels last
fp16        the same in float16, the loss scaled so that small gradients are not lost (Micikevicius et al. 2018,
            https://arxiv.org/abs/1710.03740); on a GPU, since a CPU has no arithmetic for it
"""

from typing import Any

import torch
from torch import Tensor, nn

KINDS = {"reference": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def applied(network: nn.Module, numerics: str) -> nn.Module:
    """The network itself, from now on computing in these numerics; it takes and gives float32."""
    network.numerics = numerics  # type: ignore[assignment]
    if numerics == "reference":
        return network
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward, kind = network.forward, KINDS[numerics]

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

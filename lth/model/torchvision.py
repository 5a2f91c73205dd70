"""Any classification network of torchvision.models (https://docs.pytorch.org/vision/stable/models.html), such as the
ResNets of He et al. 2016 (https://arxiv.org/abs/1512.03385, table 1) for ImageNet.

The first convolution takes the channels of the images, the output layer gives the classes of the data set. Deviations:
no dropout and no stochastic depth, since a training step is a function of state and batch alone (law 1); no auxiliary
classifiers. Q K V of vit_*, in torch's nn.MultiheadAttention no layer of its own, is not prunable.

With weights, random_reinit begins with them, too; save them as safetensors and take rewind=pretrained for fresh ones.
"""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from lth.mask import prunable
from lth.model import check, draw_, image


@dataclass(frozen=True)
class Torchvision:
    """name: as torchvision has it. weights: null, or a name such as IMAGENET1K_V1 or DEFAULT, downloaded on first use.

    stem: of a ResNet. imagenet: 7 x 7 convolution of stride 2, max-pool; cifar: 3 x 3 of stride 1, no max-pool.
    init: null leaves all weights as torchvision draws them, and is the only choice beside pre-trained ones.
    """

    name: str
    weights: str | None = None
    stem: str = "imagenet"
    init: str | None = None
    norm_init: str = "ones"

    def __post_init__(self) -> None:
        check(self.init or "kaiming_normal", self.norm_init)
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"model.stem={self.stem} is not one of: imagenet, cifar")
        if self.weights is not None:
            if self.init or self.stem == "cifar":
                raise ValueError(f"model.weights={self.weights} goes with model.init=null and model.stem=imagenet only")
            # DEFAULT by its own name: a key must say what it is, whatever the version of torchvision
            object.__setattr__(self, "weights", _found(self.name, self.weights).name)

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        channels, height, width = image(input_shape)
        network = _built(self.name, self.weights, num_classes)
        first, *_, last = prunable(network)
        if self.stem == "cifar":
            if type(network).__name__ != "ResNet":
                raise ValueError(f"model.stem=cifar is for ResNets; model.name={self.name} takes imagenet")
            _swap(network, first, in_channels=channels, kernel_size=3, stride=1, padding=1)
            network.maxpool = nn.Identity()
        elif channels != 3:
            if self.weights is not None:
                raise ValueError(f"model.weights={self.weights} takes images of 3 channels; these have {channels}")
            _swap(network, first, in_channels=channels)
        if len(weight := prunable(network)[last]) != num_classes:
            _swap(network, last, **{"out_features" if weight.dim() == 2 else "out_channels": num_classes})
        for module in network.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
                module.p = 0.0  # type: ignore
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(1, *input_shape))
        except (RuntimeError, ValueError, AssertionError) as error:
            size, reason = f"{height} x {width}", " ".join(str(error).split())[:100]
            raise ValueError(f"model.name={self.name} takes no images of {size} pixels: {reason}") from error
        network.train()
        return network if self.init is None else draw_(network, self.init, self.norm_init)


def _found(name: str, weights: str | None) -> Any:
    """torchvision's weights of that name; None has none. Raises ValueError, with what is near, for a wrong name."""
    from torchvision import models

    known = {"name": models.list_models(module=models), "weights": []}
    if name in known["name"]:
        known["weights"] = list(models.get_model_weights(name).__members__)
    for key, word in {"name": name, "weights": weights}.items():
        if word is not None and word not in known[key]:
            near = ", ".join(get_close_matches(word, known[key], cutoff=0.3) or known[key][:3])
            raise ValueError(f"model.{key}={word} is not in torchvision.models; near it are {near}")
    return models.get_model_weights(name)[weights] if weights is not None else None


def _built(name: str, weights: str | None, num_classes: int) -> Any:
    """The network as torchvision makes it: with num_classes, or with pre-trained weights and as many as those have."""
    from torchvision import models

    found = _found(name, weights)
    # classifiers for training alone, which would make the output of these two a tuple
    alone = {"aux_logits": False, "init_weights": found is None} if name in ("googlenet", "inception_v3") else {}
    if found is None:
        return models.get_model(name, num_classes=num_classes, **alone)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torchvision lets torch.load execute what a file holds (law 5)
    try:
        return models.get_model(name, weights=found, progress=False, **alone)
    except Exception as error:  # no network, a damaged file, a file of more than weights: torch has a class for each
        reason, folder = " ".join(str(error).split()).partition(". ")[0][:60], f"{torch.hub.get_dir()}/checkpoints"
        raise ValueError(f"model.weights={weights} cannot be had in {folder}: {reason}") from error


def _swap(network: nn.Module, weight: str, **changes: int) -> None:
    """Replace the layer of a prunable weight by a fresh one with other arguments."""
    old: Any = network.get_submodule(weight.removesuffix(".weight"))
    kinds = ["in_channels", "out_channels", "kernel_size", "stride", "padding"]
    kinds = ["in_features", "out_features"] if isinstance(old, nn.Linear) else kinds
    arguments = {kind: getattr(old, kind) for kind in kinds} | changes
    network.set_submodule(weight.removesuffix(".weight"), type(old)(**arguments, bias=old.bias is not None))

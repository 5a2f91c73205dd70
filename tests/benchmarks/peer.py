"""The other side of a comparison, in a process of its own: open_lth's own training loop, or one written in its style.

    python -m tests.benchmarks.peer '{"open_lth": null, "network": "lenet_300_100", ...}'

It reads a line, "run" or "loss", does it, and answers with a line: the loss after the last run, or nothing. Between
lines it waits, so that what runs beside it is not disturbed. What it trains on lies in job["folder"], in the formats
that torchvision reads; weights and masks in job["weights"], by number, so that both sides begin with the same.

open_lth (Frankle, https://github.com/facebookresearch/open_lth) is used as it is: its data sets, DataLoader, network,
PrunedModel, optimiser, `train` and, where job["whole"], the callbacks of its `standard_train`. What is changed from
outside is said where it is done.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from lth.mask import prunable
from tests.benchmarks.measure import mean_loss
from tests.benchmarks.setting import NETWORKS

CIFAR = "resnet_20", "resnet_18"
NAMES = {"lenet_300_100": "mnist_lenet_300_100", "resnet_20": "cifar_resnet_20"}


class OpenLth:
    """Its platform's folders are those of the HOME that this process was given; num_workers is 0 by its own default."""

    def __init__(self, job: dict):
        sys.path.insert(0, job["open_lth"])
        np.product = np.prod  # its learning-rate schedule calls what NumPy 2 no longer has
        # It derives a class from this one, never used here, in an order of bases that is no longer possible
        torch.nn.parallel.DistributedDataParallel = torch.nn.DataParallel
        import platforms.local
        import platforms.platform

        platforms.platform._PLATFORM = platforms.local.Platform()
        import datasets.registry
        import models.registry
        from foundations import hparams
        from pruning.mask import Mask
        from pruning.pruned_model import PrunedModel

        names = NAMES[job["network"]], "kaiming_normal", "uniform"
        model = models.registry.get(hparams.ModelHparams(*names), outputs=10)
        masks = give(model, job)
        mask = Mask(dict(zip(model.prunable_layer_names, masks, strict=True)))
        self._start, self._whole = PrunedModel(model, mask), job["whole"]
        data = hparams.DatasetHparams("cifar10" if job["network"] in CIFAR else "mnist", job["batch_size"])
        self._train, self.test = (datasets.registry.get(data, train) for train in (True, False))
        for loader in (self._train, self.test):  # it has constants for each name: these are of the data that is there
            loader.dataset._tensor_transforms = [Normalize(job["mean"], job["std"])]
        self._recipe = hparams.TrainingHparams(
            job["optimizer"].lower(), job["lr"], f"{job['steps']}it", data_order_seed=0, **job["options"]
        )

    def run(self) -> None:
        from foundations.step import Step
        from training.standard_callbacks import standard_callbacks
        from training.train import train

        self.model = copy.deepcopy(self._start)
        callbacks = standard_callbacks(self._recipe, self._train, self.test, verbose=False) if self._whole else []
        end = Step.from_str(self._recipe.training_steps, self._train.iterations_per_epoch)
        with tempfile.TemporaryDirectory() as folder:  # a new one, else it goes on from its last checkpoint
            train(self._recipe, self.model, self._train, folder, callbacks, end_step=end)


class PeerStyle:
    """A loop as most codebases have it: images one by one through PIL, w.data *= mask before each step and after."""

    def __init__(self, job: dict):
        cifar = job["network"] in CIFAR
        root = Path(job["folder"], "open_lth_datasets", "cifar10" if cifar else "mnist")
        still = [ToTensor(), Normalize(job["mean"], job["std"])]
        moved = [RandomCrop(32, padding=4), RandomHorizontalFlip()] if cifar else []
        kind = torchvision.datasets.CIFAR10 if cifar else torchvision.datasets.MNIST
        parts = (kind(root, train, Compose([*moved, *still] if train else still)) for train in (True, False))
        self._train, self.test = (DataLoader(part, job["batch_size"], shuffle=part.train) for part in parts)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._start = NETWORKS[job["network"]]((3, 32, 32) if cifar else (1, 28, 28), 10)
        self._masks = [mask.to(self._device) for mask in give(self._start, job)]
        self._prunable, self._job = list(prunable(self._start)), job

    def run(self) -> None:
        torch.manual_seed(0)
        self.model = copy.deepcopy(self._start).to(self._device)
        named = dict(self.model.named_parameters())
        masked = [named[name] for name in self._prunable]
        kind = getattr(torch.optim, self._job["optimizer"])
        optimizer = kind(named.values(), lr=self._job["lr"], **self._job["options"])
        step = 0
        while step < self._job["steps"]:
            self._evaluate()
            for x, y in self._train:
                self._apply(masked)
                optimizer.zero_grad()
                self.model.train()
                cross_entropy(self.model(x.to(self._device)), y.to(self._device)).backward()
                optimizer.step()
                self._apply(masked)
                step += 1
                if step == self._job["steps"]:
                    break
        self._evaluate()
        if self._job["whole"]:
            with tempfile.TemporaryDirectory() as folder:
                torch.save([self.model.state_dict(), optimizer.state_dict()], Path(folder, "model.pt"))

    def _apply(self, masked: list[nn.Parameter]) -> None:
        for weight, mask in zip(masked, self._masks, strict=True):
            weight.data *= mask

    @torch.no_grad()
    def _evaluate(self) -> None:
        """As it is done between epochs."""
        if self._job["whole"]:
            self.model.eval()
            for x, y in self.test:
                cross_entropy(self.model(x.to(self._device)), y.to(self._device)).item()


def give(model: nn.Module, job: dict) -> list[torch.Tensor]:
    """Copy the weights that both sides begin with into a model, one after another; returns the masks."""
    given = load_file(job["weights"])
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(given[f"weight.{i}"])
    return [given[f"mask.{i}"] for i in range(sum(name.startswith("mask.") for name in given))]


def main() -> None:
    job = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    torch.set_num_threads(job["threads"])
    # A data set that was drawn for this has other sums than CIFAR-10's own files, and else would be downloaded
    torchvision.datasets.cifar.check_integrity = lambda path, md5=None: True
    side = OpenLth(job) if job["open_lth"] else PeerStyle(job)
    for line in sys.stdin:
        print(mean_loss(side.model, side.test) if line == "loss\n" else side.run(), file=answers, flush=True)


if __name__ == "__main__":
    main()

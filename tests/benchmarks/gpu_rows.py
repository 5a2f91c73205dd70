"""Rows on a GPU: G1, G2, G3. Elsewhere each is one line that says it was not measured.

Engines are chosen as a user does, by device.engine. Where all is run by main.py, a rate is that of more steps against
fewer, so that what a command takes to start and to end is in neither.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from lth.data import move
from lth.recipe import Recipe
from lth.seeds import generator
from tests.benchmarks.measure import Line, Losses, Options, interleaved, mean_loss, pairwise, per_second
from tests.benchmarks.setting import Ours, Peer, Setting, colour
from tests.benchmarks.study_rows import wall
from tests.benchmarks.train_rows import DECAY

NONE = "not measured: no GPU"


def g1(options: Options) -> Iterator[Line]:
    """LeNet-300-100, dense and then at 80%, batch 128: `replicates` of them in lockstep against one at a time."""
    if not torch.cuda.is_available():
        yield Line("G1", "LeNet in lockstep, R=1, 8, 64, 256", "eager one by one", "50x", note=NONE)
        return
    few, many = options.scaled(500, 2), options.scaled(2500, 10)

    def seconds(replicates: int, engine: str) -> float:
        """A step of a model."""
        walls = []
        for steps in (few, many):
            with tempfile.TemporaryDirectory() as name:
                walls.append(wall(
                    Path(name), "device=cuda", f"device.engine={engine}", f"replicates={replicates}", "branch=[]",
                    "prune=one_shot", "prune.sparsity=0.8", "recipe=sgd", f"recipe.steps={steps}it",
                    f"recipe.eval_every={steps}it", "wandb=disabled"
                ))  # fmt: skip
        return (walls[1] - walls[0]) / (2 * replicates * (many - few))

    for replicates in (1, 8, 64, 256):
        pairs = [(seconds(1, "sequential"), seconds(replicates, "lockstep")) for _ in range(min(3, options.rounds))]
        theirs, mine = zip(*pairs, strict=True)
        yield Line("G1", f"LeNet in lockstep, R={replicates}", "eager one by one", "50x" if replicates >= 64 else "",
                   "steps/s", per_second(1, theirs), per_second(1, mine), pairwise(theirs, mine))  # fmt: skip


def g2(options: Options) -> Iterator[Line]:
    """ResNets on images in the shape of CIFAR-10, cropped and mirrored: in a CUDA graph and bf16 against an eager loop
    in float32 over PIL images, and against one in bf16 whose images are on the GPU, in the style of airbench."""
    if not torch.cuda.is_available():
        yield Line("G2", "ResNet-20, ResNet-18, batch 128, 512", "eager PIL; airbench-style", "5x; 1.2x", note=NONE)
        return
    for network in ("resnet_20", "resnet_18"):
        for batch_size in (128, 512):
            steps = options.scaled(40, 2)
            recipe = Recipe("SGD", 0.1, batch_size, steps, steps, options=DECAY)
            setting = Setting(network, colour(), recipe)
            ours, resident = Ours(setting, "bf16", "cuda", engine="graph"), Resident(setting)
            # open_lth's own ResNet-18 is for ImageNet
            asked = options if network == "resnet_20" else Options(options.rounds)
            with tempfile.TemporaryDirectory() as name, Peer(setting, Path(name, "peer"), asked) as peer:
                for other, who, target in ((peer, peer.name, "5x"), (resident, "airbench-style", "1.2x")):
                    theirs, mine = interleaved(other, ours, options.rounds)
                    rates = per_second(steps * batch_size, theirs), per_second(steps * batch_size, mine)
                    yield Line("G2", f"{network}, batch {batch_size}, bf16", who, target, "images/s", *rates,
                               pairwise(theirs, mine), Losses(other.loss(), ours.loss(), 0.1))  # fmt: skip


class Resident:
    """An eager loop whose images are on the GPU, augmented an epoch at a time, as airbench's loader has them (Jordan
    2024, https://github.com/KellerJordan/cifar10-airbench); w.data *= mask after each step; bf16, channels last."""

    def __init__(self, setting: Setting):
        self._model, mask = setting.start()
        self._model.to("cuda", memory_format=torch.channels_last)
        self._first = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        named = dict(self._model.named_parameters())
        self._masked = [(named[name], kept.cuda()) for name, kept in mask.items()]
        self._data, self._recipe = setting.data.normalised("cuda"), setting.recipe

    def _epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        x, y = self._data.train
        rng, size = generator(epoch), self._recipe.batch_size
        draws = [torch.randint(end, (len(y),), generator=rng).cuda() for end in (9, 9, 2)]
        moved = move(x[:], draws[0], draws[1], draws[2].bool(), 4).to(memory_format=torch.channels_last)
        for chosen in torch.randperm(len(y), generator=rng).cuda().split(size)[: len(y) // size]:
            yield moved[chosen], y[chosen]

    def __call__(self) -> None:
        self._model.load_state_dict(self._first)
        self._model.train()
        optimizer = torch.optim.SGD(self._model.parameters(), self._recipe.lr, **self._recipe.options)
        step, epoch = 0, 0
        while step < int(self._recipe.steps):
            for x, y in self._epoch(epoch):
                with torch.autocast("cuda", torch.bfloat16):
                    loss = cross_entropy(self._model(x).float(), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                for weight, kept in self._masked:
                    weight.data *= kept
                step += 1
                if step == self._recipe.steps:
                    break
            epoch += 1
        torch.cuda.synchronize()

    def loss(self) -> float:
        return mean_loss(self._model, self._data.test.batches(self._recipe.batch_size))


def g3(options: Options) -> Iterator[Line]:
    """A 12-level chain of ResNet-20 x 3 replicates x 2 controls on noise in the shape of CIFAR-10, n=1: 111 trainings,
    as device.engine=auto does them, against one by one; reference numerics both."""
    if not torch.cuda.is_available():
        yield Line("G3", "ResNet-20, 12 levels x 3 x 2 controls", "eager one by one", "4x", note=NONE)
        return
    levels, steps = options.scaled(12), options.scaled(200, 2)
    walls = []
    for engine in ("sequential", "auto"):
        with tempfile.TemporaryDirectory() as name:
            walls.append(wall(
                Path(name), "device=cuda", f"device.engine={engine}", "model=resnet_20", "dataset=fake",
                "dataset.crop=4", "dataset.flip=true", "recipe=sgd", f"recipe.steps={steps}it",
                f"recipe.eval_every={steps}it", "prune=rounds", f"prune.num_rounds={levels}",
                f"prune.sparsity={1 - 0.8**levels:.6f}", "branch=[random_reinit,random_mask]", "replicates=3",
                "wandb=disabled",
            ))  # fmt: skip
    yield Line("G3", f"ResNet-20, {levels} levels x 3 x 2 controls", "eager one by one", "4x", "s", *walls,
               pairwise(walls[:1], walls[1:]))  # fmt: skip

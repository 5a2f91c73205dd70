"""Rows on the training loop on a CPU: C1, C2, C4, C5, C6, C7, C9. Each yields the lines of its row.

Steps as they are at scale 1. The losses of two sides come from other data orders; a tolerance is about three times the
largest difference that other orders made between them.
"""

import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from lth.dataset.mnist1d import Mnist1d
from lth.mask import Mask
from lth.recipe import Recipe
from tests.benchmarks.measure import Line, Losses, Options, interleaved, pairwise, per_second
from tests.benchmarks.setting import Ours, Peer, Setting, colour, digits, numerics
from tests.benchmarks.study_rows import wall

DECAY = {"momentum": 0.9, "weight_decay": 1e-4}
EPOCH = 469  # steps of 128 in MNIST's 60,000, the last one short in open_lth and left out in ours: 468


def lenet(options: Options) -> Setting:
    """LeNet-300-100 as open_lth trains it by default: SGD at 0.1, batch 128. An epoch, less its last step."""
    steps = options.scaled(EPOCH - 1, least=2)
    return Setting("lenet_300_100", digits(options), Recipe("SGD", 0.1, 128, steps, steps))


def c1(options: Options) -> Iterator[Line]:
    """Steps alone: open_lth's without its callbacks, ours with the evaluation of the validation split that ends it."""
    setting = lenet(options)
    yield from against_peer("C1", "LeNet-300-100 step", "8x; bf16 12x", setting, options, 0.1)


def c2(options: Options) -> Iterator[Line]:
    """An epoch of 60,000 examples (mnist_5k repeated), 10,000 others evaluated twice, and the end saved; open_lth saves
    its beginning, too."""
    steps = options.scaled(EPOCH - 1, least=2)
    data = digits(options, 128 * steps)
    data = replace(data, val=data.test)
    setting = Setting("lenet_300_100", data, Recipe("SGD", 0.1, 128, steps, -(-steps // 2)))
    yield from against_peer("C2", "epoch, 2 evaluations, save", "9x", setting, options, 0.1, whole=True)


def resnet(options: Options) -> Setting:
    """ResNet-20 on mnist_5k in the shape of CIFAR-10, cropped and mirrored, as open_lth trains it by default."""
    steps = options.scaled(10, least=2)
    return Setting("resnet_20", colour(), Recipe("SGD", 0.1, 128, steps, steps, options=DECAY))


def c5(options: Options) -> Iterator[Line]:
    yield from against_peer("C5", "ResNet-20, crop and flip", "2x", resnet(options), options, 0.03, unit="images/s")


def against_peer(row: str, work: str, target: str, setting: Setting, options: Options, tolerance: float,
                 whole: bool = False, unit: str = "steps/s") -> Iterator[Line]:  # fmt: skip
    """One line for each of our numerics, the peer's rounds between ours."""
    amount = setting.num_steps * (setting.recipe.batch_size if unit == "images/s" else 1)
    kinds, missing = numerics()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Peer(setting, folder / "peer", options, whole) as peer:
            for kind in kinds:
                engine = "lockstep" if setting.network == "lenet_300_100" else "sequential"
                ours = Ours(setting, kind, store=folder / kind if whole else None, engine=engine)
                theirs, mine = interleaved(peer, ours, options.rounds)
                if whole:
                    rates = {"unit": "s", "baseline": statistics.median(theirs), "ours": statistics.median(mine)}
                else:
                    rates = {"unit": unit, "baseline": per_second(amount, theirs), "ours": per_second(amount, mine)}
                yield Line(row, f"{work}, {kind}, {engine}", peer.name, target, **rates, ratio=pairwise(theirs, mine),
                           losses=Losses(peer.loss(), ours.loss(), tolerance), note=missing)  # fmt: skip


def c7(options: Options) -> Iterator[Line]:
    """What the mask costs: the same steps with a mask that removes one weight in a million, and without. The arithmetic
    is that of any mask, and the losses can be compared."""
    setting = replace(lenet(options), sparsity=1e-6)
    for engine in ("sequential", "lockstep"):
        dense, masked = Ours(setting, "fast", engine=engine, mask=None), Ours(setting, "fast", engine=engine)
        theirs, mine = interleaved(dense, masked, options.rounds)
        rates = per_second(setting.num_steps, theirs), per_second(setting.num_steps, mine)
        yield Line("C7", f"masked step, {engine}", "dense step", "0.98x", "steps/s", *rates, pairwise(theirs, mine),
                   Losses(dense.loss(), masked.loss(), 0.05))  # fmt: skip


def c4(options: Options) -> Iterator[Line]:
    """Eight runs of a perceptron on MNIST-1D (Greydanus & Kobak 2020) side by side, against one after another."""
    steps = options.scaled(300, least=2)
    recipe = Recipe("Adam", 2e-3, 100, steps, steps)
    for network in ("mlp_100_100", "residual_500"):
        setting = Setting(network, Mnist1d()(Path()), recipe, sparsity=0)
        alone, together = Ours(setting, "fast"), Ours(setting, "fast", engine="lockstep", width=8)

        def one_by_one(alone: Ours = alone) -> None:
            for _ in range(8):
                alone()

        theirs, mine = interleaved(one_by_one, together, options.rounds)
        alone()  # order 0, as the eighth of those side by side is not
        rates = per_second(8 * steps, theirs), per_second(8 * steps, mine)
        yield Line("C4", f"{network} on MNIST-1D, 8 runs", "eager one by one", "2.2x", "steps/s", *rates,
                   pairwise(theirs, mine), Losses(alone.loss(), together.loss(), 0.25))  # fmt: skip


def c6(options: Options) -> Iterator[Line]:
    """A step of LeNet-300-100 on its kept weights alone, under masks of iterative magnitude pruning drawn here, against
    one of the engine that is fastest for the dense network, under the same mask."""
    setting = lenet(options)
    for sparsity, mask in imp_masks(options).items():
        dense = Ours(setting, "fast", engine="lockstep", mask=mask)
        sparse = Ours(setting, "fast", engine="sparse", mask=mask)
        theirs, mine = interleaved(dense, sparse, options.rounds)
        rates = per_second(setting.num_steps, theirs), per_second(setting.num_steps, mine)
        target = {0.95: "2.2x", 0.986: "4.5x"}.get(sparsity, "")
        yield Line("C6", f"sparse step, {sparsity:.1%} IMP mask", "our dense step", target, "steps/s", *rates,
                   pairwise(theirs, mine), Losses(dense.loss(), sparse.loss(), 0.02))  # fmt: skip


def imp_masks(options: Options) -> dict[float, Mask]:
    """Sparsity -> the mask that main.py finds there on mnist_5k, 20% a level."""
    sparsities = 0.9, 0.95, 0.986
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wall(folder, "-m", f"prune.sparsity={','.join(map(str, sparsities))}", "replicates=1", "branch=[]",
             "save_tickets=true", f"recipe.steps={options.scaled(1000, least=20)}it", "wandb=disabled")  # fmt: skip
        found = {}
        for index, sparsity in enumerate(sparsities):
            (path,) = (folder / "run" / str(index)).rglob("*.safetensors")
            tensors = load_file(path)
            found[sparsity] = Mask({n[5:]: kept.bool() for n, kept in tensors.items() if n.startswith("mask:")})
        return found


def c9(options: Options) -> Iterator[Line]:
    """C1 beside a process that multiplies matrices without end, against C1 alone."""
    setting = lenet(options)
    ours = Ours(setting, "fast", engine="lockstep")
    ours()
    alone = ours.loss()
    with neighbour() as (busy, quiet):

        def beside() -> None:
            busy()
            ours()
            quiet()

        theirs, mine = interleaved(ours, beside, options.rounds)
    rates = per_second(setting.num_steps, theirs), per_second(setting.num_steps, mine)
    yield Line("C9", "C1 beside a busy process", "C1 alone", "0.95x", "steps/s", *rates, pairwise(theirs, mine),
               Losses(alone, ours.loss(), 0.0))  # fmt: skip


@contextlib.contextmanager
def neighbour():
    """(busy, quiet): start and stop another process that keeps one core busy."""
    code = "import torch; torch.set_num_threads(1); x = torch.rand(1024, 1024); print(flush=True)\nwhile True: x @ x"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield lambda: process.send_signal(signal.SIGCONT), lambda: process.send_signal(signal.SIGSTOP)
    finally:
        process.kill()
        process.communicate()

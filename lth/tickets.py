"""Tickets, and the iterative algorithm as Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635, section 2) write it.

1. Randomly initialise a network f(x; theta_0).
2. Train it, to theta_T.
3. Prune p% of the surviving parameters, creating a mask m.
4. Reset the survivors to theta_0 (or to theta_k: Frankle et al. 2019, https://arxiv.org/abs/1903.01611),
   creating the ticket f(x; m * theta). Train it; repeat from 3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lth import seeds
from lth.data import Source
from lth.mask import Mask
from lth.recipe import Recipe
from lth.stage import Stage, task
from lth.train import Run, TrainState, load


@dataclass(frozen=True)
class Ticket:
    """A mask and the state it starts from. Trained alone, it is what the hypothesis is about."""

    level: int
    mask: Stage
    start: Stage
    num_steps: int


@dataclass(frozen=True)
class Training:
    """One trained network of a study, with its labels: what becomes a row."""

    replicate: int
    level: int
    branch: str
    sparsity: float
    run: Run
    rewind_step: int
    ticket: Ticket | None = None

    def __str__(self) -> str:
        return f"replicate {self.replicate}, level {self.level}, {self.branch}"


@dataclass(frozen=True)
class Lab:
    """One replicate's bench: network, data, recipe, device class, and seeds by name."""

    model: Any
    data: Source
    recipe: Recipe
    device: str
    base_seed: int
    replicate: int

    def seed(self, *names: str | int) -> int:
        return seeds.seed(self.base_seed, self.replicate, *names)

    def initialise(self, *names: str | int) -> Stage:
        """Fresh weights, by their name: "init" are the replicate's own."""
        return initialise(model=self.model, data=self.data, seed=self.seed(*names))

    def run(self, start: Stage, mask: Stage | None = None, num_steps: int | None = None) -> Run:
        """Training from `start` under `mask`, in the replicate's own data order."""
        steps = int(self.recipe.steps) if num_steps is None else num_steps
        return Run(start, mask, self.model, self.data, self.recipe, self.seed("order"), steps, self.device)


def iterative(
    lab: Lab, sparsities: list[float], criterion: Any, pattern: Any, rewind: Any, branches: dict[str, Callable]
) -> Iterator[Training]:
    """Every training of one replicate: dense, then at each level the ticket and its branches."""
    k = rewind.step(lab.recipe)
    dense = lab.run(lab.initialise("init"))
    yield Training(lab.replicate, 0, "dense", 0.0, dense, 0)

    mask, trained = dense_mask(model=lab.model, data=lab.data), dense.end
    for level, sparsity in enumerate(sparsities, start=1):
        mask = prune(
            model=lab.model, data=lab.data, state=trained, mask=mask, sparsity=sparsity, criterion=criterion,
            pattern=pattern, seed=lab.seed("criterion", level), batch_size=lab.recipe.batch_size, device=lab.device,
        )  # fmt: skip
        # a rewind that keeps no trained weight does not depend on them, and its key says so
        start = rewound(rewind=rewind, point=dense.at(k), trained=trained if rewind.from_trained else None)
        ticket = Ticket(level, mask, start, num_steps=int(lab.recipe.steps) - k)
        run = lab.run(start, mask, ticket.num_steps)
        yield Training(lab.replicate, level, "ticket", sparsity, run, k, ticket)
        for name, branch in branches.items():
            yield Training(lab.replicate, level, name, sparsity, branch(ticket, lab), k)
        trained = run.end


@task(version=1, value=TrainState)
def initialise(context: Any, model: Any, data: Source, seed: int) -> TrainState:
    """Weights as the model's own initialiser draws them from `seed`, on the CPU whatever the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TrainState.of(model(data.input_shape, data.num_classes))


@task(version=1, value=Mask, stored=False)
def dense_mask(context: Any, model: Any, data: Source) -> Mask:
    """Level 0: every prunable weight kept."""
    return Mask.dense(context.model(model, data))


@task(version=1, value=Mask)
def prune(
    context: Any, model: Any, data: Source, state: TrainState, mask: Mask, sparsity: float, criterion: Any,
    pattern: Any, seed: int, batch_size: int, device: str,
) -> Mask:  # fmt: skip
    """The mask of the next level: `pattern` ranks what `criterion` scores, among the weights that `mask` still keeps.

    The criterion sees the network as it was trained, its removed weights at zero, in training mode.
    """
    network = context.model(model, data)
    load(network, state.params, state.buffers)
    batches = context.data(data).batches(seeds.seed(seed, 0, "batches"), batch_size)
    scores = criterion(network, state, mask, batches, seeds.generator(seed))
    for name, kept in mask.items():
        if not torch.isfinite(scores[name][kept]).all():
            raise ValueError(f"criterion {type(criterion).__name__} gave {name} scores that are not finite")
    return pattern({name: scores[name].detach().cpu() for name in mask}, mask, sparsity)


@task(version=1, value=TrainState, stored=False)
def rewound(context: Any, rewind: Any, point: TrainState, trained: TrainState | None) -> TrainState:
    """What the survivors restart from: `rewind` chooses among the state at step k and the trained one."""
    return rewind(point, trained)

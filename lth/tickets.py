"""Tickets, and the iterative algorithm as Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635, section 2) write it.

1. Randomly initialise a network f(x; theta_0).
2. Train it, to theta_T.
3. Prune p% of the surviving parameters, creating a mask m.
4. Reset the survivors to theta_0 (or to theta_k: Frankle et al. 2019, https://arxiv.org/abs/1903.01611),
   creating the ticket f(x; m * theta). Train it; repeat from 3.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lth import seeds
from lth.criterion import name_of
from lth.data import Source
from lth.mask import Mask
from lth.recipe import Recipe
from lth.stage import Stage, Tensors, task
from lth.state import TrainState, load
from lth.train import Run


@dataclass(frozen=True)
class Ticket:
    """A mask and the state it starts from. Trained alone, it is what the hypothesis is about.

    level, sparsity: its place in the chain. mask: Stage of a Mask. start: Stage of the TrainState it restarts from, at
    rewind_step of the schedule; num_steps: how long it is trained. dense: the dense run of its replicate. pruned: Stage
    of the state that its mask was drawn from: the trained one before it, or, prune.when=init, the origin.
    """

    level: int
    sparsity: float
    mask: Stage
    start: Stage
    rewind_step: int
    num_steps: int
    dense: Run
    pruned: Stage


@dataclass(frozen=True)
class Entry:
    """What becomes a row: the numbers of a trained network, or of a measurement, with their labels.

    stage: Stage of Numbers. run: the trained network; None for a measurement, which says `of` which networks it is.
    ticket: of a trained ticket.
    """

    replicate: int
    level: int
    branch: str
    sparsity: float
    rewind_step: int
    stage: Stage
    of: str | None = None
    run: Run | None = None
    ticket: Ticket | None = None

    def __str__(self) -> str:
        of = f" of {self.of}" if self.of else ""
        return f"replicate {self.replicate}, level {self.level}, {self.branch}{of}"


@dataclass(frozen=True)
class Lab:
    """One replicate's bench: network, data, recipe, how it prunes, rewinds and branches, device class, named seeds."""

    model: Any
    data: Source
    recipe: Recipe
    criterion: Any
    pattern: Any
    rewind: Any
    branches: Mapping[str, Callable]
    device: str
    base_seed: int
    replicate: int
    when: str = "trained"  # prune.when: of what weights masks are drawn
    numerics: str = "reference"  # device.numerics: of trainings

    def __post_init__(self) -> None:
        if self.when == "init" and getattr(self.criterion, "needs_training", False):
            raise ValueError(f"criterion={name_of(self.criterion)} needs a trained network; prune.when=init has none")

    def seed(self, *names: str | int) -> int:
        return seeds.seed(self.base_seed, self.replicate, *names)

    def initialise(self, *names: str | int) -> Stage:
        """Fresh weights, by their name: "init" are the replicate's own."""
        return initialise(model=self.model, data=self.data, seed=self.seed(*names))

    @cached_property
    def origin(self) -> Stage:
        """What the dense network begins with."""
        return self.rewind.origin(self)

    def run(self, start: Stage, mask: Stage | None, num_steps: int, *order: str | int) -> Run:
        """Training from `start` under `mask` (None: dense), in the replicate's own data order or in a named one."""
        order_seed = self.seed(*(order or ("order",)))
        where = self.device, self.numerics
        return Run(start, mask, self.model, self.data, self.recipe, order_seed, num_steps, *where)

    def train(self, ticket: Ticket) -> Run:
        """The ticket, trained alone."""
        return self.run(ticket.start, ticket.mask, ticket.num_steps)

    def dense_mask(self) -> Stage:
        return dense_mask(model=self.model, data=self.data)

    def pruned(self, run: Run) -> Stage:
        """The state that masks are drawn from after `run`: what it leaves, or, prune.when=init, the origin."""
        return self.origin if self.when == "init" else self.rewind.leaves(run)

    def prune(self, run: Run, mask: Stage, sparsity: float, *names: str | int) -> Stage:
        """The mask inside `mask` that the criterion and the pattern draw after `run`, with a named seed.

        Its key holds of the origin and of the run's movement what the criterion reads.
        """
        reads = getattr(self.criterion, "reads", ())
        read = {"origin": self.origin} if "origin" in reads else {}
        read |= {"movement": run.movement} if "movement" in reads else {}
        return prune(
            model=self.model, data=self.data, state=self.pruned(run), mask=mask, sparsity=sparsity,
            criterion=self.criterion, pattern=self.pattern, seed=self.seed(*names), device=self.device, **read,
        )  # fmt: skip


def iterative(lab: Lab, sparsities: list[float], levels: Container[int] | None = None) -> Iterator[Entry]:
    """Every row of one replicate: dense, then at each level the ticket and its branches (at all levels, or at some).

    A branch that a level shares with an earlier one, as the dense network in another data order, is there once.
    """
    rewind = lab.rewind
    dense = lab.run(lab.origin, None, int(lab.recipe.steps))
    yield Entry(lab.replicate, 0, "dense", 0.0, 0, dense.result, run=dense)

    mask, run, seen = lab.dense_mask(), dense, set()
    for level, sparsity in enumerate(sparsities, start=1):
        k, num_steps = rewind.span(lab.recipe, level, len(sparsities))
        mask, start = lab.prune(run, mask, sparsity, "criterion", level), rewind(dense, rewind.leaves(run))
        ticket = Ticket(level, sparsity, mask, start, k, num_steps, dense, lab.pruned(run))
        run = lab.train(ticket)
        yield Entry(lab.replicate, level, "ticket", sparsity, k, run.result, run=run, ticket=ticket)
        for name, branch in lab.branches.items() if levels is None or level in levels else ():
            for entry in _entries(name, branch(ticket, lab), ticket, lab):
                if entry.stage.key not in seen:
                    seen.add(entry.stage.key)
                    yield entry


def _entries(name: str, found: Run | Mapping[str, Stage], ticket: Ticket, lab: Lab) -> Iterator[Entry]:
    """The rows of what a branch returned: a trained network, or measurements by the name of what they are of."""
    if isinstance(found, Run):
        level, sparsity, k = ticket.level, ticket.sparsity, ticket.rewind_step
        if found.mask is None:  # dense, from where the schedule has as many steps left
            level, sparsity, k = 0, 0.0, int(lab.recipe.steps) - found.num_steps
        yield Entry(lab.replicate, level, name, sparsity, k, found.result, run=found)
        return
    for of, stage in found.items():
        level, sparsity = (0, 0.0) if of == "dense" else (ticket.level, ticket.sparsity)
        yield Entry(lab.replicate, level, name, sparsity, ticket.rewind_step, stage, of=of)


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


@task(version=2, value=Mask)
def prune(
    context: Any, model: Any, data: Source, state: TrainState, mask: Mask, sparsity: float, criterion: Any,
    pattern: Any, seed: int, device: str, origin: TrainState | None = None, movement: Tensors | None = None,
) -> Mask:  # fmt: skip
    """The mask of the next level: `pattern` ranks what `criterion` scores, among the weights that `mask` still keeps.

    origin, movement: where the criterion reads them (see lth/criterion/__init__.py). Raises ValueError for scores that
    are not finite, and where all survivors of a layer had one score and some had to go: position would have chosen.
    """
    network = context.model(model, data)
    load(network, state.params, state.buffers)
    known = {"origin": origin, "movement": movement, "sparsity": sparsity}
    read = {name: known[name] for name in getattr(criterion, "reads", ())}
    found = criterion(network, state, mask, context.data(data).train, seeds.generator(seed), **read)
    scores = {name: found[name].detach().cpu() for name in mask}
    for name, kept in mask.items():
        if not torch.isfinite(scores[name][kept]).all():
            raise ValueError(f"criterion={name_of(criterion)} gave {name} scores that are not finite")
    drawn = pattern(scores, mask, sparsity, network)
    for (name, num_left), kept in zip(drawn.counts().items(), mask.values(), strict=True):
        equal = 0 < num_left < int(kept.sum()) and scores[name][kept].min() == scores[name][kept].max()
        if equal and getattr(pattern, "by_weight", True):
            raise ValueError(f"criterion={name_of(criterion)} gave all of {name} one score: nothing says which to keep")
    return drawn

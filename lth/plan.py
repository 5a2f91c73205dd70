"""The plan: what of a graph is missing in the store, and in which units of work it will be computed.

A stage whose consumers are all stored is not needed, and not asked for.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from lth.engine.choice import Choice, chosen
from lth.mask import Mask
from lth.numerics import computing, gemm_of
from lth.perform import Context
from lth.stage import Numbers, Stage, ancestors
from lth.state import TrainState
from lth.store import Store
from lth.train import Run, train, unit_of


@dataclass
class Plan:
    """What is missing. units: name -> its missing stages; needs: name -> the missing units that it waits for."""

    units: dict[str, list[Stage]] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    asked: int = 0
    unique: int = 0

    @property
    def trainings(self) -> list[Run]:
        """The runs to train, in the order of the plan."""
        return [stages[0].inputs["run"] for stages in self.units.values() if "run" in stages[0].inputs]

    @property
    def num_states(self) -> int:
        """Number of states that will be written."""
        return sum(stage.task.value is TrainState for stages in self.units.values() for stage in stages)

    @property
    def stored(self) -> int:
        """Trainings that need not be done."""
        return self.unique - len(self.trainings)

    def __str__(self) -> str:
        shared = self.asked - self.unique
        line = f"{self.asked} trainings asked, {len(self.trainings)} to do, {shared} shared, {self.stored} stored"
        measured = [
            s for stages in self.units.values() for s in stages if s.task.value is Numbers and "run" not in s.inputs
        ]
        return f"{line}; {len(measured)} measurements to do" if measured else line


def plan(
    cells: Iterable[Iterable[Stage]], store: Store, also: Iterable[Stage] = (), along: Iterable[Stage] = ()
) -> Plan:
    """What must be computed for the stages that each cell asks for, and for those of `also`.

    asked: the trainings behind the stages of each cell, all cells together. A training that several cells ask for is
    done once and shared; one that nothing missing needs is stored.

    A stage that is stored (and found good) is not opened up: what lies behind it is not needed. `along`: states that
    are worth keeping if their runs are trained anyway, so that a later study can go on from them.
    """
    result, cells = Plan(), [list(cell) for cell in cells]
    behind = [{unit_of(stage) for stage in ancestors(cell) if "run" in stage.inputs} for cell in cells]
    result.asked, result.unique = sum(map(len, behind)), len(set().union(*behind))
    unit_names: dict[str, str | None] = {}  # stage key -> its unit, None where nothing is missing

    def visit(target: Stage) -> None:
        # depth first without recursion: a chain of a hundred levels is deeper than Python's stack likes
        path = [target]
        while path:
            stage = path[-1]
            if stage.key in unit_names:
                path.pop()
                continue
            if stage.task.stored and store.holds(stage.key):
                unit_names[stage.key] = None
                continue
            waiting = [parent for parent in stage.parents() if parent.key not in unit_names]
            if waiting:
                path += waiting
                continue
            if stage.task.stored:
                unit = unit_of(stage)
                result.units.setdefault(unit, []).append(stage)
                result.needs.setdefault(unit, set()).update(_missing(stage, unit_names) - {unit})
                unit_names[stage.key] = unit
            else:
                unit_names[stage.key] = None

    for stage in [*(stage for cell in cells for stage in cell), *also]:
        visit(stage)
    for stage in along:
        if stage.key not in unit_names and unit_of(stage) in result.units:
            visit(stage)
    return result


def _missing(stage: Stage, unit_names: dict[str, str | None]) -> set[str]:
    """Units that a stage waits for: those of its inputs, seen through the ones that are not stored."""
    units = set()
    for parent in stage.parents():
        if not parent.task.stored:
            units |= _missing(parent, unit_names)
        elif (unit := unit_names[parent.key]) is not None:
            units.add(unit)
    return units


def measure_step(run: Run, context: Context, store: Store) -> tuple[float, int]:
    """(seconds a step, bytes of a state) of a run's kind, measured on a fresh network: what the plan estimates with."""
    torch.set_num_threads(1)
    data, model = context.data(run.data), context.model(run.model, run.data, run.numerics)
    mask = Mask.dense(model)
    start, state = TrainState.of(model), None
    with computing(run.numerics, gemm_of(run.numerics, context.device, store.root)):
        for num_steps in (3, 10):  # the first ones warm up
            started = time.perf_counter()
            for _, state, _ in train(model, start, mask, run.recipe, data, 0, num_steps):
                pass
            seconds = (time.perf_counter() - started) / num_steps
    tensors = state().pack()[0] if state else {}
    return seconds, sum(tensor.nbytes for tensor in tensors.values())


def choose(run: Run, context: Context, store: Store) -> Choice:
    """The engine of a run's kind, as context.engine names or leaves it; what is measured is recorded in the store."""
    torch.set_num_threads(1)
    data, model = context.data(run.data), context.model(run.model, run.data, run.numerics)
    with computing(run.numerics, gemm_of(run.numerics, context.device, store.root)):
        return chosen(context.engine, store.root, run.kind, model, run.recipe, data)

"""Cell: one Hydra job, a set of trainings and what is written about them.

The cells of a sweep are planned and executed as one graph (`execute_cells`); each then writes its own record from the
store: rows.jsonl (one row a trained network), curves.jsonl (what was measured on the way), on request its tickets.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from safetensors.torch import save_file

from lth import __version__
from lth.execute import Failure, execute
from lth.perform import Context, value
from lth.plan import Plan, measure_step, plan
from lth.progress import Progress
from lth.stage import Diverged, Stage, describe, digest
from lth.store import Store
from lth.tickets import Training
from lth.tracking import View, write_rows


@dataclass
class Cell:
    """What one job asks for. index: its number in the sweep. overrides: what sets it apart, as typed."""

    study: str
    index: int
    overrides: list[str]
    trainings: list[Training]
    save_tickets: bool = False
    keep_states: bool = True

    @cached_property
    def id(self) -> str:
        """Deterministic name: 16 digits of the hash of the results it asks for, and of how they were asked for."""
        return digest([self.study, self.overrides, [training.run.result.key for training in self.trainings]])[:16]

    @property
    def tickets(self) -> list[Training]:
        """The ticket of each replicate at the last level."""
        last = max(training.level for training in self.trainings)
        return [t for t in self.trainings if t.branch == "ticket" and t.level == last]

    def targets(self) -> list[Stage]:
        """Stages that must be stored beside the results."""
        tickets = [t.ticket for t in self.tickets if t.ticket and self.save_tickets]
        return [stage for ticket in tickets for stage in (ticket.mask, *ticket.start.parents())]

    def along(self) -> list[Stage]:
        """States from which a sparser study goes on: the ends of the chain's trainings."""
        return [t.run.end for t in self.trainings if t.branch in ("dense", "ticket")] if self.keep_states else []

    def labels(self) -> list[tuple[str, dict]]:
        """(result key, labels) of each training, in the order in which a view shows them."""
        return [
            (t.run.result.key, {"replicate": t.replicate, "level": t.level, "branch": t.branch, "sparsity": t.sparsity})
            for t in self.trainings
        ]


@dataclass
class Outcome:
    """What became of the cells of one plan."""

    computed: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)


class CellError(Exception):
    """Some trainings of a cell have no result."""


def execute_cells(
    cells: list[Cell],
    store: Store,
    context: Context,
    workers: int,
    views: list[View],
    checkpoint_seconds: float = 30.0,
    announce: Callable[[str], None] = print,
) -> Outcome:
    """Plan the union of the cells, print the plan, compute what is missing, and show it live in each cell's view."""
    asked = [[training.run for training in cell.trainings] for cell in cells]
    also, along = ([s for cell in cells for s in stages(cell)] for stages in (Cell.targets, Cell.along))
    todo = plan(asked, store, also, along)
    studies = ", ".join(dict.fromkeys(cell.study for cell in cells))
    announce(f"{studies}: {todo}{_estimate(todo, context, workers)}")
    outcome = Outcome(computed={stage.key for stages in todo.units.values() for stage in stages})
    if not todo.units:
        return outcome
    labels: dict[str, str] = {}
    watching: dict[str, list[View]] = {}
    for cell, view in zip(cells, views, strict=True):
        for training in cell.trainings:
            labels.setdefault(training.run.result.key, str(training))
            watching.setdefault(training.run.result.key, []).append(view)
    with Progress(len(todo.trainings), labels) as progress:

        def tell(event: str, *rest) -> None:
            progress.tell(event, *rest)
            if event == "point":
                for view in watching.get(rest[0], ()):
                    view.point(rest[0], rest[1])
            elif event in ("done", "served"):
                outcome.computed -= {stage.key for stage in rest[0]} if event == "served" else set()
                for stage in rest[0]:
                    if stage.key in watching:
                        numbers = result_of(stage, store)
                        for view in watching[stage.key]:
                            view.trained(stage.key, numbers["curve"], numbers)

        outcome.failures = execute(todo, store, context, workers, tell, checkpoint_seconds)
    return outcome


def _estimate(todo: Plan, context: Context, workers: int) -> str:
    """ "; about 80 s, 130 MB": what the plan will take, from a short measurement of each kind of run."""
    if not todo.trainings:
        return ""
    kinds, seconds, size = {}, 0.0, 0.0
    for run in todo.trainings:
        kind = digest(describe([run.model, run.data, run.recipe.optimizer, run.recipe.batch_size]))
        if kind not in kinds:
            kinds[kind] = measure_step(run, context)
        seconds += kinds[kind][0] * run.num_steps / max(1, workers)
        size += kinds[kind][1] * todo.num_states / len(todo.trainings)
    return f"; about {seconds:.0f} s, {size / 1e6:.0f} MB"


def result_of(stage: Stage, store: Store) -> dict:
    """The numbers of a run, those of one built on a diverged run being None."""
    found = store.read(stage)
    if not isinstance(found, Diverged):
        return found
    names = ("num_kept", "num_total", "test_accuracy", "test_loss", "val_accuracy", "early_stop_step")
    return dict.fromkeys([*names, "early_stop_test_accuracy"]) | {"diverged_step": found.step, "curve": []}


def record(cell: Cell, store: Store, outcome: Outcome, folder: Path, view: View) -> list[dict]:
    """Write the cell's rows, curves and tickets below `folder`, and replay into its view what that has not shown live.

    Raises CellError, after writing what there is, when a training has no result.
    """
    rows, curves, failed = [], [], {}
    for training in cell.trainings:
        stage = training.run.result
        if stage.key in outcome.failures:
            failed[str(training)] = outcome.failures[stage.key]
            continue
        numbers, manifest = result_of(stage, store), store.manifest(stage.key)
        view.trained(stage.key, numbers["curve"], numbers)
        total = numbers["num_total"]
        rows.append({
            "study": cell.study,
            "cell": cell.index,
            "overrides": cell.overrides,
            "replicate": training.replicate,
            "level": training.level,
            "branch": training.branch,
            "sparsity": 1 - numbers["num_kept"] / total if total else training.sparsity,
            "num_kept": numbers["num_kept"],
            "num_total": total,
            "rewind_step": training.rewind_step,
            "test_accuracy": numbers["test_accuracy"],
            "test_loss": numbers["test_loss"],
            "val_accuracy": numbers["val_accuracy"],
            "early_stop_step": numbers["early_stop_step"],
            "early_stop_test_accuracy": numbers["early_stop_test_accuracy"],
            "steps": training.run.num_steps,
            "diverged_step": numbers["diverged_step"],
            "seconds": round(manifest["seconds"], 3),
            "served": "computed" if stage.key in outcome.computed else "stored",
            "stage": stage.key,
        })  # fmt: skip
        labels = {"replicate": training.replicate, "level": training.level, "branch": training.branch}
        curves.append({"stage": stage.key, **labels, "points": numbers["curve"]})
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "curves.jsonl", curves)
    if failed:
        first, failure = next(iter(failed.items()))
        if failure.traceback:
            (folder / "traceback.txt").write_text(failure.traceback)
        raise CellError(f"{len(failed)} of {len(cell.trainings)} trainings failed, first {first}: {failure.cause}")
    return rows


def save_tickets(cell: Cell, store: Store, context: Context, folder: Path) -> list[Path]:
    """Write each replicate's ticket as <folder>/replicate_<n>.safetensors, tensors "mask:<name>" (uint8, 1 = kept),
    "params:<name>" and "buffers:<name>" (the weights it starts from, the removed ones zero), and a JSON card beside it.
    """
    files = []
    for training in cell.tickets:
        if training.ticket is None:
            continue
        mask, start = (value(stage, store, context) for stage in (training.ticket.mask, training.ticket.start))
        params = {name: tensor.clone() for name, tensor in start.params.items()}
        mask.apply_(params)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"replicate_{training.replicate}.safetensors"
        tensors = {f"mask:{name}": kept.byte() for name, kept in mask.items()}
        tensors |= {f"params:{name}": tensor for name, tensor in params.items()}
        tensors |= {f"buffers:{name}": tensor for name, tensor in start.buffers.items()}
        save_file(tensors, path)
        card = {
            "lth": __version__,
            "study": cell.study,
            "overrides": cell.overrides,
            "replicate": training.replicate,
            "level": training.level,
            "sparsity": mask.sparsity,
            "num_kept": mask.num_kept,
            "num_total": mask.num_total,
            "rewind_step": training.rewind_step,
            "test_accuracy": result_of(training.run.result, store)["test_accuracy"],
            "model": describe(training.run.model),
            "data": describe(training.run.data),
            "recipe": describe(training.run.recipe),
            "stage": training.run.result.key,
        }
        path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
        files += [path, path.with_suffix(".json")]
    return files


def drop_states(cells: Iterable[Cell], store: Store) -> None:
    """keep=tickets: forget the states at the end of training, but for those that the cells' tickets start from; masks,
    start states, numbers and curves stay. They can be made again, at the price of their training, when a later command
    builds on them."""
    cells = list(cells)
    starts = [t.ticket.start for cell in cells for t in cell.tickets if t.ticket]
    kept = {parent.key for start in starts for parent in start.parents()}
    for key in {training.run.end.key for cell in cells for training in cell.trainings} - kept:
        store.drop(key)

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
from lth.parallel import num_ranks
from lth.perform import Context, value
from lth.plan import Plan, choose, measure_step, plan
from lth.progress import Progress
from lth.stage import Diverged, Stage, ancestors, describe, digest
from lth.store import Store
from lth.tickets import Entry
from lth.tracking import View, write_rows

LONG = 20.0  # seconds of training from which on engines are measured, which takes about 3


@dataclass
class Cell:
    """What one job asks for. index: its number in the sweep. overrides: what sets it apart, as typed."""

    study: str
    index: int
    overrides: list[str]
    entries: list[Entry]
    save_tickets: bool = False
    keep_states: bool = True

    @cached_property
    def id(self) -> str:
        """Deterministic name: 16 digits of the hash of the results it asks for, and of how they were asked for."""
        return digest([self.study, self.overrides, [entry.stage.key for entry in self.entries]])[:16]

    @property
    def tickets(self) -> list[Entry]:
        """The ticket of each replicate at the last level."""
        last = max(entry.level for entry in self.entries)
        return [entry for entry in self.entries if entry.ticket and entry.level == last]

    def targets(self) -> list[Stage]:
        """Stages that must be stored beside those of the rows."""
        tickets = [entry.ticket for entry in self.tickets if entry.ticket and self.save_tickets]
        return [stage for ticket in tickets for stage in (ticket.mask, *stored(ticket.start))]

    def along(self) -> list[Stage]:
        """States from which a sparser study goes on: the ends of the chain's trainings."""
        chain = [entry.run for entry in self.entries if entry.run and entry.branch in ("dense", "ticket")]
        return [run.end for run in chain] if self.keep_states else []

    def labels(self) -> list[tuple[str, dict]]:
        """(stage key, labels) of each row, in the order in which a view shows them."""
        return [
            (
                entry.stage.key,
                {
                    "replicate": entry.replicate,
                    "level": entry.level,
                    "branch": f"{entry.branch}_of_{entry.of}" if entry.of else entry.branch,
                    "sparsity": entry.sparsity,
                },
            )
            for entry in self.entries
        ]


def stored(stage: Stage) -> list[Stage]:
    """The stage itself if its value is stored, else the stored ones that it is computed from."""
    return [stage] if stage.task.stored else [found for parent in stage.parents() for found in stored(parent)]


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
    asked = [[entry.stage for entry in cell.entries] for cell in cells]
    also, along = ([s for cell in cells for s in stages(cell)] for stages in (Cell.targets, Cell.along))
    todo = plan(asked, store, also, along)
    studies = ", ".join(dict.fromkeys(cell.study for cell in cells))
    announce(f"{studies}: {todo}{_estimate(todo, store, context, workers)}")
    outcome = Outcome(computed={stage.key for stages in todo.units.values() for stage in stages})
    if not todo.units:
        return outcome
    labels: dict[str, str] = {}
    watching: dict[str, list[View]] = {}
    for cell, view in zip(cells, views, strict=True):
        for entry in cell.entries:
            labels.setdefault(entry.stage.key, str(entry))
            watching.setdefault(entry.stage.key, []).append(view)
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
                            view.trained(stage.key, numbers.get("curve", []), numbers)

        outcome.failures = execute(todo, store, context, workers, tell, checkpoint_seconds)
    return outcome


def _estimate(todo: Plan, store: Store, context: Context, workers: int) -> str:
    """ "; about 80 s, 130 MB": what the plan will take, from a short measurement of each kind of run. Kinds that take
    long get the engine that is fastest for them."""
    runs, spent, size = {run.shape: run for run in todo.trainings}, dict[str, float](), 0.0
    try:
        steps = {shape: measure_step(run, context, store) for shape, run in runs.items()}
    except ValueError:  # at a file that is no image: its training says so, and the others go on
        return ""
    for run in todo.trainings:
        seconds, num_bytes = steps[run.shape]
        spent[run.shape] = spent.get(run.shape, 0.0) + seconds * run.num_steps / max(1, workers, num_ranks())
        size += num_bytes * todo.num_states / len(todo.trainings)
    for shape, run in runs.items():
        if context.engine != "auto" or spent[shape] > LONG:
            context.choices[shape] = choose(run, context, store)
            spent[shape] /= context.choices[shape].gain
    return f"; about {sum(spent.values()):.0f} s, {size / 1e6:.0f} MB" if runs else ""


def result_of(stage: Stage, store: Store) -> dict:
    """The numbers of a stage; of one built on a diverged run there is but the step."""
    found = store.read(stage)
    if not isinstance(found, Diverged):
        return found
    return {"diverged_step": found.step}


def record(cell: Cell, store: Store, outcome: Outcome, folder: Path, view: View) -> list[dict]:
    """Write the cell's rows, curves and tickets below `folder`, and replay into its view what that has not shown live.

    Raises CellError, after writing what there is, when a training has no result.
    """
    rows, curves, failed = [], [], {}
    for entry in cell.entries:
        if entry.stage.key in outcome.failures:
            failed[str(entry)] = outcome.failures[entry.stage.key]
            continue
        numbers, manifest = result_of(entry.stage, store), store.manifest(entry.stage.key)
        view.trained(entry.stage.key, numbers.get("curve", []), numbers)
        served = "computed" if entry.stage.key in outcome.computed else "stored"
        rows.append(_row(cell, entry, numbers, manifest, served))
        labels = {"replicate": entry.replicate, "level": entry.level, "branch": entry.branch}
        labels |= {"of": entry.of} if entry.of else {}
        series = {name: value for name, value in numbers.items() if isinstance(value, list)}
        curves.append({"stage": entry.stage.key, **labels, **series})
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "curves.jsonl", curves)
    if failed:
        first, failure = next(iter(failed.items()))
        if failure.traceback:
            (folder / "traceback.txt").write_text(failure.traceback)
        raise CellError(f"{len(failed)} of {len(cell.entries)} rows failed, first {first}: {failure.cause}")
    return rows


def _row(cell: Cell, entry: Entry, numbers: dict, manifest: dict, served: str) -> dict:
    """The labels of an entry and its numbers: those of a trained network in a fixed order, those of a measurement as it
    gives them, behind the name of what it is `of`."""
    total = numbers.get("num_total")
    row = {
        "study": cell.study,
        "cell": cell.index,
        "overrides": cell.overrides,
        "replicate": entry.replicate,
        "level": entry.level,
        "branch": entry.branch,
        "sparsity": 1 - numbers["num_kept"] / total if total else entry.sparsity,
        "target_sparsity": entry.sparsity,
        "num_kept": numbers.get("num_kept"),
        "num_total": total,
        "rewind_step": entry.rewind_step,
    }
    if entry.run:
        names = ("test_accuracy", "test_loss", "val_accuracy", "early_stop_step", "early_stop_test_accuracy")
        row |= {name: numbers.get(name) for name in names} | {"steps": entry.run.num_steps}
        row |= {"numerics": entry.run.numerics, "gemm": manifest.get("gemm")}
    else:
        row |= {"of": entry.of} | {
            name: n for name, n in numbers.items() if not isinstance(n, list) and name not in row
        }
    return row | {
        "diverged_step": numbers.get("diverged_step"),
        "seconds": round(manifest["seconds"], 3),
        "served": served,
        "stage": entry.stage.key,
    }


def save_tickets(cell: Cell, store: Store, context: Context, folder: Path) -> list[Path]:
    """Write each replicate's ticket as <folder>/replicate_<n>.safetensors, tensors "mask:<name>" (uint8, 1 = kept),
    "params:<name>" and "buffers:<name>" (the weights it starts from, the removed ones zero), and a JSON card beside it.
    """
    files = []
    for entry in cell.tickets:
        if entry.ticket is None or entry.run is None:
            continue
        mask, start = (value(stage, store, context) for stage in (entry.ticket.mask, entry.ticket.start))
        params = {name: tensor.clone() for name, tensor in start.params.items()}
        mask.apply_(params)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"replicate_{entry.replicate}.safetensors"
        tensors = {f"mask:{name}": kept.byte() for name, kept in mask.items()}
        tensors |= {f"params:{name}": tensor for name, tensor in params.items()}
        tensors |= {f"buffers:{name}": tensor for name, tensor in start.buffers.items()}
        save_file(tensors, path)
        card = {
            "lth": __version__,
            "study": cell.study,
            "overrides": cell.overrides,
            "replicate": entry.replicate,
            "level": entry.level,
            "sparsity": mask.sparsity,
            "num_kept": mask.num_kept,
            "num_total": mask.num_total,
            "rewind_step": entry.rewind_step,
            "test_accuracy": result_of(entry.stage, store).get("test_accuracy"),
            "model": describe(entry.run.model),
            "data": describe(entry.run.data),
            "recipe": describe(entry.run.recipe),
            "stage": entry.stage.key,
        }
        path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
        files += [path, path.with_suffix(".json")]
    return files


def drop_states(cells: Iterable[Cell], store: Store) -> None:
    """keep=tickets: forget states at the end of training, and movements, but for those that the cells' tickets start
    from; masks, start states, numbers and curves stay. They can be made again, at the price of their training, when a
    later command builds on them."""
    cells = list(cells)
    kept = {stage.key for cell in cells for t in cell.tickets if t.ticket for stage in stored(t.ticket.start)}
    behind = ancestors(entry.stage for cell in cells for entry in cell.entries)
    runs = [stage.inputs["run"] for stage in behind if "run" in stage.inputs]
    ends = {stage.key for run in runs for stage in (run.end, run.movement)}
    for key in ends - kept:
        store.drop(key)

"""Branches that measure: of the right networks, in the right states, as rows of their own."""

import dataclasses
import json
from itertools import combinations
from statistics import fmean

import pytest
import torch
from conftest import Bench

from lth.branch import networks
from lth.branch.landscape import Landscape
from lth.branch.random_reinit import RandomReinit
from lth.branch.stability import Stability
from lth.cell import Cell, Outcome, record
from lth.connectivity import angle, barrier, distance, interpolate
from lth.landscape import hessian_extremes, hessian_product
from lth.perform import value
from lth.plan import plan
from lth.rewind.early import Early
from lth.rewind.none import Keep
from lth.seeds import generator
from lth.state import load
from lth.tracking import View, Wandb, read_rows

OF = ["ticket", "dense", "random_reinit"]


@pytest.fixture
def stable(bench: Bench) -> Bench:
    """One level, rewound to step 10 of 40; two copies beside each network."""
    bench.rewind = Early(10)
    bench.branches = {"random_reinit": RandomReinit(), "stability": Stability(OF, num_orders=3, num_alphas=5)}
    return bench


def read(bench: Bench, stage):
    return value(stage, bench.store, bench.context)


def test_stability_is_that_of_copies_in_other_orders(stable: Bench):
    """The network as the study trains it and two copies that differ from it in the order of the data alone; distances
    and barriers are the means over the three pairs; the first copy is compared with what the mask was drawn from."""
    entries = stable.trainings(0.2)
    assert not stable.run(entries)
    dense, ticket, reinit, *measured = entries
    assert [entry.of for entry in measured] == OF and [entry.level for entry in measured] == [1, 0, 1]
    lab = stable.lab()
    runs = {"ticket": ticket.run, "random_reinit": reinit.run, "dense": lab.run(dense.run.at(10), None, 30)}
    for entry in measured:
        run = runs[entry.of]
        orders = [run.order, *(lab.seed("stability", i) for i in (1, 2))]
        assert len(set(orders)) == 3
        first = dense.run.end if entry.of == "dense" else run.end
        copies = [first, *(dataclasses.replace(run, order=order).end for order in orders[1:])]
        states = [stable.store.read(stage) for stage in copies]
        numbers = stable.store.read(entry.stage)
        pairs = list(combinations(states, 2))
        assert numbers["distance"] == pytest.approx(fmean(distance(a, b) for a, b in pairs)) and numbers["distance"] > 0
        assert numbers["angle"] == pytest.approx(fmean(angle(a, b) for a, b in pairs))
        splits = stable.context.data(lab.data)
        network = stable.context.model(lab.model, lab.data)
        lines = [interpolate(network, a, b, 5, splits.train, splits.test, 1, 20) for a, b in pairs]
        for name, of in (("error_barrier", "test_error"), ("train_loss_barrier", "train_loss")):
            assert numbers[name] == pytest.approx(fmean(barrier([point[of] for point in line]) for line in lines))
        assert len(numbers["pairs"]) == 3 and len(numbers["line"]) == 3 * 5
        assert ("pruning_distance" in numbers) == (entry.of == "ticket")
    numbers, mask = stable.store.read(measured[0].stage), read(stable, ticket.run.mask)
    ends = [stable.store.read(run.end) for run in (ticket.run, dense.run)]
    assert numbers["pruning_distance"] == pytest.approx(distance(*ends, mask)) and numbers["num_kept"] == mask.num_kept


def test_the_dense_copy_in_its_own_order_is_the_dense_run(stable: Bench):
    """Law 1 makes it so, and saves a training: from step k on in its own order the dense network ends as it ended."""
    (dense, *_) = stable.trainings(0.2)
    rest = stable.lab().run(dense.run.at(10), None, 30)
    assert not stable.run([dense], also=[rest.end])
    whole, cut = (stable.store.read(stage) for stage in (dense.run.end, rest.end))
    assert whole.step == cut.step and all(torch.equal(whole.params[n], t) for n, t in cut.params.items())


def test_copies_are_trainings_of_the_plan(stable: Bench):
    """Two added copies of each of three networks, beside dense, ticket and control: 3 + 6 trainings, 3 measurements."""
    todo = plan([[entry.stage for entry in stable.trainings(0.2)]], stable.store)
    assert str(todo) == "9 trainings asked, 9 to do, 0 shared, 0 stored; 3 measurements to do"


def test_landscape_is_that_of_the_start_and_the_end(bench: Bench):
    """Largest eigenvalue where the ticket starts and where it ends, inside its mask, from the states themselves."""
    bench.rewind, landscape = Early(10), Landscape(num_examples=100, num_steps=30, num_eigenvalues=2, radii=[0.5, 0.1])
    bench.branches = {"landscape": landscape}
    entries = bench.trainings(0.2)
    assert not bench.run(entries)
    _, ticket, measured = entries
    numbers, lab = bench.store.read(measured.stage), bench.lab()
    network, mask = bench.context.model(lab.model, lab.data), read(bench, ticket.run.mask)
    for where, stage in (("start", ticket.run.start), ("end", ticket.run.end)):
        state = read(bench, stage)
        load(network, state.params, state.buffers)
        product, dim = hessian_product(network, mask, bench.context.data(lab.data).train[:100])
        extremes = hessian_extremes(product, dim, 2, 30, generator(0))  # another start of Lanczos, the same ends
        assert numbers[f"{where}_largest_eigenvalue"] == pytest.approx(extremes["largest"][0]["value"], rel=1e-6)
        assert len(numbers[f"{where}_eigenvalues"]) == 2 and numbers[f"{where}_trace_error"] > 0
        assert numbers[f"{where}_sharpness"] == numbers[f"{where}_rises"][0]
    assert numbers["start_largest_eigenvalue"] != numbers["end_largest_eigenvalue"]


@pytest.mark.parametrize(
    ("of", "rewind", "words"),
    [
        ("nobody", Early(10), "branch.stability.of=nobody is no network here; there are ticket, dense, random_reinit"),
        ("stability", Early(10), "branch.stability.of=stability is no network here"),
        ("dense", Keep(), "leaves nothing to train"),
    ],
)
def test_what_cannot_be_measured_is_refused(stable: Bench, of, rewind, words):
    stable.rewind = rewind
    ticket = next(entry.ticket for entry in dataclasses.replace(stable, branches={}).trainings(0.2) if entry.ticket)
    lab = dataclasses.replace(stable.lab(), branches={"random_reinit": RandomReinit(), "stability": lambda *_: {}})
    with pytest.raises(ValueError, match=f"{words}[^\n]*$"):
        networks([of], ticket, lab, "branch.stability")


@pytest.mark.parametrize(("field", "bad"), [("num_orders", 1), ("num_alphas", 1)])
def test_fewer_than_two_is_refused(field, bad):
    with pytest.raises(ValueError, match=rf"^branch\.stability\.{field}={bad} must be at least 2$"):
        Stability(**{field: bad})


def test_rows_of_measurements(stable: Bench, tmp_path):
    """A row says what it is of and its numbers; lists go to curves.jsonl; all of it is strict JSON. What diverged is
    there with its step and no numbers."""
    entries = stable.trainings(0.2)
    stable.run(entries)
    cell = Cell("tickets", 0, [], entries)
    settings = {
        "settings": Wandb("disabled"),
        "id": "x",
        "group": "",
        "job_type": "",
        "name": "",
        "tags": [],
        "config": {},
    }
    view = View(**settings, directory=tmp_path, order=cell.labels())
    rows = record(cell, stable.store, Outcome(), tmp_path, view)
    assert rows == read_rows(tmp_path / "rows.jsonl")
    measured = [row for row in rows if row["branch"] == "stability"]
    assert [row["of"] for row in measured] == OF and [row["level"] for row in measured] == [1, 0, 1]
    assert [row["sparsity"] for row in measured] == pytest.approx([0.2, 0.0, 0.2], abs=0.005)
    assert all(row["error_barrier"] >= 0 and row["rewind_step"] == 10 and "pairs" not in row for row in measured)
    assert "of" not in rows[0]
    curves = read_rows(tmp_path / "curves.jsonl")
    assert [len(curve["line"]) for curve in curves if curve["branch"] == "stability"] == [15, 15, 15]
    json.dumps([*rows, *curves], allow_nan=False)


def test_a_measurement_of_what_diverged_has_its_step(stable: Bench, tmp_path):
    stable.recipe = dataclasses.replace(stable.recipe, optimizer="SGD", lr=1e30)
    entries = stable.trainings(0.2)
    assert not stable.run(entries)
    cell = Cell("tickets", 0, [], entries)
    settings = {
        "settings": Wandb("disabled"),
        "id": "x",
        "group": "",
        "job_type": "",
        "name": "",
        "tags": [],
        "config": {},
    }
    rows = record(cell, stable.store, Outcome(), tmp_path, View(**settings, directory=tmp_path, order=cell.labels()))
    assert all(row["diverged_step"] is not None for row in rows)
    assert all("error_barrier" not in row for row in rows)

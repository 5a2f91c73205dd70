"""Leases: processes on one store share the work, wait last, and take over from the dead. Correctness is not theirs."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import Bench
from test_execute import contents, unbroken

import lth.execute
import lth.store
from lth.perform import perform
from lth.store import Store
from lth.train import unit_of


def units(bench: Bench, replicate: int) -> list[str]:
    return [unit_of(t.run.result) for t in bench.trainings(replicates=2) if t.replicate == replicate]


def _work(root: str, gate, pipe) -> None:
    """Execute two replicates on a store that others work on, and say what was done here and what was found done."""
    bench, told = Bench(Store(root)), []
    gate.wait()
    failures = bench.run(bench.trainings(replicates=2), tell=lambda event, *rest: told.append((event, rest)))
    keys = {how: [stage.key for event, rest in told if event == how for stage in rest[0]] for how in ("done", "served")}
    pipe.send((failures, keys))


@pytest.mark.slow
def test_processes_share_the_work_of_one_plan(bench: Bench):
    """Two processes, the same plan, one store: every stage is computed by one of them, both see all of it
    finished, and the bytes are those of one process. No lease is left."""
    start = multiprocessing.get_context("forkserver")
    gate, ours = start.Barrier(2), []
    for _ in range(2):
        mine, theirs = start.Pipe()
        process = start.Process(target=_work, args=(str(bench.store.root), gate, theirs))
        process.start()
        ours.append((process, mine))
    answers = [pipe.recv() for _, pipe in ours]
    for process, _ in ours:
        process.join()
    assert all(not failures for failures, _ in answers)
    done = [key for _, keys in answers for key in keys["done"]]
    trainings = bench.trainings(replicates=2)
    assert len(done) == len(set(done)), "computed twice"
    assert {t.run.result.key for t in trainings} <= set(done)
    for _, keys in answers:
        assert not set(keys["done"]) & set(keys["served"])
    assert sum(bool(keys["done"]) for _, keys in answers) > 1, "one process did it all"
    assert contents(bench.store) == unbroken(bench, trainings)
    assert list((bench.store.root / "leases").iterdir()) == []


def test_what_is_in_work_elsewhere_waits_until_nothing_else_is_left(bench: Bench, monkeypatch):
    """The dense run of replicate 0 is leased by another: all of replicate 1 is done before it is waited for, and it is
    taken when the other gives it up."""
    monkeypatch.setattr(lth.execute, "LOOK_SECONDS", 0.05)
    trainings = bench.trainings(replicates=2)
    other = bench.store.lease(unit_of(trainings[0].run.result))
    other.acquire(blocking=False)
    order, mine = [], set(units(bench, 1))

    def tell(event, *rest):
        if event == "done" and "run" in rest[0][0].inputs:
            order.append(unit_of(rest[0][0]))
            if mine <= set(order):
                other.release()

    assert not bench.run(trainings, tell=tell)
    assert set(order[: len(mine)]) == mine and len(order) == 2 * len(mine)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_another_has_done_is_served(bench: Bench, workers: int, monkeypatch):
    """A unit that another process commits between the plan and its turn is not computed again, and is told apart."""
    monkeypatch.setattr(lth.execute, "LOOK_SECONDS", 0.05)
    trainings, told = bench.trainings(), []
    ends = [t.run.end for t in trainings if t.branch in ("dense", "ticket")]
    todo = lth.plan.plan([[t.stage for t in trainings]], bench.store, along=ends)
    bench.run(trainings[:1])  # the dense run

    def tell(event, *rest):
        told.append((event, rest[0][0].key if event != "point" else ""))

    assert not lth.execute.execute(todo, bench.store, bench.context, workers, tell)
    dense = {stage.key for stage in todo.units[unit_of(trainings[0].run.result)]}
    assert [event for event, key in told if key in dense] == ["served"]
    assert sum(event == "done" for event, _ in told) == len(todo.units) - sum(event == "served" for event, _ in told)


def _take(root: str, unit: str) -> None:
    lease = Store(root).lease(unit)  # one that nobody refers to is released
    lease.acquire(blocking=False)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_owner_is_taken_over_from_at_once(bench: Bench, monkeypatch):
    """A process of this machine that died with a lease holds nobody up."""
    monkeypatch.setattr(lth.store, "LEASE_SECONDS", 1000.0)
    trainings = bench.trainings()
    unit = unit_of(trainings[0].run.result)
    child = multiprocessing.get_context("fork").Process(target=_take, args=(str(bench.store.root), unit))
    child.start()
    child.join()
    assert (bench.store.root / "leases" / unit).exists()
    assert not bench.run(trainings)
    assert bench.store.holds(trainings[-1].run.result.key)


def test_a_silent_owner_elsewhere_is_taken_over_from_in_time(bench: Bench, monkeypatch):
    """Of a process on another machine nobody knows whether it lives: its lease is taken over when its heart has not
    beaten for LEASE_SECONDS, and before twice that time; not while it beats."""
    seconds = 1.0
    monkeypatch.setattr(lth.store, "LEASE_SECONDS", seconds)
    monkeypatch.setattr(lth.execute, "LOOK_SECONDS", 0.05)
    trainings = bench.trainings()
    unit = unit_of(trainings[0].run.result)
    lease = bench.store.lease(unit)
    lease.acquire(blocking=False)
    marker = bench.store.root / "leases" / unit
    ours = marker.read_text()
    lease.release()
    elsewhere = "".join(
        "host=elsewhere.invalid\n" if line.startswith("host=") else line for line in ours.splitlines(keepends=True)
    )
    assert "elsewhere" in elsewhere
    marker.write_text(elsewhere)
    beats: list[float] = []

    def beat() -> None:  # the other machine's heart
        for _ in range(20):
            os.utime(marker)
            beats.append(time.monotonic())
            time.sleep(0.1)

    heart = threading.Thread(target=beat)
    heart.start()
    begun: dict[str, float] = {}

    def watched(units, *rest):
        begun[unit_of(units[0][0])] = time.monotonic()
        return perform(units, *rest)

    monkeypatch.setattr(lth.execute, "perform", watched)
    assert not bench.run(trainings)
    heart.join()
    assert len(beats) == 20 and seconds <= begun[unit] - beats[-1] < 2 * seconds


def test_leases_do_not_decide_what_is_right(bench: Bench, tmp_path: Path):
    """Two that compute the same unit although it is leased (an owner thought dead) commit the same bytes."""
    trainings = bench.trainings()
    bench.run(trainings)
    before = contents(bench.store)
    for training in trainings:
        bench.store.commit(training.run.result, bench.store.read(training.run.result), {"seconds": 0.0})
    assert contents(bench.store) == before


def test_names_of_leases_stay_inside_the_store(bench: Bench):
    with pytest.raises(lth.store.StoreError, match="64 hex digits"):
        bench.store.lease("../../escape")

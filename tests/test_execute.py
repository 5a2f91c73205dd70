"""Planning and executing: shared work counted by hand, law 6, and what fails taking only its own with it."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Bench

import lth.perform
import lth.train
from lth.execute import Failure
from lth.perform import Context, perform
from lth.plan import plan
from lth.prune.iterative import Iterative
from lth.recipe import Recipe
from lth.rewind.early import Early
from lth.rewind.late import Late
from lth.rewind.learning_rate import LearningRate
from lth.rewind.none import Keep
from lth.stage import Diverged
from lth.store import Store
from lth.train import unit_of


def runs(bench: Bench, sparsity: float, replicates: int = 1):
    return [entry.stage for entry in bench.trainings(sparsity, replicates)]


def contents(store: Store) -> dict[str, bytes]:
    """Every value in a store, by path; manifests hold seconds and are left out."""
    files = (path for path in (store.root / "stages").rglob("value.*"))
    return {str(path.relative_to(store.root)): path.read_bytes() for path in files}


# The plan


def test_plan_counts_shared_work_by_hand(bench: Bench):
    """Sparsities 0.5, 0.8 and 0.9 at 20% a level: 14 trainings of the ticket chain instead of 26, 26 of the two
    controls instead of 46, a replicate (counted by hand in the issue that asked for it)."""
    cells = [runs(bench, sparsity) for sparsity in (0.5, 0.8, 0.9)]
    todo = plan(cells, bench.store)
    assert (todo.asked, len(todo.trainings), todo.asked - todo.unique, todo.stored) == (26 + 46, 14 + 26, 32, 0)
    assert str(todo) == "72 trainings asked, 40 to do, 32 shared, 0 stored"
    bare = dataclasses.replace(bench, branches={})
    assert len(plan([runs(bare, s) for s in (0.5, 0.8, 0.9)], bench.store).trainings) == 14


def test_second_plan_is_empty_and_a_third_sparsity_adds_its_own(bench: Bench):
    """What is stored is not done again. From 0.36 (two levels of 20%) to 0.488 there is one more level: a ticket and
    its two controls; a second replicate adds its own seven."""
    bench.run(bench.trainings(0.36))
    assert not plan([runs(bench, 0.36)], bench.store).units
    assert len(plan([runs(bench, 0.36), runs(bench, 0.488)], bench.store).trainings) == 3
    assert len(plan([runs(bench, 0.36, replicates=2)], bench.store).trainings) == 7
    done = []
    bench.run(bench.trainings(0.488), tell=lambda event, *rest: done.append(rest) if event == "done" else None)
    assert sum("run" in stages[0].inputs for (stages,) in done) == 3


def test_rewind_points_cost_one_dense_run(bench: Bench):
    """Four rewind steps: one dense training, whose states on the way are saved in its one pass."""
    rewinds = [Early(k) for k in (0, 5, 10, 20)]
    cells = [[t.stage for t in dataclasses.replace(bench, rewind=r, branches={}).trainings(0.2)] for r in rewinds]
    todo = plan(cells, bench.store)
    assert len(todo.trainings) == 1 + len(rewinds)
    dense = todo.units[unit_of(cells[0][0])]
    assert sorted(stage.inputs.get("step", -1) for stage in dense) == [-1, 5, 10, 20, 40]


def test_plan_puts_inputs_before_consumers(bench: Bench):
    """In the plan's order every unit comes after those it needs, also in chains deeper than Python's stack."""
    steep = dataclasses.replace(bench, branches={}, model=type(bench.model)([100, 100]))
    deep = [Iterative(0.999, 0.005)()]
    assert len(deep[0]) > 1000
    chain = lth.tickets.iterative(steep.lab(), deep[0])
    todo = plan([[entry.stage for entry in chain]], bench.store)
    seen: set[str] = set()
    for unit, needs in todo.needs.items():
        assert needs <= seen
        seen.add(unit)
    assert len(todo.trainings) == len(deep[0]) + 1


# Law 6 and workers


def unbroken(bench: Bench, trainings) -> dict[str, bytes]:
    whole = dataclasses.replace(bench, store=Store(bench.store.root.parent / "unbroken"))
    assert not whole.run(trainings)
    return contents(whole.store)


def test_workers_give_the_bytes_of_one_process(bench: Bench):
    """Two workers, none, another order of cells: the same stages, byte for byte."""
    trainings = bench.trainings(replicates=2)
    assert not bench.run(list(reversed(trainings)), workers=2)
    assert contents(bench.store) == unbroken(bench, trainings)


class Killed(BaseException):
    """Like SIGKILL: no handler of the code under test sees it."""


@pytest.mark.parametrize("at", range(1, 8))
def test_killed_in_training_resumes_identical(bench: Bench, at: int, monkeypatch):
    """Law 6: torn away at the n-th evaluation with checkpoints at each, the same again gives the same bytes, and goes
    on from the checkpoint: no step before it is trained twice."""
    slow = dataclasses.replace(bench, recipe=Recipe("Adam", 0.01, 20, 80, 10), rewind=Early(15), branches={})
    trainings = slow.trainings(0.2)
    expected = unbroken(slow, trainings)
    points = []

    def tell(event, *rest):
        if event == "point":
            points.append(rest[1]["step"])
            if len(points) == at:
                raise Killed

    with pytest.raises(Killed):
        slow.run(trainings, tell=tell, checkpoint_seconds=0.0)
    steps = []
    original = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (steps.append(1), original(self))[1])
    assert not slow.run(trainings, checkpoint_seconds=0.0)
    assert contents(slow.store) == expected
    assert not list((slow.store.root / "work").iterdir())
    # the dense run is 80 steps, the ticket's 65; the point at which it died was told before its checkpoint
    saved = 10 * (at - 1)
    assert len(steps) == 80 - saved + 65


def test_a_state_before_the_checkpoint_is_not_missed(bench: Bench):
    """A checkpoint at step 30 is of no use to a plan that also asks for the state at step 5."""
    lone = dataclasses.replace(bench, branches={})
    dense = lone.trainings(0.0)

    def tell(event, *rest):
        if event == "point" and rest[1]["step"] == 40:
            raise Killed

    with pytest.raises(Killed):
        lone.run(dense, tell=tell, checkpoint_seconds=0.0)
    early = dense[0].run.at(5)
    assert not lone.run(dense, also=[early])
    assert lone.store.read(early).step == 5
    other = dataclasses.replace(lone, store=Store(bench.store.root.parent / "other"))
    other.run(dense)
    assert lone.numbers(dense) == other.numbers(dense)


def _train_slowly(root: str, sparsity: float) -> None:
    bench = Bench(Store(root))
    bench.recipe = Recipe("Adam", 0.01, 20, 4000, 10)
    bench.branches = {}
    bench.run(bench.trainings(sparsity), checkpoint_seconds=0.0)


@pytest.mark.slow
def test_sigkill_in_training_resumes_identical(bench: Bench):
    """Law 6 with a real SIGKILL of a real process once it has written a checkpoint."""
    slow = dataclasses.replace(bench, recipe=Recipe("Adam", 0.01, 20, 4000, 10), branches={})
    trainings = slow.trainings(0.0)
    start = multiprocessing.get_context("forkserver")
    child = start.Process(target=_train_slowly, args=(str(slow.store.root), 0.0))
    child.start()
    work = slow.store.root / "work"
    deadline = time.monotonic() + 60
    while not any(work.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not slow.store.holds(trainings[0].run.result.key), "the training was over before the kill: make it longer"
    assert not slow.run(trainings)
    assert contents(slow.store) == unbroken(slow, trainings)


@dataclass(frozen=True)
class Failing:
    """Magnitude, but raises or kills its process where few weights are left."""

    how: str
    marker: str = ""

    def __call__(self, model, state, mask, data, rng):
        if mask.sparsity > 0.1:
            if self.how == "raise":
                raise RuntimeError("no scores\ntoday")
            if self.how == "exit":
                raise SystemExit(3)
            if self.how == "kill" or not Path(self.marker).exists():
                Path(self.marker or os.devnull).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return {name: state.params[name].abs() for name in mask}


@pytest.mark.parametrize(
    ("how", "workers", "cause"),
    [
        ("raise", 0, "RuntimeError: no scores today"),
        pytest.param("raise", 2, "RuntimeError: no scores today", marks=pytest.mark.slow),
        pytest.param("exit", 2, "SystemExit: 3", marks=pytest.mark.slow),
        ("kill", 2, "its worker process died twice (signal 9)"),
    ],
)
def test_failure_takes_only_its_own(bench: Bench, how: str, workers: int, cause: str):
    """Level 2's mask cannot be made: the dense run, level 1 and the other criterion's cell finish; what is built on the
    mask has no result, and says why in one line."""
    bad = dataclasses.replace(bench, criterion=Failing(how))
    trainings = bad.trainings(0.36) + bench.trainings(0.36)
    failures = bench.run(trainings, workers=workers)
    broken = {t.run.result.key for t in bad.trainings(0.36) if t.level == 2}
    assert {key for key in failures if key in {t.run.result.key for t in trainings}} == broken
    assert {failure.cause for failure in failures.values()} == {cause}
    for training in trainings:
        assert bench.store.holds(training.run.result.key) == (training.run.result.key not in broken)


@pytest.mark.slow
def test_a_worker_that_dies_once_is_replaced(bench: Bench, tmp_path):
    """A death may be the machine's doing: the unit is tried once more."""
    once = dataclasses.replace(bench, criterion=Failing("once", str(tmp_path / "marker")))
    assert not once.run(once.trainings(0.36), workers=2)
    assert (tmp_path / "marker").exists()


def test_divergence_is_a_result(bench: Bench):
    """A dense run that diverges: its result says at which step, what is built on it diverges with it, and the other
    replicate goes on."""
    wild = dataclasses.replace(bench, recipe=Recipe("SGD", 1e30, 20, 40, 10))
    trainings = bench.trainings() + wild.trainings()
    assert not bench.run(trainings)
    dense, *rest = wild.trainings()
    numbers = bench.store.read(dense.run.result)
    assert numbers["diverged_step"] is not None and numbers["test_accuracy"] is None
    for training in rest:
        found = bench.store.read(training.run.result)
        if training.branch == "random_reinit":  # starts from fresh weights, but under a mask nobody could draw
            assert found == Diverged(numbers["diverged_step"])
        assert found == Diverged(numbers["diverged_step"])
    assert all(n["diverged_step"] is None for n in bench.numbers(bench.trainings()))


def test_bad_entry_is_computed_again(bench: Bench):
    """A result damaged on disk is set aside by the plan, and the same again makes it anew, bit for bit."""
    trainings = bench.trainings()
    bench.run(trainings)
    before = contents(bench.store)
    victim = next(path for path in before if trainings[3].run.result.key in path)
    path = bench.store.root / victim
    path.write_bytes(path.read_bytes()[:-1])
    todo = plan([[t.stage for t in trainings]], bench.store)
    assert len(todo.trainings) == 1
    assert not bench.run(trainings)
    assert contents(bench.store) == before


def test_provenance_names_all_that_made_it(bench: Bench):
    """A manifest holds the whole description of its stage, and its key is the hash of that."""
    trainings = bench.trainings(0.2)
    bench.run(trainings)
    manifest = bench.store.manifest(trainings[1].run.result.key)
    assert lth.stage.digest(manifest["stage"]) == trainings[1].run.result.key
    assert manifest["seconds"] > 0 and manifest["versions"]["torch"] == str(torch.__version__)
    json.dumps(manifest)


# Tickets: the algorithm


def states(bench: Bench, level: int, branch: str):
    """(start, mask, final) of one training, executed."""
    training = next(t for t in bench.trainings() if (t.level, t.branch) == (level, branch))
    bench.run(bench.trainings(), also=[training.run.end])
    see = lambda stage: lth.perform.value(stage, bench.store, bench.context)  # noqa: E731
    return see(training.run.start), see(training.run.mask), see(training.run.end)


def test_ticket_is_the_papers(bench: Bench):
    """Frankle & Carbin: the mask keeps the largest trained weights of each layer, and the survivors are the initial
    weights, which are exactly the dense run's."""
    bench = dataclasses.replace(bench, pattern=type(bench.pattern)(output=1.0))
    dense = bench.trainings()[0].run
    start, mask, _ = states(bench, 1, "ticket")
    initial = bench.store.read(dense.start)
    trained = bench.store.read(dense.end)
    assert all(torch.equal(start.params[name], initial.params[name]) for name in initial.params)
    for name, kept in mask.items():
        magnitudes = trained.params[name].abs()
        assert magnitudes[kept].min() >= magnitudes[~kept].max()


def test_early_at_zero_is_init(bench: Bench):
    """Rewinding to step 0 is rewinding to the initial weights, bit for bit and stage for stage: nothing is left to
    train. So it is where the moments are reset, since there are none."""
    numbers = _numbers(bench)
    for zero in (Early("0it"), Early(0, "reset"), Late(0.0)):
        same = dataclasses.replace(bench, rewind=zero)
        assert not plan([runs(same, 0.36)], bench.store).units
        assert _numbers(same) == numbers


def test_learning_rate_rewinding_and_fine_tuning_start_alike(bench: Bench):
    """Both start from the trained weights, bit for bit; one replays the schedule from k, with the minibatches of k on,
    the other trains on past its end. Moments are the trained network's, or none."""
    schedule = lth.recipe.Step([30])
    bench.recipe = Recipe("SGD", 0.1, 20, 40, 10, schedule=schedule, options={"momentum": 0.9})
    starts = {}
    for rewind in (LearningRate("10it"), Keep(), LearningRate("10it", "reset"), Keep("25it", "reset")):
        one = dataclasses.replace(bench, rewind=rewind)
        start, _, end = states(one, 1, "ticket")
        starts[rewind] = start
        trained = bench.store.read(one.trainings()[0].run.end)
        assert all(torch.equal(start.params[n], t) for n, t in trained.params.items())
        assert bool(start.optimizer) == (rewind.optimizer == "keep")
        first = {LearningRate: 10, Keep: 40}[type(rewind)]
        length = {LearningRate: 30, Keep: 25 if rewind.optimizer == "reset" else 40}[type(rewind)]
        assert (start.step, end.step) == (first, first + length)
    rates = [bench.recipe.on(200).rate(starts[r].step) for r in (LearningRate("10it"), Keep())]
    assert rates == pytest.approx([0.1, 0.01])


def _numbers(bench: Bench):
    trainings = bench.trainings()
    bench.run(trainings)
    return bench.numbers(trainings)


def test_early_trains_the_rest(bench: Bench):
    """Rewinding to k starts from the dense run's state at k, its step included, and trains the remaining T - k."""
    early = dataclasses.replace(bench, rewind=Early(15))
    start, _, end = states(early, 2, "ticket")
    assert (start.step, end.step) == (15, 40)
    dense = bench.trainings()[0].run
    bench.run(bench.trainings(0.0), also=[dense.at(15)])
    assert all(torch.equal(start.params[n], t) for n, t in bench.store.read(dense.at(15)).params.items())
    assert (
        start.optimizer and not states(dataclasses.replace(bench, rewind=Early(15, "reset")), 1, "ticket")[0].optimizer
    )


def test_keep_fine_tunes(bench: Bench):
    """Without rewinding the next level starts from the trained weights and trains the recipe's steps once more, at its
    last learning rate."""
    recipe = Recipe("SGD", 0.1, 20, 40, 10, schedule=lth.recipe.Step([30]))
    keep = dataclasses.replace(bench, rewind=Keep(), recipe=recipe)
    start, _, end = states(keep, 1, "ticket")
    trained = keep.store.read(keep.trainings()[0].run.end)
    assert (start.step, end.step) == (40, 80)
    assert all(torch.equal(start.params[n], t) for n, t in trained.params.items())
    assert recipe.on(200).rate(40) == recipe.on(200).rate(39) == pytest.approx(0.01)


def test_controls_differ_in_one_thing(bench: Bench):
    """random_reinit: the ticket's mask, other weights. random_mask: the ticket's start, as many weights a layer
    elsewhere. Both train as long as the ticket, in its data order."""
    start, mask, _ = states(bench, 2, "ticket")
    fresh, same_mask, _ = states(bench, 2, "random_reinit")
    same_start, other_mask, _ = states(bench, 2, "random_mask")
    assert same_mask == mask and not torch.equal(fresh.params["1.weight"], start.params["1.weight"])
    assert all(torch.equal(same_start.params[n], t) for n, t in start.params.items())
    assert other_mask != mask and other_mask.counts() == mask.counts()
    chain = {t.branch: t.run for t in bench.trainings() if t.level == 2}
    assert len({run.order for run in chain.values()}) == len({run.num_steps for run in chain.values()}) == 1


def test_replicates_share_nothing(bench: Bench):
    """Every seed of one replicate differs from every seed of another."""
    one, two = bench.lab(0), bench.lab(1)
    names = [("init",), ("order",), ("criterion", 1), ("random_mask", 1), ("random_mask", 2), ("random_reinit", 1)]
    assert len({lab.seed(*name) for lab in (one, two) for name in names}) == 2 * len(names)


def test_perform_reports_scores_that_are_not_finite(bench: Bench):
    """A criterion's NaN is an error that names criterion and layer, not a mask."""

    @dataclass(frozen=True)
    class Broken:
        def __call__(self, model, state, mask, data, rng):
            return {name: state.params[name] * float("nan") for name in mask}

    bad = dataclasses.replace(bench, criterion=Broken(), branches={})
    failures = bad.run(bad.trainings(0.2))
    assert {f.cause for f in failures.values()} == {
        "ValueError: criterion=broken gave 1.weight scores that are not finite"
    }
    assert isinstance(next(iter(failures.values())), Failure)


def test_context_is_no_part_of_a_key(bench: Bench):
    """Where the data lies, and which index the device has, is in no key; the class of device is."""
    run = bench.trainings()[0].run
    assert "data_dir" not in json.dumps(run.result.description)
    assert dataclasses.replace(run, device="cuda").result.key != run.result.key
    perform([[run.start]], bench.store, Context("cpu", bench.context.raw), lambda *event: None)
    assert bench.store.holds(run.start.key)

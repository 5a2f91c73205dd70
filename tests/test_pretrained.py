"""Pretrained: weights from a file or a finished training, named by what they are, refused where they do not fit."""

import dataclasses
import json
import re
import shlex
import shutil

import pytest
import torch
from conftest import Bench
from safetensors.torch import load_file, save_file
from test_bad_input import SETTINGS
from test_main import run_here
from torch import nn

from lth.cell import Cell, drop_states, save_tickets, stored
from lth.model.mlp import Mlp
from lth.perform import Context, perform, value
from lth.plan import plan
from lth.rewind.pretrained import Pretrained, matched
from lth.stage import Diverged, Stage
from lth.state import TrainState
from lth.store import Store
from lth.tickets import initialise


def weights(seed: int = 5) -> dict[str, torch.Tensor]:
    """Plain names and weights of the bench's network."""
    torch.manual_seed(seed)
    return dict(Mlp([8])((1, 4, 4), 3).state_dict())


def pretrained(bench: Bench, source: object) -> Bench:
    rewind = Pretrained(str(source), str(bench.store.root))
    return dataclasses.replace(bench, rewind=rewind, branches={})


def origin(bench: Bench, source: object) -> Stage:
    return pretrained(bench, source).rewind.origin(bench.lab())


def loaded(bench: Bench, stage: Stage) -> TrainState:
    assert not bench.run([], also=stored(stage))
    return value(stage, bench.store, bench.context)


def refused(bench: Bench, source: object) -> str:
    """What `source` is refused with when the graph is built: one line of at most 200 characters that names the key."""
    with pytest.raises(ValueError) as caught:
        pretrained(bench, source).trainings()
    said = str(caught.value)
    assert type(caught.value) is ValueError and said.startswith("rewind.source=")
    assert "\n" not in said and len(said) <= 200
    return said


# A finished training


@pytest.fixture
def finished(bench: Bench) -> tuple[Bench, list]:
    """A bench with its dense network and two tickets trained."""
    bench.branches = {}
    entries = bench.trainings()
    assert not bench.run(entries)
    return bench, entries


@pytest.mark.parametrize("which", [0, 2], ids=["dense", "ticket"])
def test_a_rows_stage_is_fine_tuning_from_its_end(finished, which):
    """From the stage of a row the dense network begins where that row's training ended, at step 0 of the schedule and
    without its moments; what comes of it is, bit for bit, a training from that very state. Survivors restart there."""
    bench, entries = finished
    row = entries[which]
    tuned = pretrained(bench, row.stage.key).trainings()
    dense = tuned[0].run
    assert [parent.key for parent in dense.start.parents()] == [row.run.end.key]
    assert {entry.run.start.key for entry in tuned} == {dense.start.key}
    assert [(e.rewind_step, e.run.num_steps) for e in tuned[1:]] == [(0, 40), (0, 40)]
    assert not bench.run(tuned)

    trained = bench.store.read(row.run.end)
    assert trained.step == 40 and trained.optimizer
    by_hand = dataclasses.replace(trained, step=0, optimizer={})
    start = initialise(model=bench.model, data=bench.source, seed=999)  # a name for the state made by hand
    bench.store.commit(start, by_hand, {})
    again = dataclasses.replace(dense, start=start)
    perform([[again.end, again.result]], bench.store, bench.context, lambda *event: None)
    here, there = (bench.store.read(run.end).pack() for run in (dense, again))
    assert here[0].keys() == there[0].keys() and here[1] == there[1]
    assert all(torch.equal(here[0][name], there[0][name]) for name in here[0])
    assert bench.store.read(dense.result) == bench.store.read(again.result)


def test_a_rows_stage_trains_nothing_behind_it(finished):
    """The pre-training is read and not planned: the plan holds the new trainings alone, also in worker processes. In a
    sweep of both, keep=tickets spares its state."""
    bench, entries = finished
    tuned = pretrained(bench, entries[0].stage.key).trainings()
    todo = plan([[entry.stage for entry in tuned]], bench.store)
    assert (todo.asked, len(todo.trainings)) == (3, 3)
    assert not bench.run(tuned, workers=1)
    drop_states([Cell("s", 0, [], entries), Cell("s", 1, [], tuned)], bench.store)
    assert pretrained(bench, entries[0].stage.key).trainings()  # what the tickets start from is kept by keep=tickets


def test_stages_that_have_no_weights_are_refused(finished):
    """Absent, not a training, its state dropped, diverged: each says so."""
    bench, entries = finished
    assert refused(bench, "ab" * 32) == f"rewind.source={'ab' * 32} is not in the store {bench.store.root}"[:200]
    said = refused(bench, entries[0].run.end.key)
    assert "lth.train.state_at" in said and "not a finished training" in said
    assert "lth.tickets.prune" in refused(bench, entries[1].run.mask.key)
    wide = dataclasses.replace(bench, model=Mlp([9]))
    assert "1.weight is [8, 16] float32, the model's [9, 16] float32" in refused(wide, entries[0].stage.key)
    drop_states([Cell("s", 0, [], entries)], bench.store)
    assert "keep=all keeps" in refused(bench, entries[0].stage.key)
    bench.store.commit(entries[0].run.end, Diverged(7), {})
    assert "diverged at step 7" in refused(bench, entries[0].stage.key)
    value_file = next((bench.store.root / "stages").rglob(f"{entries[0].stage.key}/value.json"))
    value_file.write_text("damaged")
    assert entries[0].stage.key[:12] in refused(bench, entries[0].stage.key)


# A file


@pytest.mark.parametrize("form", ["plain", "parts", "stage", "ticket"])
def test_every_form_of_a_file_is_read(finished, tmp_path, form):
    """A state dict, our names with parts, a stage's value (its moments passed over) and a saved ticket (its mask passed
    over): the weights in it, at step 0, without moments."""
    bench, entries = finished
    path = tmp_path / "weights.safetensors"
    expected = weights()
    if form == "plain":
        save_file(expected, path)
    elif form == "parts":
        save_file({f"params:{name}": tensor for name, tensor in expected.items()} | {"best:x": torch.ones(1)}, path)
    elif form == "stage":
        (path,) = (bench.store.root / "stages").rglob(f"{entries[0].run.end.key}/value.safetensors")
        assert any(name.startswith("optimizer:") for name in load_file(path))
        expected = bench.store.read(entries[0].run.end).params
    else:
        path = save_tickets(Cell("s", 0, [], entries), bench.store, bench.context, tmp_path)[0]
        expected = dict(value(entries[2].run.start, bench.store, bench.context).params)
        value(entries[2].run.mask, bench.store, bench.context).apply_(expected)
    state = loaded(bench, origin(bench, path))
    assert (state.step, state.optimizer, state.buffers) == (0, {}, {}) and state.params.keys() == expected.keys()
    assert all(torch.equal(state.params[name], tensor) for name, tensor in expected.items())


class Normed(nn.Module):
    """A network with buffers, one of them of whole numbers."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)


def test_buffers_are_read_as_buffers():
    """A state dict does not say which of its tensors are buffers; the model does."""
    model = Normed()
    model.norm.running_mean.fill_(3)
    model.norm.num_batches_tracked.fill_(7)
    state = matched(model.state_dict(), Normed())
    assert state.params.keys() == dict(model.named_parameters()).keys()
    assert state.buffers.keys() == dict(model.named_buffers()).keys()
    assert state.buffers["norm.num_batches_tracked"] == 7 and (state.buffers["norm.running_mean"] == 3).all()


def test_a_file_is_named_by_its_content(bench: Bench, tmp_path, monkeypatch):
    """The same bytes at two paths, or by a relative one, are one stage; other bytes, another. All replicates begin with
    them, in orders of their own."""
    (tmp_path / "deep").mkdir()
    paths = [tmp_path / "one.safetensors", tmp_path / "deep" / "two.safetensors", tmp_path / "other.safetensors"]
    for path, seed in zip(paths, (5, 5, 6), strict=True):
        save_file(weights(seed), path)
    monkeypatch.chdir(tmp_path)
    keys = [origin(bench, path).key for path in (*paths, "one.safetensors")]
    assert keys[0] == keys[1] == keys[3] != keys[2]
    assert "safetensors" not in json.dumps(origin(bench, paths[0]).description)
    tuned = pretrained(bench, "one.safetensors").trainings(0.2, replicates=2)
    assert {entry.run.start.key for entry in tuned} == {keys[0]} and len({entry.run.order for entry in tuned}) == 2
    monkeypatch.chdir("/")  # what was named from one folder is found from another
    assert not bench.run(tuned, workers=1)
    assert all(torch.equal(t, weights()[n]) for n, t in loaded(bench, tuned[0].run.start).params.items())


def test_a_file_that_changes_after_it_was_named_fails(bench: Bench, tmp_path):
    """The key says what the content was: other content is not stored under it."""
    path = tmp_path / "weights.safetensors"
    save_file(weights(5), path)
    stage = origin(bench, path)
    save_file(weights(6), path)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is not what it was when this command began"):
        perform([[stage]], bench.store, Context(), lambda *event: None)
    assert not bench.store.present(stage.key)


WRONG = {
    "missing": (lambda w: w.pop("3.bias"), "has no 3.bias, which the model has"),
    "extra": (lambda w: w.update(head=torch.ones(2)), "its head is no weight of the model"),
    "extra part": (lambda w: w.update({"params:head": torch.ones(2)}), "its params:head is no weight of the model"),
    "wrong part": (lambda w: w.update({"buffers:3.bias": w.pop("3.bias")}), "its buffers:3.bias is no weight"),
    "twice": (lambda w: w.update({"params:3.bias": torch.ones(3)}), "holds 3.bias twice, also as params:3.bias"),
    "shape": (lambda w: w.update({"3.bias": torch.ones(4)}), "its 3.bias is [4] float32, the model's [3] float32"),
    "kind": (lambda w: w.update({"3.bias": torch.ones(3).half()}), "its 3.bias is [3] float16, the model's [3]"),
    "long": (lambda w: w.update({"x" * 5000: torch.ones(1)}), "its xxx"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_do_not_fit_are_refused(bench: Bench, tmp_path, case):
    """The first name that is missing or too many, the first shape or kind that is another."""
    change, words = WRONG[case]
    tensors = weights()
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    assert words in refused(bench, tmp_path / "w.safetensors")


def test_files_that_are_none_are_refused(bench: Bench, tmp_path):
    """Missing, a folder, empty, torch's own pickle, a name that no file has, a long path: one line each."""
    assert "cannot be read: No such file" in refused(bench, tmp_path / "none.safetensors")
    assert "cannot be read" in refused(bench, tmp_path)
    assert "cannot be read" in refused(bench, "a\0b")
    assert "cannot be read" in refused(bench, f"{tmp_path}/{'x' * 4000}.safetensors")
    (tmp_path / "empty").touch()
    torch.save(weights(), tmp_path / "pickle.pt")
    for name in ("empty", "pickle.pt"):
        assert "is not a safetensors file" in refused(bench, tmp_path / name)


# From the command line


@pytest.mark.slow
def test_pretrained_from_the_command_line(tmp_path):
    """A dense network is trained; the stage of its row, and the file of its weights, are sources: rewind.store follows
    store, rows begin at step 0, and where both sources hold the same weights the results are the same."""
    settings = shlex.join(f"{key}={word}" for key, word in (SETTINGS | {"store": "here/store"}).items())
    line = f"{settings} model=mlp model.hidden=[8] branch=[] hydra.run.dir="

    def rows(words: str, folder: str) -> list[dict]:
        ran = run_here(f"{line}{folder} {words}", tmp_path)
        assert ran.code in (0, None), ran.err
        return [json.loads(text) for text in (tmp_path / folder / "rows.jsonl").read_text().splitlines()]

    first = rows("", "first")[0]
    store = Store(tmp_path / "here/store")
    named = {path.parent.name: json.loads(path.read_text())["stage"] for path in store.root.glob("*/*/*/manifest.json")}
    end = {"run": named[first["stage"]]["inputs"]["run"], "step": 60}
    (key,) = [key for key, stage in named.items() if stage["inputs"] == end]
    shutil.copy(next(store.root.rglob(f"{key}/value.safetensors")), tmp_path / "w.safetensors")

    by_stage = rows(f"rewind=pretrained rewind.source={first['stage']}", "by_stage")
    by_file = rows("rewind=pretrained rewind.source=w.safetensors", "by_file")
    words = f"{line}lost rewind=pretrained rewind.source={first['stage']} rewind.store=here/store store=there"
    lost = run_here(words, tmp_path)
    assert lost.code == 2 and lost.err.count("\n") == 1 and "rewind.store is not store=there" in lost.err
    assert [(row["level"], row["rewind_step"], row["steps"]) for row in by_file] == [(0, 0, 60), (1, 0, 60), (2, 0, 60)]
    for one, two in zip(by_stage, by_file, strict=True):
        assert one["stage"] != two["stage"] and one["test_loss"] == two["test_loss"] != first["test_loss"]

"""Faults from outside, on whole commands: a cell that raises, a worker that is killed, a command that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    "dataset=digits", "model=mlp", "recipe.steps=60it", "recipe.eval_every=20it", "replicates=1", "wandb=disabled",
    "device=cpu", "device.workers=2",
]  # fmt: skip
# Python imports sitecustomize at start, in workers too: it makes a criterion fail where the cell's choice says so
BREAK = """
import os, signal
from dataclasses import dataclass
if os.environ.get("LTH_TEST_BREAK"):
    import lth.criterion.random as module
    original = module.Random.__call__
    def call(self, model, state, mask, batches, rng):
        if model[1].out_features == 21:
            raise RuntimeError("this cell raises")
        if model[1].out_features == 22:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, model, state, mask, batches, rng)
    module.Random.__call__ = call
"""


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *words]


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [
        {name: item for name, item in row.items() if name not in ("seconds", "served", "overrides")} for row in found
    ]


@pytest.mark.slow
def test_cells_fail_alone(tmp_path):
    """Four cells: one raises midway, one's worker is killed by itself each time; the other two finish, the report shows
    them, both failures are listed with the command that reruns them, exit 1; once the cause is gone, the same command
    does what is missing and no more."""
    (tmp_path / "sitecustomize.py").write_text(BREAK)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    cells = "model.hidden=[20],[21],[22],[23]"
    line = command("-m", cells, "criterion=random", "prune.sparsity=0.36", *SMALL, "hydra.sweep.dir=sweep")
    broken = {**os.environ, "PYTHONPATH": path, "LTH_TEST_BREAK": "1"}
    first = subprocess.run(line, cwd=tmp_path, env=broken, capture_output=True, text=True, timeout=120)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "Traceback" not in first.stderr
    failed = {n: json.loads((tmp_path / "sweep" / str(n) / "failure.json").read_text()) for n in (1, 2)}
    assert "RuntimeError: this cell raises" in failed[1]["cause"] and "died twice (signal 9)" in failed[2]["cause"]
    for number, failure in failed.items():
        assert f"cell {number} failed: {failure['cause']}" in first.stdout
        assert f"rerun: {failure['command']}" in first.stdout and f"model.hidden=[2{number}]" in failure["command"]
        assert len(rows(tmp_path / "sweep" / str(number))) == 1  # its dense network is trained nevertheless
    for number in (0, 3):
        assert len(rows(tmp_path / "sweep" / str(number))) == 7
        assert not (tmp_path / "sweep" / str(number) / "failure.json").exists()
    assert (tmp_path / "sweep" / "report" / "accuracy_vs_sparsity.png").exists()
    again = subprocess.run(
        line, cwd=tmp_path, env={**broken, "LTH_TEST_BREAK": ""}, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "28 trainings asked, 12 to do, 0 shared, 16 stored" in again.stdout  # 4 x 7; 2 x 6 were missing
    assert all(len(rows(tmp_path / "sweep" / str(number))) == 7 for number in range(4))


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(tmp_path, signal_):
    """kill -9 of everything, or Ctrl-C, in the middle of a training: the same command again gives the rows of an
    unbroken run, byte for byte apart from seconds and served, and leaves no checkpoint. Ctrl-C says how to go on."""
    words = [
        *SMALL,
        "model.hidden=[20]",
        "recipe.steps=1500it",
        "checkpoint_seconds=0",
        "prune.sparsity=0.36",
        "hydra.run.dir=run",
    ]
    work = tmp_path / "outputs" / "store" / "work"
    with subprocess.Popen(
        command(*words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(work.rglob("manifest.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal_)
        _, err = process.communicate(timeout=30)
    if signal_ == signal.SIGINT:
        assert process.returncode == 130
        assert err.count("\n") == 1 and "this goes on: python" in err
    assert not (tmp_path / "run" / "rows.jsonl").exists()
    deadline = time.monotonic() + 10
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(process.pid)
    assert list(work.rglob("manifest.json"))
    again = subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    whole = subprocess.run(
        command(*words, "store=other", "hydra.run.dir=whole"), cwd=tmp_path, capture_output=True, timeout=120
    )
    assert whole.returncode == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole") and len(rows(tmp_path / "run")) == 7
    assert not list(work.iterdir())


def _alive(group: int) -> bool:
    """True while a process of the group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

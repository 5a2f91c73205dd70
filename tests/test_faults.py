"""Faults: what raises, dies, is killed or interrupted costs itself alone, and the same command again goes on.

A fault is put into a process from outside: a sitecustomize.py on PYTHONPATH, which every Python process of a command
reads before its first line, wraps the training loop of lth.perform. A folder named in LTH_FAULTS says what to do, so
that the cause can be taken away and the same command be given again.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from test_main import NUM_TOTAL, SMALL, Ran, lines, run, run_here, science
from test_main import start as begin

import lth.perform
from lth.mask import num_kept

# Files in $LTH_FAULTS: <fault>_<number of weights that the network keeps>; "once" is gone when it has killed.
INJECTION = """
import importlib.util, os, signal, sys

def faulty(train):
    def wrapped(model, lanes, *rest):
        mask = lanes[0].mask
        for reached in train(model, lanes, *rest):
            here = lambda fault: os.path.join(os.environ["LTH_FAULTS"], f"{fault}_{mask.num_kept}")
            if mask is not None and reached.step >= 40:  # of 60 steps: midway
                if os.path.exists(here("raise")):
                    raise RuntimeError("out of luck")
                if os.path.exists(here("kill")):
                    os.kill(os.getpid(), signal.SIGKILL)
                if os.path.exists(here("once")):
                    os.unlink(here("once"))
                    os.kill(os.getpid(), signal.SIGKILL)
            yield reached  # a result is committed at the last one
            if mask is not None and reached.step == 60 and os.path.exists(here("late")):
                os.kill(os.getpid(), signal.SIGKILL)
    return wrapped

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "lth.perform":
            return None
        sys.meta_path.remove(Finder)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.train_together = faulty(module.train_together)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder)
"""


@pytest.fixture
def faults(tmp_path) -> Path:
    """The folder that says what goes wrong."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(INJECTION)
    (tmp_path / "faults").mkdir()
    return tmp_path / "faults"


def run_faulty(words: str, faults: Path) -> Ran:
    return run(words, faults.parent, PYTHONPATH=str(faults.parent / "site"), LTH_FAULTS=str(faults))


def leftovers(store: Path) -> list[str]:
    """Checkpoints of trainings in flight, and entries set aside as bad: none when all is done."""
    return [str(path) for place in ("work", "bad") for path in (store / place).glob("*")]


@contextlib.contextmanager
def start(words: str, cwd: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """A command that runs while the test goes on; whatever becomes of the test, none of its processes outlives it."""
    process = begin(words, cwd, **environment)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group(process: subprocess.Popen) -> list[int]:
    """The living processes of a command, but for itself: its workers and what serves them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_group) == process.pid and state not in "ZX" and int(folder.name) != process.pid:
            found.append(int(folder.name))
    return found


def wait_for(process: subprocess.Popen, what, seconds: float = 100) -> None:
    """Look again and again until what() is true, while the process lives."""
    limit = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "it never came to that"
        time.sleep(0.005)


def wait_for_death(process: subprocess.Popen) -> None:
    """Until no process of a command is left, some seconds at most."""
    limit = time.monotonic() + 20
    while group(process):
        assert time.monotonic() < limit, group(process)
        time.sleep(0.05)


def checkpoints(store: Path) -> list[int]:
    """The step of each checkpoint that is there."""
    work = store / "work"
    return [int(path.name[-12:]) for path in work.iterdir()] if work.is_dir() else []


# Cells that fail among cells that do not


@pytest.mark.slow
def test_what_fails_in_a_sweep_fails_alone(faults):
    """Four cells: one raises in the middle of its trainings, one kills its worker processes, one kills the first of
    them once, one kills them when their work is done, one of these in the middle before, and is well. The other cells
    finish, the report shows them, the failures are listed with the command that reruns them, exit 1; the same command
    after the cause is gone runs only what is missing and ends as if nothing had been."""
    cwd, cells = faults.parent, ("0.2", "0.4", "0.6", "0.8")
    once, raises, dies, late = (num_kept(float(sparsity), NUM_TOTAL) for sparsity in cells)
    for fault in (f"once_{once}", f"raise_{raises}", f"kill_{dies}", f"late_{late}", f"once_{late}"):
        (faults / fault).touch()
    line = f"-m prune=one_shot prune.sparsity={','.join(cells)} replicates=1 checkpoint_seconds=0 {SMALL}"
    ran = run_faulty(f"{line} device.workers=2 hydra.sweep.dir=sweep", faults)
    per_cell = 4  # dense, ticket, two controls
    assert ran.code == 1
    assert ran.plan == (4 * per_cell, 1 + 4 * 3, 3, 0)  # the dense network is theirs together
    assert not (faults / f"once_{once}").exists()
    assert "Traceback" not in ran.err + ran.out
    folders = {sparsity: cwd / "sweep" / str(number) for number, sparsity in enumerate(cells)}
    for sparsity in ("0.2", "0.8"):
        assert len(lines(folders[sparsity] / "rows.jsonl")) == per_cell
        assert not (folders[sparsity] / "failure.json").exists()
        left = f"{100 * (1 - float(sparsity)):.1f}"
        assert re.search(rf"^ +1 +{left} +\d", ran.out, re.MULTILINE)  # its line in the table
    for number, cause in ((1, "out of luck"), (2, "its worker process died twice (signal 9)")):
        folder = folders[cells[number]]
        assert [row["branch"] for row in lines(folder / "rows.jsonl")] == ["dense"]
        failure = json.loads((folder / "failure.json").read_text())
        assert failure["cell"] == number and cause in failure["cause"]
        assert f"prune.sparsity={cells[number]}" in failure["overrides"]
        assert f"cell {number} failed: " in ran.out and cause in ran.out and failure["command"] in ran.out
        assert shlex.split(failure["command"])[:2] == ["python", "main.py"]
    assert "out of luck" in (folders["0.4"] / "traceback.txt").read_text()

    command = json.loads((folders["0.4"] / "failure.json").read_text())["command"]  # what reruns one cell
    for fault in faults.iterdir():
        fault.unlink()
    mended = run_here(printed(command), cwd)
    assert mended.code == 0 and mended.plan == (per_cell, 3, 0, 1)

    again = run_here(f"{line} hydra.sweep.dir=sweep", cwd)
    assert again.code == 0 and again.plan == (4 * per_cell, 3, 3, 1 + 4 * 3 - 3)
    assert not list((cwd / "sweep").rglob("failure.json")) and "failed" not in again.out
    assert leftovers(cwd / "outputs" / "store") == []
    (cwd / "elsewhere").mkdir()
    unbroken = run_here(f"{line} hydra.sweep.dir=sweep", cwd / "elsewhere")
    for number in range(4):
        name = f"sweep/{number}"
        assert science(again.rows(name)) == science(unbroken.rows(name))
        curves = (folder / name / "curves.jsonl" for folder in (again.cwd, unbroken.cwd))
        assert len({path.read_bytes() for path in curves}) == 1


def test_a_failed_job_says_how_to_go_on(tmp_path):
    """A single job whose level 2 raises: exit 1, the rows there are, one line of ours with the command, which then does
    only what is missing, also where keep=tickets forgets states."""
    words = f"prune.sparsity=0.488 replicates=1 branch=[] keep=tickets hydra.run.dir=job {SMALL}"
    bad, train = num_kept(0.36, NUM_TOTAL), lth.perform.train_together

    def faulty(model, lanes, *rest):
        if lanes[0].mask is not None and lanes[0].mask.num_kept == bad:
            raise RuntimeError("out of luck")
        return train(model, lanes, *rest)

    with patch("lth.perform.train_together", faulty):
        ran = run_here(words, tmp_path)
    assert ran.code == 1 and ran.plan == (4, 4, 0, 0)
    assert [row["level"] for row in ran.rows("job")] == [0, 1]
    assert "out of luck" in ran.out and "Traceback" not in ran.err + ran.out
    (said,) = ran.err.splitlines()
    assert "python" in said and "hydra.run.dir=job" in said
    again = run_here(words, tmp_path)
    assert again.code == 0 and again.plan == (4, 2, 0, 2)
    assert not (tmp_path / "job" / "failure.json").exists()


# Killed


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2], ids=["in the main process", "in worker processes"])
def test_killed_in_the_middle_and_resumed(tmp_path, workers):
    """Law 6: kill -9 of everything in the middle of a training; the same command again goes on from the checkpoint, and
    gives rows that are byte for byte those of an unbroken run, apart from seconds and served. No checkpoint is left."""
    words = f"prune.sparsity=0.2 branch=[] replicates=2 checkpoint_seconds=0 hydra.run.dir=job {SMALL}"
    words = words.replace("60it", "600it") + " recipe.lr=0.03"  # the lowest validation loss comes long before the end
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    killed.mkdir()
    unbroken.mkdir()
    store = killed / "outputs" / "store"
    with start(f"{words} device.workers={workers}", killed) as process:
        wait_for(process, lambda: any(step >= 400 for step in checkpoints(store)))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        wait_for_death(process)
    assert not (killed / "job" / "rows.jsonl").exists()
    # Killed between a checkpoint and the removal of the one before it, a training has both
    reached = {path.name[:-12]: int(path.name[-12:]) for path in sorted((store / "work").iterdir())}
    began, train = [], lth.perform.train_together
    assert reached

    def watched(model, lanes, *rest):
        began.append(lanes[0].start.step)
        return train(model, lanes, *rest)

    with patch("lth.perform.train_together", watched):
        resumed = run_here(words, killed)
    assert resumed.code == 0 and resumed.plan[1] > 0
    # Each went on from where it was, the others from 0
    assert sorted(step for step in began if step) == sorted(reached.values())
    assert leftovers(store) == []
    whole = run_here(words, unbroken)

    def written(ran: Ran) -> str:
        return "\n".join(json.dumps(row) for row in science(ran.rows("job")))

    assert whole.rows("job")[0]["early_stop_step"] < max(reached.values())  # which is thus the checkpoint's to keep
    assert written(resumed) == written(whole)
    assert (killed / "job" / "curves.jsonl").read_bytes() == (unbroken / "job" / "curves.jsonl").read_bytes()


@pytest.mark.slow
def test_a_worker_that_dies_once_is_replaced(tmp_path):
    """One of two worker processes is killed from outside: its training goes on in another one, the sweep ends well."""
    words = f"-m prune.sparsity=0.2,0.36 replicates=2 checkpoint_seconds=0 {SMALL} hydra.sweep.dir=sweep"
    # another store may measure another engine, for a plan that takes this long, and bytes are compared
    words = words.replace("60it", "3000it") + " device.engine=sequential"
    store = tmp_path / "outputs" / "store"
    with start(f"{words} device.workers=2", tmp_path) as process:
        wait_for(process, lambda: any(step >= 200 for step in checkpoints(store)))
        os.kill(max(group(process), key=processor_seconds), signal.SIGKILL)
        out, err = process.communicate(timeout=250)
    assert process.returncode == 0, out + err
    (tmp_path / "elsewhere").mkdir()
    unbroken = run_here(words, tmp_path / "elsewhere")
    for number in (0, 1):
        rows = lines(tmp_path / "sweep" / str(number) / "rows.jsonl")
        assert science(rows, "overrides") == science(unbroken.rows(f"sweep/{number}"), "overrides")
    assert leftovers(store) == []


def processor_seconds(pid: int) -> tuple[bool, float]:
    """(is a worker, seconds computed so far): the server of the workers, which they are forks of, has no parent of its
    own name and is passed over."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    try:
        parent = Path(f"/proc/{fields[1]}/cmdline").read_bytes()
    except FileNotFoundError:
        parent = b""
    return b"forkserver" in parent, sum(int(word) for word in fields[11:13])


# Interrupted


@pytest.mark.slow
def test_interrupt_prints_the_command_that_goes_on(tmp_path):
    """Ctrl-C in the middle of a training: exit 130, one line on stderr; the command in it finishes the work."""
    words = f"-m prune.sparsity=0.2,0.36 replicates=1 checkpoint_seconds=0 hydra.sweep.dir=sweep {SMALL}"
    train, calls = lth.perform.train_together, []

    def interrupted(*args):
        calls.append(args)
        for item in train(*args):
            yield item
            if len(calls) > 4 and item.step >= 40:  # past the plan's own measurement, and in the third training
                raise KeyboardInterrupt

    with patch("lth.perform.train_together", interrupted):
        ran = run_here(words, tmp_path)
    assert ran.code == 130
    assert len(ran.err.splitlines()) == 1
    again = run_here(printed(ran.err), tmp_path, workers=None)
    assert again.code == 0 and again.plan[1] + again.plan[3] == ran.plan[1] and again.plan[3] > 0
    assert len(again.rows("sweep/1")) == 1 + 2 * 3
    assert leftovers(tmp_path / "outputs" / "store") == []


def printed(text: str) -> str:
    """The arguments of the command in a line that names one."""
    return text.partition("main.py ")[2].strip()


@pytest.mark.slow
@pytest.mark.parametrize("wandb", ["disabled", "offline"])
def test_interrupt_leaves_no_process(tmp_path, wandb):
    """Ctrl-C in a shell reaches every process of a sweep: exit 130 within seconds, one line on stderr with the command
    that resumes, no process left alive; that command finishes."""
    words = f"-m prune.sparsity=0.2,0.36 replicates=2 checkpoint_seconds=0 device.workers=2 {SMALL}"
    words = words.replace("60it", "3000it").replace("wandb=disabled", f"wandb={wandb}") + " hydra.sweep.dir=sweep"
    store = tmp_path / "outputs" / "store"
    with start(words, tmp_path) as process:
        wait_for(process, lambda: any(step >= 200 for step in checkpoints(store)))
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert len(err.splitlines()) == 1 and "python" in err
        wait_for_death(process)
    assert checkpoints(store)  # nobody waited for the end of what was in flight
    again = run(printed(err), tmp_path)
    assert again.code == 0, again.err
    assert [len(again.rows(f"sweep/{number}")) for number in (0, 1)] == [2 * 4, 2 * 7]
    assert leftovers(store) == []

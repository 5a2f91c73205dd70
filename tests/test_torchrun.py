"""torchrun, end to end: `torchrun --nproc_per_node=2 main.py ...` as people type it. Slow: every rank imports torch."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_main import MAIN, Ran, run, science

RESNET = (
    "dataset=digits model=resnet_20 recipe.batch_size=60 recipe.steps=10it recipe.eval_every=5it replicates=1 "
    "prune=one_shot prune.sparsity=0.5 branch=[random_reinit] wandb=disabled device=cpu"
)


@contextlib.contextmanager
def torchrun(words: str, cwd: Path):
    """`torchrun --nproc_per_node=2 main.py WORDS` from `cwd`; whatever becomes of the test, no process outlives it."""
    known = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "HYDRA_FULL_ERROR")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(MAIN)]
    process = subprocess.Popen(
        [*command, *shlex.split(words)], cwd=cwd, env=known | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            for rank in (0, 1):  # each leads a session of its own
                with contextlib.suppress(LookupError):
                    os.kill(process_of(process.pid, rank), signal.SIGKILL)
            process.kill()
        process.communicate()


def run_torchrun(words: str, cwd: Path) -> Ran:
    with torchrun(words, cwd) as process:
        out, err = process.communicate(timeout=250)
    return Ran(process.returncode, out, err, cwd)


@pytest.mark.slow
def test_ranks_give_what_one_process_gives(tmp_path):
    """Rows, folders and keys are one process's, accuracies near its own; the second time nothing is left to do, nor is
    it for one process on that store."""
    ran = run_torchrun(f"{RESNET} hydra.run.dir=ranks", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.plan == (3, 3, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "ranks"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["store"]
    again = run_torchrun(f"{RESNET} hydra.run.dir=again", tmp_path)
    assert again.code == 0 and again.plan == (3, 0, 0, 3)
    served = run(f"{RESNET} hydra.run.dir=served", tmp_path)
    assert served.code == 0 and served.plan == (3, 0, 0, 3)
    alone = run(f"{RESNET} hydra.run.dir=alone store=alone_store device.workers=0", tmp_path)
    assert alone.code == 0, alone.err
    rows, expected = ran.rows("ranks"), alone.rows("alone")
    assert science(rows, "overrides") == science(again.rows("again"), "overrides")
    assert science(rows, "overrides") == science(served.rows("served"), "overrides")
    assert [row["stage"] for row in rows] == [row["stage"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        # ten steps from fresh weights in float32: rounding has grown to some of 400 test examples
        assert row["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=0.1)


@pytest.mark.slow
def test_a_sweep(tmp_path):
    """It leaves the folders of a sweep and nothing else, and says each line once."""
    words = RESNET.replace("resnet_20", "mlp").replace("prune=one_shot prune.sparsity=0.5 ", "")
    ran = run_torchrun(f"-m prune.sparsity=0.2,0.36 {words} hydra.sweep.dir=sweep", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.plan == (8, 5, 3, 0)
    assert len(ran.rows("sweep/0")) == 3 and len(ran.rows("sweep/1")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "sweep"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["0", "1", "multirun.yaml", "report"]
    assert ran.out.count("trainings asked") == 1 and ran.out.count("3 rows in") == 1


@pytest.mark.slow
def test_what_cannot_work_is_refused_once(tmp_path):
    """One line of rank 0, its exit code 2 reaches torchrun, and nothing is left."""
    ran = run_torchrun(RESNET.replace("batch_size=60", "batch_size=61"), tmp_path)
    assert ran.err.count("recipe.batch_size=61 must be a multiple of the world size 2: ") == 1 and ran.out == ""
    assert ran.code == 1 and "exitcode: 2" in ran.err.replace("  ", "").replace(" :", ":")
    assert "rank 1" not in ran.err and not list(tmp_path.iterdir())


def process_of(parent: int, rank: int) -> int:
    """The process of a rank, by its environment, among the children of torchrun."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            of_parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if of_parent == parent and f"RANK={rank}".encode() in environment:
                return int(folder.name)
    raise LookupError(f"no rank {rank}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_same_again_goes_on(tmp_path, rank):
    """SIGKILL of one rank in the middle of a training: torchrun ends the other; the same command again resumes from
    the checkpoint of rank 0, and its rows are those of an unbroken run."""
    words = RESNET.replace("steps=10it", "steps=30it").replace("branch=[random_reinit]", "branch=[]")
    work = tmp_path / "outputs" / "store" / "work"
    with torchrun(f"{words} checkpoint_seconds=0 hydra.run.dir=broken", tmp_path) as process:
        limit = time.monotonic() + 100
        while not any(work.glob("*.*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit, "no checkpoint"
            time.sleep(0.01)
        os.kill(process_of(process.pid, rank), signal.SIGKILL)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 1 and "Signal 9" in err
    assert any(work.glob("*.*"))
    again = run_torchrun(f"{words} hydra.run.dir=again", tmp_path)
    assert (again.code, again.err) == (0, "") and not any(work.iterdir())
    whole = run_torchrun(f"{words} hydra.run.dir=whole store=whole_store", tmp_path)
    assert whole.code == 0 and whole.plan == (2, 2, 0, 0)
    assert science(again.rows("again"), "overrides") == science(whole.rows("whole"), "overrides")

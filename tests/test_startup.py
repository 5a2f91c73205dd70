"""What a command does not wait for: modules that it does not need, or not yet, and work that it would do twice."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from test_main import MAIN, run_here

from lth import workers

HEAVY = {
    *("pandas", "matplotlib", "scipy", "wandb", "sklearn", "torchvision", "mlxtend", "mnist1d", "PIL"),
    *("torch._dynamo", "torch._inductor"),
}
TABLES = {"pandas", "matplotlib", "scipy", "PIL"}  # what the report at the end is made with
SWEEP = (
    "-m prune.sparsity=0.2,0.36 replicates=2 dataset=fake model=mlp model.hidden=[8] recipe.steps=4it "
    "recipe.eval_every=4it wandb=disabled device=cpu device.workers=0 hydra.sweep.dir=sweep"
)
# `python main.py`, which says behind each line that it prints what is loaded by then
PROGRAM = f"""
import builtins, runpy, sys
say = builtins.print
def loaded(): say("loaded:", *sorted({HEAVY | {"torch", "hydra"}} & sys.modules.keys()))
def told(*words, **options):
    say(*words, **options)
    loaded()
builtins.print = told
sys.argv[0] = {str(MAIN)!r}
try:
    runpy.run_path({str(MAIN)!r}, run_name="__main__")
finally:
    loaded()
"""


def loads(words: str, cwd: Path) -> list[tuple[str, set[str]]]:
    """(line, heavy modules loaded by then) of what `python main.py WORDS` prints by itself; last ("", at its end)."""
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    known = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    ran = subprocess.run(command, cwd=cwd, env=known, capture_output=True, text=True)
    lines = ran.stdout.splitlines()
    marks = [i for i, line in enumerate(lines) if line.startswith("loaded:")]
    assert marks and ran.stderr.count("Traceback") == 0, ran.stderr
    found = [(lines[i - 1], set(lines[i].split()[1:])) for i in marks]
    return [*found[:-1], ("", found[-1][1])]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    """A working directory whose store holds all of SWEEP."""
    cwd = tmp_path_factory.mktemp("served")
    ran = run_here(SWEEP, cwd)
    assert ran.code == 0, ran.err
    return cwd


def test_help_loads_hydra_alone(tmp_path):
    """Not even torch."""
    assert all(names == {"hydra"} for _, names in loads("--help", tmp_path))


@pytest.mark.slow
def test_a_refused_sweep_loads_torch_alone(tmp_path):
    """What is wrong with a configuration is said before tables and figures are there to be drawn."""
    (_, last) = loads(f"{SWEEP} prune.rate=2", tmp_path)[-1]
    assert last == {"hydra", "torch"}


@pytest.mark.slow
def test_a_served_sweep_loads_tables_for_its_report_alone(served):
    """Up to the rows of its last cell it has loaded nothing heavy but torch; at its end what the report is made with,
    and nothing of W&B, data sets or compilers."""
    *lines, (_, last) = loads(SWEEP, served)
    assert "0 to do" in lines[0][0] and sum("rows in" in line for line, _ in lines) == 2
    assert all(names == {"hydra", "torch"} for _, names in lines)
    assert last - {"hydra", "torch"} == TABLES


@pytest.mark.slow
@pytest.mark.parametrize("launcher, times", [("lth", 1), ("basic", 2)])
def test_a_cell_is_composed_once(served, monkeypatch, launcher, times):
    """By our launcher, for its check and its run; another launcher's cells are composed for a look first, as Hydra
    does it, since that one runs them who knows where."""
    compose, asked = ConfigLoaderImpl.load_sweep_config, []

    def counting(self, master_config, sweep_overrides):
        asked.append(tuple(sweep_overrides))
        return compose(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counting)
    ran = run_here(f"{SWEEP} hydra/launcher={launcher}", served)
    assert ran.code == 0 and len(set(asked)) == 2 and sorted(asked) == sorted([*set(asked)] * times)


@pytest.mark.slow
def test_digits_load_no_scikit_learn(tmp_path):
    """Its 1,797 examples are a file of it; importing what reads that takes a second."""
    (*_, (_, last)) = loads("prefetch=true dataset=digits wandb=disabled", tmp_path)
    assert last == {"hydra", "torch"}


def loaded_at_birth(pipe: Any, number) -> None:
    """A worker's life: say what it has loaded, once."""
    unit, _ = pipe.recv()
    pipe.send((unit, "done", sorted({"torch", "torch._dynamo"} & sys.modules.keys())))


def test_a_worker_is_born_with_all_that_it_imports():
    """What torch.optim imports on its first use is there before there are workers: once, and not once in each."""
    with contextlib.closing(workers.Pool(1, loaded_at_birth, ())) as pool:
        pool.start("unit", [])
        (answer,) = pool.events(60.0)
    assert answer == ("unit", "done", ["torch", "torch._dynamo"])


@pytest.mark.slow
def test_workers_start_while_a_sweep_is_checked(served, tmp_path, monkeypatch):
    """Where something is to be trained by workers; not for what is served, nor where this process trains."""
    warmed = []
    monkeypatch.setattr(workers, "warm", lambda: warmed.append(Path.cwd()))

    def interrupted(*args):
        raise KeyboardInterrupt  # when it comes to planning

    monkeypatch.setattr("lth.cell.execute_cells", interrupted)
    parallel = SWEEP.replace("device.workers=0", "device.workers=2")
    for words, cwd, count in ((SWEEP, tmp_path, 0), (parallel, served, 0), (parallel, tmp_path, 2)):
        assert run_here(words, cwd, workers=None).code == 130
        assert warmed == [cwd] * count

"""The command line, whole: `python main.py` as people type it, and what it leaves on the disk and on the terminal."""

import contextlib
import csv
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

import main

ROOT = Path(main.__file__).parent
MAIN = ROOT / "main.py"
# 60 steps of a network of 64 * 20 + 20 * 10 weights
SMALL = "dataset=digits model=mlp model.hidden=[20] recipe.steps=60it recipe.eval_every=20it wandb=disabled device=cpu"
NUM_TOTAL = 64 * 20 + 20 * 10
SWEEP = f"-m prune.sparsity=0.2,0.36 replicates=2 {SMALL}"
LEVELS = {"0.2": [0.2], "0.36": [0.2, 0.36], "0.488": [0.2, 0.36, 0.488]}  # 1 - 0.8, 1 - 0.8^2, 1 - 0.8^3
CONTROLS = ("random_reinit", "random_mask")
FIELDS = {
    "study": str,
    "cell": int,
    "overrides": list,
    "replicate": int,
    "level": int,
    "branch": str,
    "sparsity": float,
    "target_sparsity": float,
    "num_kept": int,
    "num_total": int,
    "rewind_step": int,
    "test_accuracy": float,
    "test_loss": float,
    "val_accuracy": float,
    "early_stop_step": int,
    "early_stop_test_accuracy": float,
    "steps": int,
    "numerics": str,
    "gemm": str,
    "diverged_step": type(None),
    "seconds": float,
    "served": str,
    "stage": str,
}


@dataclass
class Ran:
    """A finished command: exit code, stdout, stderr, and the folder it ran in."""

    code: int
    out: str
    err: str
    cwd: Path

    @property
    def plan(self) -> tuple[int, ...]:
        """(asked, to do, shared, stored) of the plan line, which is the first one: nothing trains before it."""
        line = self.out.strip().splitlines()[0]
        found = re.search(r"(\d+) trainings asked, (\d+) to do, (\d+) shared, (\d+) stored", line)
        assert found, line
        return tuple(int(number) for number in found.groups())

    def rows(self, folder: str) -> list[dict]:
        return lines(self.cwd / folder / "rows.jsonl")


def lines(path: Path) -> list[dict]:
    # parse_constant is called for NaN and Infinity, which are no JSON
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def run_here(words: str, cwd: Path, workers: int | None = 0) -> Ran:
    """`python main.py WORDS` with `cwd` as the working directory, in this process, which has imported torch already."""
    root, out, err = logging.getLogger(), io.StringIO(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    argv = [str(MAIN), *shlex.split(words), *([] if workers is None else [f"device.workers={workers}"])]
    with contextlib.ExitStack() as stack:
        # Hydra looks for conf/ beside the file of a module that is the main one
        stack.enter_context(patch.dict(os.environ, HYDRA_MAIN_MODULE="__main__"))
        for name in ("HYDRA_FULL_ERROR", "WANDB_MODE"):
            os.environ.pop(name, None)
        for name, fresh in (("_built", {}), ("_executed", {}), ("_made", {})):
            stack.enter_context(patch.object(main, name, fresh))
        stack.enter_context(patch.object(sys, "argv", argv))
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            code = main.command()
        except SystemExit as leaving:
            code = leaving.code
        finally:
            GlobalHydra.instance().clear()
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:], root.level = handlers, level
    return Ran(code, out.getvalue(), err.getvalue(), cwd)


def start(words: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """`python main.py WORDS` from `cwd`, a process group of its own."""
    known = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "HYDRA_FULL_ERROR")}
    return subprocess.Popen(
        [sys.executable, str(MAIN), *shlex.split(words)],
        cwd=cwd,
        env=known | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # what runs these tests may have been told to ignore Ctrl-C, as a shell tells its background jobs
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(words: str, cwd: Path, **environment: str) -> Ran:
    """`python main.py WORDS` from `cwd`, to its end."""
    process = start(words, cwd, **environment)
    out, err = process.communicate(timeout=250)
    return Ran(process.returncode, out, err, cwd)


def science(rows: list[dict], *apart: str) -> list[dict]:
    """Rows without what may differ between two runs of the same command."""
    return [{name: row[name] for name in row if name not in ("seconds", "served", *apart)} for row in rows]


def networks(sparsities: list[float], replicates: int = 2, controls: tuple[str, ...] = CONTROLS) -> list[tuple]:
    """(replicate, level, branch) of every network that a cell trains, by the definition of the algorithm."""
    branches = ("ticket", *controls)
    return [(r, 0, "dense") for r in range(replicates)] + [
        (r, level, branch) for r in range(replicates) for level in range(1, len(sparsities) + 1) for branch in branches
    ]


def counted(cells: list[list[tuple]], stored: set[tuple]) -> tuple[int, int, int, int]:
    """(asked, to do, shared, stored) of a plan whose cells want these networks, counted one by one."""
    asked = [network for cell in cells for network in cell]
    return len(asked), len(set(asked) - stored), len(asked) - len(set(asked)), len(set(asked) & stored)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Ran:
    """The sweep of this file, run once, by two worker processes, from another working directory than the checkout's.

    Another lth is in the way, as one that is installed is beside a second checkout.
    """
    cwd = tmp_path_factory.mktemp("sweep")
    (cwd / "installed" / "lth").mkdir(parents=True)
    decoy = "open(__file__ + '.imported', 'w').close()\nraise ImportError\n"
    (cwd / "installed" / "lth" / "__init__.py").write_text(decoy)
    ran = run(f"{SWEEP} hydra.sweep.dir=sweep device.workers=2", cwd, PYTHONPATH=str(cwd / "installed"))
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture
def after(sweep, tmp_path) -> Path:
    """A working directory with a copy of what the sweep left in its store."""
    shutil.copytree(sweep.cwd / "outputs", tmp_path / "outputs")
    return tmp_path


# A sweep


def test_plan_counts_what_the_definition_says(sweep):
    """The plan's numbers are those of the definition: two cells that share the dense runs and the first level."""
    assert sweep.plan == counted([networks(LEVELS["0.2"]), networks(LEVELS["0.36"])], stored=set())


def test_sweep_says_nothing_on_stderr(sweep):
    """A sweep in which all is well leaves stderr empty: no warning of ours, of Hydra's or of torch's."""
    assert sweep.err == ""


def test_hydra_files_are_where_hydra_users_look(sweep):
    """multirun.yaml, and in each cell's folder .hydra/ with config.yaml, hydra.yaml and overrides.yaml."""
    folder = sweep.cwd / "sweep"
    assert yaml.safe_load((folder / "multirun.yaml").read_text())["replicates"] == 2
    for number, sparsity in enumerate(("0.2", "0.36")):
        hydra = folder / str(number) / ".hydra"
        assert f"prune.sparsity={sparsity}" in yaml.safe_load((hydra / "overrides.yaml").read_text())
        composed = yaml.safe_load((hydra / "config.yaml").read_text())
        assert composed["prune"]["sparsity"] == float(sparsity) and composed["replicates"] == 2
        assert yaml.safe_load((hydra / "hydra.yaml").read_text())["hydra"]["job"]["num"] == number
    assert not (folder / "2").exists()


@pytest.mark.parametrize("number, sparsity", [(0, "0.2"), (1, "0.36")])
def test_rows_are_one_a_trained_network(sweep, number, sparsity):
    """rows.jsonl: exactly the fields of the record, of their types and in their ranges, one row a trained network."""
    rows, levels = sweep.rows(f"sweep/{number}"), LEVELS[sparsity]
    assert Counter((r["replicate"], r["level"], r["branch"]) for r in rows) == Counter(networks(levels))
    for row in rows:
        assert {name: type(value) for name, value in row.items()} == FIELDS
        asked = [0.0, *levels][row["level"]]
        assert row["num_total"] == NUM_TOTAL and row["num_kept"] == round((1 - asked) * NUM_TOTAL)
        assert row["sparsity"] == 1 - row["num_kept"] / NUM_TOTAL
        assert row["cell"] == number and row["study"] == "tickets" and row["served"] == "computed"
        assert f"prune.sparsity={sparsity}" in row["overrides"] and len(row["overrides"]) == len(SWEEP.split())
        assert all(0 <= row[name] <= 1 for name in ("test_accuracy", "val_accuracy", "early_stop_test_accuracy"))
        assert row["test_loss"] > 0 and row["seconds"] > 0
        assert row["numerics"] == "fast" and row["gemm"] in ("blas", "onednn")
        assert row["rewind_step"] == 0 and row["steps"] == 60 and row["early_stop_step"] in (20, 40, 60)
        assert re.fullmatch("[0-9a-f]{64}", row["stage"])
    assert len({row["stage"] for row in rows}) == len(rows)
    assert max(row["test_accuracy"] for row in rows) > 0.3  # ten classes: something was learnt


def test_cells_agree_on_what_they_share(sweep):
    """What two cells share is one stage with one set of numbers."""
    small, large = ({row["stage"]: row for row in sweep.rows(f"sweep/{n}")} for n in (0, 1))
    assert small.keys() < large.keys()
    apart = ("cell", "overrides")
    assert science([small[key] for key in small], *apart) == science([large[key] for key in small], *apart)


def test_curves_lie_beside_the_rows(sweep):
    """curves.jsonl: the curve of each row, one point every recipe.eval_every; its minimum is the row's early stop."""
    for number in (0, 1):
        rows, curves = sweep.rows(f"sweep/{number}"), lines(sweep.cwd / "sweep" / str(number) / "curves.jsonl")
        labels = ("stage", "replicate", "level", "branch")
        assert [[c[name] for name in labels] for c in curves] == [[r[name] for name in labels] for r in rows]
        for row, curve in zip(rows, curves, strict=True):
            points = curve["curve"]
            assert [point["step"] for point in points] == [20, 40, 60]
            assert all(point.keys() == {"step", "train_loss", "val_loss", "val_accuracy"} for point in points)
            assert row["val_accuracy"] == points[-1]["val_accuracy"]
            assert row["early_stop_step"] == min(points, key=lambda point: point["val_loss"])["step"]


def test_config_is_resolved_and_says_where_from(sweep):
    """config.yaml: every value resolved, no hydra node, and the versions, commit and device of the run."""
    config = yaml.safe_load((sweep.cwd / "sweep" / "1" / "config.yaml").read_text())
    schedule = {"_target_": "lth.prune.iterative.Iterative", "sparsity": 0.36, "rate": 0.2, "when": "trained"}
    assert config["prune"] == schedule
    assert config["model"]["hidden"] == [20] and config["replicates"] == 2 and "hydra" not in config
    about = config["provenance"]
    assert (
        about["versions"]["torch"] == str(torch.__version__) and {"lth", "hydra", "python"} <= about["versions"].keys()
    )
    assert about["device"]["kind"] == "cpu"
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
        assert about["commit"].removesuffix("-dirty") == head.strip()


def test_report_shows_table_verdicts_and_files(sweep):
    """At the end: a table with the mean of every level, a verdict for each branch, and files that are whole."""
    folder, rows = sweep.cwd / "sweep" / "report", sweep.rows("sweep/1")
    for level, left in ((1, "80.0"), (2, "64.0")):
        mean = {
            branch: sum(r["test_accuracy"] for r in rows if (r["level"], r["branch"]) == (level, branch)) / 2
            for branch in ("ticket", *CONTROLS)
        }
        (line,) = (line for line in sweep.out.splitlines() if line.split()[:2] == [str(level), left])
        assert [word for word in line.split() if re.fullmatch(r"\d+\.\d", word)][1::2] == [
            f"{100 * mean[branch]:.1f}" for branch in mean
        ]
        assert line.split()[-1] == "2"
    for branch in ("ticket", *CONTROLS):
        (verdict,) = re.findall(rf"^{branch} (?:matches|misses|never matches) dense.*$", sweep.out, re.MULTILINE)
        assert "paired t, 95%, n=2" in verdict
    assert f"\nnumerics: fast ({rows[0]['gemm']})\n" in sweep.out
    printed = [sweep.cwd / line for line in sweep.out.splitlines() if line.endswith((".csv", ".png", ".svg"))]
    assert {path.resolve() for path in printed} == {path.resolve() for path in folder.iterdir()}
    names = ("accuracy_vs_sparsity", "early_stop_vs_sparsity")
    assert {"rows.csv", *(f"{name}{kind}" for name in names for kind in (".png", ".svg"))} <= {p.name for p in printed}
    for name in names:
        assert (folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
    with (folder / "rows.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["branch"] for row in table} == {"dense", "ticket", *CONTROLS}


def test_workers_run_the_code_beside_main(sweep):
    """Whatever lth is installed, worker processes run the one that stands beside main.py, as their parent does."""
    assert not (sweep.cwd / "installed" / "lth" / "__init__.py.imported").exists()


def test_same_line_again_trains_nothing(sweep, after):
    """The same line again: nothing to do, every row served from the store and equal apart from seconds and served."""
    with patch("lth.cell.execute", side_effect=AssertionError("something is executed")):
        again = run_here(f"{SWEEP} hydra.sweep.dir=again", after, workers=2)
    cells = [networks(LEVELS["0.2"]), networks(LEVELS["0.36"])]
    assert again.code == 0 and again.err == ""
    assert again.plan == counted(cells, stored={network for cell in cells for network in cell})
    for number in (0, 1):
        rows = again.rows(f"again/{number}")
        first = sweep.rows(f"sweep/{number}")
        assert science(rows, "overrides") == science(first, "overrides")
        assert {row["served"] for row in rows} == {"stored"}
    assert (after / "again" / "report" / "accuracy_vs_sparsity.png").stat().st_size > 0


def test_more_of_a_sweep_trains_only_what_is_new(sweep, after):
    """A third sparsity and a third replicate add their own trainings, and nothing of the others is done again."""
    ran = run_here(f"-m prune.sparsity=0.2,0.36,0.488 replicates=3 {SMALL} hydra.sweep.dir=more", after)
    assert ran.code == 0
    assert ran.plan == counted([networks(LEVELS[s], 3) for s in LEVELS], stored=set(networks(LEVELS["0.36"])))
    known = {row["stage"]: row for row in sweep.rows("sweep/1")}
    rows = ran.rows("more/2")
    assert {row["stage"] for row in rows if row["served"] == "stored"} == known.keys()
    for row in rows:
        if row["served"] == "stored":
            apart = ("cell", "overrides")
            assert science([row], *apart) == science([known[row["stage"]]], *apart)


@pytest.mark.slow
def test_number_of_workers_changes_no_bit(sweep, tmp_path):
    """Law 9: trained one after another in the main process, the rows are those of two worker processes, bit for bit."""
    alone = run_here(f"{SWEEP} hydra.sweep.dir=sweep", tmp_path, workers=0)
    for number in (0, 1):
        rows = alone.rows(f"sweep/{number}")
        assert science(rows, "overrides") == science(sweep.rows(f"sweep/{number}"), "overrides")
        assert {row["served"] for row in rows} == {"computed"}


@pytest.mark.slow
def test_basic_launcher_gives_the_same_rows(sweep, tmp_path):
    """Where each cell is a job of its own (as under SLURM or Ray), the store shares their work; equal rows."""
    ran = run_here(f"{SWEEP} hydra/launcher=basic hydra.sweep.dir=sweep", tmp_path)
    assert ran.code == 0
    for number in (0, 1):
        rows = ran.rows(f"sweep/{number}")
        assert science(rows, "overrides") == science(sweep.rows(f"sweep/{number}"), "overrides")
    shared = {row["stage"] for row in ran.rows("sweep/0")}
    assert {row["stage"] for row in ran.rows("sweep/1") if row["served"] == "stored"} == shared


# A single job


def test_single_job_and_its_ticket(tmp_path):
    """A job without -m: Hydra's dated folder, its report, and on request the tickets: mask and start, with a card."""
    line = f"prune.sparsity=0.36 replicates=2 save_tickets=true {SMALL} wandb.entity=hunter2"
    with patch.dict(os.environ, SOME_API_KEY="hunter2"):
        ran = run_here(line, tmp_path)
    (folder,) = (tmp_path / "outputs" / "runs").glob("*/*")
    assert ran.code == 0 and re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d+", f"{folder.parent.name}/{folder.name}")
    assert ran.plan == counted([networks(LEVELS["0.36"])], stored=set())
    assert (folder / ".hydra" / "overrides.yaml").is_file() and (
        folder / "report" / "accuracy_vs_sparsity.png"
    ).is_file()
    assert "hunter2" not in (folder / "config.yaml").read_text()  # the value of a secret of the environment
    rows = {
        row["replicate"]: row for row in lines(folder / "rows.jsonl") if (row["level"], row["branch"]) == (2, "ticket")
    }
    assert {path.name for path in (folder / "tickets").iterdir()} == {
        f"replicate_{replicate}.{kind}" for replicate in (0, 1) for kind in ("safetensors", "json")
    }
    for replicate, row in rows.items():
        tensors = load_file(folder / "tickets" / f"replicate_{replicate}.safetensors")
        masks = {name.removeprefix("mask:"): t for name, t in tensors.items() if name.startswith("mask:")}
        params = {name.removeprefix("params:"): t for name, t in tensors.items() if name.startswith("params:")}
        assert sum(mask.numel() for mask in masks.values()) == NUM_TOTAL
        assert sum(int(mask.sum()) for mask in masks.values()) == row["num_kept"]
        for name, mask in masks.items():
            assert set(mask.unique().tolist()) <= {0, 1}
            assert not params[name][mask == 0].any() and params[name][mask == 1].all()
        assert all(not params[name].any() for name in params.keys() - masks.keys())  # biases start at zero
        card = json.loads((folder / "tickets" / f"replicate_{replicate}.json").read_text())
        names = ("replicate", "level", "sparsity", "num_kept", "num_total", "rewind_step", "test_accuracy", "stage")
        assert {name: card[name] for name in names} == {name: row[name] for name in names}


def test_sparsity_0_is_the_dense_network_alone(tmp_path):
    """prune.sparsity=0 trains the dense network and nothing else, and has a report; there is no ticket to save."""
    ran = run_here(f"prune.sparsity=0 replicates=2 save_tickets=true hydra.run.dir=job {SMALL}", tmp_path)
    assert ran.code == 0 and ran.plan == counted([networks([])], stored=set())
    assert [(r["replicate"], r["level"], r["branch"]) for r in ran.rows("job")] == networks([])
    assert (tmp_path / "job" / "report" / "accuracy_vs_sparsity.png").is_file()
    assert not (tmp_path / "job" / "tickets").exists()


def test_branch_may_be_empty(tmp_path):
    """branch=[]: the ticket without its controls."""
    ran = run_here(f"branch=[] prune.sparsity=0.36 replicates=2 hydra.run.dir=job {SMALL}", tmp_path)
    wanted = networks(LEVELS["0.36"], controls=())
    assert ran.code == 0 and ran.plan == counted([wanted], stored=set())
    assert Counter((r["replicate"], r["level"], r["branch"]) for r in ran.rows("job")) == Counter(wanted)
    assert "random" not in ran.out.replace("branch=[]", "")


@pytest.mark.slow
def test_what_a_sweep_varies_is_a_setting_of_its_report(tmp_path):
    """A sweep over recipe.lr: nothing trained is shared, and the report keeps the two apart by their override."""
    ran = run_here(f"-m recipe.lr=0.001,0.01 prune.sparsity=0.2 replicates=2 {SMALL} hydra.sweep.dir=sweep", tmp_path)
    each = networks(LEVELS["0.2"])
    assert ran.code == 0
    assert ran.plan == counted([[(lr, *network) for network in each] for lr in (0.001, 0.01)], stored=set())
    with (tmp_path / "sweep" / "report" / "rows.csv").open() as file:
        settings = Counter(row["setting"] for row in csv.DictReader(file))
    assert settings == {f"recipe.lr={lr}": len(each) for lr in ("0.001", "0.01")}
    for lr in ("0.001", "0.01"):
        assert re.search(rf"^\s*recipe\.lr={lr}\s*$", ran.out, re.MULTILINE)  # the title of a table
        assert re.search(rf"^recipe\.lr={lr}: ticket .*dense", ran.out, re.MULTILINE)  # a verdict


@pytest.mark.slow
def test_keep_tickets_takes_less_room(sweep, tmp_path):
    """keep=tickets: fewer bytes than keep=all, the same rows, and the same line again still trains nothing."""
    first, again = (run_here(f"{SWEEP} keep=tickets hydra.sweep.dir={name}", tmp_path) for name in ("a", "b"))
    assert first.code == again.code == 0 and again.plan[1] == 0
    for number in (0, 1):
        wanted = science(sweep.rows(f"sweep/{number}"), "overrides")
        assert science(first.rows(f"a/{number}"), "overrides") == wanted
        assert science(again.rows(f"b/{number}"), "overrides") == wanted
    size = {
        store: sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        for store in (tmp_path / "outputs" / "store", sweep.cwd / "outputs" / "store")
    }
    small, large = size.values()
    assert small < large
    tasks = [json.loads(path.read_bytes())["stage"]["task"] for path in (tmp_path / "outputs").rglob("manifest.json")]
    assert "lth.train.result" in tasks and "lth.train.state_at" not in tasks  # numbers, and no trained weights


@pytest.mark.slow
def test_tickets_are_kept_where_they_are_trained_states(tmp_path):
    """keep=tickets with rewind=none, whose tickets start from trained weights: both cells, and the same line again,
    write their tickets."""
    line = f"-m prune.sparsity=0.2,0.36 replicates=1 rewind=none keep=tickets save_tickets=true {SMALL}"
    for name in ("a", "b"):
        ran = run_here(f"{line} hydra.sweep.dir={name}", tmp_path)
        assert ran.code == 0, ran.out + ran.err
        for number in (0, 1):
            assert (tmp_path / name / str(number) / "tickets" / "replicate_0.safetensors").is_file()


@pytest.mark.slow
def test_a_diverged_run_is_a_result(tmp_path):
    """A loss that is not finite: its rows say at which step, what is built on it is diverged too, the other cell is
    whole, the report counts, and the exit code is 0."""
    line = f"-m recipe=sgd recipe.lr=0.05,1e30 prune.sparsity=0.2 replicates=2 {SMALL} hydra.sweep.dir=sweep"
    ran = run_here(line, tmp_path)
    assert ran.code == 0
    good, bad = ran.rows("sweep/0"), ran.rows("sweep/1")
    assert len(good) == len(bad) == len(networks(LEVELS["0.2"]))
    assert all(row["diverged_step"] is None and row["test_accuracy"] is not None for row in good)
    for row in bad:
        assert type(row["diverged_step"]) is int and 0 <= row["diverged_step"] <= 60
        assert row.keys() == FIELDS.keys() and row["test_accuracy"] is None and row["early_stop_step"] is None
    assert f"{len(bad)} of {len(good) + len(bad)} runs diverged" in ran.out
    assert (tmp_path / "sweep" / "report" / "accuracy_vs_sparsity.png").is_file()


# Slow


@pytest.mark.slow
@pytest.mark.parametrize("wandb", ["offline", "auto"])
def test_wandb_changes_no_byte(sweep, tmp_path, wandb):
    """Law 7, from the command line: with W&B offline (auto without a key is), rows and curves are those without it,
    each cell has its run in its own folder, and the checkout has none."""
    before = set(ROOT.iterdir())
    line = SWEEP.replace("wandb=disabled", f"wandb={wandb}")
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": ""}
    ran = run(f"{line} hydra.sweep.dir=sweep device.workers=2", tmp_path, **home)
    assert ran.code == 0, ran.err
    for number in (0, 1):
        folder = tmp_path / "sweep" / str(number)
        assert science(ran.rows(f"sweep/{number}"), "overrides") == science(sweep.rows(f"sweep/{number}"), "overrides")
        assert lines(folder / "curves.jsonl") == lines(sweep.cwd / "sweep" / str(number) / "curves.jsonl")
        assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert set(ROOT.iterdir()) == before


@pytest.mark.slow
def test_threads_of_the_machine_change_no_bit(tmp_path):
    """Laws 4 and 9: in a process of its own, with as many threads as torch takes by itself, device.workers=0 gives the
    numbers of worker processes, also for the layers of LeNet-300-100, where threads split sums."""
    line = "recipe.steps=60it wandb=disabled device=cpu replicates=1 prune.sparsity=0.2 branch=[] hydra.run.dir"
    rows = [run(f"device.workers={n} store=store{n} {line}=job{n}", tmp_path).rows(f"job{n}") for n in (0, 2)]
    assert science(rows[0], "overrides") == science(rows[1], "overrides")


@pytest.mark.slow
def test_first_line_of_the_readme(tmp_path):
    """python main.py -m prune.sparsity=0.5,0.8,0.9: under 180 s, the ticket above a random mask at 90% sparsity, its
    mean above fresh weights' (whether three replicates tell these two apart is for the CPU's rounding to say), 120 of
    216 trainings to do; the same line again takes under 10 s of processor time and trains nothing."""
    line = "-m prune.sparsity=0.5,0.8,0.9 wandb=disabled hydra.sweep.dir=sweep"
    began = time.monotonic()
    ran = run(line, tmp_path)
    assert ran.code == 0 and time.monotonic() - began < 180
    assert ran.plan == (216, 120, 96, 0)
    at = r"[\d.]+ \+- [\d.]+ points at 10\.0% of the weights"
    assert re.search(rf"^ticket above random_mask by {at}", ran.out, re.MULTILINE), ran.out
    reinit = rf"^ticket (above random_reinit by |not told apart from random_reinit: \+){at}"
    assert re.search(reinit, ran.out, re.MULTILINE), ran.out
    before = os.times()
    again = run(line.replace("=sweep", "=again"), tmp_path)
    spent = os.times()
    assert again.plan == (216, 0, 96, 120)
    assert spent.children_user + spent.children_system - before.children_user - before.children_system < 10

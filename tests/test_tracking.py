"""rows.jsonl and its view in W&B: law 7, and a W&B that is dead, absent or half alive. Nothing here needs a network."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lth import tracking
from lth.tracking import View, Wandb, read_rows, redact, write_rows

ROOT = Path(__file__).parents[1]
NUMBERS = {
    "test_accuracy": 0.9,
    "test_loss": 0.3,
    "val_accuracy": 0.88,
    "early_stop_step": 30,
    "early_stop_test_accuracy": 0.89,
    "diverged_step": None,
}
DIVERGED = dict.fromkeys(NUMBERS) | {"diverged_step": 20}


def labels(level: int, replicate: int = 0, branch: str = "ticket") -> dict:
    return {"replicate": replicate, "level": level, "branch": branch, "sparsity": 1 - 0.8**level}


# "dense" is the level 0 of two branches, "b" diverges
ORDER = [
    ("dense", labels(0)),
    ("a", labels(1)),
    ("b", labels(2)),
    ("dense", labels(0, branch="reinit")),
    ("c", labels(3)),
]
KEYS = ["dense", "a", "b", "c"]


def curve(key: str, missing: float | None = None) -> list[dict]:
    start = 10 * KEYS.index(key)
    points = [
        {"step": start + 10 * i, "train_loss": 1 / (i + 1), "val_loss": 2 / (start + i + 1), "val_accuracy": i / 7}
        for i in range(4)
    ]
    if key == "b":
        points[2] = {"step": points[2]["step"], "train_loss": 0.1, "val_loss": missing, "val_accuracy": missing}
    return points


def numbers(key: str) -> dict:
    return DIVERGED if key == "b" else NUMBERS


def view(directory: Path, mode: str = "offline", id: str = "cell", order: list | None = None) -> View:
    return View(
        settings=Wandb(mode=mode),
        id=id,
        group="study",
        job_type="one_shot",
        name="a cell",
        tags=["quick"],
        config={"rate": 0.2, "api_key": "hunter2"},
        directory=directory,
        order=ORDER if order is None else order,
    )


def replay(shown: View, keys: list[str] = KEYS) -> None:
    for key in keys:
        shown.trained(key, curve(key), numbers(key))


class Recorder:
    """Stands for a W&B run; `fails` is the number of the log call, over all runs, that raises."""

    def __init__(self, runs: list, options: dict, fails: int | None, starting_step: int):
        self.runs, self.options, self.fails, self.starting_step = runs, options, fails, starting_step
        self.logged: list[tuple[int, dict]] = []
        self.metrics: dict[str, str | None] = {}
        self.exit_code: int | None = None
        self.id, self.url, self.dir = options["id"], None, f"{options['dir']}/wandb/run/files"

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, data: dict, step: int) -> None:
        if self.fails == sum(len(run.logged) for run in self.runs):
            self.fails = None
            raise OSError("no space left on device")
        self.logged.append((step, data))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Each test has a process's worth of patience and one warning line, no key and no settings of the user's."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # so that what the view sets is taken back
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("_patience", tracking.PATIENCE), ("_gone", False), ("_services", 0), ("_warned", False)):
        monkeypatch.setattr(tracking, name, value)


@pytest.fixture
def runs(monkeypatch):
    """The runs that views open, in order, instead of W&B's."""
    return recorded(monkeypatch)


def recorded(monkeypatch, fails: int | None = None, starting_step: int = 0, found: bool = False) -> list[Recorder]:
    import wandb

    opened: list[Recorder] = []

    def init(**options) -> Recorder:
        opened.append(Recorder(opened, options, fails if not opened else None, starting_step))
        return opened[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: found)
    return opened


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, dict]]:
    """The history of ORDER, written out by its definition."""
    history = []
    for key, where in ORDER:
        branch, level = where["branch"], where["level"]
        for point in curve(key):
            row = {"step": point["step"]}
            for name in ("train_loss", "val_loss", "val_accuracy"):
                if point[name] is not None:
                    row[f"{name}/{branch}/level_0{level}/r0"] = point[name]
            history.append(row)
        row = {"weights_remaining": pytest.approx(100 * 0.8**level, abs=1e-5)}
        for name in ("test_accuracy", "test_loss", "early_stop_step", "early_stop_test_accuracy", "diverged_step"):
            if numbers(key)[name] is not None:
                row[f"{name}/{branch}/r0"] = numbers(key)[name]
        history.append(row)
    return list(enumerate(history))


# ---------------------------------------------------------------- law 7


def test_replayed_history_is_what_its_definition_says(runs, tmp_path, expected):
    replay(view(tmp_path))
    assert runs[0].logged == expected
    assert runs[0].metrics["val_accuracy/*"] == "step"
    assert runs[0].metrics["test_accuracy/*"] == "weights_remaining"


@pytest.mark.parametrize("seed", range(40))
def test_live_in_any_interleaving_equals_replayed(monkeypatch, tmp_path, expected, seed):
    """Workers hand in their points side by side, some twice, some not at all; some trainings come from the store."""
    runs, rng, shown = recorded(monkeypatch), random.Random(seed), view(tmp_path)
    waiting = {}
    for key in KEYS:
        live = curve(key, missing=float("nan"))[: rng.randint(0, 4)]
        waiting[key] = [("point", p) for p in live for _ in range(rng.choice([1, 1, 2]))] + [("trained", None)]
    while waiting:
        key = rng.choice(list(waiting))
        event, point = waiting[key].pop(0)
        if event == "point":
            shown.point(key, point)
        else:
            shown.trained(key, curve(key), numbers(key))
            if rng.random() < 0.3:  # told again by the record
                shown.trained(key, curve(key), numbers(key))
        if not waiting[key]:
            del waiting[key]
    assert runs[0].logged == expected


def test_live_points_that_begin_late_cost_their_order_and_no_point(runs, tmp_path, expected):
    """A caller that forgets the checkpoint's points; one that is done before its turn loses nothing."""
    shown = view(tmp_path, order=ORDER[:3])
    shown.point("dense", curve("dense")[2])
    shown.point("a", curve("a")[3])
    replay(shown, ["a", "b", "dense"])
    first = [expected[i][1] for i in (2, 0, 1, 3)]
    assert runs[0].logged == list(enumerate(first)) + expected[4:15]


def test_live_point_of_the_training_whose_turn_it_is_shows_at_once(runs, tmp_path, expected):
    shown = view(tmp_path)
    shown.point("a", curve("a")[0])
    assert not runs, "no run is opened for what has to wait"
    shown.point("dense", curve("dense")[0])
    assert runs[0].logged == expected[:1]


@pytest.mark.parametrize("seed", range(5))
def test_points_from_several_threads(monkeypatch, tmp_path, expected, seed):
    runs, shown = recorded(monkeypatch), view(tmp_path)

    def worker(key: str) -> None:
        for point in curve(key):
            shown.point(key, point)
        shown.trained(key, curve(key), numbers(key))

    threads = [threading.Thread(target=worker, args=(key,)) for key in random.Random(seed).sample(KEYS, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs[0].logged == expected


@pytest.mark.parametrize("crash", range(0, 26, 5))
def test_resumed_online_run_gets_what_it_lacks(monkeypatch, tmp_path, expected, crash):
    runs = recorded(monkeypatch, starting_step=crash, found=True)
    shown = view(tmp_path, mode="online")
    replay(shown)
    shown.finish([], [])
    assert runs[0].options["resume"] == "allow"
    assert runs[0].logged[: len(expected) - crash] == expected[crash:]
    assert [step for step, _ in runs[0].logged] == list(range(crash, len(expected) + 1))


def test_failed_cell_leaves_the_steps_of_its_missing_trainings_free(runs, tmp_path, expected):
    shown = view(tmp_path)
    replay(shown, ["dense", "b", "c"])  # "a" failed
    shown.finish([{"level": 0}], [], failed=True)
    assert runs[0].logged == expected[:5]
    assert runs[0].exit_code == 1


def test_unknown_key_is_an_error(runs, tmp_path):
    with pytest.raises(KeyError):
        view(tmp_path).point("nobody", curve("a")[0])
    with pytest.raises(KeyError):
        view(tmp_path).trained("nobody", [], {})


# ---------------------------------------------------------------- a run as wandb writes it


def inspect(directory: Path, *options: str) -> list[dict]:
    """What the one offline run below `directory` holds, read by wandb's public command."""
    (run,) = (directory / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(directory: Path) -> list[tuple[int, dict]]:
    items = [record["history"]["item"] for record in inspect(directory) if record["type"] == "history"]
    return [(item["_step"], {k: v for k, v in item.items() if not k.startswith("_")}) for item in items]


@pytest.mark.slow
def test_two_offline_runs_at_once_one_live_one_replayed(tmp_path, expected, capfd):
    import numpy as np
    import torch
    from PIL import Image

    def generators() -> list:
        return [random.getstate(), *map(str, np.random.get_state()), torch.get_rng_state().tolist()]

    np.random.seed(1)  # what a script does that seeds; numpy's legacy generator is the one that libraries share
    before = generators()
    live, stored = view(tmp_path / "live", id="live"), view(tmp_path / "stored", id="stored")
    figure, ticket = tmp_path / "figure.png", tmp_path / "ticket.json"
    Image.new("RGB", (4, 4)).save(figure)
    ticket.write_text("{}")
    for position in range(4):
        for key in reversed(KEYS):
            live.point(key, curve(key)[position])
    stored.trained("dense", curve("dense"), numbers("dense"))  # both runs are open from here on
    replay(live)
    replay(stored, KEYS[1:])
    for shown in (live, stored):
        shown.finish(
            [{"level": 0, "x": ["a=1"]}, {"level": 1, "seconds": 2.5}], [figure, tmp_path / "none.png"], [ticket]
        )
        shown.finish([], [])
    assert generators() == before, "W&B drew from a global generator"

    first, second = history(tmp_path / "live"), history(tmp_path / "stored")
    assert first[:-1] == second[:-1] == expected
    step, report = first[-1]
    assert step == second[-1][0] == len(expected)
    assert {name.split(".")[0] for name in report} == {"rows", "figures/figure"}

    kinds = {record["artifact"]["type"] for record in inspect(tmp_path / "live") if record["type"] == "artifact"}
    assert "ticket" in kinds
    assert "hunter2" not in json.dumps(inspect(tmp_path / "live"))
    assert not (tmp_path / "home").exists(), "wandb wrote outside its directory"
    assert {path.name for path in tmp_path.iterdir()} == {"live", "stored", "figure.png", "ticket.json"}
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- W&B dead, absent, half alive

CELLS = """
import sys, os, signal, subprocess
from pathlib import Path
from tests_tracking import KEYS, curve, numbers, replay, view, tracking
directory, mode, harm = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for name, value in zip(sys.argv[4::2], sys.argv[5::2]):
    assert hasattr(tracking, name)
    setattr(tracking, name, float(value))
for cell in ("one", "two"):
    shown = view(directory / cell, mode=mode, id=cell)
    shown.trained("dense", curve("dense"), numbers("dense"))
    if harm != "none" and cell == "one":
        cores = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True).stdout
        assert cores.split(), "no service process to harm"
        for core in cores.split():
            os.kill(int(core), signal.Signals[harm])
            harmed = int(core)
    replay(shown)
    shown.finish([{"a": 1}], [])
if harm == "SIGSTOP":
    os.kill(harmed, signal.SIGKILL)
print("done")
"""


def run_cells(
    directory: Path, mode: str, *options: str, harm: str = "none", **environment: str
) -> tuple[float, list[str]]:
    """(seconds, lines on stderr) of a process that shows two cells, from its start to its end. options: constants of
    lth.tracking and their values, to be quicker."""
    start = "import importlib.util as u, sys; s = u.spec_from_file_location('tests_tracking', sys.argv.pop(1));"
    start += "m = u.module_from_spec(s); sys.modules['tests_tracking'] = m; s.loader.exec_module(m)\n"
    started = time.monotonic()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", start + CELLS, __file__, str(directory), mode, harm, *options],
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    return time.monotonic() - started, done.stderr.splitlines()


def assert_complete_offline(directory: Path, expected: list[tuple[int, dict]]) -> None:
    for cell in ("one", "two"):
        runs = sorted((directory / cell / "wandb").glob("offline-run-*"))
        for partial in runs[:-1]:
            shutil.rmtree(partial)
        assert history(directory / cell)[:-1] == expected


@contextlib.contextmanager
def black_hole():
    """A server that accepts connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_server_that_refuses(tmp_path, expected):
    where = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    seconds, lines = run_cells(tmp_path, "auto", "INIT_SECONDS", "2", **where)
    assert seconds < 10
    assert len(lines) == 1
    assert "wandb sync" in lines[0]
    assert_complete_offline(tmp_path, expected)


@pytest.mark.slow
def test_server_that_never_answers(tmp_path, expected):
    with black_hole() as url:
        seconds, lines = run_cells(tmp_path, "online", "INIT_SECONDS", "3", WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40)
    assert seconds < 15
    assert len(lines) == 1
    assert_complete_offline(tmp_path, expected)


@pytest.mark.slow
def test_no_key_online(tmp_path, expected):
    seconds, lines = run_cells(tmp_path, "online")
    assert seconds < 10
    assert len(lines) == 1
    assert "WANDB_API_KEY" in lines[0], "asked before wandb.init, which would stop at a terminal"
    assert_complete_offline(tmp_path, expected)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["SIGKILL", "SIGSTOP"])
def test_service_process_dies_or_hangs(tmp_path, expected, harm):
    seconds, lines = run_cells(tmp_path, "offline", "CALL_SECONDS", "2", harm=harm)
    assert seconds < 15
    assert len(lines) == 1
    assert_complete_offline(tmp_path, expected)


@pytest.mark.parametrize("fails", [0, 3, 12, 25])
def test_log_that_raises_is_followed_by_the_whole_run_offline(monkeypatch, tmp_path, expected, capsys, fails):
    runs = recorded(monkeypatch, fails=fails, found=True)
    shown = view(tmp_path, mode="online")
    replay(shown)
    shown.finish([], [])
    assert [run.options["mode"] for run in runs] == ["online", "offline"]
    assert runs[0].options["id"] == runs[1].options["id"]
    assert runs[1].logged[:-1] == expected
    assert runs[1].exit_code == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    replay(view(tmp_path / "next", mode="online"))
    assert runs[2].options["mode"] == "offline", "the next cell does not try again"


def test_views_that_share_a_dead_service_give_it_up_once(monkeypatch, tmp_path, expected, capsys):
    """Otherwise the second would tear down the service to which the first has just moved."""
    import wandb

    def lost(*_, **__):
        raise ConnectionResetError("Connection lost")

    runs, teardowns = recorded(monkeypatch), []
    monkeypatch.setattr(wandb, "teardown", lambda: teardowns.append(1))
    views = [view(tmp_path / id, id=id) for id in ("one", "two")]
    for shown in views:
        shown.point("dense", curve("dense")[0])
    for run in runs:
        monkeypatch.setattr(run, "log", lost)
    for shown in views:
        replay(shown)
    assert len(teardowns) == 1
    assert [run.logged for run in runs[2:]] == [expected, expected]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_all_fails_and_nothing_is_raised(monkeypatch, tmp_path, capsys):
    import wandb

    recorded(monkeypatch)
    tried = []

    def init(**options):
        tried.append(options["mode"])
        sys.exit("wandb ends the process")

    monkeypatch.setattr(wandb, "init", init)
    shown = view(tmp_path)
    replay(shown)
    shown.finish([], [])
    assert len(tried) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_patience_is_of_the_process(monkeypatch, tmp_path, capsys):
    import wandb

    recorded(monkeypatch)
    monkeypatch.setattr(wandb, "init", lambda **options: time.sleep(60))
    monkeypatch.setattr(tracking, "_patience", 0.5)
    started = time.monotonic()
    for cell in range(10):
        replay(view(tmp_path, id=str(cell)))
    assert time.monotonic() - started < 3
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("mode", "lines"), [("auto", 0), ("offline", 1), ("online", 1)])
def test_package_absent(monkeypatch, tmp_path, capsys, mode, lines):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for _ in range(2):
        shown = view(tmp_path, mode=mode)
        replay(shown)
        shown.finish([{"a": 1}], [])
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_disabled_does_not_ask_for_the_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    shown = view(tmp_path, mode="disabled")
    replay(shown)
    shown.finish([{"a": 1}], [])
    assert capsys.readouterr().err == ""
    assert not any(tmp_path.iterdir())


def test_import_is_light():
    command = "import sys, lth.tracking; print({'wandb', 'torch', 'hydra', 'omegaconf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---------------------------------------------------------------- settings


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"^wandb.mode=of is not one of auto, online, offline, disabled$"):
        Wandb(mode="of")


@pytest.mark.parametrize("mode", tracking.MODES)
def test_conf_names_the_settings(mode):
    lines = (ROOT / "conf/wandb" / f"{mode}.yaml").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "_target_: lth.tracking.Wandb",
        f"mode: {mode}",
        "project: lth",
        "entity: null",
    ]


@pytest.mark.parametrize(
    ("mode", "asked", "found", "opened"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "ofline", True, "offline"),
        ("auto", "online", True, "online"),
        ("auto", "disabled", True, None),
        ("offline", "online", True, "offline"),
        ("online", "offline", True, "online"),
        ("disabled", "online", True, None),
    ],
)
def test_where_a_run_goes(monkeypatch, tmp_path, mode, asked, found, opened):
    runs = recorded(monkeypatch, found=found)
    if asked:
        monkeypatch.setenv("WANDB_MODE", asked)
    replay(view(tmp_path, mode=mode))
    assert [run.options["mode"] for run in runs] == ([opened] if opened else [])


# ---------------------------------------------------------------- rows and secrets


def test_rows_round_trip_in_order(tmp_path):
    rows = [{"b": 1, "a": None, "accent": "\u00e9\u2028"}, {"a": 0.1 + 0.2, "list": ["x=1"]}, {}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert (tmp_path / "rows.jsonl").read_text().startswith('{"b": 1, "a": null')
    assert list(read_rows(tmp_path / "rows.jsonl")[0]) == ["b", "a", "accent"]
    write_rows(tmp_path / "rows.jsonl", [])
    assert read_rows(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_rows_refuse_what_is_not_json(tmp_path, number):
    write_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    with pytest.raises(ValueError, match="JSON"):
        write_rows(tmp_path / "rows.jsonl", [{"a": 2}, {"a": number}])
    assert read_rows(tmp_path / "rows.jsonl") == [{"a": 1}]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_rows_are_old_or_new(monkeypatch, tmp_path, broken):
    def fail(*_):
        raise OSError("disk full")

    write_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="disk full"):
            write_rows(tmp_path / "rows.jsonl", [{"a": 2}])
    assert read_rows(tmp_path / "rows.jsonl") == [{"a": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"], "the partial file is removed"


def test_rows_are_on_disk_before_they_have_their_name(monkeypatch, tmp_path):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (calls.append("fsync"), fsync(*a))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a))[1])
    write_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    assert calls == ["fsync", "replace", "fsync"]


def test_redact(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "s3cr3t-value")
    monkeypatch.setenv("SOME_EMPTY_KEY", "")
    monkeypatch.setenv("SOME_MONKEY", "banana")
    config = {
        "api_key": "a",
        "accessToken": "a",
        "WANDB_API_KEY": "a",
        "password": 12,
        "credentials": {"user": "me"},
        "token": None,
        "monkey": "b",
        "tokenizer": "b",
        "num_tokens": 3,
        "keyboard": "b",
        "empty": "",
        "fruit": "banana",
        "deep": [{"db-password": "a", "url": "s3cr3t-value", 3: "c"}],
    }
    hidden = "<redacted>"
    assert redact(config) == config | {
        "api_key": hidden,
        "accessToken": hidden,
        "WANDB_API_KEY": hidden,
        "password": hidden,
        "credentials": hidden,
        "deep": [{"db-password": hidden, "url": hidden, 3: "c"}],
    }
    assert config["api_key"] == "a", "the config itself is left alone"

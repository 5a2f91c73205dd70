"""rows.jsonl is the record; Weights & Biases is a view of it (https://docs.wandb.ai).

What W&B is given is a list whose entry i has W&B step i, built in the fixed order of the cell's trainings: the same
list whether a training was watched live, served from the store, or both. A run is a place to which a prefix of the list
has been sent: one that dies is replaced by an offline run that is sent the whole list, a resumed one gets the rest.

All of W&B's failures together cost a process PATIENCE seconds and one line on stderr. wandb is imported here only.
"""

import contextlib
import json
import math
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Paths = Sequence[Path]
MODES = ("auto", "online", "offline", "disabled")
CURVES = ("train_loss", "val_loss", "val_accuracy")  # against `step`
SUMMARIES = (
    *("test_accuracy", "test_loss", "early_stop_step", "early_stop_test_accuracy", "diverged_step"),
    *("error_barrier", "loss_barrier", "distance", "angle", "disagreement", "pruning_distance", "pruning_angle"),
    *("start_largest_eigenvalue", "end_largest_eigenvalue", "start_trace", "end_trace", "end_sharpness"),
)
SECRET = {"key", "keys", "apikey", "token", "secret", "secrets", "password", "passwd", "credential", "credentials"}
REDACTED = "<redacted>"
INIT_SECONDS = 6.0  # wandb's default is 90
FINISH_SECONDS = 7.0  # wandb's default is for ever; what is not uploaded by then is on disk for `wandb sync`
CALL_SECONDS = 8.0  # for a call that ignores both, as calls to a hung service process and log(table) do
PATIENCE = 13.0  # seconds of failing calls in this process, all cells together

_patience = PATIENCE
_gone = False  # W&B failed once: runs that this process opens from now on are offline
_services = 0  # wandb's service processes that this process has given up
_warned = False


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line, keys in the given order; a reader sees the old file or the new one, never a part.

    A missing number is None: NaN and infinity raise ValueError, what JSON cannot hold TypeError.
    """
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the new name, too, is to outlive a power cut
    os.fsync(folder)
    os.close(folder)


def read_rows(path: Path) -> list[dict]:
    """What `write_rows` wrote. Raises FileNotFoundError, or ValueError for a line that is not JSON."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _is_secret(name: Any) -> bool:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", str(name))  # api_key, apiKey, API_KEY: api + key; monkey is one word
    return any(word.lower() in SECRET for word in words)


def redact(config: dict) -> dict:
    """A copy with "<redacted>" for what is secret by its key's name (None stays None), and for each string that is the
    value of an environment variable with such a name."""
    known = {value for name, value in os.environ.items() if value and _is_secret(name)}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: REDACTED if v is not None and _is_secret(k) else clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return REDACTED if isinstance(value, str) and value in known else value

    return clean(config)


@dataclass(frozen=True)
class Wandb:
    """Where runs go. mode auto: WANDB_MODE where it is set, else online where there is an API key, else offline."""

    mode: str = "auto"
    project: str = "lth"
    entity: str | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"wandb.mode={self.mode} is not one of {', '.join(MODES)}")


def _warn(message: str) -> None:
    global _warned
    if not _warned:
        print(f"W&B: {message}", file=sys.stderr)
    _warned = True


def _bounded(call: Callable[[], Any], seconds: float) -> Any:
    """call() in a daemon thread. Raises RuntimeError for whatever it raises, TimeoutError when it takes longer; the
    time of a call that fails is taken from this process's patience."""
    global _patience
    results, errors, started = [], [], time.monotonic()

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # wandb may call sys.exit
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(min(seconds, _patience))
    if results:
        return results[0]
    took = time.monotonic() - started
    _patience = max(0.0, _patience - took)
    if errors:
        raise RuntimeError(f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]
    raise TimeoutError(f"no answer in {took:.0f} s")


def _finite(values: dict, names: Iterable[str], of: str) -> dict[str, float]:
    """{"name/of": number}, without what is missing, None, NaN or infinite (a diverged run)."""
    found = {name: values.get(name) for name in names}
    return {f"{name}/{of}": float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


class View:
    """The W&B run of one cell, named by `id`, so that the same cell again is the same run. No two open views share one.

    order: (stage key, {"replicate": int, "level": int, "branch": str, "sparsity": float in [0, 1)}) of each training,
    in the order of the view; a key may stand under several labels. Methods may be called from any thread; they raise
    KeyError for a key that is not in `order`, and nothing for W&B's sake. wandb writes below `directory` only.
    """

    def __init__(
        self, *, settings: Wandb, id: str, group: str, job_type: str, name: str, tags: list[str], config: dict,
        directory: Path, order: list[tuple[str, dict]],
    ):  # fmt: skip
        asked = settings.mode if settings.mode != "auto" else os.environ.get("WANDB_MODE") or "auto"
        known = {mode: mode for mode in MODES} | {"run": "online"}
        self.place: str | None = None  # the run's URL, or its directory when it is offline
        self._mode = known.get(asked, "offline")  # auto, online, offline, disabled
        self._settings, self._directory, self._order = settings, Path(directory).absolute(), order
        self._labels = {"id": id, "group": group, "job_type": job_type, "name": name, "tags": tags}
        self._config = redact(config)
        self._points: dict[str, list[dict]] = {key: [] for key, _ in order}  # what is known of each curve
        self._numbers: dict[str, dict] = {}  # of the trainings that are finished
        self._turn = self._shown = 0  # which training may enter the history, and how many of its points are in it
        self._history: list[Callable[[], dict]] = []  # makes what W&B step i holds: a table belongs to one run only
        self._run: Any = None
        self._sent = self._failures = self._service = 0
        self._lock = threading.RLock()

    @property
    def active(self) -> bool:
        """False where nothing is shown anywhere."""
        return self._mode != "disabled"

    def point(self, key: str, point: dict) -> None:
        """A live point {"step": int, "train_loss", "val_loss", "val_accuracy": float or None} of training `key`.

        They come in curve order from the first one: a training that goes on from a checkpoint hands in the points of
        the checkpoint before its own. A point that is known already is ignored.
        """
        with self._lock:
            points = self._points[key]
            if key not in self._numbers and (not points or point["step"] > points[-1]["step"]):
                points.append(point)
            self._advance()

    def trained(self, key: str, curve: list[dict], numbers: dict) -> None:
        """Training `key` is finished, or was served from the store: its whole curve and its final numbers."""
        with self._lock:
            points = self._points[key]
            if key not in self._numbers:
                now = self._turn < len(self._order) and self._order[self._turn][0] == key
                del points[self._shown if now else 0 :]  # the curve says what is not in the history yet
                shown = {point["step"] for point in points}
                points += [point for point in curve if point["step"] not in shown]
                self._numbers[key] = numbers
            self._advance()

    def finish(self, rows: list[dict], figures: Paths, files: Paths = (), failed: bool = False) -> None:
        """Log the rows as a table, the figures (PNG or JPEG) as images, the files as one artifact of type "ticket", and
        end the run with exit code `failed`; paths that are not files are left out. The table and the images of a cell
        that lacks trainings wait for the command that completes it: now they would take the W&B step of a point."""
        with self._lock:
            if self._turn == len(self._order):
                self._history.append(lambda: _report(rows, figures))
            if self._history:
                self._send(lambda: _close(self._run, files, failed))
            self._mode, self._run = "disabled", None

    def _advance(self) -> None:
        """Move what may be shown now into the history, and the history to W&B."""
        while self._turn < len(self._order):
            key, labels = self._order[self._turn]
            branch, replicate = labels["branch"], f"r{labels['replicate']}"
            for point in self._points[key][self._shown :]:
                values = _finite(point, CURVES, f"{branch}/level_{labels['level']:02d}/{replicate}")
                self._history.append({"step": int(point["step"]), **values}.copy)
            self._shown = len(self._points[key])
            if key not in self._numbers:
                break
            values = _finite(self._numbers[key], SUMMARIES, f"{branch}/{replicate}")
            percent = round(100 * (1 - labels["sparsity"]), 6)
            self._history.append({"weights_remaining": percent, **values}.copy)
            self._turn, self._shown = self._turn + 1, 0
        if self._sent < len(self._history):
            self._send()

    def _send(self, last: Callable[[], None] | None = None) -> None:
        """Send the run the history, then do `last`. What fails is done once more, from the start, offline."""
        while self._mode != "disabled":
            try:
                import wandb  # noqa: F401 (here: on a cold disk it takes longer than our patience)

                # wandb would stage files in the home directory, and hold up an exit by 12 s for reports to its maker
                os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(self._directory / "wandb")
                os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
                if self._run is None:
                    self._service = _services
                    self._run = _bounded(self._open, CALL_SECONDS)
                    self._sent = self._run.starting_step  # not run.step, which says 0 when a run is resumed
                    self.place = self._run.url or str(Path(self._run.dir).parent)
                while self._sent < len(self._history):
                    steps = range(self._sent, min(self._sent + 500, len(self._history)))  # 500 healthy ones: 0.2 s
                    _bounded(partial(self._log, self._run, steps), CALL_SECONDS)
                    self._sent = steps.stop
                if last:
                    _bounded(last, CALL_SECONDS)
                return
            except ImportError:
                self._mode = "disabled"
                if self._settings.mode != "auto":
                    _warn(f"wandb.mode={self._settings.mode} but wandb is not installed; nothing is shown")
            except Exception as error:
                self._fall(error)

    def _log(self, run: Any, steps: range) -> None:
        for step in steps:
            run.log(self._history[step](), step=step)

    def _open(self) -> Any:
        import wandb

        mode = "offline" if _gone else self._mode
        quiet: Any = {"silent": True, "quiet": True, "console": "off", "x_service_wait": INIT_SECONDS}
        wandb.setup(wandb.Settings(mode="offline" if mode == "offline" else "online", **quiet))
        if mode != "offline":  # with no key wandb.init would stop and ask at the terminal
            found = wandb.login(prompt=False, verify=False)
            if mode == "online" and not found:
                raise PermissionError("no API key (WANDB_API_KEY, or `wandb login` once)")
            mode = "online" if found else "offline"
        run = wandb.init(
            **self._labels, config=self._config, project=self._settings.project, entity=self._settings.entity,
            mode=mode, dir=str(self._directory), resume="allow", reinit="create_new",
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True,
                disable_git=True, disable_code=True, x_disable_stats=True, x_save_requirements=False, **quiet,
            ),
        )  # fmt: skip
        for axis, names in (("step", CURVES), ("weights_remaining", SUMMARIES)):
            run.define_metric(axis)
            for name in names:
                run.define_metric(f"{name}/*", step_metric=axis)
        return run

    def _fall(self, error: Exception) -> None:
        """From online to offline, from offline to nothing."""
        global _gone, _services
        self._mode = "disabled" if self._failures else self._mode
        self._run, self._failures, _gone = None, self._failures + 1, True
        _warn(f"{' '.join(str(error).split())[:200]}; going on offline, for `wandb sync`: {self._directory / 'wandb'}")
        if self._service == _services:  # else another view has given up this service process already
            _services += 1
            import wandb

            with contextlib.suppress(Exception):  # dead or hung, it would hold up the end of this process for ever
                _bounded(wandb.teardown, 1.0)


def _report(rows: list[dict], figures: Paths) -> dict:
    import wandb

    columns = list(dict.fromkeys(name for row in rows for name in row))
    data: Any = [[row.get(name) for name in columns] for row in rows]
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures if path.is_file()}
    return {"rows": wandb.Table(columns=columns, data=data, allow_mixed_types=True), **images}


def _close(run: Any, files: Paths, failed: bool) -> None:
    import wandb

    if found := [path for path in files if path.is_file()]:
        artifact = wandb.Artifact(f"ticket-{run.id}", type="ticket")
        for path in found:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
    run.finish(exit_code=int(failed))

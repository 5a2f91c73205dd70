"""Find lottery tickets: compose a configuration, build every stage it asks for, plan, execute, write rows.

    python main.py                                  one job
    python main.py -m prune.sparsity=0.5,0.8,0.9    a sweep of three, which share their work
    python main.py --help                           groups, keys and their defaults

Everything that can be wrong with a configuration is found while building, before anything trains: one line, exit 2.
"""

import contextlib
import dataclasses
import difflib
import gc
import importlib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lth.check import InputError, check_fields, check_kind, check_targets

if __name__ == "__main__":
    sys.modules["main"] = sys.modules["__main__"]  # the launcher imports this module: one copy of it, not two

GROUPS = ("device", "wandb", "dataset", "model", "criterion", "pattern", "prune", "rewind", "recipe")
SCALARS = {
    "study": str, "replicates": int, "seed": int, "store": str, "keep": str, "data_dir": str, "save_tickets": bool,
    "checkpoint_seconds": float, "prefetch": bool,
}  # fmt: skip
KEYS = (*SCALARS, *GROUPS, "branch")


@dataclass
class Job:
    """One composed, built and checked configuration."""

    cell: Any
    context: Any
    device: Any
    wandb: Any
    config: dict
    tags: list[str]
    rehearse: Callable[[], None]  # what is checked by trying it; takes a second. Raises InputError


def build(cfg: DictConfig, settings: DictConfig) -> Job:
    """Build all that a job's configuration asks for, and check it. Raises InputError. Trains and writes nothing. What
    takes longer to check waits for `rehearse`, when all jobs are built.

    cfg: the configuration without its hydra node; settings: the hydra node.
    """
    if unknown := sorted(str(key) for key in cfg if key not in KEYS):
        raise InputError(f"{unknown[0]} is not a key of the configuration{_nearest(unknown[0], KEYS)}")
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} has no default; say it: {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise InputError(_first_line(error)) from error
    if missing := [name for name in (*SCALARS, *GROUPS) if name not in config]:
        raise InputError(f"{missing[0]} is missing from the configuration; leave it in")
    for name, kind in SCALARS.items():
        check_kind(config[name], kind, name)
    for name, least in (("replicates", 1), ("seed", 0), ("checkpoint_seconds", 0)):
        if config[name] < least:
            raise InputError(f"{name}={config[name]} must be at least {least}")
    if config["replicates"] > 10_000:
        raise InputError(f"replicates={config['replicates']} must be at most 10000")
    if config["keep"] not in ("all", "tickets"):
        raise InputError(f"keep={config['keep']} is not one of: all, tickets")
    check_targets(config)

    from lth.branch import chosen_levels
    from lth.cell import Cell
    from lth.data import Source
    from lth.engine.choice import check as check_engine
    from lth.perform import Context
    from lth.stage import ancestors
    from lth.store import Store, StoreError, check_writable
    from lth.tickets import Lab, iterative
    from lth.workers import warm

    device, wandb, dataset, model, criterion, pattern, prune, rewind, recipe = (_make(config[g], g) for g in GROUPS)
    named = dict(config.get("branch") or {})
    levels = named.pop("levels", "all")
    branches = {name: _make(node, f"branch.{name}") for name, node in named.items()}
    try:
        check_writable(Path(config["store"]), "store")
        check_writable(
            Path(settings.run.dir if settings.mode == RunMode.RUN else settings.sweep.dir), "output directory"
        )
        data = _load(dataset, Path(config["data_dir"]))
        source = Source(dataset, data.digest, len(data.train.y), data.input_shape, data.num_classes)
        context = Context(device.name, {source.digest: data}, device.engine)
        recipe = recipe.on(source.num_train)
        sparsities, entries = prune(), []
        for replicate in range(config["replicates"]):
            plugins = criterion, pattern, rewind, branches
            seeds = config["seed"], replicate
            lab = Lab(model, source, recipe, *plugins, device.kind, *seeds, prune.when, device.numerics)
            entries += iterative(lab, sparsities, chosen_levels(levels, sparsities))
        entries.sort(key=lambda entry: entry.level)  # stable: level, replicate, branch, as they are computed
    except (ValueError, StoreError) as error:
        raise InputError(_first_line(error)) from error

    def rehearse() -> None:
        store = Store(config["store"])
        if all(store.present(entry.stage.key) for entry in entries):
            return
        for stage in ancestors(entry.stage for entry in entries):
            if not stage.description and not store.holds(stage.key):  # known by its name alone: it cannot be made here
                raise InputError(f"rewind.store is not store={store.root}, which lacks the stage {stage.key[:12]}")
        if device.workers:  # there will be something to train: workers import while this process does
            warm()
        try:
            recipe.check_optimizer()
            network = _check_model(model, context, source, settings.runtime.choices)
            check_engine(device.engine, network, recipe)
            _check_pattern(pattern, network, [0.0, *sparsities][-1])
            if sparsities and hasattr(criterion, "check"):
                criterion.check(network, data.train)
            if hasattr(pattern, "note") and (note := pattern.note(network)) and note not in _noted:
                _noted.add(note)
                print(note)
        except ValueError as error:
            raise InputError(_first_line(error)) from error

    index = 0 if OmegaConf.is_missing(settings.job, "num") else settings.job.num or 0
    overrides, keep_states = list(settings.overrides.task), config["keep"] == "all"
    cell = Cell(config["study"], index, overrides, entries, config["save_tickets"], keep_states)
    tags = [str(settings.runtime.choices.get(group)) for group in ("dataset", "model", "criterion", "rewind")]
    return Job(cell, context, device, wandb, config, tags, rehearse)


def _check_model(model: Any, context: Any, source: Any, chosen: Any) -> Any:
    """The network. Raises ValueError where it cannot take the examples of the data set."""
    import torch

    shape = tuple(source.input_shape)
    try:
        network = context.model(model, source)
        with torch.no_grad():
            network.eval()(torch.zeros(2, *shape, device=context.device))
    except ValueError as error:
        where = f"model={chosen.get('model')} with dataset={chosen.get('dataset')}"
        raise ValueError(f"{where}: {_first_line(error)}") from error
    except (RuntimeError, TypeError, LookupError, ZeroDivisionError) as error:
        where = f"model={chosen.get('model')} cannot take dataset={chosen.get('dataset')}, inputs of shape {shape}"
        raise ValueError(f"{where} in {source.num_classes} classes: {_first_line(error)}") from error
    return network


def _check_pattern(pattern: Any, network: Any, sparsity: float) -> None:
    """Raises ValueError where the pattern can draw no mask of the last sparsity on this network."""
    import torch

    from lth.mask import Mask

    dense = Mask.dense(network)
    try:
        pattern({name: torch.zeros(kept.shape) for name, kept in dense.items()}, dense, sparsity, network)
    except ValueError as error:
        if not str(error).startswith("cannot keep"):  # it is not about sparsity
            raise
        raise ValueError(f"prune.sparsity={sparsity}: {error}") from error


_noted: set[str] = set()  # what a sweep's jobs have to say is said once
_loaded: dict[str, Any] = {}


def _load(dataset: Any, data_dir: Path) -> Any:
    """The raw data of a data set, read once, however many cells name it."""
    name = f"{dataset} in {data_dir}"  # as written: a key leaves out where a data set lies
    if name not in _loaded:
        _loaded[name] = dataset(data_dir)
    return _loaded[name]


HOMES = {"device": "lth.device", "wandb": "lth.tracking", "recipe": "lth.recipe"}  # the others: lth.<group>.<name>


def _make(node: Any, where: str) -> Any:
    """The configured thing of a group: a dataclass of the group's own home, its fields of their kinds."""
    group = where.partition(".")[0]
    home = HOMES.get(group, f"lth.{group}.")
    if not isinstance(node, dict) or not str(node.get("_target_")).startswith(home):
        raise InputError(f"{where}={node} is no member of conf/{group}; a member's _target_ starts with {home}")
    try:
        thing = hydra.utils.instantiate(node, _convert_="all")
    except (HydraException, TypeError) as error:
        cause = error.__cause__ or error
        text = re.sub(r"^\w+\.__init__\(\) ", "", _first_line(cause))
        if match := re.search(r"unexpected keyword argument '(\w+)'", text):
            known = [f"{where}.{name}" for name in node if name != match[1]]
            text = f"{where}.{match[1]} is not a key of the configuration{_nearest(f'{where}.{match[1]}', known)}"
            raise InputError(text) from error
        raise InputError(text if isinstance(cause, ValueError) else f"{where}: {text}") from error
    if not dataclasses.is_dataclass(thing):
        raise InputError(f"{where}._target_={node['_target_']} does not make a configured thing (a frozen dataclass)")
    check_fields(thing, where)
    return thing


# Running jobs


@dataclass
class Executed:
    """What became of a cell, and the view it was shown in."""

    outcome: Any
    view: Any
    store: Any
    unfinished: dict[str, Any]  # the cells executed together that have not written their record yet, by id
    together: list[Any]


_built: dict[int, Job] = {}  # job number -> what was built before the job began
_executed: dict[str, Executed] = {}  # cell id -> what was executed before the job began


def execute(jobs: list[Job], folders: list[Path], group: str) -> None:
    """Plan and execute the union of some jobs; `main` then finds what became of its own."""
    from lth.cell import execute_cells
    from lth.perform import Context
    from lth.store import Store
    from lth.tracking import View

    _made.clear()  # what is asked for can be done: from here on nothing is taken away again
    views: dict[str, View] = {}  # a cell that is asked for twice is shown once
    together: dict[tuple, list[tuple[Job, View]]] = {}  # cells on another store or device cannot be one graph
    for job, folder in zip(jobs, folders, strict=True):
        view = views[job.cell.id] = views.get(job.cell.id) or View(
            settings=job.wandb, id=job.cell.id, group=group, job_type=job.cell.study,
            name=" ".join(job.cell.overrides) or job.cell.study, tags=job.tags, config=job.config,
            directory=folder, order=job.cell.labels(),
        )  # fmt: skip
        together.setdefault((job.config["store"], job.device), []).append((job, view))
    for (root, device), members in together.items():
        store = Store(root)
        data = {name: data for job, _ in members for name, data in job.context.raw.items()}
        context = Context(device.name, data, device.engine)
        outcome = execute_cells(
            [job.cell for job, _ in members], store, context, device.workers, [view for _, view in members],
            members[0][0].config["checkpoint_seconds"],
        )  # fmt: skip
        cells = [job.cell for job, _ in members]
        unfinished = {cell.id: cell for cell in cells}
        _executed.update({j.cell.id: Executed(outcome, view, store, unfinished, cells) for j, view in members})


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    from lth.cell import drop_states, record, save_tickets
    from lth.tracking import redact

    settings: Any = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    job = _built.pop(settings.job.get("num") or 0, None)
    if job is None:  # another launcher's, or after a configuration was changed by hand
        job = build(cfg, settings)
        job.rehearse()
    if job.cell.id not in _executed:  # not run by our own launcher, which executes all cells of a sweep as one graph
        execute([job], [folder], group=job.cell.study)
    OmegaConf.save(OmegaConf.create(redact(job.config) | {"provenance": provenance(job)}), folder / "config.yaml")
    mine, rows, files, failed = _executed[job.cell.id], [], [], True
    try:
        rows = record(job.cell, mine.store, mine.outcome, folder, mine.view)
        files = save_tickets(job.cell, mine.store, job.context, folder / "tickets") if job.cell.save_tickets else []
        failed = False
    finally:
        pictures = _pictures(folder) if mine.view.active else []
        mine.view.finish(rows, pictures, files, failed=failed)
        shown = f", shown at {mine.view.place}" if str(mine.view.place).startswith("http") else ""
        mine.unfinished.pop(job.cell.id, None)
        # after a failure the states stay: the same command goes on from them
        if not mine.unfinished and not job.cell.keep_states and not mine.outcome.failures:
            drop_states(mine.together, mine.store)
        print(f"{' '.join(job.cell.overrides) or 'defaults'}: {len(rows)} rows in {folder}{shown}")


def _pictures(folder: Path) -> list[Path]:
    """The figures of a job, for its view."""
    from experiments.published import beside  # here: tables and figures take half a second to import
    from lth.report import figures

    return figures(folder, beside)


def experiment(study: str) -> Any:
    """The module of a study: experiments/<study>.py, or that of tickets where the study has none of its own."""
    known = {path.stem for path in (Path(__file__).parent / "experiments").glob("[a-z]*.py")}
    return importlib.import_module(f"experiments.{study if study in known else 'tickets'}")


def provenance(job: Job) -> dict:
    """Versions, commit and device of this run."""
    import platform

    import torch

    from lth import __version__

    versions = {"lth": __version__, "torch": str(torch.__version__), "hydra": hydra.__version__}
    name = torch.cuda.get_device_name(job.device.index) if job.device.kind == "cuda" else platform.machine()
    device = {"kind": job.device.kind, "name": name, "system": platform.platform()}
    return {"versions": versions | {"python": platform.python_version()}, "commit": _commit(), "device": device}


@cache
def _commit() -> str | None:
    """The commit of this checkout, "-dirty" behind it where files differ; asked for once, not by every cell."""
    import subprocess

    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip() or None  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None


# The command line


def _nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" where something known is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("full_key:")[0].split()) or type(error).__name__


def explain(error: Exception) -> str:
    """A configuration error of Hydra or OmegaConf in one line, with the nearest valid name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        there = sorted(path.stem for path in (Path(__file__).parent / "conf" / group).glob("*.yaml"))
        key, _, folder = group.partition("/")
        if folder and f"{key}={folder}/{name}" in sys.argv[1:]:  # such as study=quick/..., a folder of that group
            group, name, there = key, f"{folder}/{name}", [f"{folder}/{one}" for one in there]
        members = there or sorted(error.options or [])
        return f"{group}={name} is not there{_nearest(name, members)}; there are {', '.join(members)}"
    text = _first_line(error)
    if text.startswith("Config group override"):  # such as criterion=null
        asked = [word for word in sys.argv[1:] if word.split("=")[0] in (*GROUPS, "branch")]
        return f"{' '.join(asked)}: a group takes the name of a member"
    if match := re.search(r"Could not (?:override|append to config) '([^']+?)'?\.? ", text):
        key = match[1].partition("=")[0]
        groups = [word for word in sys.argv[1:] if re.fullmatch(r"[a-z_/]+=\w+", word)]
        known = _keys(OmegaConf.to_container(_composed(groups)))
        if key in known:
            return f"{key} takes new names behind a plus: +{key}={{name:value}}"
        return f"{key} is not a key of the configuration{_nearest(key, known)}"
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return f"{match[1]} is not a group of the configuration{_nearest(match[1], KEYS)}"
    return text


def _composed(groups: list[str]) -> DictConfig:
    """The configuration with no override but the choice of groups, or without that where it cannot be composed."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(Path(__file__).parent / "conf"), version_base="1.3"):
        try:
            return hydra.compose("config", groups)
        except HydraException:
            return hydra.compose("config")


def _keys(node: Any, path: str = "") -> list[str]:
    children = node.items() if isinstance(node, dict) else ()
    return [path, *(key for name, child in children for key in _keys(child, f"{path}.{name}".lstrip(".")))]


def refuse(message: str) -> NoReturn:
    """One line of at most 200 characters on stderr, exit 2; nothing is left of a sweep that did not begin."""
    _unmake()
    line = " ".join(message.split())
    print(line if len(line) <= 200 else f"{line[:197]}...", file=sys.stderr)
    raise SystemExit(2)


def _unmake() -> None:
    """Take away what Hydra has written for a sweep, or put back what was there."""
    for path, before in _made.items():
        with contextlib.suppress(OSError):
            if before is not None:
                path.write_bytes(before)
            elif path.is_file():
                path.unlink()
            else:
                path.rmdir()


def prefetch(jobs: Iterable[Job]) -> None:
    """Where the data sets alone are asked for: they have been loaded, a line each says so, and that is all; exit 0."""
    said = dict.fromkeys(_sizes(job) for job in jobs if job.config["prefetch"])
    if said:
        print(*said, sep="\n")
        _unmake()
        raise SystemExit(0)


def _sizes(job: Job) -> str:
    (data,) = job.context.raw.values()
    counts = ", ".join(f"{len(getattr(data, name).y):,} {name}" for name in ("train", "val", "test"))
    shape = " x ".join(map(str, data.input_shape))
    return f"{job.tags[0]}: {counts} examples of {shape} in {data.num_classes} classes, SHA-256 {data.digest[:12]}"


def fail(error: Exception) -> NoReturn:
    """One line on stderr: what failed, and the command that goes on; exit 1."""
    print(f"{error}; this runs what is missing: python {shlex.join(sys.argv)}", file=sys.stderr)
    raise SystemExit(1)


# What Hydra writes for a sweep before its cells can be checked, and what was there before
_made: dict[Path, bytes | None] = {}


def remember(folder: Path) -> None:
    """Note what stands where a sweep will write, so that a refused one leaves it as it was."""
    file = folder / "multirun.yaml"
    _made.update({file: file.read_bytes() if file.is_file() else None})
    _made.update({path: None for path in (folder, *folder.parents) if not path.exists()})


def sized(words: list[str]) -> list[str]:
    """Overrides, size=quick spelled out: each study in its small form, study=quick/NAME; size=full is the default."""
    sizes = [word.removeprefix("size=") for word in words if word.startswith("size=")]
    rest = [word for word in words if not word.startswith("size=")]
    if sizes and sizes[-1] not in ("full", "quick"):
        raise InputError(f"size={sizes[-1]} is not one of: full, quick")
    if not sizes or sizes[-1] == "full":
        return rest
    known = sorted(path.stem for path in (Path(__file__).parent / "conf/study/quick").glob("*.yaml"))
    asked = [name for word in rest if word.startswith("study=") for name in word.removeprefix("study=").split(",")]
    if not asked or not {name.removeprefix("quick/") for name in asked} <= set(known):
        raise InputError(f"size=quick is for study= one of: {', '.join(known)}")
    small = ",".join(f"quick/{name.removeprefix('quick/')}" for name in asked)
    return [f"study={small}" if word.startswith("study=") else word for word in rest]


def command() -> int:
    """The command line: runs `main` and turns what it raises into lines and exit codes."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # one of several ranks of torchrun
        from lth import parallel

        if rank := parallel.begin():
            return _follow(rank)
        try:
            return _command()
        finally:
            parallel.end()
    return _command()


def _follow(rank: int) -> int:
    """The command line of a rank other than 0: it knows no configuration, writes nothing, says only what ended it."""
    from lth import parallel
    from lth.execute import follow

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # rank 0 says what there is to say of Ctrl-C
    try:
        follow()
        parallel.leave()
    except Exception as error:
        print(f"rank {rank}: {type(error).__name__}: {_first_line(error)}"[:200], file=sys.stderr)
        return 1
    return 0


def _command() -> int:
    asked_for_traces = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would otherwise print
    try:
        sys.argv[1:] = sized(sys.argv[1:])
        main()
    except KeyboardInterrupt:
        print(f"interrupted; what is finished is kept, this goes on: python {shlex.join(sys.argv)}", file=sys.stderr)
        return 130
    except Exception as error:
        from lth.cell import CellError
        from lth.parallel import RankError
        from lth.store import StoreError

        if asked_for_traces:
            traceback.print_exc()
        if isinstance(error, InputError | StoreError):
            refuse(str(error))
        if isinstance(error, HydraException | OmegaConfBaseException) or "Config group override must" in str(error):
            refuse(explain(error))
        if isinstance(error, CellError | RankError):
            fail(error)
        raise
    return 0


if __name__ == "__main__":
    # Modules and configurations live to the end: looking through them for garbage took a sixth of a command's time
    gc.set_threshold(100_000)
    sys.exit(command())

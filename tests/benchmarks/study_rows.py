"""Rows on whole commands, each run as a user types it, but for where it writes: C3, C10, C11, C12."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lth.device import num_cores
from lth.recipe import Recipe
from tests.benchmarks.measure import ROOT, Line, Losses, Options, pairwise, per_second, timed
from tests.benchmarks.setting import Peer, Setting, digits

REPLICATES, LEVELS, STEPS, CONDITIONS = 5, 20, 1000, 3


def command(folder: Path, *overrides: str) -> list[str]:
    """main.py with all that it writes in a folder."""
    where = (f"store={folder / 'store'}", f"hydra.run.dir={folder / 'run'}", f"hydra.sweep.dir={folder / 'run'}")
    return [sys.executable, str(ROOT / "main.py"), *overrides, *where]


def call(arguments: list[str], log: Path) -> subprocess.Popen:
    """Started on this checkout's lth; what it says goes to a file."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("w") as said:
        return subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, log: Path) -> str:
    """What it said. Raises RuntimeError where it failed."""
    if process.wait():
        raise RuntimeError(f"{process.args} ended with exit code {process.returncode}: {log.read_text()[-2000:]}")
    return log.read_text()


def wall(folder: Path, *overrides: str) -> float:
    """Seconds of a whole command."""
    log = folder / "log.txt"
    return timed(lambda: finish(call(command(folder, *overrides), log), log))


def c10(options: Options) -> Iterator[Line]:
    """The README's first line, in a new store, then in that one again; the wall of the whole process."""
    line = ["-m", "prune.sparsity=0.5,0.8,0.9"]
    line += [f"recipe.steps={options.scaled(STEPS)}it"] if options.scale != 1 else []
    cold, served = [], []
    for _ in range(min(3, options.rounds)):
        with tempfile.TemporaryDirectory() as name:
            cold.append(wall(Path(name), *line))
            served += [wall(Path(name), *line) for _ in range(-(-options.rounds // 3))]
    for work, seconds, target in (("first line, cold", cold, "45 s"), ("first line, served", served, "5 s")):
        note = f"{min(seconds):.1f} to {max(seconds):.1f} s, n={len(seconds)}"
        yield Line("C10", work, target=target, unit="s", ours=statistics.median(seconds), note=note)


def c3(options: Options) -> Iterator[Line]:
    """A chain of 20 levels x 8 replicates, two workers and the engines that are chosen, against one worker that trains
    one by one; the wall of the whole commands."""
    levels, steps, replicates = options.scaled(20), options.scaled(400, 2), options.scaled(8)
    line = (f"replicates={replicates}", "prune=rounds", f"prune.num_rounds={levels}", "wandb=disabled", "branch=[]",
            f"prune.sparsity={1 - 0.8**levels:.6f}", f"recipe.steps={steps}it", "dataset=mnist_5k")  # fmt: skip
    settings = (("device.engine=sequential", "device.workers=1"), ("device.engine=auto", "device.workers=2"))
    walls: list[list[float]] = [[], []]
    for _ in range(min(3, options.rounds)):
        for found, setting in zip(walls, settings, strict=True):
            with tempfile.TemporaryDirectory() as name:
                found.append(wall(Path(name), *line, *setting))
    rates = (per_second(replicates * (levels + 1) * steps, found) for found in walls)
    yield Line("C3", f"chain of {levels} levels x {replicates}, two workers", "eager one by one, one worker", "3.5x",
               "steps/s", *rates, pairwise(*walls))  # fmt: skip


def study(options: Options) -> Iterator[Line]:
    """C11, C12: LeNet-300-100 on mnist_5k, all levels and conditions in one command, n=1, against a training of the
    peer's loop, alone and without evaluations, times those that one job for each condition, level and seed would do;
    one after another, and, as if that cost nothing, one on each core. C12: the most that a process held at once.

    The losses are those of dense networks, of the command's own at its end of training, first weights of its own."""
    sizes = (REPLICATES, 1), (LEVELS, 1), (STEPS, 2)
    replicates, levels, steps = (options.scaled(number, least) for number, least in sizes)
    setting = Setting("lenet_300_100", digits(Options()), Recipe("Adam", 1.2e-3, 60, steps, steps), sparsity=0)
    line = (f"replicates={replicates}", "prune=rounds", f"prune.num_rounds={levels}", "wandb=disabled",
            f"prune.sparsity={1 - 0.8**levels:.6f}", f"recipe.steps={steps}it", "dataset=mnist_5k",
            "branch=[random_reinit,random_mask]")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log.txt"
        with Peer(setting, folder / "peer", options) as peer:
            peer()
            before = [timed(peer) for _ in range(-(-options.rounds // 2))]
            started = time.perf_counter()
            process = call(command(folder, *line), log)
            peaks = peak_memory(process)
            said = finish(process, log)
            whole = time.perf_counter() - started
            seconds = before + [timed(peer) for _ in range(options.rounds // 2)]
            theirs = peer.loss()
        rows = map(json.loads, (folder / "run" / "rows.jsonl").read_text().splitlines())
        losses = Losses(theirs, statistics.fmean(row["test_loss"] for row in rows if row["level"] == 0), 0.25)
    done = re.search(r"(\d+) to do", said)
    jobs = trainings(replicates, levels)
    note = f"{done[1] if done else '?'} trainings against {jobs}"
    for cores in dict.fromkeys((1, num_cores())):
        found = [jobs * one / cores for one in seconds]
        how = "one after another" if cores == 1 else f"{cores} side by side"
        work, ratio = (
            f"study, {replicates} x {levels} x {CONDITIONS}, {steps} steps",
            pairwise(found, [whole] * len(found)),
        )
        yield Line("C11", work, f"{peer.name}, {how}", "25x", "s", statistics.median(found), whole, ratio, losses, note)
    for where in ("worker", "main process"):
        largest = max((peak for (kind, _), peak in peaks.items() if kind == where), default=None)
        count = sum(kind == where for kind, _ in peaks)
        yield Line("C12", f"peak memory of C11, largest {where}", target="1.5 GB", unit="GB", ours=largest,
                   note=f"of {count}" if count else "no /proc here")  # fmt: skip


def trainings(replicates: int, levels: int) -> int:
    """Of one job for each condition, level and seed: a ticket of level L comes after the dense network and L - 1
    tickets, and so does its mask, which both controls need."""
    return replicates * CONDITIONS * sum(level + 1 for level in range(1, levels + 1))


def peak_memory(process: subprocess.Popen, seconds: float = 0.1) -> dict[tuple[str, int], float]:
    """("main process" or "worker", its id) -> the most resident memory, in 10^9 bytes, that it had, while it ran: what
    the kernel keeps as VmHWM, pages shared with others included, read until the end of the process."""
    peaks: dict[tuple[str, int], float] = {}
    while process.poll() is None:
        for pid, depth in descendants(process.pid).items():
            status = _read(f"/proc/{pid}/status")
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            if found and depth != 1:  # the children of main are the servers that start workers and clean up
                key = ("main process" if depth == 0 else "worker", pid)
                peaks[key] = max(peaks.get(key, 0), int(found[1]) * 1024 / 1e9)
        time.sleep(seconds)
    return peaks


def descendants(root: int) -> dict[int, int]:
    """Process id -> generations below `root`."""
    found, children = {root: 0}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        text = _read(stat)
        if text:
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    todo = [root]
    while todo:
        parent = todo.pop()
        for child in children.get(parent, []):
            found[child] = found[parent] + 1
            todo.append(child)
    return found


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it has ended
        return ""

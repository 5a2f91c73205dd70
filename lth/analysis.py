"""Rows of finished runs -> means, intervals, matching verdicts, tables.

Interval: Student 1908, https://doi.org/10.1093/biomet/6.1.1: mean +- t_{(1 + c) / 2, n - 1} * s / sqrt(n), s with n - 1
below. At n = 3 to 10 it covers what it says (for normal values); percentile and BCa bootstrap cover 72 to 89%.
Matching: Frankle et al. 2020, https://arxiv.org/abs/1912.05671, allow a mean drop of 0.2 points; here the drop is
tested instead. One replicate number fixes all seeds of a dense run and of its tickets, so they are compared in pairs:
d_r = accuracy(branch, r) - accuracy(dense, r); a sparsity matches unless the 95% interval of d lies wholly below 0.
There is no correction for the number of sparsities: each has a 2.5% chance to miss although nothing was lost.
n counts replicates: rows that agree in (setting, branch, sparsity, replicate) are averaged first.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from lth.tracking import read_rows

METRICS = ("test_accuracy", "early_stop_test_accuracy", "early_stop_step")
NULLABLE = (*METRICS, "test_loss", "val_accuracy", "rewind_step", "diverged_step")
COLUMNS = (
    *("setting", "study", "cell", "overrides", "replicate", "level", "branch", "sparsity"),
    *("target_sparsity", "num_kept", "num_total", "of", "steps", "numerics", "gemm", "seconds", "served", "stage"),
    *("job", *NULLABLE),
)
# Overrides that say how far, how often, where, or what else is measured; they do not change what a ticket is.
# prune.rounds is not among them: more rounds to the same sparsity are another schedule.
INDIFFERENT = re.compile(
    r"prune\.sparsity|replicates?|branch(\..*)?|store|data_dir|keep|save_tickets|checkpoint_seconds|(wandb|device(?!\.numerics)|hydra)([./].*)?"
)
CONDITION = ["setting", "branch", "sparsity"]  # what is told apart before replicates are averaged
STABLE = 0.02  # an error barrier below this counts as none (Frankle et al. 2020, https://arxiv.org/abs/1912.05671)
NO_TEST = "no test; ask for replicates=3 or more"


def load(directory: str | Path) -> pd.DataFrame:
    """All rows.jsonl at or below `directory`, in natural path order, each stage once per branch and setting; none:
    an empty frame.

    `setting` tells the conditions of a sweep apart: the overrides that not all cells share, sorted, joined by ", ",
    without INDIFFERENT; "" where nothing differs. Rows of several studies have "study=..." in it. A setting that still
    holds two different runs of one ticket (code or defaults changed between two sweeps) is split by "job=<directory>":
    their mean would mean nothing. `job` is that directory; of a stage that several jobs share, the first one.
    ValueError: a line that is not JSON. `sparsity` becomes the median of a setting's rows with one target: replicates
    that whole channels bring to slightly different ones are repetitions all the same.
    """
    directory, blank = Path(directory), dict.fromkeys(COLUMNS)
    rows = []
    for path in sorted(directory.rglob("rows.jsonl"), key=_natural):
        rows += [{**blank, **row, "job": path.parent.relative_to(directory).as_posix()} for row in read_rows(path)]
    if not rows:
        return pd.DataFrame(columns=pd.Index(COLUMNS)).astype(dict.fromkeys(NULLABLE, "float64"))
    conditions = [_conditions(row) for row in rows]
    shared = conditions[0].intersection(*conditions)
    frame = pd.DataFrame(rows)
    measured = [name for name in frame.columns if name not in COLUMNS]
    frame = frame.astype(dict.fromkeys([*NULLABLE, *measured], "float64"))  # nulls alone would make columns of objects
    frame["setting"] = [", ".join(sorted(condition - shared)) for condition in conditions]
    target = frame["target_sparsity"].astype("float64").fillna(frame["sparsity"])
    frame["sparsity"] = frame.groupby(["setting", target])["sparsity"].transform("median")
    once = frame.drop_duplicates(["setting", "branch", "stage"])
    num_jobs = once.groupby(["setting", "branch", "sparsity", "replicate"])["job"].transform("nunique")
    apart = (frame["setting"] + ", job=" + frame["job"]).str.removeprefix(", ")
    frame["setting"] = apart.where(frame["setting"].isin(once.loc[num_jobs > 1, "setting"]), frame["setting"])
    return frame.drop_duplicates(["setting", "branch", "stage"]).reset_index(drop=True)


def _natural(path: Path) -> list[str | int]:
    """Job 10 comes after job 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _conditions(row: dict) -> set[str]:
    named = {"study": f"study={row['study']}"} if row["study"] else {}
    for override in (text.lstrip("+") for text in row["overrides"]):
        key = override.partition("=")[0]
        if not INDIFFERENT.fullmatch(key):
            named[key] = override  # given twice, the last one counts
    return set(named.values())


def records(directory: str | Path) -> list[dict]:
    """The lines of every curves.jsonl at or below `directory`: the lists that rows cannot hold, each stage once."""
    found = (record for path in sorted(Path(directory).rglob("curves.jsonl")) for record in read_rows(path))
    return list({record["stage"]: record for record in found}.values())


def lines(records: list[dict], rows: pd.DataFrame) -> pd.DataFrame:
    """The points on the line between two trained copies, of the rows' measurements of stability.

    Columns: those of _LABELS, alpha, and error (a fraction) and loss of both splits.
    """
    points = [{"stage": one["stage"], **point} for one in records for point in one.get("line", [])]
    return _labelled(points, rows)


def layers(records: list[dict], rows: pd.DataFrame) -> pd.DataFrame:
    """The layers under the rows' masks, as branch=anatomy measures them: those of _LABELS, layer, place (0 is the
    first), sparsity and effective_sparsity of the layer as layer_sparsity, layer_effective_sparsity, layer_dead_units.
    """
    names = ("layer_sparsity", "layer_effective_sparsity", "layer_dead_units")
    found = []
    for one in records:
        for place, layer in enumerate(one.get("layers", [])):
            numbers = {name: one[name][place] for name in names if name in one}
            found.append({"stage": one["stage"], "layer": layer, "place": place, **numbers})
    return _labelled(found, rows)


_LABELS = ["stage", "setting", "replicate", "of", "sparsity", "rewind_step"]


def _labelled(found: list[dict], rows: pd.DataFrame) -> pd.DataFrame:
    """What was found by stage, behind what the rows say of that stage."""
    frame = pd.DataFrame(found, columns=None if found else pd.Index(["stage"]))
    return rows.drop_duplicates("stage")[_LABELS].merge(frame, on="stage")


def failures(directory: str | Path) -> list[dict]:
    """Every failure.json at or below `directory` (cell, overrides, cause, command), in sorted path order."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(directory).rglob("failure.json"))]


def interval(values: Iterable[float | None], confidence: float = 0.95) -> tuple[float, float, int]:
    """(mean, half, n), half = t_{(1 + confidence) / 2, n - 1} * s / sqrt(n), in the unit of `values`.

    None and NaN are left out. n = 1: half is NaN; n = 0: so is the mean. ValueError: confidence not inside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, both excluded")
    kept = [float(value) for value in values if value is not None and not math.isnan(value)]
    n = len(kept)
    if n < 2:
        return (kept[0] if kept else math.nan), math.nan, n
    mean = math.fsum(kept) / n
    s = math.sqrt(math.fsum((value - mean) ** 2 for value in kept) / (n - 1))
    return mean, half_width(s, n, confidence), n


def half_width(s: float, n: float, confidence: float = 0.95) -> float:
    """Half of the t interval of a mean over n values of standard deviation s, in its unit; NaN below n = 2."""
    from scipy.special import stdtrit  # late: 0.2 s that a listing of the store need not pay

    return float(stdtrit(n - 1, (1 + confidence) / 2)) * s / math.sqrt(n) if n >= 2 else math.nan


def means(rows: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """Mean and 95% t interval of `metric` over the replicates, one line per combination of the columns `by`, sorted.

    Columns: by, mean, half, n. Rows without the metric are left out; those that agree in `by` and replicate are
    averaged.
    """
    columns = pd.Index([*by, "mean", "half", "n"])
    if metric not in rows:
        return pd.DataFrame(columns=columns)
    by_replicate = rows[rows[metric].notna()].groupby([*by, "replicate"])[metric].mean()
    found: dict[Any, list] = by_replicate.groupby(level=list(by)).agg(list).to_dict()
    keys = {key: key if isinstance(key, tuple) else (key,) for key in found}
    return pd.DataFrame([(*keys[key], *interval(values)) for key, values in found.items()], columns=columns)


def _by_replicate(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Replicate -> metric, diverged runs left out."""
    return rows[rows["diverged_step"].isna()].groupby("replicate")[metric].mean().dropna()


def curve(rows: pd.DataFrame, metric: str = "test_accuracy") -> pd.DataFrame:
    """Mean and 95% t interval of `metric` (in its own unit), one line per (setting, branch, sparsity).

    Columns: setting, branch, level, sparsity, mean, half, n, num_diverged. Settings in order of appearance; dense, then
    ticket, then the controls; by sparsity inside a branch. Rows with neither the metric nor a divergence (branches that
    measure something else) give no line.
    """
    rows = rows[rows[metric].notna() | (rows["diverged_step"].notna() & rows["of"].isna())]
    finished = rows[rows["diverged_step"].isna()]
    by_replicate = finished.groupby([*CONDITION, "replicate"])[metric].mean().dropna()
    values = by_replicate.groupby(level=CONDITION).agg(list).to_dict()
    groups = rows.groupby(CONDITION)
    levels: dict[Any, int] = groups["level"].min().to_dict()
    num_diverged = groups["diverged_step"].count().to_dict()
    settings, branches = (
        list(dict.fromkeys(names)) for names in (rows["setting"], ["dense", "ticket", *rows["branch"]])
    )
    order = sorted(levels, key=lambda key: (settings.index(key[0]), branches.index(key[1]), key[2]))
    lines = [(*key[:2], levels[key], key[2], *interval(values.get(key, [])), num_diverged[key]) for key in order]
    columns = ["setting", "branch", "level", "sparsity", "mean", "half", "n", "num_diverged"]
    return pd.DataFrame(lines, columns=pd.Index(columns))


@dataclass(frozen=True)
class Verdict:
    """A claim, whether the rows bear it out (None: they cannot say), and one line of evidence."""

    claim: str
    holds: bool | None
    evidence: str


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    """Per setting: does each branch match dense, down to where; is the ticket above each control; last, who diverged.

    "Down to" goes from the densest ticket on and ends before the first sparsity that does not match, even if a sparser
    one matches again. A run that diverged where its dense twin did not is a miss: left out, it would flatter the rest.
    "Drops under h cannot be seen": h is the half-width of the paired interval at the sparsity the sentence states, in
    percentage points, rounded up. A miss is mean + half < 0, so h is the mean drop there that this test lets pass.
    """
    found = []
    for setting, part in rows.groupby("setting", sort=False):
        where = f"{setting}: " if setting else ""
        branches = [branch for branch in curve(part)["branch"].unique() if branch != "dense"]
        here = [_matching(part, branch) for branch in branches]
        pruned = [branch for branch in branches if (part.loc[part["branch"] == branch, "sparsity"] > 0).any()]
        here += [_above(part, branch) for branch in pruned if branch != "ticket" and "ticket" in branches]
        found += [Verdict(where + verdict.claim, verdict.holds, where + verdict.evidence) for verdict in here]
    trained = rows[rows["of"].isna()]
    lost = trained[trained["diverged_step"].notna()].drop_duplicates("stage")
    if len(lost):
        three = lost[["replicate", "level", "branch", "diverged_step"]].head(3).itertuples(index=False, name=None)
        named = [f"replicate {r} level {level} {branch} at step {step:.0f}" for r, level, branch, step in three]
        named += [f"and {len(lost) - 3} more"] if len(lost) > 3 else []
        evidence = f"{len(lost)} of {trained['stage'].nunique()} runs diverged: {', '.join(named)}"
        found.append(Verdict("every run finished", False, evidence))
    return found


def paired(rows: pd.DataFrame, branch: str, other: str) -> list[tuple[float, float, float, int, int]]:
    """(sparsity, mean and half of accuracy(branch) - accuracy(other), n, replicates where `branch` alone diverged)."""
    lines = []
    for sparsity, group in rows[rows["branch"] == branch].groupby("sparsity"):
        rival = rows[(rows["branch"] == other) & ((rows["sparsity"] == sparsity) | (other == "dense"))]
        mine, theirs = _by_replicate(group, "test_accuracy"), _by_replicate(rival, "test_accuracy")
        lost = set(group.loc[group["diverged_step"].notna(), "replicate"]) & set(theirs.index.difference(mine.index))
        lines.append((sparsity, *interval((mine - theirs).dropna()), len(lost)))
    return lines


def _matching(rows: pd.DataFrame, branch: str) -> Verdict:
    claim, tested = f"{branch} matches dense", paired(rows, branch, "dense")
    # None: fewer than two pairs, no test. All differences equal: half = 0, and the sign of their mean decides.
    matches = [None if n + lost < 2 else not lost and mean + half >= 0 for _, mean, half, n, lost in tested]
    end, stop = next((i for i, match in enumerate(matches) if not match), len(matches)), ""
    if end < len(tested):
        sparsity, mean, half, n, lost = tested[end]
        if matches[end] is None and end == 0:
            return Verdict(claim, None, f"{branch} against dense at {weights(sparsity)}, n={n}: {NO_TEST}")
        result = f"{lost} of {n + lost} runs diverged" if lost else f"{points(mean, half, '+')} points"
        stop = f"{f'n={n}: no test' if matches[end] is None else result} at {weights(sparsity)}"
        if True in matches[end:]:
            stop += f", matches again at {weights(tested[matches.index(True, end)][0])}"
        if end == 0:
            word = "misses dense at the first sparsity" if True in matches else "never matches dense"
            return Verdict(claim, False, f"{branch} {word}: {stop} of the weights (paired t, 95%, n={n})")
    sparsity, _, half, n, _ = tested[end - 1]
    unseen = math.ceil(round(1000 * half, 6)) / 10  # up, so that the test never looks sharper than it is
    seen = f"drops under {unseen:.1f} points cannot be seen" if unseen else "no spread"
    reach = "down to" if stop else "at every sparsity tested, down to"
    evidence = f"{claim} {reach} {weights(sparsity)} of the weights (paired t, 95%, n={n}; {seen})"
    return Verdict(claim, True, f"{evidence}; {stop}" if stop else evidence)


def _above(rows: pd.DataFrame, control: str) -> Verdict:
    """The ticket against `control` at the highest sparsity where some replicate finished both."""
    claim, pairs = f"ticket above {control}", [line for line in paired(rows, "ticket", control) if line[3]]
    if not pairs:
        return Verdict(claim, None, f"ticket against {control}: no replicate finished both at one sparsity")
    sparsity, mean, half, n, _ = pairs[-1]
    if abs(mean) <= half:
        result = f"ticket not told apart from {control}: {points(mean, half, '+')} points"
    else:  # also at n = 1, where half is NaN
        result = f"ticket {'above' if mean > 0 else 'below'} {control} by {points(abs(mean), half)} points"
    basis = f"(n=1: {NO_TEST})" if n == 1 else f"(paired t, 95%, n={n})"
    return Verdict(claim, None if n == 1 else mean > half, f"{result} at {weights(sparsity)} of the weights {basis}")


def weights(sparsity: float) -> str:
    left = 100 * (1 - sparsity)
    return f"{left:.1f}%" if left >= 1 else f"{left:.2g}%"


def points(mean: float, half: float, sign: str = "") -> str:
    """Percentage points; a second decimal where one would print +- 0.0, or a mean as large as its half-width."""
    digits = 2 if f"{100 * half:.1f}" in ("0.0", f"{100 * abs(mean):.1f}") else 1
    return f"{100 * mean:{sign}.{digits}f}" + ("" if math.isnan(half) else f" +- {100 * half:.{digits}f}")


def table(rows: pd.DataFrame) -> Table:
    """Test accuracy in percent, mean +- half of the 95% t interval, by level; one table per setting, stacked.

    n: replicates that finished, "2-3" where the branches of a level differ.
    """
    lines, stack = curve(rows), Table.grid()
    for setting, part in lines.groupby("setting", sort=False):
        branches = ["ticket", *(branch for branch in part["branch"].unique() if branch not in ("dense", "ticket"))]
        title = Text(str(setting)) if setting else None  # Text: brackets in it are no markup
        one = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for header in ("level", "weights\nleft %", "ticket\n(0: dense)", *branches[1:], "n"):
            one.add_column(Text(header.replace("_", "_\n")), justify="right", overflow="fold")
        for (level, _), group in part.groupby(["level", "sparsity"]):
            numbers = zip(group["branch"], group["mean"], group["half"], group["n"], strict=True)
            cells = {branch: points(mean, half) if n else "diverged" for branch, mean, half, n in numbers}
            cells.setdefault("ticket", cells.get("dense", ""))
            n = "-".join(dict.fromkeys([str(group["n"].min()), str(group["n"].max())]))
            left = weights(group["sparsity"].iloc[0])
            one.add_row(str(level), left.rstrip("%"), *(cells.get(branch, "") for branch in branches), n)
        stack.add_row(one)
    if lines.empty:
        stack.add_row("no rows")
    return stack


def matches_dense(rows: pd.DataFrame, sparsity: float) -> dict[float, bool | None]:
    """Rewind step k -> does the ticket at a sparsity match dense (paired t, 95%)? None: no test."""
    tickets = (rows["branch"] == "ticket") & (rows["sparsity"] == sparsity)
    found = {}
    for k in sorted(rows.loc[tickets, "rewind_step"].unique()):
        ((_, mean, half, n, lost),) = paired(
            rows[(rows["branch"] == "dense") | (tickets & (rows["rewind_step"] == k))], "ticket", "dense"
        )
        found[k] = None if n + lost < 2 else bool(not lost and mean + half >= 0)
    return found


def table_of(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """A plain table of words, numbers to the right."""
    one = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in headers:
        one.add_column(Text(header), justify="right", overflow="fold")
    for line in lines:
        one.add_row(*line)
    return one


def compare(rows: pd.DataFrame, published: pd.DataFrame) -> Table:
    """Ours beside the published numbers (experiments/published) at the same setting, branch and sparsity: within 1% of
    the weights that remain, since papers round them. "within": is our mean as near as the source's tolerance?"""
    stack = Table.grid()
    for (source, metric), part in published[published["metric"].isin(METRICS[:2])].groupby(["source", "metric"]):
        ours, lines = curve(rows, str(metric)), []
        for theirs in part.to_dict("records"):
            here = (ours["setting"] == theirs["setting"]) & (ours["branch"] == theirs["branch"]) & (ours["n"] > 0)
            near = abs(theirs["sparsity"] - ours["sparsity"]) <= 0.01 * (1 - ours["sparsity"])
            for mine in ours[here & near].to_dict("records"):
                within = "yes" if abs(mine["mean"] - theirs["mean"]) <= theirs["tolerance"] else "no"
                measured = (*(points(one["mean"], one["half"]) for one in (theirs, mine)), str(mine["n"]))
                name = " ".join(filter(None, (mine["setting"], mine["branch"])))
                lines.append(
                    (name, weights(mine["sparsity"]), *measured, f"{within} ({100 * theirs['tolerance']:.1f})")
                )
        if lines:
            one = table_of(("", "weights left", "published %", "ours %", "n", "within points"), lines)
            one.title, one.title_justify = Text(f"{source}: {str(metric).replace('_', ' ')}"), "left"
            stack.add_row(one)
    return stack


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """curve() of each of METRICS under a first column `metric`, in full precision; accuracies are fractions."""
    parts = {metric: curve(rows, metric) for metric in METRICS}
    whole = pd.concat({metric: part for metric, part in parts.items() if len(part)} or parts, names=["metric", None])
    return whole.reset_index(level="metric")

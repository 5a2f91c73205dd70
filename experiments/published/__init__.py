"""What papers measured, drawn beside ours where the setting is the same.

A file is one source. Its comment lines say where the numbers come from: `source`; `kind` (RAW: computed from files
that the authors published, READ: read there, NOTE: from notes that quote it); `protocol`; `tolerance`, the points of
accuracy within which a mean over replicates may be called the same; `setting`, JSON of configuration keys; `not in
conf`, names of members that do not exist here. Then a table: branch, metric, weights_left (percent), value (accuracies
in percent), std and n of its replicates; each further column is a configuration key, too, its cells the values.

A key's value is a member of its group, of which then nothing may be changed but the target sparsity, how many examples
are held out for validation (papers without a validation split have all to train on), where the data lie and how many
threads read them; or a plain value.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lth.analysis import half_width

CONF = Path(__file__).parents[2] / "conf"
NUMBERS = ["branch", "metric", "weights_left", "value", "std", "n"]
COLUMNS = ["setting", "source", "branch", "metric", "sparsity", "mean", "half", "n", "tolerance"]


def files() -> list[Path]:
    """The files of this folder, in the order of their names."""
    return sorted(Path(__file__).parent.glob("*.csv"))


@cache
def read(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """(what its comment lines say, its table) of one file."""
    lines = [line.removeprefix("# ").partition(": ") for line in path.read_text().splitlines() if line.startswith("# ")]
    head = {name: text for name, _, text in lines}
    head |= {"setting": json.loads(head["setting"]), "tolerance": float(head["tolerance"])}
    return head, pd.read_csv(path, comment="#", dtype={"rewind.at": str})


def same(config: dict, key: str, wanted: str) -> bool:
    """True if the configuration's node at `key` is the member of that name, as conf/ has it, or that plain value."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    file = CONF / key.replace(".", "/") / f"{wanted}.yaml"
    if not file.is_file():
        return _plain(node) == _plain(wanted)
    member = _member(file)
    inside = [(f"{key}/{group}", name) for one in member.get("defaults", []) for group, name in one.items()]
    return all(
        name in ("sparsity", "num_val", "path", "threads")
        or (isinstance(node, dict) and _plain(node.get(name)) == _plain(value))
        for name, value in member.items()
        if name != "defaults"
    ) and all(same(config, group.replace("/", "."), name) for group, name in inside)


@cache
def _member(file: Path) -> dict:
    """What a file of conf/ says, read once a process, as `read` does: every job is compared with the same ones."""
    return yaml.safe_load(file.read_text())


def _plain(value: Any) -> Any:
    """Numbers as numbers however they are spelt: 1e-4 is a word to YAML, 500it is 500 steps."""
    if isinstance(value, dict | list):
        return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else [_plain(v) for v in value]
    try:
        return value if isinstance(value, bool) else float(str(value).removesuffix("it"))
    except ValueError:
        return value


def matching(config: dict) -> Iterator[dict]:
    """The numbers published for a configuration: source, branch, metric, sparsity, mean, half, n, tolerance.

    Accuracies are fractions; half is that of a 95% t interval where standard deviation and n are known. None: unknown.
    """
    for path in files():
        head, table = read(path)
        if not all(same(config, *one) for one in head["setting"].items()):
            continue
        source = head["source"].partition(",")[0].removeprefix("https://github.com/")
        keys = [name for name in table.columns if name not in NUMBERS]
        groups = table.groupby(keys, dropna=False) if keys else [((), table)]
        for values, part in groups:
            if not all(
                same(config, key, str(wanted)) for key, wanted in zip(keys, values, strict=True) if pd.notna(wanted)
            ):
                continue
            for branch, metric, *numbers in part[NUMBERS].itertuples(index=False, name=None):
                left, value, std, n = (None if pd.isna(number) else number for number in numbers)
                scale = 100.0 if metric.endswith("accuracy") else 1.0
                yield {
                    "source": source, "branch": branch, "metric": metric,
                    "sparsity": None if left is None else round(1 - left / 100, 6),
                    "mean": None if value is None else value / scale,
                    "half": half_width(std, n) / scale if std is not None and n is not None else None,
                    "n": n, "tolerance": head["tolerance"] / 100,
                }  # fmt: skip


def beside(rows: pd.DataFrame, directory: Path) -> pd.DataFrame:
    """The published numbers for each setting of some rows (analysis.load), all of whose jobs have the published one.

    directory: where the rows were loaded from; a job's configuration is its config.yaml. Columns: COLUMNS.
    """
    found: list[dict] = []
    for setting, part in rows.groupby("setting", sort=False):
        jobs = [directory / job / "config.yaml" for job in part["job"].unique()]
        configs = [yaml.safe_load(path.read_text()) for path in jobs if path.is_file()]
        sets = [list(matching(config)) for config in configs]
        if sets and len(sets) == len(jobs):
            found += [{"setting": setting, **one} for one in sets[0] if all(one in other for other in sets)]
    frame = pd.DataFrame(found, columns=pd.Index(COLUMNS))
    return frame.astype(dict.fromkeys(COLUMNS[4:], "float64"))

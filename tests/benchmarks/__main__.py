"""The benchmark table: rows by name, each against its baseline, interleaved in one run, on one thread.

    python -m tests.benchmarks                               all rows: on two cores about an hour, on a quiet machine
    python -m tests.benchmarks C1 C7 --rounds 7 --out results.json
    OPEN_LTH=path/to/open_lth python -m tests.benchmarks C1  against its own loop; else against one in its style
    python -m tests.benchmarks --profile C1                  where the time of our own loop goes

It prints a table, and JSON to --out. Exit code 1 where the losses of two sides differ: then a row has failed, however
fast. Without --data-dir, which holds FashionMNIST/raw, digits are those of mnist_5k, repeated where an epoch of 60,000
is meant.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from tests.benchmarks.gpu_rows import g1, g2, g3
from tests.benchmarks.measure import Line, Options, gemm_probe, load_average, machine, table
from tests.benchmarks.profiled import SETTINGS, profiled
from tests.benchmarks.study_rows import c3, c10, study
from tests.benchmarks.train_rows import c1, c2, c4, c5, c6, c7, c9

ROWS: dict[str, Callable[[Options], Iterator[Line]]] = {
    "C1": c1, "C2": c2, "C3": c3, "C4": c4, "C5": c5, "C6": c6, "C7": c7, "C9": c9, "C10": c10, "C11": study,
    "C12": study, "G1": g1, "G2": g2, "G3": g3,
}  # fmt: skip


def run(names: list[str], options: Options, out: Path | None = None) -> dict:
    """The record of a run: the machine, its load before and after, and the lines of the rows asked for; as far as it
    is there after each row, in the file `out`."""
    record = machine() | {"rounds": options.rounds, "scale": options.scale, "load_before": load_average()}
    record |= {"data": "fashion_mnist" if options.data_dir else "mnist_5k", "gemm_gflops": gemm_probe()}
    print(*(f"{name}: {value}" for name, value in record.items()), sep="\n", flush=True)
    record["lines"] = []
    for measured in dict.fromkeys(ROWS[name] for name in names):  # two names may be of one measurement
        for line in measured(options):
            print(table([line]).splitlines()[1], flush=True)
            record["lines"].append(line)
        record["load_after"] = load_average()
        if out:
            out.write_text(json.dumps(record | {"lines": [as_json(line) for line in record["lines"]]}, indent=1) + "\n")
    return record


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=7, help="of each comparison (7)")
    parser.add_argument("--scale", type=float, default=1.0, help="of steps, levels, replicates: to try a row out (1)")
    parser.add_argument("--data-dir", type=Path, help="where FashionMNIST/raw lies; else mnist_5k")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--profile", choices=SETTINGS, help="no row, but where the time of our loop in this one goes")
    asked = parser.parse_args()
    if unknown := [name for name in asked.rows if name not in ROWS]:
        parser.error(f"{unknown[0]} is not a row of {', '.join(ROWS)}")
    if asked.rounds < 1 or not 0 < asked.scale < math.inf:
        parser.error(f"--rounds={asked.rounds} must be at least 1, --scale={asked.scale} a number above 0")
    checkout = os.environ.get("OPEN_LTH")
    if checkout and not Path(checkout, "training/train.py").is_file():
        parser.error(f"OPEN_LTH={checkout} is no checkout of open_lth: it has no training/train.py")
    torch.set_num_threads(1)
    data_dir = asked.data_dir and asked.data_dir.resolve()
    options = Options(asked.rounds, asked.scale, data_dir, Path(checkout).resolve() if checkout else None)
    if asked.profile:
        print(profiled(asked.profile, options))
        return 0
    record = run(asked.rows or list(ROWS), options, asked.out)
    lines = record["lines"]
    print(f"\n{table(lines)}\n\nload {record['load_before']:.2f} before, {record['load_after']:.2f} after")
    return int(any(line.failed for line in lines))


def as_json(line: Line) -> dict:
    found = asdict(line) | {"failed": line.failed}
    return found | {name: value._asdict() for name in ("ratio", "losses") if (value := getattr(line, name))}


if __name__ == "__main__":
    raise SystemExit(main())

"""What a job or a sweep shows at its end, from the rows on disk: tables, verdicts, figures, CSV files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from lth import analysis

Beside = Callable[[pd.DataFrame, Path], pd.DataFrame]  # rows and their folder -> what was published for their settings


def figures(folder: Path, beside: Beside) -> list[Path]:
    """Draw the curves of the rows at or below `folder`, and what was published beside them, as <folder>/report/*.png;
    [] where there are no rows."""
    rows = analysis.load(folder)
    return [] if rows.empty else _curves(rows, beside(rows, folder), folder, (".png",))


def _curves(rows: pd.DataFrame, published: pd.DataFrame, folder: Path, kinds: tuple[str, ...]) -> list[Path]:
    from lth import plot

    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    return [
        *plot.accuracy_vs_sparsity(rows, report / "accuracy_vs_sparsity", kinds, published),
        *plot.early_stop_vs_sparsity(rows, report / "early_stop_vs_sparsity", kinds, published),
    ]


def report(
    folder: Path, experiment: Callable[[str], Any], beside: Beside, console: Console | None = None
) -> list[dict]:
    """Print the tables and verdicts of each study and the paths of what was written; list what failed. Returns the
    failures. experiment(study): what has its table(rows), verdict(rows) and perhaps figure(rows, stem, published,
    records), records being those of analysis.records."""
    console = console or Console()
    rows, failures = analysis.load(folder), analysis.failures(folder)
    if not rows.empty:
        published, records = beside(rows, folder), analysis.records(folder)
        drawn = _curves(rows, published, folder, (".png", ".svg"))
        for study, part in rows.groupby("study", sort=False):
            of = experiment(str(study))
            console.print(of.table(part))
            for verdict in of.verdict(part):
                console.print(verdict.evidence, soft_wrap=True, highlight=False, markup=False)
            if numerics := _numerics(part):
                console.print(f"numerics: {numerics}", soft_wrap=True, highlight=False, markup=False)
            if hasattr(of, "figure"):  # one of its own
                drawn += of.figure(part, folder / "report" / str(study), published, records)
        if (beside_theirs := analysis.compare(rows, published)).row_count:
            console.print(beside_theirs)
        for name, table in (("rows", rows), ("curves", analysis.curves(rows))):
            table.to_csv(folder / "report" / f"{name}.csv", index=False, lineterminator="\n")
            drawn.append(folder / "report" / f"{name}.csv")
        for path in drawn:
            console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    for failure in failures:
        console.print(
            f"cell {failure['cell']} failed: {failure['cause']}", soft_wrap=True, highlight=False, style="red"
        )
        console.print(f"  rerun: {failure['command']}", soft_wrap=True, highlight=False, markup=False)
    return failures


def _numerics(rows: pd.DataFrame) -> str:
    """ "fast (onednn)": in what numbers networks were trained, and through which back end where there was a choice; ""
    where rows do not say."""
    kinds = rows[["numerics", "gemm"]].dropna(subset=["numerics"]).drop_duplicates()
    return ", ".join(f"{kind} ({gemm})" if isinstance(gemm, str) else kind for kind, gemm in kinds.to_numpy())

"""What a job or a sweep shows at its end, from the rows on disk: tables, verdicts, figures, a CSV."""

from pathlib import Path

from rich.console import Console

from lth import analysis


def figures(folder: Path, kinds: tuple[str, ...] = (".png", ".svg")) -> list[Path]:
    """Draw the figures of the rows at or below `folder` into <folder>/report/; [] where there are no rows."""
    from lth import plot

    rows = analysis.load(folder)
    if rows.empty:
        return []
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    return [
        *plot.accuracy_vs_sparsity(rows, report / "accuracy_vs_sparsity", kinds),
        *plot.early_stop_vs_sparsity(rows, report / "early_stop_vs_sparsity", kinds),
    ]


def report(folder: Path, console: Console | None = None) -> list[dict]:
    """Print tables, verdicts and the paths of what was written; list what failed. Returns the failures."""
    console = console or Console()
    rows, failures = analysis.load(folder), analysis.failures(folder)
    if not rows.empty:
        console.print(analysis.table(rows))
        for verdict in analysis.verdicts(rows):
            console.print(verdict.evidence, soft_wrap=True, highlight=False, markup=False)
        drawn = figures(folder)
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

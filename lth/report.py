"""What a job or a sweep shows at its end, from the rows on disk: tables, verdicts, figures, a CSV."""

from pathlib import Path

from rich.console import Console

from lth import analysis


def figures(folder: Path) -> list[Path]:
    """Draw the figures of the rows at or below `folder` into <folder>/report/; [] where there are no rows."""
    from lth import plot

    rows = analysis.load(folder)
    if rows.empty:
        return []
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    analysis.write_csv(rows, report / "rows.csv")
    return [
        *plot.accuracy_vs_sparsity(rows, report / "accuracy_vs_sparsity"),
        *plot.early_stop_vs_sparsity(rows, report / "early_stop_vs_sparsity"),
    ]


def report(folder: Path, console: Console | None = None) -> list[dict]:
    """Print tables, verdicts and the paths of what was written; list what failed. Returns the failures."""
    console = console or Console()
    rows, failures = analysis.load(folder), analysis.failures(folder)
    if not rows.empty:
        console.print(analysis.table(rows))
        for verdict in analysis.verdicts(rows):
            console.print(verdict.evidence, soft_wrap=True, highlight=False)
        for path in [folder / "report" / "rows.csv", *figures(folder)]:
            console.print(str(path), soft_wrap=True, highlight=False)
    for failure in failures:
        console.print(
            f"cell {failure['cell']} failed: {failure['cause']}", soft_wrap=True, highlight=False, style="red"
        )
        console.print(f"  rerun: {failure['command']}", soft_wrap=True, highlight=False)
    return failures

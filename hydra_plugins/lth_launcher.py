"""Our Hydra launcher, its sweeper, and the callback that reports. Hydra 1.3 finds launchers only in this namespace
package; what they do stands in main.py and lth.

The launcher composes, builds and checks every cell of a sweep before anything trains, executes their union as one
graph, and then runs each cell the ordinary Hydra way, which finds its stages in the store and writes its rows.
"""

import json
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class LthLauncherConf:
    _target_: str = "hydra_plugins.lth_launcher.LthLauncher"


@dataclass
class LthSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.lth_launcher.LthSweeper"


ConfigStore.instance().store(group="hydra/launcher", name="lth", node=LthLauncherConf, provider="lth")
ConfigStore.instance().store(group="hydra/sweeper", name="lth", node=LthSweeperConf, provider="lth")


def science(config: DictConfig) -> DictConfig:
    """A composed configuration without its hydra node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


class LthLauncher(BasicLauncher):
    """All cells checked, planned and executed as one; then each one is run."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import main

        assert self.config is not None and self.hydra_context is not None and self.task_function is not None  # noqa: S101
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        compose, folders = self.hydra_context.config_loader.load_sweep_config, []
        cells = [compose(self.config, list(overrides)) for overrides in job_overrides]
        for index, (cell, overrides) in enumerate(zip(cells, job_overrides, strict=True), start=initial_job_idx):
            with open_dict(cell):
                cell.hydra.job.id = cell.hydra.job.num = index
            HydraConfig.instance().set_config(cell)
            with self._named(index, overrides, job_overrides):
                main._built[index] = main.build(science(cell), cell.hydra)
            folders.append(Path(cell.hydra.sweep.dir) / cell.hydra.sweep.subdir)
        jobs = [main._built[cell.hydra.job.num] for cell in cells]
        main.prefetch(jobs)
        for job, overrides in zip(jobs, job_overrides, strict=True):
            with self._named(job.cell.index, overrides, job_overrides):
                job.rehearse()
        main.execute(jobs, folders, group=f"{jobs[0].cell.study} {Path(self.config.hydra.sweep.dir).name}")
        returns = []
        for cell in cells:
            result = run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=cell,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            if result.status == JobStatus.FAILED:
                # A failed cell is on disk (failure.json) and is reported at the end of the sweep. Handed on as an
                # exception, it would keep the sweeper from running later batches, and Hydra from calling callbacks.
                result.status, result.return_value = JobStatus.COMPLETED, None
            returns.append(result)
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return returns

    @contextmanager
    def _named(self, index: int, overrides: Sequence[str], job_overrides: Sequence[Sequence[str]]) -> Iterator[None]:
        """Says of which cell an error is, by its number and what sets it apart."""
        import main

        try:
            yield
        except main.InputError as error:
            varied = " ".join(word for word in overrides if not all(word in other for other in job_overrides))
            raise main.InputError(f"cell {index} ({textwrap.shorten(varied, 60)}): {error}") from error


class LthSweeper(BasicSweeper):
    """Hydra's own; it leaves composing every cell for a first look to our launcher, which begins with just that."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if not isinstance(self.launcher, LthLauncher):
            super().validate_batch_is_legal(batch)


class Report(Callback):
    """Checks a single job before Hydra makes its folder; reports at the end of a job or a sweep, from disk."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        import main

        try:
            main._built[0] = main.build(science(config), config.hydra)
            main.prefetch([main._built[0]])
            main._built[0].rehearse()
        except main.InputError as error:
            main.refuse(str(error))  # SystemExit: Hydra would turn an exception of a callback into a warning

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        import main
        from lth.store import StoreError, check_writable

        main.remember(Path(config.hydra.sweep.dir))
        try:
            check_writable(Path(config.hydra.sweep.dir), "output directory")
        except StoreError as error:
            main.refuse(str(error))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        import main
        from lth.cell import CellError

        folder = Path(config.hydra.runtime.output_dir)
        failure = folder / "failure.json"
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            overrides = list(config.hydra.overrides.task)
            index = 0 if OmegaConf.is_missing(config.hydra.job, "num") else config.hydra.job.num
            failure.write_text(json.dumps({
                "cell": index,
                "overrides": overrides,
                "cause": " ".join(f"{type(error).__name__}: {error}".split()),
                "command": f"python main.py {shlex.join(overrides)}",
            }) + "\n")  # fmt: skip
        else:
            failure.unlink(missing_ok=True)
        if config.hydra.mode == RunMode.RUN:
            from experiments.published import beside
            from lth.report import report

            report(folder, main.experiment, beside)
            error = job_return._return_value
            if job_return.status == JobStatus.FAILED and isinstance(error, CellError):
                main.fail(error)  # SystemExit, before Hydra says it in two lines of its own

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        import main
        from experiments.published import beside
        from lth.report import report

        if report(Path(config.hydra.sweep.dir), main.experiment, beside):
            raise SystemExit(1)

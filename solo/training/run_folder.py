"""The folder of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from solo.config import Config, ConfigError, differences, dump_config, load_config
from solo.files import complete_checkpoints, write_whole

_CHANGES_SHOWN = 10


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/` and the files in it."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved config, which is enough to repeat the run."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """JSON lines; see `solo.training.metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def goodput_file(self) -> Path:
        """JSON lines of how time was spent; see `solo.training.ledger`."""
        return self.path / "goodput.jsonl"

    @property
    def quarantine_file(self) -> Path:
        """JSON lines of documents and batches that were skipped, with their step, ids and the reason."""
        return self.path / "quarantine.jsonl"

    @property
    def report_file(self) -> Path:
        """The evaluation as one HTML page."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, made from the metrics."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder per saved step."""
        return self.path / "checkpoints"

    def newest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return max((int(path.name) for path in complete_checkpoints(self.checkpoints)), default=None)

    @classmethod
    def open(cls, config: Config, report: Callable[[str], None] = lambda line: None) -> RunFolder:
        """Create the folder, or open that of a run that this config may resume.

        A resumed run may change the keys that do not decide its result, such as `mesh` or `model.remat`: its
        `config.yaml` is rewritten, and `report` is called with a line for every changed key.

        Raises:
            ConfigError: the folder holds a run with another result; the message names the keys that differ.
        """
        run = cls(config.run_folder)
        if not run.config_file.exists():
            write_whole(run.config_file, dump_config(config))
            return run
        changes = differences(load_config(run.config_file), config)
        if refused := [change for change in changes if change.decides_at("result")]:
            raise ConfigError(
                f"{run.path} was made by another config:\n"
                + "\n".join(f"  {change}" for change in refused[:_CHANGES_SHOWN])
                + ("\n  ..." if len(refused) > _CHANGES_SHOWN else "")
                + "\nchoose another name (name=...), or delete that folder"
            )
        if changes:
            write_whole(run.config_file, dump_config(config))
            for change in changes:
                report(f"resumed with {change.key}={change.new!r}, before {change.old!r}")
        return run

"""The folder of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from solo.config import Config, ConfigError, Difference, differences, dump_config, load_config
from solo.files import complete_checkpoints, is_complete, write_whole
from solo.training.amendments import amendable, is_amendable

_CHANGES_SHOWN = 10


def _hint(refused: Sequence[Difference], steps_done: int) -> str:
    """Returns how to change a mixture, if that was the aim."""
    if not any(".mixture" in change.key for change in refused):
        return ""
    return (
        f"\nthe weights of this run can be changed from step {steps_done} on, with stages.N.mixture_changes: "
        "{step of the stage: {source: weight}}"
    )


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
    def lock_file(self) -> Path:
        """The process that trains the run holds its lock; see `solo.locks`."""
        return self.path / "run.lock"

    @property
    def checkpoints(self) -> Path:
        """One folder per saved step."""
        return self.path / "checkpoints"

    def newest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return max((int(path.name) for path in complete_checkpoints(self.checkpoints)), default=None)

    @classmethod
    def open(cls, config: Config, report: Callable[[str], None] = lambda line: None) -> RunFolder:
        """Creates the folder, or opens that of a run that this config may resume.

        A resumed run may change the keys that do not decide its result, such as `mesh` or `model.remat`: its
        `config.yaml` is rewritten, and `report` is called with a line for every changed key. The same holds for
        entries of `mixture_changes` at steps that the newest checkpoint has not passed.

        Raises:
            ConfigError: the folder holds a run with another result; the message names the keys that differ. It
                is also raised if `config.yaml` cannot be read, for example because keys were renamed, or if the folder
                holds no run but files that a run would write over.
        """
        run = cls(config.run_folder)
        if not run.config_file.exists():
            run._check_unused()
            write_whole(run.config_file, dump_config(config))
            run._set_aside_incomplete(report)
            return run
        stored = run._stored_config()
        changes = differences(stored, config)
        allowed = amendable(stored, config, run.newest_step() or 0) if changes else []
        decisive = [change for change in changes if change.decides_at("result")]
        if refused := [change for change in decisive if not is_amendable(change.key, allowed)]:
            raise ConfigError(
                f"{run.path} was made by another config:\n"
                + "\n".join(f"  {change}" for change in refused[:_CHANGES_SHOWN])
                + ("\n  ..." if len(refused) > _CHANGES_SHOWN else "")
                + _hint(refused, run.newest_step() or 0)
                + "\nchoose another name (name=...), or delete that folder"
            )
        if changes:
            write_whole(run.config_file, dump_config(config))
            for change in changes:
                report(f"resumed with {change.key}={change.new!r}, before {change.old!r}")
        run._set_aside_incomplete(report)
        return run

    def _check_unused(self) -> None:
        """Raises ConfigError if a run would write over files of a folder that is not a run's."""
        files = (self.metrics_file, self.report_file, self.quarantine_file, self.tensorboard)
        tokenizer = (self.path / name for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
        found = [path.name for path in (*files, *tokenizer) if path.exists()]
        if found:
            raise ConfigError(
                f"{self.path} holds no config.yaml, so it is no run's folder, but it has {', '.join(found)}, which a"
                " run would write over; choose another name (name=...), or move these files"
            )

    def _stored_config(self) -> Config:
        try:
            return load_config(self.config_file)
        except ConfigError as error:
            raise ConfigError(
                f"{self.path} holds a run whose config cannot be read:\n{error}\n"
                f"choose another name for the new run (name=...), or correct {self.config_file} to resume the old one"
            ) from None

    def _set_aside_incomplete(self, report: Callable[[str], None]) -> None:
        """Renames checkpoints without a commit marker, so that none is resumed from or blocks a later save.

        Copying a run, or renaming a folder in a bucket, may stop halfway.
        """
        for path in sorted(self.checkpoints.glob("*")):
            if path.name.isdigit() and not is_complete(path):
                names = (path.with_name(f"{path.name}.incomplete{number or ''}") for number in count())
                aside = next(name for name in names if not name.exists())
                path.rename(aside)
                report(f"checkpoint {path} was not written to its end; it is named {aside.name} now")

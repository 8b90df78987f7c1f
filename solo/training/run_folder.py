"""The folder of a run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from solo.config import Config, ConfigError, Difference, differences, dump_config, load_config, summary
from solo.files import cache_folder, complete_checkpoints, is_complete, is_remote, place, read_json_lines, write_whole
from solo.storage import Bucket
from solo.training.amendments import amendable, is_amendable

_CHANGES_SHOWN = 20


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/` and the files in it.

    path     location of the run; see `solo.files.place` for buckets
    process  index of the process that uses the folder
    changes  keys in which the config that resumes the run differs from `config.yaml`; see `take_up`
    """

    path: Path
    process: int = 0
    changes: tuple[Difference, ...] = field(default=(), compare=False)

    @property
    def work(self) -> Path:
        """The local folder of all files except checkpoints: `path`, or a local copy if `path` is in a bucket."""
        if not is_remote(self.path):
            return self.path
        return cache_folder() / "runs" / f"{self.path.name}-{hashlib.sha256(str(self.path).encode()).hexdigest()[:16]}"

    @property
    def config_file(self) -> Path:
        """The resolved config, which is sufficient to reproduce the run."""
        return self.work / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """JSON lines; see `solo.training.metrics`."""
        return self.work / "metrics.jsonl"

    @property
    def goodput_file(self) -> Path:
        """JSON lines of how time was spent; see `solo.training.ledger`."""
        return self.work / "goodput.jsonl"

    @property
    def quarantine_file(self) -> Path:
        """JSON lines of documents and batches that were skipped, with their step, ids and the reason.

        Processes on several machines cannot append to one file in a bucket, so each process has its own file.
        """
        return self.work / (f"quarantine-{self.process}.jsonl" if self.apart else "quarantine.jsonl")

    @property
    def report_file(self) -> Path:
        """The evaluation as one HTML page."""
        return self.work / "report.html"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, made from the metrics."""
        return self.work / "tensorboard"

    @property
    def profiles(self) -> Path:
        """Traces of steps; see `solo.training.profiler`."""
        return self.work / "profile"

    @property
    def lock_file(self) -> Path:
        """The lock file, which the process that trains the run holds; see `solo.locks`."""
        return self.work / "run.lock"

    @property
    def heartbeat_file(self) -> Path:
        """The last heartbeat; see `solo.training.heartbeat`."""
        return self.work / "heartbeat.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per saved step."""
        return self.path / "checkpoints"

    @property
    def apart(self) -> bool:
        """Whether this process writes to files of its own instead of those of process 0."""
        return self.process > 0 and is_remote(self.path)

    def newest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return max((int(path.name) for path in complete_checkpoints(self.checkpoints)), default=None)

    @classmethod
    def existing(cls, path: str | Path, lines: bool = True) -> RunFolder:
        """Opens the folder of a run for reading. If the run is in a bucket, its small files are copied to this machine.

        Args:
            path: the folder.
            lines: whether `metrics.jsonl` and similar files will be read, too.

        Raises:
            ConfigError: it is not the folder of a run, or its bucket cannot be reached.
        """
        run = cls(place(path))
        if is_remote(run.path):
            from solo.training.bucket_run import fetch

            fetch(run, lines)
        if not run.config_file.is_file():
            raise ConfigError(f"{run.path} is not a run of solo: it has no {run.config_file.name}")
        return run

    @classmethod
    def open(cls, config: Config, report: Callable[[str], None] = lambda line: None) -> RunFolder:
        """Creates the folder, or opens the folder of a run that this config may resume.

        A resumed run may change keys that do not affect its result, such as `mesh` or `checkpoint`, and entries of
        `mixture_changes` at steps that the newest checkpoint has not reached. `changes` then contains them, `report` is
        called with a line for each, and `config.yaml` is unchanged until `take_up`. A run that has not trained a step
        yet accepts any config.

        Raises:
            ConfigError: the folder contains a run whose result would differ; the message names the keys. Or
                `config.yaml` cannot be read, for example because keys were renamed. Or the folder is not a run's, but
                contains files that a run would overwrite.
        """
        run = cls(config.run_folder)
        if is_remote(run.path):
            from solo.training.bucket_run import fetch, gather_quarantine

            fetch(run, held=True)
            gather_quarantine(run)
        if not run.config_file.exists():
            run._check_unused()
            write_whole(run.config_file, dump_config(config))
        else:
            run._check_spelling()
            run = replace(run, changes=tuple(run._changes(config, report)))
        run._set_aside_incomplete(report)
        return run

    def take_up(self, config: Config) -> None:
        """Rewrites `config.yaml` if the config that resumes the run changes any of its keys."""
        if self.changes:
            write_whole(self.config_file, dump_config(config))

    def _changes(self, config: Config, report: Callable[[str], None]) -> list[Difference]:
        """Returns the changes of a resumed run. If no step was trained with the old config, it is overwritten."""
        try:
            stored = self._stored_config()
        except ConfigError:
            if self.has_begun():
                raise
            stored = None
        if stored is not None:
            changes = differences(stored, config)
            allowed = amendable(stored, config, self.newest_step() or 0) if changes and self.has_begun() else []
            refused = [each for each in changes if each.decides_at("result") and not is_amendable(each.key, allowed)]
            if not refused:
                for line in summary(changes):
                    report(f"resumed with a change of {line}")
                return changes
            if self.has_begun():
                raise ConfigError(refusal(self.path, refused, self.newest_step()))
            for line in summary(changes):
                report(f"{self.path} has not trained a step yet and accepts a change of {line}")
        write_whole(self.config_file, dump_config(config))
        return []

    def has_begun(self) -> bool:
        """Returns whether the run has trained a step: it has a checkpoint, or the metrics of a step."""
        if self.newest_step() is not None:
            return True
        return any(line.get("kind") == "train" for line in read_json_lines(self.metrics_file)[0])

    def _check_spelling(self) -> None:
        """Raises ConfigError if another run has this name up to case, on a file system that ignores case."""
        if is_remote(self.path):
            return
        names: list[str] = []
        with contextlib.suppress(OSError):  # its parent cannot be listed
            names = os.listdir(self.path.parent)
        others = [name for name in names if name.lower() == self.path.name.lower()]
        if self.path.name not in names and others:
            raise ConfigError(
                f"{self.path.parent / others[0]} is another run, whose name differs only in upper and lower case, which"
                f" are the same on this disk; resume it as name={others[0]}, or choose another name (name=...)"
            )

    def _check_unused(self) -> None:
        """Raises ConfigError if a run would overwrite files of a folder that is not a run's."""
        files = (self.metrics_file, self.report_file, self.quarantine_file, self.tensorboard)
        tokenizer = (self.work / name for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
        found = [path.name for path in (*files, *tokenizer) if path.exists()]
        if found:
            raise ConfigError(
                f"{self.path} has no config.yaml, so it is not a run's folder, but it has {', '.join(found)}, which a"
                " run would overwrite; choose another name (name=...), or move these files"
            )

    def _stored_config(self) -> Config:
        try:
            return load_config(self.config_file)
        except ConfigError as error:
            raise ConfigError(
                f"{self.path} holds a run whose config cannot be read:\n{error}\n"
                f"choose another name for the new run (name=...), or correct {self.path}/config.yaml to resume it"
            ) from None

    def _set_aside_incomplete(self, report: Callable[[str], None]) -> None:
        """Renames checkpoints without a commit marker, so that none of them is resumed from or blocks a later save.

        They result from interrupted copies of runs and interrupted renames in buckets. If folders cannot be renamed, a
        kill during a save also leaves such checkpoints, and they are removed.
        """
        if is_remote(self.path):
            self._remove_incomplete(report)
            return
        for path in sorted(self.checkpoints.glob("*")):
            if path.name.isdigit() and not is_complete(path):
                names = (path.with_name(f"{path.name}.incomplete{number or ''}") for number in count())
                aside = next(name for name in names if not name.exists())
                try:
                    path.rename(aside)
                    report(f"checkpoint {path} is incomplete; it was renamed to {aside.name}")
                except OSError:
                    shutil.rmtree(path)
                    report(f"checkpoint {path} is incomplete and was removed")

    def _remove_incomplete(self, report: Callable[[str], None]) -> None:
        bucket = Bucket(str(self.checkpoints))
        complete = {path.name for path in complete_checkpoints(self.checkpoints)}
        for step in filter(str.isdigit, bucket.folders()):
            if step not in complete:
                with contextlib.suppress(FileNotFoundError):
                    bucket.remove_folder(step)
                report(f"checkpoint {self.checkpoints / step} is incomplete and was removed")


def refusal(run: Path, refused: Sequence[Difference], newest: int | None) -> str:
    """Returns why a config cannot resume a run, and what to do instead.

    Args:
        run: the run's folder.
        refused: the keys that differ and affect its result.
        newest: step of its newest checkpoint, or None.
    """
    lines = summary(refused)
    shown = [f"  {line}" for line in lines[:_CHANGES_SHOWN]]
    if len(lines) > _CHANGES_SHOWN:
        shown.append(f"  and {len(lines) - _CHANGES_SHOWN} more")
    ways = [("name=...", "a new run from the beginning")]
    if newest is not None:
        ways += [
            (f"name=... --branch-from {run}@{newest}", "a new run from its weights and optimizer state"),
            (f"name=... init_from={run}", "a new run from its weights alone"),
        ]
    if any(".mixture" in change.key for change in refused):
        entry = "stages.N.mixture_changes={STEP: {SOURCE: WEIGHT}}"
        ways.append((entry, f"this run, with other weights from step {newest or 0} on"))
    return "\n".join(
        [
            f"{run} was trained with other values of keys that affect its result:",
            *shown,
            "restore these values to resume it, or choose",
            *(f"  {way}: {what}" for way, what in ways),
        ]
    )

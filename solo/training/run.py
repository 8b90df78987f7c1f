"""The folder of a run, and its one stream of metrics."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from solo.config import Config, ConfigError, differences, dump_config, load_config
from solo.files import write_whole

_CHANGES_SHOWN = 10


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/` and what lies in it."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved config: enough to repeat the run."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def goodput_file(self) -> Path:
        """What the time went into, over all tries; see `solo.training.ledger`."""
        return self.path / "goodput.jsonl"

    @property
    def quarantine_file(self) -> Path:
        """What was skipped, with its id and the reason, one JSON object a line."""
        return self.path / "quarantine.jsonl"

    @property
    def report_file(self) -> Path:
        """The evaluation as a page."""
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
        """Step of the newest checkpoint that was written whole, as the folder shows it; None: there is none."""
        steps = [int(path.parent.name) for path in self.checkpoints.glob("*/commit_success.txt")]
        return max(steps, default=None)

    @classmethod
    def open(cls, config: Config, report: Callable[[str], None] = lambda line: None) -> RunFolder:
        """Create the folder, or open the one of a run that this config may resume.

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


class Metrics:
    """Writes nothing: what the processes of a run have that do not write its metrics."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take one line."""

    def close(self) -> None:
        """Nothing more will come."""


class MetricsStream(Metrics):
    """`metrics.jsonl`, and the TensorBoard files made from its lines.

    Opened after a restart, it drops the lines past the step that the run resumes from; the TensorBoard files
    are made anew from what is left, so that both always tell one story.
    """

    def __init__(self, run: RunFolder, resume_step: int):
        # Imported here: it is slow, and help does not need it.
        from tensorboardX import SummaryWriter

        kept = [line for line in read_metrics(run.metrics_file) if line["step"] <= resume_step]
        write_whole(run.metrics_file, "".join(_dump(line) for line in kept))
        shutil.rmtree(run.tensorboard, ignore_errors=True)
        self._board = SummaryWriter(str(run.tensorboard))
        self._file: IO[str] = run.metrics_file.open("a")
        for line in kept:
            self._show(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; it has a `kind` and a `step`. Numbers that are not finite are written as null."""
        self._file.write(_dump(line))
        self._file.flush()
        self._show(line)

    def close(self) -> None:
        """Close the file and TensorBoard's."""
        self._file.close()
        self._board.close()

    def _show(self, line: Mapping[str, Any]) -> None:
        prefix = "/".join(str(line[name]) for name in ("kind", "task") if name in line)
        for name, value in _scalars(_finite(line), prefix):
            self._board.add_scalar(name, value, line["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; a line cut short by a kill is left out."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text().split("\n")[:-1]:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return found


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(line: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield f"{prefix}/{name}", value

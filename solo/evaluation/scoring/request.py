"""The request of `solo evaluate --tasks` and `--text`, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from solo.config import ConfigError
from solo.data.readers.paths import COMPRESSED, suffix
from solo.data.readers.tables import SUFFIXES
from solo.evaluation.benchmarks.benchmark import Benchmark
from solo.evaluation.scoring.predictions import Images
from solo.evaluation.scoring.scores import Resampling
from solo.files import is_complete, is_remote, place, resolved
from solo.training.evaluators import TRAINED
from solo.training.reference import find_checkpoint, parse_reference


@dataclass(frozen=True)
class Request:
    """Options of `solo evaluate --tasks` and `--text`.

    reference       a run, one of its checkpoints, or a repository
    weights         `trained`, or the name of an average
    tasks           names of benchmarks
    files           `FOLDER`, which holds files named after the benchmarks, and `TASK=PATH`
    output          the folder of predictions and results
    limit           items of each benchmark or text file; None: all
    batch_rows      the most prompts that are answered together
    max_new_tokens  the longest answer; None: the benchmark's
    context         the longest sequence; None: the model's
    baselines       further ways to ask: without images, with blanked ones
    language_model  a run or repository: what the model started from, asked without images
    against         files or folders of predictions to compare with
    texts           files for perplexity and multiple choice on text
    how             resampling of the intervals
    force           overwrite predictions of another model, other settings or other prompts
    page_items      the most questions of a benchmark on the page
    """

    reference: str
    weights: str = TRAINED
    tasks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    output: str | None = None
    limit: int | None = None
    batch_rows: int = 32
    max_new_tokens: int | None = None
    context: int | None = None
    baselines: tuple[Images, ...] = ()
    language_model: str | None = None
    against: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    how: Resampling = field(default_factory=Resampling)
    force: bool = False
    page_items: int = 2_000

    def __post_init__(self) -> None:
        at_least = {"limit": 1, "batch_rows": 1, "max_new_tokens": 1, "context": 1, "page_items": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
        if not self.tasks and not self.texts:
            raise ConfigError("--tasks names no benchmark, and --text no file")
        if self.how.resamples < 100:
            raise ConfigError(f"--resamples is {self.how.resamples}; it must be at least 100")
        if self.how.seed < 0:
            raise ConfigError(f"--seed is {self.how.seed}; it must be at least 0")


@dataclass(frozen=True)
class Named:
    """A model as the user named it, with the checkpoint that it stands for.

    path  what `solo.load` takes
    name  for messages and files, such as `runs/a@700`
    """

    path: str
    name: str


def named_model(reference: str, weights: str = TRAINED) -> Named:
    """Finds the checkpoint that a reference stands for, so that all files name the same one.

    Raises:
        ValueError: there is no such folder, run or checkpoint.
    """
    folder, which = parse_reference(reference)
    if which is None and is_complete(resolved(folder)):
        whole = resolved(folder)
        path = whole.parent.parent.with_name(f"{whole.parent.parent.name}@{whole.name}")
        name = str(path)
    elif (folder / "config.json").is_file() and not (folder / "config.yaml").is_file():
        path, name = folder, str(folder)
    elif not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a run, one of its checkpoints, or a repository")
    else:
        step = find_checkpoint(folder, "latest" if which is None else which).name
        path = folder.with_name(f"{folder.name}@{step}")
        name = str(path)
    return Named(str(path), name if weights == TRAINED else f"{name} ({weights})")


def output_folder(request: Request, model: Named) -> Path:
    """Returns the folder of predictions: `benchmarks/STEP[-WEIGHTS]` in a run, `benchmarks/NAME` here for other models.

    Raises:
        ConfigError: the folder is in a bucket, which has no files to append to.
    """
    if request.output is not None:
        if is_remote(request.output):
            raise ConfigError(
                f"--output {request.output}: predictions are appended to files, which buckets do not offer"
            )
        return Path(request.output)
    path = place(model.path)
    folder, _, step = path.name.rpartition("@")
    suffix = "" if request.weights == TRAINED else f"-{request.weights}"
    if folder and not is_remote(path) and not path.exists():
        return path.with_name(folder) / "benchmarks" / f"{step}{suffix}"
    return Path("benchmarks") / f"{path.name}{suffix}"


def benchmark_files(benchmark: Benchmark, files: Sequence[str]) -> list[str]:
    """Returns the files of a benchmark: those that `TASK=PATH` names, else what a folder holds under one of its names.

    Raises:
        ConfigError: there are none, and the message lists the names that were looked for; or a folder holds several,
            such as a TSV and a table of the same benchmark, whose items would count twice.
    """
    named = [text.partition("=") for text in files]
    own = [path for task, mark, path in named if mark and task == benchmark.name]
    own = own or [path for task, mark, path in named if mark and task == benchmark.dataset]
    if own:
        return own
    names = {name.lower() for name in (benchmark.name, benchmark.dataset, *benchmark.files)}
    folders = [text for text, (task, mark, _) in zip(files, named, strict=True) if not (mark and task.isidentifier())]
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigError(f"--files {folder}: there is no such folder")
        found = sorted(path for path in folder.iterdir() if _stem(path) in names)
        if len({_copy(path) for path in found}) > 1:
            listed = ", ".join(path.name for path in found)
            raise ConfigError(
                f"{benchmark.name}: {folder} holds several: {listed}; name one with --files {benchmark.name}=PATH"
            )
        if found:
            return [str(path) for path in found]
    raise ConfigError(
        f"{benchmark.name}: no files. Name them with --files {benchmark.name}=PATH, or with --files FOLDER, which holds"
        f" a file or folder named {', '.join(sorted(names))}" + (f"; looked in {', '.join(folders)}" if folders else "")
    )


def _copy(path: Path) -> tuple[str, str]:
    """Returns what the shards of one table have in common: their name, and its endings."""
    return _stem(path), "" if path.is_dir() else path.name.lower().partition(".")[2]


def _stem(path: Path) -> str:
    name = path.name.lower()
    if path.is_dir():
        return name
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    ending = suffix(name)
    return name.removesuffix(ending).split("-0")[0] if ending in (*SUFFIXES, ".tsv", ".csv") else name

"""The pipeline of `solo train`: prepares the data, trains every stage, evaluates, and writes the report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import jax

from solo.config import Config, ConfigError
from solo.data.store.access import contents, reading
from solo.data.store.bucket import local_folder
from solo.data.store.grown import grown
from solo.data.store.mirror import cache_note
from solo.data.store.prepare import Prepared, open_prepared, prepare
from solo.data.store.progress import Amount, Figures, Watcher
from solo.data.text import open_tokenizer
from solo.evaluation.held_out import not_held_out
from solo.evaluation.loop import RunEvaluators
from solo.evaluation.run import report_run
from solo.evaluation.tasks import TaskResult
from solo.files import is_remote, json_text, read_json_lines, write_whole
from solo.loading import initial_parameters
from solo.locks import held_by, hold
from solo.model.parameters import define
from solo.planning.memory import memory_limit
from solo.planning.memory_fit import check_fit, machine_here
from solo.planning.replication import check_replication
from solo.sharding.mesh import make_mesh
from solo.storage import Bucket
from solo.training.agreement import check_shared, compare_configs, compare_plans
from solo.training.branching import Origin, check_position, find_origin
from solo.training.bucket_run import Store, storing
from solo.training.distributed import among_others, first_then_others
from solo.training.elsewhere import check_not_elsewhere
from solo.training.heartbeat import Beating
from solo.training.ledger import Ledger
from solo.training.lineage import secure, with_lineage
from solo.training.mixture import mixture_notes
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from solo.training.run_lock import RunLock, holding
from solo.training.schedule import schedule_notes
from solo.training.stopping import Interrupted, Stop
from solo.training.trainer import Trainer
from solo.training.wandb_board import check_wandb


class Trained(NamedTuple):
    """A finished run.

    run      the folder of the run
    results  the newest result of every task; empty in all processes but the first
    notes    messages for the user, such as about data that was skipped or cut
    """

    run: RunFolder
    results: list[TaskResult]
    notes: list[str]


def train(
    config: Config, observer: Observer | None = None, began: float | None = None, stop: Stop | None = None
) -> Trained:
    """Prepares data, trains and evaluates. Resumes from the newest checkpoint if there is one.

    Args:
        config: the run, whose folder is `<folder>/<name>`.
        observer: receives the progress; default: no output.
        began: start time of this attempt in seconds since 1970, for `goodput.jsonl`; default: now.
        stop: says when to stop; default: never.

    Raises:
        ConfigError: the config does not fit its data, the devices, or the existing run in the folder; or another
            process is training that run.
        CheckpointError: a checkpoint could not be written or read.
        DataError: the data has nothing to train on, or too much of it cannot be read.
        BadStepError: a loss was not finite or spiked, and `safety` says to stop.
        Interrupted: SIGTERM was received and `stop` listens for it; the run is saved.
        OtherProcessError: process 0 failed while the other processes waited for it.
    """
    config.check_runnable()
    check_wandb(config)
    compare_configs(config)
    config = with_lineage(config)
    ledger = Ledger(began)
    with contextlib.ExitStack() as stack:
        try:
            done = _train(config, observer or Observer(), ledger, stop or Stop(), stack)
        except BaseException as error:
            with contextlib.suppress(OSError):  # such as a full disk; `error` is the one to raise
                ledger.close("interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")
            raise
        ledger.close("done")  # before `stack` uploads the files of the run
    return done


def _train(config: Config, observer: Observer, ledger: Ledger, stop: Stop, stack: contextlib.ExitStack) -> Trained:
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        observer.warn(text)  # immediately, since an attempt that fails does not return its notes

    def set_up() -> tuple[RunFolder, Prepared, Store]:
        nonlocal observer
        run = RunFolder(config.run_folder)
        if config.branch is not None and run.newest_step() is None:
            check_position(find_origin(config, run), config)  # before anything is written
        lock = _lock(run, stack, tell)
        run = RunFolder.open(config, tell)
        # Before the heartbeat, so that its end is stored, too.
        store = stack.enter_context(storing(run, tell, lock))
        if config.branch is not None and run.newest_step() is None:
            secure(config, run)
        ledger.open(run.goodput_file)
        observer = stack.enter_context(closing(Beating(run.heartbeat_file, observer)))
        prepared = _data(config, run, observer, stack, tell)
        if note := cache_note(config, [source.description for source in prepared.sources.values()]):
            tell(note)
        if config.branch is not None and run.newest_step() is None:
            _check_origin(find_origin(config, run), config, prepared)
        _keep_tokenizer(run, prepared)
        if run.newest_step() is None:
            for text in not_held_out(config, prepared):
                tell(text)
        _keep_order(run, config, prepared)
        return run, prepared, store

    def follow() -> tuple[RunFolder, Prepared, Store]:
        run = RunFolder(config.run_folder, jax.process_index())
        return run, open_prepared(config), stack.enter_context(storing(run, tell))

    run, prepared, store = first_then_others(set_up, follow)
    if not is_remote(config.folder):
        check_shared(run.path)
    observer.note("planning")
    initial = partial(initial_parameters, config.init_from) if config.init_from else None
    mesh, definition = make_mesh(config.mesh), define(config, prepared.tokenizer.vocab_size)
    evaluators = RunEvaluators(config, prepared, definition, mesh, observer, run)
    origin = partial(find_origin, config, run) if config.branch is not None else None
    trainer = Trainer(config, prepared, run, observer, mesh, initial, ledger, evaluators, store, origin, stop)
    compare_plans(prepared, trainer.plans)
    stop.check()
    scheduled = (note for plan in trainer.plans for note in schedule_notes(plan.stage, plan.num_steps))
    for text in (*mixture_notes(trainer.plans), *scheduled):
        tell(text)
    doubts = check_memory(trainer)
    for text in doubts:
        observer.warn(text)
    observer.start(trainer.num_steps)
    trainer.train()
    observer.finish()
    results = report_run(run, config, prepared, observer) if jax.process_index() == 0 else []
    ledger.spent("evaluation")
    return Trained(run, results, [*notes, *doubts, *trainer.notes, *_left_out(run, prepared, trainer)])


def _data(
    config: Config, run: RunFolder, observer: Observer, stack: contextlib.ExitStack, tell: Callable[[str], None]
) -> Prepared:
    """Opens the data, and prepares it first if there are no other processes. The stack keeps it locked.

    A resumed run ignores files that were added to or removed from its sources since they were prepared, because it must
    continue with the same records. It tells the user so.

    Raises:
        ConfigError: the data cannot be prepared, or it is not prepared and other processes would have to wait for it.
    """
    folder, alone = local_folder(config), not among_others()
    kept = grown(config) if run.newest_step() is not None else []
    if alone and not (kept and _is_prepared(config)):
        observer.note("preparing data")
        prepare(config, watcher=_Preparation(observer))
    stack.enter_context(reading(folder, contents(config), tell))
    try:
        prepared = open_prepared(config, inputs=not alone and not kept)
        for text in grown(config):
            tell(text)
        return prepared
    except ConfigError as error:
        if alone:
            raise
        raise ConfigError(
            f"{error}\nseveral processes train this run, and none of them waits for another to prepare; first run\n"
            f"  solo prepare {run.config_file}"
        ) from None


def _is_prepared(config: Config) -> bool:
    """Returns whether the data was prepared with the settings of a config, even if its inputs have changed since."""
    try:
        open_prepared(config)
    except ConfigError:
        return False
    return True


class _Preparation(Watcher):
    """Reports the progress of a preparation to an observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._figures, self._what = Figures(0), ""

    def say(self, line: str) -> None:
        """See `Watcher`."""
        self._observer.note(line)

    def begin(self, what: str, parts: int) -> None:
        """See `Watcher`."""
        self._figures, self._what = Figures(parts), what

    def advance(self, amount: Amount, parts: int = 0) -> None:
        """See `Watcher`."""
        self._figures.add(amount, parts)
        done = f"{self._figures.done:,} of {self._figures.parts:,} parts"
        self._observer.note(f"{self._what}: {done}, {self._figures}")


def _keep_tokenizer(run: RunFolder, prepared: Prepared) -> None:
    """Saves the tokenizer in the run's folder. Raises ConfigError if the run was trained with a different one."""
    if run.newest_step() is not None:
        try:
            before = open_tokenizer(run.work)
        except (OSError, ValueError):
            before = None  # the folder was copied without its tokenizer
        if before is not None and before.fingerprint != prepared.tokenizer.fingerprint:
            raise ConfigError(
                f"{run.path} was trained with another tokenizer than that of the prepared data, which has been made"
                " anew: prepare the data that the run began with, or choose another name (name=...)"
            )
    prepared.tokenizer.save(run.work)


def _check_origin(found: Origin, config: Config, prepared: Prepared) -> None:
    """Raises ConfigError if a branch changes the tokenizer, or the records of the stage that it continues."""
    assert config.branch is not None
    other = RunFolder.existing(config.branch.run, lines=False)
    if open_tokenizer(other.work).fingerprint != prepared.tokenizer.fingerprint:
        raise ConfigError(
            f"cannot branch: {other.path} was trained with another tokenizer than that of this config's data; take"
            f" that one with data.tokenizer.path={other.path}"
        )
    number = found.continued(config.stages)
    if number is None or found.progress.stage_step == config.stages[number].steps:
        return  # the stage starts its data from the beginning
    before = _stored_order(other)
    changed = [
        name
        for name in found.stage.sources
        if name in prepared.sources and before.get(name, order := prepared.sources[name].description.order) != order
    ]
    if changed:
        raise ConfigError(
            f"cannot branch: stage {found.stage.name!r} of {other.path} was trained on other records of"
            f" {', '.join(changed)}; restore them, or give the stage another name, so that its data begins anew"
        )


def _stored_order(run: RunFolder) -> dict[str, Any]:
    """Returns the stored order of the records of each source; empty for a new run or a folder copied without it."""
    try:
        found: dict[str, Any] = json.loads((run.work / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _keep_order(run: RunFolder, config: Config, prepared: Prepared) -> None:
    """Stores the order of the records of every stage's sources in the run's folder.

    Raises:
        ConfigError: the run has trained on sources whose records have changed since. Record numbers, and so the order
            of the data, would no longer match.
    """
    drawn = {name for stage in config.stages for name in stage.sources}
    found = {name: source.description.order for name, source in prepared.sources.items() if name in drawn}
    file, before = run.work / "data.json", _stored_order(run)
    changed = [name for name, order in found.items() if before.get(name, order) != order]
    if changed and run.newest_step() is not None:
        raise ConfigError(
            f"{run.path} has trained on other records of {', '.join(changed)}: the inputs changed, and the data was"
            " prepared again. Restore the inputs and prepare, or choose another name (name=...) and continue from the"
            f" weights with init_from: {run.path}"
        )
    write_whole(file, json_text({**before, **found}, indent=2) + "\n")


def _lock(run: RunFolder, stack: contextlib.ExitStack, tell: Callable[[str], None]) -> RunLock | None:
    """Holds the run's lock until the stack is closed. Raises ConfigError if another process holds it.

    Returns:
        The lock in the bucket, or None if the run is in a local folder.
    """
    if run.work.exists() and not run.work.is_dir():
        raise ConfigError(f"{run.work} is a file, where the run's folder would be: choose another name (name=...)")
    bucket = Bucket(str(run.path)) if is_remote(run.path) else None
    if bucket is not None:
        bucket.connect()
        bucket.check_writing()  # otherwise the run would fail only when it removes its first old checkpoint
    try:
        held = locked = stack.enter_context(hold(run.lock_file))
    except ConfigError as error:
        tell(str(error))
        held, locked = True, False
    if not held:
        raise ConfigError(
            f"another process trains {run.path}: {held_by(run.lock_file)}; wait until it ends, or choose another name"
            " (name=...)"
        )
    if bucket is None:
        check_not_elsewhere(run.heartbeat_file, locked, tell)
        return None
    return stack.enter_context(holding(bucket, tell))


def check_memory(trainer: Trainer) -> list[str]:
    """Returns warnings about stages that may not fit in memory and parameters that the mesh replicates.

    Raises:
        ConfigError: a stage cannot fit, or replication costs too much memory.
    """
    here = machine_here()
    limit = None if here is None else memory_limit(here)
    notes = check_replication(trainer.config, trainer.definition, trainer.mesh.size, limit)
    if here is None:
        return notes
    found = [check_fit(trainer.config, plan.stage, trainer.definition, plan.shape, here) for plan in trainer.plans]
    return [*notes, *(doubt for doubt in found if doubt)]


def _left_out(run: RunFolder, prepared: Prepared, trainer: Trainer) -> list[str]:
    """Returns notes about how much data was skipped, cut or left out, and why."""
    found = [f"{prepared.quarantined:,} records could not be prepared"] if prepared.quarantined else []
    lines, _ = read_json_lines(run.quarantine_file)
    if lines:
        found.append(f"{len(lines):,} documents or batches were skipped in training; see {run.quarantine_file}")
    for plan in trainer.plans:
        for source, chunks in plan.chunks.items():
            where = f"of {chunks.documents:,} documents of {source} in stage {plan.stage.name}"
            if chunks.split:
                found.append(f"{chunks.split:,} {where} were cut to fit a row")
            found += [f"{count:,} {where} were left out: {reason}" for reason, count in chunks.dropped.items()]
    return found

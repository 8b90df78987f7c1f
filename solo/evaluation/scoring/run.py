"""`solo evaluate --tasks` and `--text`: asks a model, and the language model it started from, and writes the scores."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import solo
from solo.config import ConfigError
from solo.evaluation.benchmarks.definitions import BENCHMARKS, benchmark
from solo.evaluation.scoring.answering import Asking, Line, Task, answer
from solo.evaluation.scoring.outcome import LANGUAGE_MODEL, Evaluated, MeasuredText, Outcome
from solo.evaluation.scoring.page import PAGE_MARK, render
from solo.evaluation.scoring.predictions import Images, Predictions, prediction_files, read_predictions
from solo.evaluation.scoring.request import Named, Request, benchmark_files, named_model, output_folder
from solo.evaluation.scoring.scores import Comparison, Score, compare, measures, score
from solo.evaluation.scoring.text_files import read_texts
from solo.evaluation.scoring.texts import differences, measure, text_settings
from solo.files import json_text, parse_json_line, write_whole
from solo.training.evaluators import TRAINED
from solo.training.observer import Observer

RESULTS = "results.json"
PAGE = "page.html"
_WAYS = {
    "shown": "",
    "removed": " without images",
    "blanked": " with blanked images",
    LANGUAGE_MODEL: " of the language model",
}
_TEXT_COUNTS = {
    "truncated": "options do not fit the longest sequence with their context, whose beginning was left out (--context)",
    "unknown": "tokens stand for characters that the vocabulary lacks, so the perplexity means little",
}
_Others = Sequence[tuple[Path, Mapping[str, Any], Sequence[Line]]]


def evaluate_benchmarks(request: Request, observer: Observer) -> Outcome:
    """Answers benchmarks, and writes predictions, `results.json` and `page.html`.

    The request is checked completely before a model is loaded.

    Args:
        request: the options of the call.
        observer: shows the progress.

    Raises:
        ConfigError: a benchmark, file or folder is wrong, or predictions were made otherwise.
        ValueError: there is no such model.
    """
    chosen = [benchmark(name) for name in dict.fromkeys(request.tasks)]
    _check_names(request)
    paths = [benchmark_files(each, request.files) for each in chosen]
    model = named_model(request.reference, request.weights)
    language_model = named_model(request.language_model) if request.language_model else None
    folder = output_folder(request, model)
    _check_folder(folder, request.force)
    others = _others(request.against)
    _check_against(request, others, observer)
    tasks = []
    for definition, where in zip(chosen, paths, strict=True):
        observer.note(f"reading {definition.name}")
        tasks.append(Evaluated(Task.read(definition, where, request.limit)))
        for reason, count in tasks[-1].task.left_out.items():
            observer.say(f"{definition.name}: {count:,} rows are left out: {reason}")
        if definition.judge_all is not None:  # it may need what is not installed
            definition.judge([(next(iter(tasks[-1].task.questions.values())), "a")])
    texts = [MeasuredText(file) for file in read_texts(request.texts, request.limit)]
    ways: list[Images] = ["shown", *request.baselines]
    outcome = Outcome(folder, model.name, tasks, texts)
    _ask(request, model, request.weights, outcome, ways, observer)
    if language_model is not None:
        _ask(request, language_model, TRAINED, outcome, ["removed"], observer, LANGUAGE_MODEL)
        for text in texts:
            text.differences = differences(text.scores["shown"], text.scores[LANGUAGE_MODEL], request.how)
    for each in tasks:
        each.measures = measures(each.scores, request.how)
        each.comparisons = _compared(each, others, request, observer)
    _write_results(outcome, request)
    if outcome.tasks:
        observer.note("writing the page")
        write_whole(outcome.folder / PAGE, render(outcome, request.page_items))
    return outcome


def _ask(
    request: Request,
    named: Named,
    weights: str,
    outcome: Outcome,
    ways: Sequence[Images],
    observer: Observer,
    called: str | None = None,
) -> None:
    """Asks one model everything, and adds its scores under the names of the ways, or as `called`."""
    observer.note(f"loading {named.name}")
    loaded = solo.load(named.path, weights=weights)
    asking = Asking.of(loaded, named.name, request.context or loaded.context, request.batch_rows)
    if called is None:
        outcome.weights = asking.weights
    jobs = []
    for each in outcome.tasks:
        for images in ways:
            name = called or images
            settings = asking.settings(each.task.benchmark, images, request.max_new_tokens)
            file = Predictions(outcome.folder / file_name(settings.task, name), settings, request.force)
            jobs.append((each, name, settings, file))
    measured = []
    for text in outcome.texts:
        name = called or "shown"
        path = outcome.folder / file_name(f"text.{text.file.name}", name)
        measured.append((text, name, Predictions(path, text_settings(asking, text.file), request.force)))
    for each, name, settings, file in jobs:
        title = f"{settings.task}{_WAYS[name]}"
        note = partial(_note, observer, f"answering {title}")
        began = time.perf_counter()
        lines = answer(asking, each.task, settings, file, request.force, note)
        each.seconds += time.perf_counter() - began
        observer.note(f"scoring {title}")
        found = score(each.task, settings, lines, request.how)
        unasked = file.finish(found.lines)
        each.scores[name] = found
        _say(observer, title, found, unasked)
        _write_results(outcome, request)  # a later benchmark may fail
    for text, name, file in measured:
        title = f"text {text.file.name}{_WAYS[name]}"
        note = partial(_note, observer, f"reading {title}")
        text.scores[name] = found_text = measure(asking, text.file, file, request.force, request.how, note)
        for what in ("truncated",) if text.file.is_choice else ("unknown",):
            if count := found_text.count(what):
                observer.say(f"{title}: {count:,} {_TEXT_COUNTS[what]}")
    del loaded, asking
    gc.collect()  # the next model needs the memory


def _note(observer: Observer, title: str, done: int, total: int) -> None:
    observer.note(f"{title}: {done:,} of {total:,}")


def _say(observer: Observer, title: str, found: Score, unasked: int) -> None:
    """Prints counts that the score does not show, such as truncated answers."""
    said = {
        "cut": "answers were truncated at max_new_tokens",
        "shrunk": "prompts do not fit the model's longest sequence, and their images were made smaller (--context)",
        "too_long": "prompts do not fit the model's longest sequence at all, and count as wrong (--context)",
        "guessed": "answers contain nothing that the convention recognises, so a random option was drawn",
    }
    for what, words in said.items():
        if count := found.count(what):
            observer.say(f"{title}: {count:,} of {len(found.lines):,} {words}")
    if unasked:
        words = "earlier answers to questions that were not asked this time are kept"
        observer.say(f"{title}: {unasked:,} {words}")


def _check_folder(folder: Path, force: bool) -> None:
    """Raises ConfigError if the folder is a file, or has files of the user under the names of results."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; results are written to a folder (--output)")
    results, page = folder / RESULTS, folder / PAGE
    known = parse_json_line(results.read_bytes()) if results.exists() else None
    foreign = [results] if results.exists() and (known is None or "weights" not in known) else []
    if page.exists() and PAGE_MARK not in page.read_text(errors="replace"):
        foreign.append(page)
    if foreign and not force:
        raise ConfigError(
            f"{foreign[0]} exists, and was not written by solo evaluate; choose another folder (--output), or --force"
            " to write over it"
        )


def _check_names(request: Request) -> None:
    known = {name for each in BENCHMARKS.values() for name in (each.name, each.dataset)}
    for text in request.files:
        task, mark, _ = text.partition("=")
        if mark and task not in known and not Path(text).exists():
            benchmark(task)


def _others(against: Sequence[str]) -> _Others:
    """Reads other predictions. Raises ConfigError if a file holds none."""
    found: list[tuple[Path, Mapping[str, Any], Sequence[Line]]] = []
    for text in against:
        place = Path(text)
        if not place.exists():
            raise ConfigError(f"--against {text}: there is no such file or folder")
        files = prediction_files(place)
        if not files:
            raise ConfigError(f"--against {text}: the folder holds no predictions (TASK.jsonl)")
        for path in files:
            settings, lines = read_predictions(path)
            if settings is None or not lines:
                raise ConfigError(f"--against {path}: it is not a file of predictions")
            found.append((path, settings, lines))
    return found


def _check_against(request: Request, others: _Others, observer: Observer) -> None:
    """Says which benchmarks are not compared. Raises ConfigError if a file or folder has none of them."""
    for text in request.against:
        here = [settings.get("task") for path, settings, _ in others if Path(text) in (path, path.parent)]
        if not set(here) & set(request.tasks):
            raise ConfigError(
                f"--against {text}: it holds predictions of {', '.join(sorted(set(map(str, here))))}, and none of"
                f" {', '.join(request.tasks)}"
            )
    known = {settings.get("task") for _, settings, _ in others}
    for task in request.tasks:
        if request.against and task not in known:
            observer.say(f"{task}: --against has no predictions for it")


def _compared(each: Evaluated, others: _Others, request: Request, observer: Observer) -> list[Comparison]:
    """Compares with the other predictions of the same benchmark and images, and says which are not compared."""
    task, files = each.task.benchmark.name, set(map(Path, request.against))
    found: list[Comparison] = []
    for path, settings, lines in others:
        if settings.get("task") != task:
            continue
        # A folder also holds answers of the language model, whose images are removed, too: the name tells.
        ways = [
            name
            for name in each.scores
            if (settings.get("images") == name if path in files else path.name == file_name(task, name))
        ]
        if not ways:
            observer.say(f"{task}: --against {path} is not compared: nothing was asked in that way now")
        found += [compare(each.task, each.scores[name], settings, lines, request.how, str(path), name) for name in ways]
    return found


def file_name(task: str, name: str) -> str:
    """Returns the name of the file of predictions of a benchmark, asked in one of the ways of `Evaluated.scores`."""
    return f"{task}.jsonl" if name == "shown" else f"{task}.{name}.jsonl"


def _write_results(outcome: Outcome, request: Request) -> None:
    """Writes what is known so far. What an earlier call has measured of the same weights stays."""
    path = outcome.folder / RESULTS
    known = _earlier(path, outcome)
    # With each entry, since those of earlier calls may have others.
    how = {"limit": request.limit, "resamples": request.how.resamples, "seed": request.how.seed}
    tasks = {each.task.benchmark.name: each.as_dict() | how for each in outcome.tasks if each.scores}
    texts = {text.file.name: text.as_dict() | how for text in outcome.texts if text.scores}
    results = {
        "model": outcome.model,
        "weights": outcome.weights,
        "version": solo.__version__,
        "tasks": _joined(known.get("tasks", {}), tasks),
        "texts": _joined(known.get("texts", {}), texts),
    }
    write_whole(path, json_text(results, indent=1) + "\n")


def _joined(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns results by task or file. A way of asking that an earlier call measured stays if the scores agree.

    They differ if, for example, the earlier call asked other questions.
    """
    found = {**earlier}
    for name, entry in now.items():
        before = earlier.get(name, {})
        common = before.get("scores", {}).keys() & entry["scores"].keys()
        # As JSON, in which both are written.
        if common and all(json_text(before["scores"][way]) == json_text(entry["scores"][way]) for way in common):
            kept = {
                key: before.get(key, {}) | entry[key] for key in ("scores", "measures", "differences") if key in entry
            }
            entry = {**entry, **kept}
        found[name] = entry
    return found


def _earlier(path: Path, outcome: Outcome) -> Mapping[str, Any]:
    """Returns the results in a file, if they are of these weights. The same path may be written in several ways."""
    found = parse_json_line(path.read_bytes()) if path.exists() else None
    return found if found is not None and found.get("weights") == outcome.weights else {}

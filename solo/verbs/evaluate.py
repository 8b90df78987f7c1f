"""`solo evaluate`: evaluate a run again and rewrite its report, or score a model on benchmarks and on text."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "evaluate a checkpoint of a run again, or score a model on benchmarks and on text"
DESCRIPTION = (
    "Without --tasks and --text: runs all evaluators of the run's config on a checkpoint, by default the newest, adds"
    " their lines to metrics.jsonl, and rewrites report.html. With --tasks: answers benchmarks from your own"
    " files, and writes all predictions, results.json and page.html. With --text: measures the model on text. If it is"
    " stopped, the same command continues with the missing answers."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo evaluate`."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run, or a checkpoint: RUN@STEP, RUN@best; with --tasks or --text also a repository",
    )
    parser.add_argument(
        "--weights", metavar="NAME", default="trained", help="the name of an average; default: the trained weights"
    )
    asked = parser.add_argument_group("benchmarks")
    asked.add_argument("--tasks", metavar="A,B", help="names of benchmarks; an unknown name lists all")
    asked.add_argument(
        "--files",
        action="append",
        metavar="FOLDER|TASK=PATH",
        help="a folder with a file or folder named after each benchmark, or the files of one; repeatable",
    )
    asked.add_argument(
        "--output",
        metavar="FOLDER",
        help="folder for all results; default: RUN/benchmarks/STEP, or benchmarks/NAME if the model is not a run",
    )
    asked.add_argument("--limit", type=int, metavar="N", help="only the first N items of each benchmark or text file")
    asked.add_argument(
        "--batch-rows", type=int, metavar="N", help="maximum number of prompts that are answered together; default 32"
    )
    asked.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="maximum length of an answer; default: the benchmark's"
    )
    asked.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="the longest sequence, in patches and text tokens; default: as in training, or as the repository says",
    )
    asked.add_argument(
        "--force", action="store_true", help="overwrite predictions of another model, other settings or other prompts"
    )
    asked.add_argument(
        "--page-items",
        type=int,
        metavar="N",
        help="maximum number of questions of a benchmark on the page; default 2000",
    )
    asked.add_argument(
        "--text",
        action="append",
        nargs="+",
        metavar="FILE",
        help="perplexity of texts, and multiple choice by likelihood: .jsonl with {text} or {context, options, answer}"
        " on each line, or any text file",
    )
    further = parser.add_argument_group("baselines, comparisons and intervals")
    further.add_argument(
        "--without-images", action="store_true", help="also ask without the images, for MMStar's multi-modal gain"
    )
    further.add_argument(
        "--language-model",
        metavar="MODEL",
        help="the language model that the model started from, asked without images (MMStar's leakage), and measured on"
        " --text for comparison",
    )
    further.add_argument("--blank-images", action="store_true", help="also ask with uniform grey images")
    further.add_argument(
        "--against",
        action="append",
        metavar="PREDICTIONS",
        help="a file or folder of predictions to compare with; repeatable",
    )
    further.add_argument("--resamples", type=int, metavar="N", help="number of bootstrap resamples; default 2000")
    further.add_argument("--seed", type=int, metavar="N", help="seed of the bootstrap; default 0")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates a checkpoint, or scores a model."""
    if arguments.tasks is not None or arguments.text is not None:
        return _score(arguments)
    if given := _given(arguments, _FOR_BOTH + _FOR_TASKS):
        raise ValueError(f"{given} goes with --tasks or --text")
    from rich.console import Console

    from solo.evaluation.results import print_results
    from solo.evaluation.run import evaluate_folder
    from solo.training.observer import ProgressBar
    from solo.training.reference import parse_reference

    console = Console()
    observer = ProgressBar(console)
    try:
        results = evaluate_folder(arguments.run, observer, arguments.weights)
    finally:
        observer.finish()
    print_results(results, console)
    console.print(f"report: {parse_reference(arguments.run).folder}/report.html", soft_wrap=True, markup=False)
    return 0


def _score(arguments: argparse.Namespace) -> int:
    if arguments.tasks is None and (given := _given(arguments, _FOR_TASKS)):
        raise ValueError(f"{given} goes with --tasks")
    from rich.console import Console

    from solo.evaluation.scoring.request import Request
    from solo.evaluation.scoring.run import PAGE, RESULTS, evaluate_benchmarks
    from solo.evaluation.scoring.scores import Resampling
    from solo.evaluation.scoring.show import print_scores, print_texts
    from solo.training.observer import ProgressBar

    asks_without = arguments.without_images or arguments.language_model is not None
    request = Request(
        reference=arguments.run,
        weights=arguments.weights,
        tasks=tuple(filter(None, (name.strip() for name in (arguments.tasks or "").split(",")))),
        files=tuple(arguments.files or ()),
        output=arguments.output,
        limit=arguments.limit,
        max_new_tokens=arguments.max_new_tokens,
        context=arguments.context,
        baselines=(*(("removed",) if asks_without else ()), *(("blanked",) if arguments.blank_images else ())),
        language_model=arguments.language_model,
        against=tuple(arguments.against or ()),
        texts=tuple(path for paths in arguments.text or () for path in paths),
        how=Resampling(**_only_given(arguments, "resamples", "seed")),
        force=arguments.force,
        **_only_given(arguments, "batch_rows", "page_items"),
    )
    console = Console()
    observer = ProgressBar(console)
    try:
        outcome = evaluate_benchmarks(request, observer)
    finally:
        observer.finish()
    print_scores(outcome.tasks, console)
    print_texts(outcome.texts, console)
    for name in (RESULTS, PAGE) if outcome.tasks else (RESULTS,):
        console.print(f"{name.partition('.')[0]}: {outcome.folder / name}", soft_wrap=True, markup=False)
    return 0


_FOR_TASKS = ("files", "max_new_tokens", "page_items", "without_images", "blank_images", "against")
_FOR_BOTH = ("output", "limit", "batch_rows", "context", "force", "language_model", "resamples", "seed")


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> str | None:
    """Returns the first of these options that was given, or None."""
    # 0 equals False, and is a number that somebody gave.
    given = [name for name in names if not any(getattr(arguments, name) is unset for unset in (None, False))]
    return f"--{given[0].replace('_', '-')}" if given else None


def _only_given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns the values of those of these options that were given; the others keep their defaults."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}

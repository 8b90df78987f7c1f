"""The `solo fit` command: its options and output. Slow imports are deferred until it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from solo.outputs import Output, add_force, output

HELP = "fit a scaling law to a table of runs"
DESCRIPTION = (
    "Fits a scaling law to a table of runs (CSV, JSON lines, parquet) or to a sweep's folder, with intervals, a"
    " hold-out of the largest budget, and predictions. `solo fit simulate SPEC.yaml` simulates a design before you"
    " pay for it. Exit status: 0 done, 1 a law was refused because the runs do not determine it, 2 invalid table or"
    " options."
)
_LARGE = 5000  # runs
_LAWS = ("chinchilla", "shared", "power", "repeated", "sparse", "tokens", "transfer", "share", "schedule")
_SETTINGS = ("rate", "batch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `solo fit`."""
    add = parser.add_argument
    add("results", metavar="RESULTS", help="a table, a sweep's folder, or the word simulate")
    add("spec", metavar="SPEC", nargs="?", help="with simulate: a YAML file with a design")
    add("--n", default="n_active", metavar="COLUMN", help="column of active parameters; default: n_active")
    add("--d", default="tokens", metavar="COLUMN", help="column of training tokens; default: tokens")
    add(
        "--loss",
        action="append",
        metavar="COLUMN",
        help="column of a loss; one law is fitted for each; repeatable; default: all losses.*",
    )
    add(
        "--flops",
        default="flops",
        metavar="COLUMN",
        help="column of FLOPs; default: flops if it exists, else 6 N D is used",
    )
    add(
        "--unique",
        default="unique_tokens",
        metavar="COLUMN",
        help="column of distinct training tokens, for --law repeated",
    )
    add("--id", default="id", metavar="COLUMN", help="column of run names; default: id")
    add(
        "--stable-run",
        default="stable_run",
        metavar="COLUMN",
        help="column of the stable run that a run was branched from; default: stable_run",
    )
    add("--trunk", help=argparse.SUPPRESS)
    add(
        "--status",
        default="status",
        metavar="COLUMN",
        help="column of the status; only rows with `done` are fitted; default: status",
    )
    add(
        "--tokenizer",
        default="tokenizer",
        metavar="COLUMN",
        help="column of the tokenizer, which must be the same in all rows; default: tokenizer",
    )
    add(
        "--evaluation-set",
        default="evaluation_set",
        metavar="COLUMN",
        help="column of the evaluation set, which must be the same in all rows; default: evaluation_set",
    )
    add("--by", metavar="COLUMN", help="fit one law for each value of a column, such as a mixture or a design")
    add(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only use rows that satisfy this; operators: = != < <= > >=",
    )
    add(
        "--trust-units",
        action="store_true",
        help="do not check whether sizes are given in millions, billions or PFLOPs",
    )
    add("--law", choices=_LAWS + _SETTINGS, default="chinchilla", help="default chinchilla")
    add("--objective", choices=("huber", "squares"), default="huber", help="default huber, on log losses")
    add(
        "--overestimates",
        type=float,
        default=1.0,
        metavar="W",
        help="weight of runs below the law, such as 10: badly tuned runs then pull the law up less; shown beside the"
        " symmetric fit",
    )
    add("--joint", action="store_true", help="with --by: laws that share coefficients over all groups, and their test")
    add(
        "--share-across",
        metavar="WHAT",
        choices=("all", "exponents-and-floor", "exponents", "floor", "nothing"),
        help="with --joint: what the groups share, whatever the test says",
    )
    add("--reference", metavar="GROUP", help="with --joint: the group to compare with; default: the first")
    add(
        "--compare-at", type=float, metavar="FLOPS", help="with --joint: compute of the reference; default: its largest"
    )
    add(
        "--weights",
        metavar="LOSS=W,...",
        help="find the share of image tokens with the lowest weighted loss; needs --predict, and --law share, transfer"
        " or tokens",
    )
    add("--total", default="n_total", metavar="COLUMN", help="column of total parameters, for --law sparse")
    add("--images", default="visual_tokens", metavar="COLUMN", help="column of image tokens, for laws of mixtures")
    add("--decay", default="decay", metavar="COLUMN", help="column of the decayed share of a run, for --law schedule")
    add("--setting", metavar="COLUMN", help="column of the setting, for --law rate and --law batch")
    add("--drop-highest", type=int, default=0, metavar="K", help="leave out the K highest losses, and show both fits")
    add(
        "--hold-out",
        type=float,
        metavar="FLOPS",
        help="hold out runs with at least this compute; default: the largest budget",
    )
    add(
        "--predict",
        action="append",
        default=[],
        metavar="COMPUTE",
        help="FLOPs, as in 1e24, or a machine and hours, as in v5p-128:72; may be repeated",
    )
    add("--mfu", type=float, default=0.4, help="assumed MFU of a machine in --predict; default 0.4")
    add("--config", metavar="FILE", help="write the predicted run as a config; only for a sweep's folder")
    add("--predict-unique", type=float, metavar="TOKENS", help="number of distinct tokens (--law repeated)")
    add(
        "--at",
        action="append",
        default=[],
        metavar="NAME=X",
        help="another variable of the law in predictions: ratio, share, decay; default: as in the runs",
    )
    add("--serve", type=float, metavar="TOKENS", help="also predict the run that is cheapest if it serves this many")
    add("--score", metavar="COLUMN", help="scores of a task, fitted as a function of the loss")
    add("--chance", type=float, default=0.0, metavar="X", help="score of a model that guesses, default 0")
    add("--score-is-error", action="store_true", help="lower scores are better")
    add("--draws", type=int, default=1000, metavar="N", help="bootstrap resamplings, default 1000")
    add("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap, default 0")
    add("--json", metavar="FILE", help="write all results as JSON")
    add("--report", metavar="FILE", help="write an HTML report")
    add("--latex", metavar="FILE.tex", help="write the tables of coefficients, tests and predictions as LaTeX")
    add("--figures", metavar="FOLDER", help="write every figure of the report as SVG and PDF")
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs `solo fit` with parsed options. Returns the exit status."""
    if arguments.trunk is not None:
        raise ValueError("--trunk is named --stable-run now")
    from solo.scaling.errors import os_errors_explained

    with os_errors_explained():
        return _simulate(arguments) if arguments.results == "simulate" else _fit(arguments)


def _fit(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from rich.console import Console
    from rich.markup import escape

    from solo.scaling.laws.table import load_table
    from solo.scaling.progress import Progress
    from solo.scaling.report.chapters import document
    from solo.scaling.report.sections import describe_set_aside, describe_table
    from solo.scaling.report.terminal import print_sections
    from solo.scaling.study import study

    config, plain, report, latex = (
        output(arguments, option) for option in ("--config", "--json", "--report", "--latex")
    )
    console = Console(highlight=False, soft_wrap=True)
    undecayed = arguments.law == "schedule"
    with Progress(1, lines=False) as progress:
        progress.note(f"reading {arguments.results}")
        table = load_table(arguments.results, _columns(arguments), arguments.where, arguments.trust_units, undecayed)
    spec = _spec(arguments, table.columns)
    console.print(describe_table(table).lead, markup=False)
    print_sections([describe_set_aside(table.set_aside)], console)
    chapters = []
    with Progress(spec.chapters(table), lines=len(table.rows) > _LARGE) as progress:
        for chapter in study(table, spec, progress.note):
            progress.advance()
            with progress.pause():
                console.print(f"\n[bold]{escape(chapter.title)}[/bold]  ", end="")
                console.print(chapter.formula, markup=False)
                print_sections(chapter.sections, console)
            chapters.append(chapter)
    if config:
        _write_config(arguments, table, [each.result for each in chapters if each.result], config, console)
    command = shlex.join(["solo", *arguments.words])
    if plain:
        plain.write_json(document(table, chapters, command))
        console.print(f"JSON    {plain.path}")
    if latex:
        from solo.scaling.report.latex import tables

        latex.write_text(tables(chapters))
        console.print(f"LaTeX   {latex.path}")
    if report or arguments.figures:
        with Progress(1, lines=False) as progress:
            progress.note("drawing")
            _draw(arguments, table, chapters, command, report)
        for what, path in (("report", report and report.path), ("figures", arguments.figures)):
            if path:
                console.print(f"{what:7} {path}")
    return 1 if any(chapter.refused for chapter in chapters) else 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises ValueError if options have impossible values, or do not go together."""
    if arguments.spec:
        raise ValueError(f"unexpected {arguments.spec!r}: fit takes one table or folder, or `simulate SPEC.yaml`")
    if arguments.drop_highest < 0 or arguments.draws < 100 or arguments.seed < 0:
        raise ValueError("--drop-highest and --seed must be at least 0, and --draws at least 100")
    for option, what in (
        ("hold_out", "FLOPs"),
        ("compare_at", "FLOPs"),
        ("predict_unique", "a number of distinct tokens"),
        ("serve", "a number of tokens"),
        ("overestimates", "a weight"),
    ):
        value = getattr(arguments, option)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{option.replace('_', '-')} {value:g}: expected {what}, above 0")
    if not 0 <= arguments.chance <= 100:
        raise ValueError(f"--chance {arguments.chance:g}: expected a score, from 0 to 1 or in percent")
    if arguments.joint and not arguments.by:
        raise ValueError("--joint needs --by COLUMN, whose values are the groups")
    if not arguments.joint and (arguments.share_across or arguments.reference or arguments.compare_at):
        raise ValueError("--share-across, --reference and --compare-at need --joint")
    if (arguments.setting is None) == (arguments.law in _SETTINGS):
        raise ValueError("--law rate and --law batch need --setting COLUMN, and other laws do not take it")
    if arguments.law in _SETTINGS and (arguments.joint or arguments.predict or arguments.weights):
        raise ValueError(f"--law {arguments.law} does not go with --joint, --predict or --weights")
    if arguments.serve and not arguments.predict:
        raise ValueError("--serve needs --predict: the loss of that optimum is what the served model must reach")
    if arguments.weights and (not arguments.predict or arguments.by):
        raise ValueError("--weights needs --predict, and does not go with --by")


def _spec(arguments: argparse.Namespace, columns: Any) -> Any:
    from solo.scaling.laws.catalogue import LAWS
    from solo.scaling.laws.compute import parse_compute
    from solo.scaling.laws.problem import Objective
    from solo.scaling.laws.result import FitSpec
    from solo.scaling.study import StudySpec, parse_numbers

    at = parse_numbers("--at", arguments.at)
    if arguments.predict_unique is not None:
        at["unique"] = arguments.predict_unique
    weights = parse_numbers("--weights", arguments.weights.split(",") if arguments.weights else [])
    fit = FitSpec(
        law=LAWS.get(arguments.law, LAWS["chinchilla"]),
        objective=Objective(arguments.objective, arguments.overestimates),
        draws=arguments.draws,
        seed=arguments.seed,
        predict=tuple(parse_compute(text, arguments.mfu) for text in arguments.predict),
        at=at,
        served=arguments.serve,
        hold_out=arguments.hold_out,
        drop_highest=arguments.drop_highest,
        score=columns.score,
        chance=arguments.chance,
        score_is_error=arguments.score_is_error,
    )
    return StudySpec(
        fit=fit,
        setting=arguments.law if arguments.law in _SETTINGS else None,
        joint=arguments.joint,
        share_across=arguments.share_across,
        reference=arguments.reference,
        compare_at=arguments.compare_at,
        weights={columns.loss(name): weight for name, weight in weights.items()},
    )


def _draw(arguments: argparse.Namespace, table: Any, chapters: list[Any], command: str, report: Output | None) -> None:
    """Writes the report, the figures, or both."""
    from contextlib import nullcontext

    from solo.drawing import exported
    from solo.scaling.report.page import render

    written = f"solo {arguments.verb_name} --figures"

    def save(name: str, content: bytes) -> None:
        Output(Path(arguments.figures) / name, written, arguments.force).write_bytes(content)

    if arguments.figures:
        Path(arguments.figures).mkdir(parents=True, exist_ok=True)
    with exported(save, f"written by {written}") if arguments.figures else nullcontext():
        page = render(table, chapters, command)
    if report:
        report.write_text(page)


def _write_config(arguments: argparse.Namespace, table: Any, results: list[Any], to: Output, console: Any) -> None:
    """Writes the config of the predicted run. There must be one law and one compute."""
    folder = Path(arguments.results)
    if not (folder / "plan.json").is_file():
        raise ValueError(f"--config needs a sweep's folder, whose ladder gives the size; {folder} is not one")
    if len(arguments.predict) != 1 or len(results) != 1:
        raise ValueError("--config writes one run: give one --predict, one --loss, and --where instead of --by")
    found = results[0].analysis.predictions[0] if results[0].analysis else None
    if found is None or found.n is None or found.d is None:
        console.print("no config: there is no law, or one that does not separate parameters and tokens")
        return
    from solo.config import dump_config
    from solo.scaling.sweep.folder import SweepFolder
    from solo.scaling.sweep.predicted import predicted_config

    config = predicted_config(SweepFolder(folder), table.rows, found.n, found.d)
    to.write_text(dump_config(config))
    model, stage = config.model, config.stages[0]
    console.print(f"config  {to.path}: width {model.width}, {model.layers} layers, {stage.steps:,} steps")


def _simulate(arguments: argparse.Namespace) -> int:
    if not arguments.spec:
        raise ValueError("simulate needs a YAML file with a design; docs/scaling.md shows one")
    from dataclasses import asdict

    from rich.console import Console

    from solo.scaling.laws.fit import FitRefusedError
    from solo.scaling.laws.simulate import load_spec, simulate
    from solo.scaling.report.sections import describe_simulation
    from solo.scaling.report.terminal import print_sections

    plain = output(arguments, "--json")
    spec = load_spec(arguments.spec)
    try:
        found = simulate(spec)
    except FitRefusedError as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1
    print_sections([describe_simulation(spec, found)], Console(highlight=False, soft_wrap=True))
    if plain:
        command = shlex.join(["solo", *arguments.words])
        plain.write_json({"command": command, "spec": spec.model_dump(mode="json"), **asdict(found)})
    return 0


def _columns(arguments: argparse.Namespace) -> Any:
    from dataclasses import fields

    from solo.scaling.laws.table import Columns

    named = {field.name: getattr(arguments, field.name) for field in fields(Columns) if field.name != "losses"}
    return Columns(losses=tuple(arguments.loss or ()), **named)

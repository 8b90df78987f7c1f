"""`solo fit`: its options, and what it prints. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from solo.files import write_whole

DESCRIPTION = (
    "Fits a scaling law to a table of runs (CSV, JSON lines, parquet) or to a sweep's folder, with intervals, a"
    " hold-out of the largest budget, and predictions. `solo fit simulate SPEC.yaml` plays a design through before it"
    " is paid for. Exit status: 0 done, 1 a law was refused because the runs do not determine it, 2 wrong table or use."
)
_LAWS = ("chinchilla", "shared", "power", "repeated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `solo fit`."""
    add = parser.add_argument
    add("results", metavar="RESULTS", help="a table, a sweep's folder, or the word simulate")
    add("spec", metavar="SPEC", nargs="?", help="with simulate: a YAML file with a design")
    add("--n", default="n_active", metavar="COLUMN", help="active parameters, default n_active")
    add("--d", default="tokens", metavar="COLUMN", help="tokens seen, default tokens")
    add("--loss", action="append", metavar="COLUMN", help="may be repeated, one law each; default all losses.*")
    add("--flops", default="flops", metavar="COLUMN", help="default flops where it exists, else 6 N D")
    add("--unique", default="unique_tokens", metavar="COLUMN", help="different tokens seen, for --law repeated")
    add("--id", default="id", metavar="COLUMN", help="names of the runs, default id")
    add("--trunk", default="trunk", metavar="COLUMN", help="run that a run was branched from, default trunk")
    add("--status", default="status", metavar="COLUMN", help="only rows with done are fitted, default status")
    add("--tokenizer", default="tokenizer", metavar="COLUMN", help="must be one for all, default tokenizer")
    add("--evaluation-set", default="evaluation_set", metavar="COLUMN", help="must be one, default evaluation_set")
    add("--by", metavar="COLUMN", help="one law for each of its values: mixtures, designs")
    add("--where", action="append", default=[], metavar="COLUMN=VALUE", help="rows to use; also != < <= > >=")
    add("--law", choices=_LAWS, default="chinchilla", help="default chinchilla")
    add("--objective", choices=("huber", "squares"), default="huber", help="default huber, on log losses")
    add("--drop-highest", type=int, default=0, metavar="K", help="leave out the K highest losses, and show both fits")
    add("--hold-out", type=float, metavar="FLOPS", help="hold out from here on; default the largest budget")
    add(
        "--predict",
        action="append",
        default=[],
        metavar="COMPUTE",
        help="FLOPs, as in 1e24, or a machine and hours, as in v5p-128:72; may be repeated",
    )
    add("--mfu", type=float, default=0.4, help="share of a machine's peak that --predict counts on, default 0.4")
    add("--config", metavar="FILE", help="write the run that --predict finds as a config; for a sweep's folder")
    add("--predict-unique", type=float, metavar="TOKENS", help="different tokens that there are (--law repeated)")
    add("--score", metavar="COLUMN", help="a task's scores, to be fitted as a function of the loss")
    add("--chance", type=float, default=0.0, metavar="X", help="score of a model that guesses, default 0")
    add("--score-is-error", action="store_true", help="a lower score is better")
    add("--draws", type=int, default=1000, metavar="N", help="of the bootstrap, default 1000")
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap, default 0")
    add("--json", metavar="FILE", help="write everything as JSON")
    add("--report", metavar="FILE", help="write an HTML report")


def run(arguments: argparse.Namespace) -> int:
    """Run `solo fit` with parsed options. Returns the exit status."""
    if arguments.results == "simulate":
        return _simulate(arguments)
    if arguments.spec:
        raise ValueError(f"unexpected {arguments.spec!r}: fit takes one table or folder, or `simulate SPEC.yaml`")
    if arguments.drop_highest < 0 or arguments.draws < 100:
        raise ValueError("--drop-highest is at least 0 and --draws at least 100")
    from rich.console import Console

    from solo.scaling.laws.compute import parse_compute
    from solo.scaling.laws.law import LAWS
    from solo.scaling.laws.result import Question, study
    from solo.scaling.laws.table import load_table
    from solo.scaling.report.terminal import print_study, print_table

    table = load_table(arguments.results, _columns(arguments), arguments.where)
    question = Question(
        law=LAWS[arguments.law],
        objective=arguments.objective,
        draws=arguments.draws,
        seed=arguments.seed,
        predict=tuple(parse_compute(text, arguments.mfu) for text in arguments.predict),
        unique=arguments.predict_unique,
        hold_out=arguments.hold_out,
        drop_highest=arguments.drop_highest,
        score=table.columns.score,
        chance=arguments.chance,
        score_is_error=arguments.score_is_error,
    )
    console = Console(highlight=False, soft_wrap=True)
    print_table(table, console)
    studies = []
    for loss in table.columns.losses:
        for group, part in table.groups():
            runs, aside = part.runs(loss)
            studies.append(study(loss, runs, question, group, aside))
            print_study(studies[-1], console)
    if arguments.config:
        _write_config(arguments, table, studies, console)
    command = _command(arguments)
    if arguments.json:
        write_whole(Path(arguments.json), json.dumps(_plain(table, studies, command), indent=1) + "\n")
        console.print(f"JSON    {arguments.json}")
    if arguments.report:
        from solo.scaling.report.page import render

        write_whole(Path(arguments.report), render(table, studies, command))
        console.print(f"report  {arguments.report}")
    return 1 if any(found.refused for found in studies) else 0


def _write_config(arguments: argparse.Namespace, table: Any, studies: list[Any], console: Any) -> None:
    """The run of the one prediction of the one law."""
    folder = Path(arguments.results)
    if not (folder / "plan.json").is_file():
        raise ValueError(f"--config needs a sweep's folder, which knows how its sizes are made; {folder} is none")
    if len(arguments.predict) != 1 or len(studies) != 1:
        raise ValueError("--config writes one run: give one --predict, one --loss, and --where in place of --by")
    found = studies[0].answer.predictions[0] if studies[0].answer else None
    if found is None or found.n is None or found.d is None:
        console.print("no config: there is no law, or one that does not tell size and tokens apart")
        return
    from solo.config import dump_config
    from solo.scaling.sweep.folder import SweepFolder
    from solo.scaling.sweep.predicted import predicted_config

    config = predicted_config(SweepFolder(folder), table.rows, found.n, found.d)
    write_whole(Path(arguments.config), dump_config(config))
    model, stage = config.model, config.stages[0]
    console.print(f"config  {arguments.config}: width {model.width}, {model.layers} layers, {stage.steps:,} steps")


def _simulate(arguments: argparse.Namespace) -> int:
    if not arguments.spec:
        raise ValueError("simulate needs a YAML file with a design; docs/scaling.md shows one")
    from dataclasses import asdict

    from rich.console import Console

    from solo.scaling.laws.fit import FitRefusedError
    from solo.scaling.laws.simulate import load_spec, simulate
    from solo.scaling.report.terminal import print_simulated

    spec = load_spec(arguments.spec)
    try:
        found = simulate(spec)
    except FitRefusedError as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 1
    print_simulated(spec, found, Console(highlight=False, soft_wrap=True))
    if arguments.json:
        plain = {"command": _command(arguments), "spec": spec.model_dump(mode="json"), **asdict(found)}
        write_whole(Path(arguments.json), json.dumps(plain, indent=1) + "\n")
    return 0


def _columns(arguments: argparse.Namespace) -> Any:
    from solo.scaling.laws.table import Columns

    return Columns(
        losses=tuple(arguments.loss or ()),
        **{
            name: getattr(arguments, name)
            for name in ("n", "d", "flops", "unique", "id", "trunk", "status", "tokenizer", "evaluation_set")
        },
        score=arguments.score,
        by=arguments.by,
    )


def _plain(table: Any, studies: list[Any], command: str) -> dict[str, Any]:
    """The JSON. With one law, what is said of it stands at the top as well, where a script looks first."""
    import solo
    from solo.scaling.laws.result import as_json

    fits = [_finite(as_json(found)) for found in studies]
    return {
        **(fits[0] if len(fits) == 1 else {}),
        "command": command,
        "version": solo.__version__,
        "data": {
            "path": table.path,
            "sha256": table.sha256,
            "rows": table.read,
            "chosen": len(table.rows) + len(table.set_aside),
            "set_aside": [{"id": item.id, "reason": item.reason} for item in table.set_aside],
        },
        "fits": fits,
    }


def _finite(node: Any) -> Any:
    """NaN and infinity as null: JSON has neither."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not abs(node) < float("inf") else node


def _command(arguments: argparse.Namespace) -> str:
    return shlex.join(["solo", *arguments.words])

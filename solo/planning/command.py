"""`solo plan`: its arguments, and its actions."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.files import unwritable
from solo.outputs import Output, add_force, output, refuse_override
from solo.verbs.overrides import OVERRIDES

if TYPE_CHECKING:
    from solo.config import Config
    from solo.machines import Machine
    from solo.planning.evaluation import EvaluatorForecast
    from solo.planning.forecast import Forecast

HELP = "predict the memory, time and cost of a run on a machine"
DESCRIPTION = (
    "With --count: prints the model's parameters by component, and its tensors in every published layout. With --on:"
    " compiles the step of `solo train` for a machine that need not be present, and prints whether it fits, how fast it"
    " is, and what the recipe costs. TPUs need pip install 'solo-vlm[tpu]', NVIDIA GPUs 'solo-vlm[cuda]'."
    " Exit status: 0 it fits, 2 it does not, or a usage error."
)
DOES_NOT_FIT = 2


def add_arguments(parser: Any) -> None:
    """Declare the arguments of `solo plan`."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/plans/solo_7b_8k.yaml")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=OVERRIDES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--count", action="store_true", help="count tensors and parameters; compile nothing")
    what.add_argument("--on", metavar="TYPE", help="machine: v5p-128, v5e-256, v6e-16, h100-64, cpu-8, ...")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="number of slices of TYPE; default 1")
    parser.add_argument(
        "--stage", metavar="NAME", help="only plan this stage; default: all stages; equal stages are compiled once"
    )
    parser.add_argument("--search", type=Path, metavar="FILE", help="search for the best setting; write its overrides")
    parser.add_argument(
        "--tries", type=int, default=6, metavar="N", help="number of settings that a search compiles; default 6"
    )
    parser.add_argument(
        "--search-options",
        type=Path,
        metavar="FILE",
        help="search for the best compiler options of the setting, or of the one that --search finds; write overrides",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="TPUs: compile six times as fast, with memory accurate to 7%% and no step time",
    )
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="write the compiled programs to FOLDER")
    parser.add_argument("--rows-per-device", type=int, metavar="N", help="replaces batch_rows and accumulate")
    parser.add_argument(
        "--document-slots",
        type=int,
        metavar="N",
        help="assumed length of documents; default: as in the data, or a whole row",
    )
    parser.add_argument("--usd-per-chip-hour", type=float, metavar="X", help="replaces the list price")
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run `solo plan`. Returns the exit status."""
    _check(arguments)
    if arguments.count:
        return _count(arguments)
    from solo.config import load_config
    from solo.machines import parse_machine

    where = parse_machine(arguments.on, arguments.slices)
    best_setting, figures = output(arguments, "--search"), output(arguments, "--json")
    best_options = output(arguments, "--search-options")
    prepare_process(where)
    from rich.console import Console

    from solo.planning.evaluation import forecast_evaluators
    from solo.planning.forecast import as_json, forecast_recipe
    from solo.planning.program import QUICK
    from solo.planning.show import show_evaluation, show_forecast, show_recipe

    console, progress = Console(), Console(stderr=True)
    config, changes = settle(load_config(arguments.config, arguments.overrides), where, arguments.rows_per_device)
    for change in changes:
        console.print(f"planned with {change}: use it in training too", highlight=False)
    programs = [_program(arguments, config, stage.name, where) for stage in config.stages] if arguments.hlo else []
    for program in programs:
        program.check()
    known: tuple[Forecast, ...] = ()
    options = QUICK if arguments.quick and where.chip.is_tpu else None
    if best_setting:
        best, chosen = _search(arguments, config, where, best_setting, console)
        config, changes, known = best.config, [*changes, *chosen], (best,)
    if best_options:
        best, chosen = _search_options(arguments, config, where, known, best_options, console)
        config, changes, known = best.config, [*changes, *chosen], (best,)
    with progress.status("") as status:
        found = forecast_recipe(config, where, arguments.stage, status.update, known, arguments.document_slots, options)
        evaluation = forecast_evaluators(config, where, found, options, status.update)
    for each in found:
        show_forecast(each, console)
    show_evaluation(evaluation, console)
    recipe = {**as_json(config, where, found, arguments.usd_per_chip_hour, evaluation), "overrides": changes}
    show_recipe(recipe, console)
    if figures:
        figures.write_json(recipe)
    if arguments.hlo:
        for each in found:
            if each.program:
                _program(arguments, config, each.stage.name, where).write_text(each.program.text)
    return max(_refuse(found), _refuse_evaluation(evaluation))


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for invalid arguments and for files that cannot be written.

    Compiling takes minutes, so this is checked first.
    """
    from solo.config import ConfigError

    if arguments.count:
        for flag, value, default in (
            ("--slices", arguments.slices, 1),
            *((f"--{name}", getattr(arguments, name), None) for name in ("stage", "search", "hlo")),
            ("--search-options", arguments.search_options, None),
            ("--rows-per-device", arguments.rows_per_device, None),
            ("--document-slots", arguments.document_slots, None),
            ("--usd-per-chip-hour", arguments.usd_per_chip_hour, None),
            ("--quick", arguments.quick, False),
        ):
            if value != default:
                raise ConfigError(f"{flag} goes with --on, not with --count, which compiles nothing")
    if arguments.quick and arguments.search_options is not None:
        raise ConfigError("--search-options compares step times, which --quick does not give")
    for flag, value in (("--tries", arguments.tries), ("--document-slots", arguments.document_slots)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: expected at least 1")
    price = arguments.usd_per_chip_hour
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"--usd-per-chip-hour {price:g}: expected a price of at least 0")
    _refuse_one_file_for_two(arguments)
    if arguments.hlo is not None:
        refuse_override("--hlo", arguments.hlo)
    if arguments.hlo is not None and (reason := unwritable(arguments.hlo, folder=True)):
        raise ConfigError(f"--hlo {arguments.hlo}: cannot be written: {reason}")


def _refuse_one_file_for_two(arguments: argparse.Namespace) -> None:
    """Raises ConfigError if two options name the same file."""
    from solo.config import ConfigError

    seen: dict[Path, str] = {}
    for name in ("json", "search", "search_options"):
        path, flag = getattr(arguments, name), f"--{name.replace('_', '-')}"
        if path is None or (path.exists() and not path.is_file()):  # such as /dev/stdout
            continue
        if other := seen.get(path.resolve()):
            raise ConfigError(f"{other} and {flag} both write {path}; name two files")
        seen[path.resolve()] = flag


def _count(arguments: argparse.Namespace) -> int:
    """Print the model's parameters by component, and its tensors in every published layout."""
    from rich.console import Console
    from rich.table import Table

    from solo.config import load_config
    from solo.interop.structure import structure

    figures = output(arguments, "--json")
    found = structure(load_config(arguments.config, arguments.overrides))
    table = Table("component")
    for title in ("parameters", "of a text token", "of a patch"):
        table.add_column(title, justify="right")
    rows = [(each.name, [each.total, each.of_text, each.of_patches]) for each in found.components]
    totals = [sum(column) for column in zip(*(sizes for _, sizes in rows), strict=True)]
    for name, sizes in [*rows, ("all", totals)]:
        table.add_row(name, *(f"{size:,}" for size in sizes), end_section=name == rows[-1][0])
    console = Console()
    console.print(table)
    console.print(f"vocabulary {found.vocab_size:,}")
    for layout, (tensors, parameters) in found.layouts.items():
        console.print(f"as {layout}: {tensors:,} tensors, {parameters:,} parameters", highlight=False)
    if figures:
        figures.write_json(found.as_json())
    return 0


def _search(
    arguments: argparse.Namespace, config: Config, where: Machine, to: Output, console: Any
) -> tuple[Forecast, tuple[str, ...]]:
    """Search for the best setting of the first or the named stage, and write its overrides for a command line."""
    from solo.planning.forecast import chosen_stages
    from solo.planning.search import search
    from solo.planning.show import show_search

    stage = chosen_stages(config, arguments.stage)[0]
    found = search(
        config,
        stage,
        where,
        arguments.tries,
        lambda line: console.print(line, highlight=False),
        document_slots=arguments.document_slots,
    )
    show_search(found, console)
    to.write_unmarked(" ".join(found.overrides) + "\n")  # all its words are arguments
    use = f"solo train {arguments.config} $(cat {to.path})"
    console.print(f"written to {to.path}: {use}", markup=False)
    return found.best, found.overrides


def _search_options(
    arguments: argparse.Namespace,
    config: Config,
    where: Machine,
    known: tuple[Forecast, ...],
    to: Output,
    console: Any,
) -> tuple[Forecast, tuple[str, ...]]:
    """Search for the best compiler options of the first or the named stage, and write them as overrides."""
    from solo.planning.forecast import chosen_stages
    from solo.planning.option_search import search_options
    from solo.planning.show import show_option_search

    own = to

    def keep(overrides: tuple[str, ...]) -> None:
        """Writes the overrides. The first call may not replace a file of the user, later calls replace their own."""
        nonlocal own
        own.write_unmarked(" ".join(overrides) + "\n")
        own = Output(to.path, to.command, force=True)

    found = search_options(
        config,
        chosen_stages(config, arguments.stage)[0],
        where,
        known[0] if known else None,
        lambda line: console.print(line, highlight=False),
        document_slots=arguments.document_slots,
        keep=keep,
    )
    show_option_search(found, console)
    before = f" $(cat {arguments.search})" if arguments.search else ""
    console.print(f"written to {to.path}: solo train {arguments.config}{before} $(cat {to.path})", markup=False)
    return found.best, found.overrides


def _program(arguments: argparse.Namespace, config: Config, stage: str, where: Machine) -> Output:
    path = arguments.hlo / f"{config.name}_{stage}_{where.name}.hlo"
    return Output(path, "solo plan --hlo", arguments.force)


def prepare_process(where: Machine) -> None:
    """Configure jax before it starts: no accelerators of this host, and as many CPU devices as a cpu-N machine has."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    if where.chip.name == "cpu" and "device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={where.devices}".strip()


def settle(config: Config, where: Machine, rows_per_device: int | None = None) -> tuple[Config, list[str]]:
    """Returns the config to plan for a machine, and the overrides that produce it.

    Raises:
        ConfigError: the mesh does not fit the machine.
    """
    from solo.config import ConfigError
    from solo.planning.topology import slice_mesh
    from solo.sharding.axes import mesh_sizes, row_shards

    changes = []
    mesh = slice_mesh(config.mesh, where)
    if mesh != config.mesh:
        changes.append(f"mesh.replica={mesh.replica}")
    config = config.model_copy(update={"mesh": mesh})
    if rows_per_device is not None:
        if rows_per_device < 1:
            raise ConfigError(f"--rows-per-device {rows_per_device}: expected at least 1")
        rows = rows_per_device * row_shards(mesh_sizes(mesh, where.devices))
        stages = []
        for number, stage in enumerate(config.stages):
            changes += [f"stages.{number}.batch_rows={rows}", f"stages.{number}.accumulate=1"]
            stages.append(stage.model_copy(update={"batch_rows": rows, "accumulate": 1}))
        config = config.model_copy(update={"stages": tuple(stages)})
    return config, changes


def _refuse(found: list[Forecast]) -> int:
    from solo.planning.memory_fit import refusal

    too_large = [each for each in found if not each.fits]
    for each in too_large:
        message = refusal(
            each.config, each.stage, each.definition, each.rows.shape, each.machine, each.by_hand, each.needed
        )
        print(f"solo: {message}", file=sys.stderr)
    return DOES_NOT_FIT if too_large else 0


def _refuse_evaluation(found: list[EvaluatorForecast]) -> int:
    from solo.planning.memory import format_bytes

    too_large = [each for each in found if not each.fits]
    for each in too_large:
        shorter = "fewer batch_rows, a smaller limit of the prompts' sizes, or fewer max_new_tokens"
        print(
            f"solo: evaluation {each.name!r} does not fit: it needs {format_bytes(each.needed)} of the"
            f" {format_bytes(each.limit or 0)} of a device with {each.rows} rows of {each.patch_slots:,} patches and"
            f" {each.text_slots + each.new_tokens:,} text slots; try {shorter}",
            file=sys.stderr,
        )
    return DOES_NOT_FIT if too_large else 0

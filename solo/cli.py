"""The command line: one function per verb, thin over the Python API. `--help` imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from solo.arguments import parse_with_overrides
from solo.libtpu import may_have_tpu, quiet_libtpu

EXIT_USER_ERROR = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 42

# A path that a user gave, or a file in a run's folder, is not what it should be. A full disk is none of these.
_WRONG_PATHS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

Verb = Callable[[argparse.Namespace], int]
OVERRIDES = "key.path=value, as in model.width=256 or stages.0.steps=100"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0 done, 1 failed, 2 usage error, 42 interrupted and resumable."""
    parsed = parse_with_overrides(_parser(), arguments)
    parsed.words = sys.argv[1:] if arguments is None else list(arguments)
    # jax loads libtpu wherever it is installed.
    if not may_have_tpu():
        quiet_libtpu()
    from solo.training.distributed import among_others, end_at_once

    try:
        status = _run(parsed)
    except Exception:
        if not among_others():
            raise
        traceback.print_exc()
        status = EXIT_FAILED
    if status not in (0, EXIT_INTERRUPTED) and among_others():
        end_at_once(status)
    return status


def _run(parsed: argparse.Namespace) -> int:
    from solo.config import ConfigError

    try:
        return parsed.verb(parsed)
    except (ConfigError, ValueError, FileExistsError) as error:
        print(f"solo: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] != "solo":
            raise
        print(f"solo: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        about = _about_a_file(error)
        if about is None:
            raise
        # A rename has two names; the second one is that of the file.
        print(f"solo: {about.filename2 or about.filename}: {about.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR if isinstance(about, _WRONG_PATHS) else EXIT_FAILED
    except KeyboardInterrupt:
        resumes = {
            train: "; the same command resumes from the last checkpoint",
            prepare: "; the same command continues with the parts that are missing",
        }.get(parsed.verb, "")
        print(f"solo: stopped{resumes}", file=sys.stderr)
        return 130


def _about_a_file(error: BaseException | None) -> OSError | None:
    """Returns the error, or the one during whose handling it was raised, that names a file; None if there is none."""
    while error is not None and not (isinstance(error, OSError) and error.filename is not None):
        error = error.__context__
    return error


def prepare(arguments: argparse.Namespace) -> int:
    """Prepare the sources of a config, or check what is prepared."""
    from rich.console import Console

    from solo.config import load_config
    from solo.data.store.prepare import open_prepared
    from solo.data.store.prepare import prepare as prepare_data
    from solo.data.store.progress import watcher

    console = Console()
    config = load_config(arguments.config, arguments.overrides)
    shows = watcher(console)
    if arguments.check:
        prepared = open_prepared(config)
        for name, source in prepared.sources.items():
            source.check(contents=True)
            shows.say(f"{name}: {len(source):,} records, all checksums are right")
        return 0
    if arguments.shard is not None:
        from solo.data.store.shared import Shard, prepare_shard

        made = prepare_shard(config, Shard.parse(arguments.shard), arguments.workers, shows)
        if made is None:
            return 0
        prepared = made
    elif arguments.beam or arguments.beam_option:
        from solo.data.store.shared import prepare_with_beam

        runner = [f"--runner={arguments.runner}"]
        prepared = prepare_with_beam(config, runner + [f"--{each}" for each in arguments.beam_option], shows)
    else:
        prepared = prepare_data(config, workers=arguments.workers, watcher=shows)
    for name, source in prepared.sources.items():
        patches, text, supervised = source.index.counts(config.image).sum(axis=0)
        shows.say(
            f"{name}: {len(source):,} records, {patches:,} visual tokens, {text:,} text tokens, {supervised:,} learned"
        )
    shows.say(f"vocabulary {prepared.tokenizer.vocab_size:,}; quarantined {prepared.quarantined:,}")
    shows.say(f"prepared data is in {config.data.folder}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Write a page that shows what a config's run will read, or what a source holds."""
    from solo.config import load_config
    from solo.data.inspection.page import write_page
    from solo.data.inspection.unprepared import write_page_of_source
    from solo.data.store.prepare import open_prepared

    out = Path(arguments.out)
    if arguments.config.endswith((".yaml", ".yml")):
        config = load_config(arguments.config, arguments.overrides)
        write_page(out, config, open_prepared(config), arguments.samples, arguments.step)
    else:
        write_page_of_source(out, arguments.config, arguments.overrides, arguments.samples)
    print(f"wrote {out}")
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Prepare, train every stage and evaluate, or resume an earlier attempt."""
    began = time.time()
    from rich.console import Console

    from solo.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from solo.training.distributed import MissingHostsError, join, leave, wait_for_dead_process

    try:
        hosts = join()
    except MissingHostsError as error:
        print(f"solo: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    from jax.errors import JaxRuntimeError

    from solo.evaluation.results import print_results
    from solo.pipeline import train as train_run
    from solo.training.observer import Observer, ProgressBar
    from solo.training.trainer import Interrupted

    console = Console(quiet=hosts is not None and not hosts.is_first)
    observer = Observer() if console.quiet else ProgressBar(console)
    if hosts is None:  # among others, jax listens: see `stop_agreed`
        observer.listen()
    try:
        done = train_run(config, observer, began)
    except Interrupted:
        print(f"solo: stopped by SIGTERM, saved in {config.run_folder}; the same command resumes", file=sys.stderr)
        leave()
        return EXIT_INTERRUPTED
    except JaxRuntimeError as error:
        wait_for_dead_process(error)
        raise
    finally:
        observer.finish()
    leave()
    print_results(done.results, console)
    _say_where(done.run.path, done.notes, console)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a run again and rewrite its report."""
    from rich.console import Console

    from solo.evaluation.results import print_results
    from solo.evaluation.run import evaluate_folder
    from solo.training.observer import ProgressBar

    console = Console()
    observer = ProgressBar(console)
    try:
        results = evaluate_folder(arguments.run, observer)
    finally:
        observer.finish()
    print_results(results, console)
    console.print(f"report: {arguments.run}/report.html", soft_wrap=True, markup=False)
    return 0


def generate(arguments: argparse.Namespace) -> int:
    """Answer prompts about images."""
    if not arguments.turns:
        raise ValueError("generate needs a --prompt, after the --image options that it is about")
    import solo

    messages: list[dict[str, Any]] = []
    images: list[Any] = []
    model = solo.load(arguments.run)
    for kind, value in arguments.turns:
        if kind == "image":
            images.append({"type": "image", "image": value})
            continue
        messages.append({"role": "user", "content": [*images, value] if value else images})
        images = []
        (answer,) = model.generate(
            [messages],
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
        print(answer)
        messages.append({"role": "assistant", "content": answer})
    if images:
        raise ValueError("the last --image has no --prompt after it")
    return 0


def import_weights(arguments: argparse.Namespace) -> int:
    """Convert a repository of weights to our own layout, or upcycle a text model to a monolith."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from solo.config import load_config
    from solo.interop.importing import import_repository

    config = load_config(arguments.config, arguments.overrides)
    console = Console()
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=None)
        done = import_repository(
            arguments.source,
            config,
            arguments.out,
            new_tokens=arguments.new_tokens,
            seed=arguments.seed,
            progress=lambda written, total: bar.update(task, completed=written, total=total),
        )
    for line in done.summary():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written to {arguments.out}", soft_wrap=True, highlight=False, markup=False)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write a checkpoint as a Hugging Face repository, and verify it."""
    from rich.console import Console

    from solo.interop.export import export as export_checkpoint

    console = Console()
    with console.status("opening the checkpoint") as status:
        done = export_checkpoint(
            arguments.checkpoint,
            arguments.to,
            arguments.layout,
            dtype=arguments.dtype,
            verified=arguments.verify,
            report=status.update,
        )
    for line in done.summary():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written to {arguments.to}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _say_where(run: Any, notes: list[str], console: Any) -> None:
    for title, name in (
        ("report", "report.html"),
        ("metrics", "metrics.jsonl"),
        ("TensorBoard", "tensorboard"),
        ("checkpoints", "checkpoints"),
        ("config", "config.yaml"),
    ):
        console.print(f"{title:12}{run / name}", soft_wrap=True, highlight=False, markup=False)
    for line in notes:
        console.print(f"note        {line}", soft_wrap=True, highlight=False, markup=False)


class _Turn(argparse.Action):
    """Keeps --image and --prompt in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.turns = [*(namespace.turns or []), (self.dest, values)]


def _parser() -> argparse.ArgumentParser:
    from solo.planning import command as planning
    from solo.scaling import command as fitting
    from solo.scaling.sweep import command as sweep
    from solo.training import goodput

    parser = argparse.ArgumentParser(
        prog="solo",
        description="Pretrain monolithic vision-language models: one transformer over text and raw image patches.",
        epilog="See solo VERB --help for details.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    add = partial(_add, verbs)
    _add_prepare(verbs)
    _add_inspect(verbs)
    _add_train(verbs)
    _add_generate(verbs)
    _add_import(verbs)
    _add_export(verbs)
    about = "forecast memory, time and cost of a run on a machine"
    planning.add_arguments(add("plan", planning.run, about, planning.DESCRIPTION), OVERRIDES)
    _add_evaluate(verbs)
    sweep.add_arguments(add("sweep", sweep.run, "plan and run a sweep of sizes and lengths", sweep.DESCRIPTION))
    goodput.add_arguments(add("goodput", goodput.run, "show how a run spent its time", goodput.DESCRIPTION))
    fitting.add_arguments(add("fit", fitting.run, "fit a scaling law to a table of runs", fitting.DESCRIPTION))
    return parser


def _add(verbs: Any, name: str, verb: Verb, help: str, description: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=description)
    added.set_defaults(verb=verb)
    return added


def _add_prepare(verbs: Any) -> None:
    added = _add(
        verbs,
        "prepare",
        prepare,
        "prepare a config's sources as shards and indexes",
        "Reads every source of the config, trains or extends the tokenizer, and writes ArrayRecord shards with an"
        " index of counts. Parts whose settings and inputs are unchanged are kept, also after a kill. `solo train` does"
        " this by itself unless it runs in several processes.",
    )
    _add_config(added)
    ways = added.add_mutually_exclusive_group()
    ways.add_argument("--shard", metavar="I/N", help="make the share of host I of N, from 0; the last host joins them")
    ways.add_argument("--beam", action="store_true", help="make the parts with Apache Beam (extra: beam)")
    ways.add_argument("--check", action="store_true", help="make nothing, and verify the checksums of all files")
    added.add_argument("--workers", type=_positive, metavar="N", help="processes; default: one for each core")
    added.add_argument("--runner", default="DirectRunner", metavar="NAME", help="of Apache Beam, default DirectRunner")
    added.add_argument(
        "--beam-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the pipeline, such as project=P; repeatable",
    )


def _add_inspect(verbs: Any) -> None:
    added = _add(
        verbs,
        "inspect",
        inspect,
        "show what a run will read, or what a file holds, as one HTML file",
        "Writes a page with samples of every source as the model sees them, a packed row, histograms, the shares and"
        " repeats of the mixture, and what was left out and why. A config's data must be prepared. A file, folder or"
        " glob that is not a config is read as a source; data.sources.source.options.NAME=VALUE sets an option of its"
        " reader.",
    )
    added.add_argument("config", metavar="CONFIG|SOURCE", help="a YAML file; or a source, such as chats.jsonl")
    added.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=OVERRIDES)
    added.add_argument("--out", metavar="FILE", default="inspect.html", help="where to; default inspect.html")
    added.add_argument("--samples", type=int, default=3, metavar="N", help="documents of every source; default 3")
    added.add_argument("--step", type=int, default=0, metavar="N", help="step whose row is shown; default 0")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def _add_train(verbs: Any) -> None:
    added = _add(
        verbs,
        "train",
        train,
        "train a config's stages, evaluate, and write the report",
        "Trains every stage in runs/NAME, saving checkpoints; the same command resumes after any kind of stop."
        " Exit status: 0 done, 1 failed, 2 invalid config or usage, 42 saved after SIGTERM.",
    )
    _add_config(added)


def _add_config(added: argparse.ArgumentParser) -> None:
    added.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    added.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=OVERRIDES)


def _add_generate(verbs: Any) -> None:
    added = _add(
        verbs,
        "generate",
        generate,
        "answer a prompt about images",
        "Each --prompt is a user turn with the --image options before it; the answer is printed and the next --prompt"
        " continues the conversation.",
    )
    added.add_argument("run", metavar="RUN", help="a run's folder, or one of its checkpoints")
    added.add_argument("--image", action=_Turn, metavar="FILE", help="an image; repeatable")
    added.add_argument("--prompt", action=_Turn, metavar="TEXT", help="a user turn; repeatable")
    added.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    added.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default 0: greedy")
    added.add_argument("--top-p", type=float, default=1.0, metavar="X", help="probability mass sampled from; default 1")
    added.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling; default 0")
    added.set_defaults(turns=None)


def _add_import(verbs: Any) -> None:
    added = _add(
        verbs,
        "import",
        import_weights,
        "convert published weights, or upcycle a text model to a monolith",
        "Writes a folder of weights for `init_from` and `solo generate`. SOURCE is a Hugging Face repository"
        " (config.json and safetensors) of the model that CONFIG describes, or of a text model of its size, which is"
        " upcycled: visual experts are copies of the text's, --new-tokens sets the new vocabulary rows, and the patch"
        " embedding is drawn. It needs memory for a few tensors, not for the model.",
    )
    added.add_argument("source", metavar="SOURCE", help="a folder")
    added.add_argument("--as", dest="config", metavar="CONFIG", required=True, help="a YAML file, as in configs/models")
    added.add_argument("--out", metavar="FOLDER", required=True, help="where to; must not exist")
    added.add_argument(
        "--new-tokens",
        choices=("mean", "normal"),
        default="mean",
        help="rows of new tokens: the mean of the existing ones (default), or drawn with init_std",
    )
    added.add_argument("--seed", type=int, default=0, metavar="N", help="seed of drawn weights; default 0")
    # An option here, unlike in other verbs: argparse rejects positional overrides after options.
    added.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=OVERRIDES
    )


def _add_export(verbs: Any) -> None:
    added = _add(
        verbs,
        "export",
        export,
        "write a checkpoint as a Hugging Face repository",
        "Writes weights, config, tokenizer, processor, chat template and a card to a folder that other people's code"
        " loads. Layout native contains its own PyTorch code for transformers; the other layouts are those of published"
        " models. A text layout exports the text path of a monolith. The result is read back, and its logits and"
        " answers are compared with the checkpoint's if PyTorch and transformers are installed.",
    )
    added.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, a checkpoint, or a folder of weights")
    added.add_argument("--to", metavar="FOLDER", required=True, help="where to; must not exist")
    added.add_argument("--layout", metavar="NAME", default="native", help="default native; an unknown name lists all")
    added.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default float32")
    added.add_argument("--no-verify", dest="verify", action="store_false", help="skip the comparison")


def _add_evaluate(verbs: Any) -> None:
    added = _add(
        verbs,
        "evaluate",
        evaluate,
        "evaluate a run again and rewrite its report",
        "Runs the evaluation of the run's config with the newest checkpoint.",
    )
    added.add_argument("run", metavar="RUN", help="a run's folder")


if __name__ == "__main__":
    sys.exit(main())

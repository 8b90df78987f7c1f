"""The command line: the list of verbs, and the exit statuses of their errors. `--help` imports no heavy module.

A verb is a module with `HELP`, `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`. The latter returns the exit
status.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

from solo.arguments import parse_with_overrides
from solo.faults import fault_of, is_of_runtime
from solo.libtpu import may_have_tpu, quiet_libtpu
from solo.statuses import FAILED, INTERRUPTED, MISTAKE, STOPPED, TRANSIENT, TransientError

# A path that a user gave, or a file in a run's folder, is not what it should be. A full disk is none of these.
_WRONG_PATHS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

Verb = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit status; see `solo.statuses`."""
    parsed = parse_with_overrides(_parser(), arguments)
    parsed.words = sys.argv[1:] if arguments is None else list(arguments)
    # jax loads libtpu wherever it is installed.
    if not may_have_tpu():
        quiet_libtpu()
    from solo.training.distributed import among_others, end_at_once

    try:
        status = _run(parsed)
    except Exception as error:
        fault = fault_of(error)
        if fault is not None:
            print(f"solo: {fault.text}", file=sys.stderr)
            status = fault.status
        elif among_others():
            traceback.print_exc()
            status = FAILED
        else:
            raise
    if status not in (0, INTERRUPTED) and among_others():
        end_at_once(status)
    return status


def _run(parsed: argparse.Namespace) -> int:
    from solo.training.distributed import MISTAKES

    try:
        return parsed.verb(parsed)
    except TransientError as error:
        print(f"solo: {error}", file=sys.stderr)
        return TRANSIENT
    except MISTAKES as error:
        if is_of_runtime(error):
            raise
        print(f"solo: {error}", file=sys.stderr)
        return MISTAKE
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] != "solo":
            raise
        print(f"solo: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        about = _about_a_file(error)
        if about is None:
            raise
        # A rename has two names; the second one is that of the file.
        print(f"solo: {about.filename2 or about.filename}: {about.strerror}", file=sys.stderr)
        return MISTAKE if isinstance(about, _WRONG_PATHS) else FAILED
    except KeyboardInterrupt:
        resumes = {
            "train": "; the same command resumes from the last checkpoint",
            "prepare": "; the same command continues with the parts that are missing",
            "evaluate": "; the same command continues with the answers that are missing",
        }.get(parsed.verb_name, "")
        print(f"solo: stopped{resumes}", file=sys.stderr)
        return STOPPED


def _about_a_file(error: BaseException | None) -> OSError | None:
    """Returns the error, or the one during whose handling it was raised, that names a file; None if there is none."""
    while error is not None and not (isinstance(error, OSError) and error.filename is not None):
        error = error.__context__
    return error


def _parser() -> argparse.ArgumentParser:
    from solo.comparing import command as compare
    from solo.launch import command as launch
    from solo.planning import command as plan
    from solo.scaling import command as fit
    from solo.scaling.sweep import command as sweep
    from solo.training import goodput
    from solo.verbs import chat, evaluate, export, generate, importing, inspect, prepare, runs, train

    parser = argparse.ArgumentParser(
        prog="solo",
        description="Pretrain monolithic vision-language models: one transformer over text and raw image patches.",
        epilog="See solo VERB --help for details.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    modules = {
        "prepare": prepare,
        "inspect": inspect,
        "train": train,
        "generate": generate,
        "chat": chat,
        "import": importing,
        "export": export,
        "plan": plan,
        "launch": launch,
        "evaluate": evaluate,
        "sweep": sweep,
        "runs": runs,
        "compare": compare,
        "goodput": goodput,
        "fit": fit,
    }
    for name, module in modules.items():
        added = verbs.add_parser(name, help=module.HELP, description=module.DESCRIPTION)
        module.add_arguments(added)
        added.set_defaults(verb=module.run, verb_name=name)
    return parser


if __name__ == "__main__":
    sys.exit(main())

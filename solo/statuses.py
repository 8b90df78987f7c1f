"""Exit statuses of the command line, which tell a launcher whether a restart may help. Standard library only.

    0     done
    1     failed: a restart would fail again
    2     a mistake in the config, the data, or the use
    42    stopped by SIGTERM, after everything was saved; the same command resumes
    130   stopped by Ctrl-C
    200   a fault from outside, such as a killed data worker; the same command resumes from the last checkpoint

A process that is killed ends with 128 plus the signal's number.
"""

from __future__ import annotations

DONE = 0
FAILED = 1
MISTAKE = 2
INTERRUPTED = 42
STOPPED = 130
TRANSIENT = 200


class TransientError(RuntimeError):
    """A fault from outside that a restart may cure. The command line ends with `TRANSIENT`."""


def may_be_retried(status: int) -> bool:
    """Returns whether a restart may help after an exit status: `INTERRUPTED`, `TRANSIENT`, or death by a signal."""
    return status == INTERRUPTED or status > 126

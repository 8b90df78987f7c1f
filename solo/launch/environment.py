"""Environment variables and secrets of a launch.

The value of a variable is part of the plan. For a secret, the plan only contains its name: the value is read where the
run starts, and no plan, script or manifest contains it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solo.config import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)$", re.IGNORECASE)
# A launch or its scheduler sets these.
_TAKEN = re.compile(
    r"JAX_(COORDINATOR_ADDRESS|COORDINATOR_PORT|NUM_PROCESSES|PROCESS_ID|NUM_CPU_DEVICES|LOCAL_DEVICE_IDS)"
    r"|SOLO_(HOST_NAMES|STATUSES)|JOB_INDEX|JOB_COMPLETION_INDEX|JOBSET_UID|(SLURM|MEGASCALE)_.*|PATH|PYTHONPATH"
)


@dataclass(frozen=True)
class Secret:
    """A secret that is passed to a run in an environment variable.

    name       name of the variable
    reference  where the target finds its value; None: in the variable of that name in this environment
    """

    name: str
    reference: str | None = None


def variables(words: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of NAME=VALUE and NAME words; the value of a bare NAME is taken from `here`.

    Raises:
        ConfigError: a name is not valid, is given twice, is set by the launch itself, or looks like that of a secret;
            or a bare NAME is not set.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        _check_name("--env", word, name, found)
        if _SECRET_NAME.search(name):
            raise ConfigError(f"--env {name}: the plan would contain its value; use --secret {name}")
        if not equals and name not in here:
            raise ConfigError(f"--env {name}: it is not set here; set it, or write {name}=VALUE")
        found[name] = value if equals else here[name]
        if "\0" in found[name] or "\n" in found[name]:
            raise ConfigError(f"--env {name}: its value has several lines; put them into a file")
    return found


def secrets(words: Sequence[str], others: Mapping[str, str]) -> tuple[Secret, ...]:
    """Returns the secrets of NAME=REFERENCE and NAME words. `others` are the variables of `--env`.

    Raises:
        ConfigError: a name is not valid, or is given twice; or a reference is empty.
    """
    found: dict[str, Secret] = {}
    for word in words:
        name, equals, reference = word.partition("=")
        _check_name("--secret", name, name, {**others, **found})
        if equals and not reference:
            raise ConfigError(f"--secret {name}=: expected where its value is")
        found[name] = Secret(name, reference if equals else None)
    return tuple(found.values())


def _check_name(option: str, word: str, name: str, found: Mapping[str, object]) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{option} {word!r}: {name!r} is not a name of an environment variable")
    if name in found:
        raise ConfigError(f"{option} {name}: the variable is given twice")
    if _TAKEN.fullmatch(name):
        raise ConfigError(f"{option} {name}: the launch itself sets it")


def must_be_set(secret: Secret, here: Mapping[str, str]) -> None:
    """Raises ConfigError if a secret should come from this process's environment but is not set there."""
    if not here.get(secret.name):
        raise ConfigError(
            f"--secret {secret.name}: it is not set here; for example: read -rs {secret.name} && export {secret.name}"
        )

"""Checks the values of a launch's options, so that mistakes are found before machines are requested."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from solo.config import ConfigError

_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"({_NAME}/)?{_LABEL}")
_LABEL_VALUE = re.compile(_LABEL)
_TOLERATION = re.compile(rf"(?P<key>({_NAME}/)?{_LABEL})(=(?P<value>{_LABEL}))?(:(?P<effect>.*))?")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_RESERVATION = re.compile(r"(projects/(?P<project>[a-z0-9:.-]+)/reservations/)?(?P<name>[a-z]([a-z0-9-]*[a-z0-9])?)")
_DURATION = re.compile(r"(\d+)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_ONE_WORD = (r"\S+", "one word")

# Option -> the pattern that its whole value must match, and a description for the error message.
_PATTERNS: dict[str, tuple[str, str]] = {
    "image": (r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]*", "an image, such as us-docker.pkg.dev/PROJECT/REPOSITORY/solo:TAG"),
    "service_account": (rf"{_NAME}(@{_NAME})?", "a name of a service account, or its e-mail address"),
    "namespace": (_NAME, "a name of a namespace"),
    "queue": (_NAME, "a name of a LocalQueue"),
    "priority": (_NAME, "a name of a PriorityClass"),
    "placement_policy": (rf"(\S+/)?{_NAME}", "a name of a placement policy, or none"),
    "zone": (r"[a-z]+-[a-z]+\d+-[a-z]", "a zone, such as us-east5-a"),
    "project": (r"([a-z0-9.-]+:)?[a-z0-9-]+", "a project's id"),
    "provisioning_model": (r"[a-z-]+", "a model such as reservation-bound"),
    "reservation": (r"\S+", "a name of a reservation"),
    **{name: _ONE_WORD for name in ("partition", "account", "time", "qos", "constraint")},
}
_CAPACITY = ("spot", "reserved", "reservation")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first option whose value is invalid or that contradicts another option."""
    for name, (pattern, meaning) in _PATTERNS.items():
        value = options.get(name)
        if value is not None and not re.fullmatch(pattern, value):
            raise ConfigError(f"{flag(name)} {value!r}: expected {meaning}")
    if options.get("bucket") is not None:
        bucket_name(options["bucket"])
    if len(given := [name for name in _CAPACITY if options.get(name)]) > 1:
        raise ConfigError(f"{flag(given[0])} and {flag(given[1])} exclude each other: give one of them")
    grace = options.get("grace_seconds")
    if grace is not None and grace < 1:
        raise ConfigError(f"--grace-seconds {grace}: expected at least 1")
    for line in options.get("sbatch") or ():
        if not re.fullmatch(r"-\S[^\n]*", line):
            raise ConfigError(f"--sbatch {line!r}: expected an option of sbatch, as in --sbatch=--exclusive")
    for name in ("wait", "max_duration"):
        if options.get(name) is not None:
            seconds(name, options[name])
    label_selector(options.get("node_selector") or ())
    for text in options.get("toleration") or ():
        toleration(text)


def flag(name: str) -> str:
    """Returns an option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def bucket_name(text: str) -> str:
    """Returns the name of a bucket of Google Cloud Storage, given with or without gs://. Raises ConfigError."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "gs":
        raise ConfigError(f"--bucket {text!r}: Google's machines mount buckets of Cloud Storage; expected gs://BUCKET")
    name = (rest if separator else text).rstrip("/")
    if "/" in name:
        raise ConfigError(
            f"--bucket {text!r}: expected gs://BUCKET without a folder; folders belong into the config's `folder` and"
            " `data.folder`"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name):
        raise ConfigError(
            f"--bucket {text!r}: a bucket's name has 3 or more lower-case letters, digits, dashes, dots or underscores"
        )
    return name


def seconds(name: str, text: str) -> int:
    """Returns a duration such as 90m, 6h, 2d or 3600s in seconds. Raises ConfigError."""
    match = _DURATION.fullmatch(text)
    found = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not found:
        raise ConfigError(f"{flag(name)} {text!r}: expected a duration above 0, such as 90m, 6h or 2d")
    return found


def reservation(text: str) -> tuple[str, str | None]:
    """Returns the name of a reservation, and the project that owns it; None: this one. Raises ConfigError."""
    match = _RESERVATION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--reservation {text!r}: expected NAME, or projects/OWNER/reservations/NAME for one that is shared"
        )
    return match["name"], match["project"]


def label_selector(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns label -> allowed values of KEY=VALUE or KEY=VALUE,VALUE words. Raises ConfigError."""
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = tuple(text.split(","))
        if not equals or not _LABEL_KEY.fullmatch(key) or not all(map(_LABEL_VALUE.fullmatch, values)):
            raise ConfigError(f"--node-selector {word!r}: expected LABEL=VALUE, or LABEL=VALUE,VALUE for any of them")
        if key in found:
            raise ConfigError(f"--node-selector {key} is given twice; use {key}=VALUE,VALUE for any of several values")
        found[key] = values
    return found


def toleration(text: str) -> dict[str, str]:
    """Returns a Kubernetes toleration of KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT. Raises ConfigError."""
    match = _TOLERATION.fullmatch(text)
    if match is None or match["effect"] not in (None, *_EFFECTS):
        raise ConfigError(f"--toleration {text!r}: expected KEY[=VALUE][:EFFECT]; effects: {', '.join(_EFFECTS)}")
    found = {"key": match["key"], "operator": "Equal" if match["value"] else "Exists"}
    return found | {name: match[name] for name in ("value", "effect") if match[name]}

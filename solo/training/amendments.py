"""Changes of the mixture that a resumed run may make: entries that have not taken effect yet."""

from __future__ import annotations

from solo.config import Config, ConfigError


def amendable(old: Config, new: Config, steps_done: int) -> list[str]:
    """Returns the dotted keys, and prefixes of keys that end in a dot, that may differ in a resumed run.

    These are entries of `mixture_changes` at steps that the run has not reached, and sources that occur only in them.

    Args:
        old: config of the run.
        new: config that resumes it.
        steps_done: steps up to the newest checkpoint.

    Raises:
        ConfigError: a new source would change the tokenizer, which was trained on all sources.
    """
    found, before = [], 0
    for number, (was, stage) in enumerate(zip(old.stages, new.stages, strict=False)):
        entries = {*was.mixture_changes, *stage.mixture_changes}
        if later := [step for step in sorted(entries) if before + step >= steps_done]:
            key = f"stages.{number}.mixture_changes"
            found += [key, *(f"{key}.{step}." for step in later)]
        if stage.steps is None:
            break  # the steps before the next stage are not known from the config
        before += stage.steps
    named = {name for stage in new.stages for name in stage.sources}
    added = [name for name in new.data.sources if name in named and name not in old.data.sources]
    if found and added:
        found += [f"data.sources.{name}." for name in added]
        found += _tokenizer_keys(old, new, added)
    return found


def _tokenizer_keys(old: Config, new: Config, added: list[str]) -> list[str]:
    """Returns the keys of `data.tokenizer.train_on` if it names the sources that the tokenizer was trained on."""
    names = tuple(old.data.sources)
    if old.data.tokenizer.path is not None or old.data.tokenizer.train_on:
        return []
    if tuple(new.data.tokenizer.train_on) == names:
        return ["data.tokenizer.train_on", "data.tokenizer.train_on."]
    raise ConfigError(
        f"the run's tokenizer was trained on all of its sources, and {', '.join(added)} would change it; keep it with"
        f" data.tokenizer.train_on=[{', '.join(names)}]"
    )


def is_amendable(key: str, keys: list[str]) -> bool:
    """Returns whether `amendable` lists a key."""
    return any(key == each or (each.endswith(".") and key.startswith(each)) for each in keys)

"""Opens prepared data, after checking that it is complete and matches the config's settings and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from solo.config import Config, ConfigError
from solo.data.images.check import ImageCheck
from solo.data.store import tokenizer as tokenizers
from solo.data.store.bucket import local_folder
from solo.data.store.description import Description
from solo.data.store.inputs import Inputs, changed, parts_digest
from solo.data.store.mirror import Mirror
from solo.data.store.part import PartManifest
from solo.data.store.part_files import FORMAT
from solo.data.store.schedule import list_parts
from solo.data.store.source import PreparedSource
from solo.data.store.work import digest
from solo.data.text import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """Opened prepared data."""

    tokenizer: Tokenizer
    sources: dict[str, PreparedSource]

    @property
    def quarantined(self) -> int:
        """Number of quarantined (unusable) examples over all sources."""
        return sum(source.description.quarantined for source in self.sources.values())


def open_prepared(config: Config, inputs: bool = False) -> Prepared:
    """Opens the data that `prepare` made.

    Args:
        config: the run's config.
        inputs: also check that the inputs have not changed. Absent inputs are accepted: they were prepared elsewhere.

    Raises:
        ConfigError: prepared data is missing or damaged, or was made from other settings or inputs.
    """
    if (mirror := Mirror.of(config)) is not None:
        mirror.pull(config.data.sources)
    tokenizer = tokenizers.open_made(config)
    if tokenizer is None:
        raise _unprepared("the tokenizer", config)
    if inputs and (why := tokenizers.replaced(config, config.data.input_check)):
        raise ConfigError(f"the tokenizer: {why} since it was prepared; run: solo prepare CONFIG")
    for name in config.data.sources:
        made = Description.read(source_folder(name, config))
        if made is None or made.fingerprint != fingerprint(name, config, tokenizer):
            raise _unprepared(f"source {name!r}", config)
        if inputs and (why := changed_inputs(name, config, made)):
            raise ConfigError(f"source {name!r}: {why} since it was prepared; run: solo prepare CONFIG")
    return Prepared(tokenizer, {name: PreparedSource(source_folder(name, config)) for name in config.data.sources})


def source_folder(name: str, config: Config) -> Path:
    """Returns the folder of a prepared source."""
    return local_folder(config) / "sources" / name


def _unprepared(what: str, config: Config) -> ConfigError:
    return ConfigError(
        f"{what} is not in {config.data.folder}, or was made from other settings; run: solo prepare CONFIG"
    )


def _settings(name: str, config: Config) -> str:
    """Returns a digest of everything that the parts of a source depend on, except its inputs."""
    return digest([FORMAT, config.data.sources[name].model_dump(mode="json"), ImageCheck.of(config)])


def fingerprint(name: str, config: Config, tokenizer: Tokenizer) -> str:
    """Returns a digest of everything that a prepared source depends on, except its inputs."""
    return digest([_settings(name, config), tokens_fingerprint(config, tokenizer)])


def tokens_fingerprint(config: Config, tokenizer: Tokenizer) -> str:
    """Returns a digest of everything that the tokens of a record depend on."""
    return digest([FORMAT, tokenizer.fingerprint, config.sequence.template, config.sequence.system])


def changed_inputs(name: str, config: Config, made: Description) -> str | None:
    """Returns a description of the first changed input of a prepared source; None if no input has changed."""
    mode = config.data.input_check
    if mode == "none":
        return None
    folder = source_folder(name, config)
    inputs = Inputs.read(folder)
    if inputs is None or inputs.content != made.content or inputs.check != mode:
        return "it is not known whether its inputs are the same"
    if why := changed(inputs.files, mode):
        return why
    if inputs.files and not inputs.any_exists():
        return None
    if inputs.folders_changed() and parts_digest(list_parts(name, config, inputs.size)) != inputs.parts:
        return "files were added, removed or renamed"
    if (mirror := Mirror.around(folder)) is not None:
        mirror.pull_manifests(folder)
    for part in made.parts:
        manifest = PartManifest.read(folder / "parts", part.name)
        if manifest is None:
            return f"the description of part {part.part} was lost"
        if why := changed(manifest.inputs, mode):
            return why
    return None

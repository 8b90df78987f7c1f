"""The config section for filters on the records of a source."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from solo.config.base import Section


class FilterConfig(Section):
    """Conditions that a record must meet. A record that fails one is counted under that key.

    Every image of a record must meet the conditions on images. Conditions on text apply to all texts of the record,
    including questions and system turns, joined by line breaks.
    """

    keys_decide = ("data",)

    min_side: PositiveInt | None = Field(None, description="shorter side of an image, in pixels")
    max_side: PositiveInt | None = Field(None, description="longer side of an image, in pixels")
    min_pixels: PositiveInt | None = Field(None, description="width times height of an image")
    max_pixels: PositiveInt | None = Field(None, description="width times height of an image")
    max_aspect_ratio: float | None = Field(None, ge=1, description="longer side of an image over the shorter")
    min_file_bytes: PositiveInt | None = Field(None, description="size of an image's file")
    max_file_bytes: PositiveInt | None = Field(None, description="size of an image's file")
    min_images: NonNegativeInt | None = Field(None, description="images of the record")
    max_images: NonNegativeInt | None = Field(None, description="images of the record; 0: text alone")
    min_turns: PositiveInt | None = Field(None, description="turns of the record, a system turn included")
    max_turns: PositiveInt | None = Field(None, description="turns of the record, a system turn included")
    min_characters: PositiveInt | None = Field(None, description="characters of all texts of the record")
    max_characters: PositiveInt | None = Field(None, description="characters of all texts of the record")
    must_match: tuple[str, ...] = Field(
        (), description="Python regular expressions that must all match somewhere in the text"
    )
    must_not_match: tuple[str, ...] = Field(
        (), description="Python regular expressions that must not match anywhere in the text"
    )
    languages: tuple[str, ...] = Field((), description="ISO 639-1 codes of the allowed languages (extra `language`)")
    language_min_letters: PositiveInt = Field(
        20, description="texts with fewer letters always pass `languages`, since their language is uncertain"
    )

    @field_validator("must_match", "must_not_match", "languages", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        # In strict mode, pydantic accepts a list for a tuple only when it parses JSON, not Python values.
        return tuple(value) if isinstance(value, list) else value

    @field_validator("must_match", "must_not_match")
    @classmethod
    def _compile(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _check(self) -> FilterConfig:
        for what in ("side", "pixels", "file_bytes", "images", "turns", "characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{what} {least} is above max_{what} {most}")
        return self

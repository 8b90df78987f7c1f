"""Makes the images of a prompt smaller if it does not fit the longest sequence of a model."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from solo.config import ImageConfig
from solo.inference.prompt import Prompt, PromptBatch, prompt_needs

Arrange = Callable[[np.ndarray, int, int], list[PromptBatch]]


@dataclass(frozen=True)
class Fitted:
    """Prompts that fit a sequence.

    needs     int64 [N, 2]: patches and text tokens of each prompt, with its images made smaller
    smaller   the image config of prompts whose images are made smaller, by number
    too_long  numbers of prompts that do not fit with the smallest images
    """

    needs: np.ndarray
    smaller: Mapping[int, ImageConfig]
    too_long: frozenset[int]

    @property
    def fits(self) -> list[int]:
        """Numbers of the prompts that fit."""
        return [number for number in range(len(self.needs)) if number not in self.too_long]

    def batches(
        self, arrange: Callable[[np.ndarray, int, int], list[PromptBatch]], rows: int, multiple: int
    ) -> list[PromptBatch]:
        """Returns batches of the prompts that fit, arranged by `in_order` or `by_length` of `solo.inference.prompt`."""
        fits = self.fits
        batches = arrange(self.needs[fits], rows, multiple)
        return [batch._replace(numbers=tuple(fits[place] for place in batch.numbers)) for batch in batches]


def fitted(prompts: Sequence[Prompt], image: ImageConfig, context: int | None, max_new_tokens: int) -> Fitted:
    """Chooses the largest images with which each prompt and its answer fit.

    Args:
        prompts: tokenized prompts.
        image: the model's image geometry.
        context: maximum number of patches and text tokens in a sequence; None: no limit.
        max_new_tokens: maximum length of an answer.

    Raises:
        ValueError: an image cannot be read.
    """
    needs = prompt_needs(prompts, image)
    smaller: dict[int, ImageConfig] = {}
    too_long = set()
    room = np.inf if context is None else context - max_new_tokens
    for number in np.flatnonzero(needs.sum(axis=1) > room).tolist():
        config = _largest(prompts[number], image, room) if needs[number, 0] else None
        if config is None:
            too_long.add(number)
        else:
            smaller[number], needs[number] = config, prompt_needs([prompts[number]], config)[0]
    return Fitted(needs, smaller, frozenset(too_long))


def _largest(prompt: Prompt, image: ImageConfig, room: float) -> ImageConfig | None:
    """Returns the config with the largest images that fit, or None if the smallest do not."""
    sizes = _smaller(image)
    # The needs grow with the place.
    fits = bisect_left(sizes, True, key=lambda config: bool(prompt_needs([prompt], config).sum() > room))
    return sizes[fits - 1] if fits else None


@cache
def _smaller(image: ImageConfig) -> tuple[ImageConfig, ...]:
    """Returns configs of the same geometry with fewer visual tokens, the fewest first."""
    side = image.patch_size

    def changed(**limits: int) -> ImageConfig:
        return ImageConfig.model_validate({**image.model_dump(), **limits})

    if image.geometry == "tiles":
        counts = range(1, image.max_tiles)
        return tuple(changed(min_tiles=min(image.min_tiles, most), max_tiles=most) for most in counts)
    if image.geometry == "area":
        most = image.max_pixels or 1 << 24
        areas = [(side * count) ** 2 for count in range(1, math.isqrt(most - 1) // side + 1)]
        return tuple(changed(min_pixels=min(image.min_pixels or 1, area), max_pixels=area) for area in areas)
    if image.geometry == "padded":
        longest = max(image.max_height, image.max_width) // side

        def scaled(limit: int, count: int) -> int:
            return max(1, limit // side * count // longest) * side

        return tuple(
            changed(max_height=scaled(image.max_height, count), max_width=scaled(image.max_width, count))
            for count in range(1, longest)
        )
    return tuple(changed(max_side=count * side) for count in range(1, image.max_side // side))

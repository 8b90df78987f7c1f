"""Config sections for data: sources, tokenizer, images and sequences."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from solo.config.base import Section, decides
from solo.config.filters import FilterConfig


class TokenizerConfig(Section):
    """An existing tokenizer (`path`), or a SentencePiece model trained on the text of the sources."""

    keys_decide = ("data",)

    path: str | None = Field(
        None, description="path of a SentencePiece model, a tokenizer.json, or a folder with either"
    )
    add_tokens: tuple[str, ...] = Field(
        (), description="special tokens, appended in this order; `<loc_{1..1024}>` stands for 1,024 of them"
    )
    vocab_size: int = Field(1024, ge=64, description="vocabulary size of a trained tokenizer, including special tokens")
    model_type: Literal["unigram", "bpe"] = "unigram"
    train_on: tuple[str, ...] = Field((), description="sources whose text trains the tokenizer; empty: all of them")
    max_characters: int = Field(4_000_000, ge=1, description="characters of training text, over all sources")


class ImageConfig(Section):
    """How an image becomes visual tokens. Used by data preparation, planning, attention masks and the model.

    geometry  native: keeps the image's shape, with the longer side at most `max_side` (SOLO; SAIL with `max_pixels`)
              area: keeps the shape, scaled to an area between `min_pixels` and `max_pixels` (EVEv2, NEO)
              tiles: cut into squares of `tile_size`, in the grid closest to the image's shape (InternVL)
              padded: keeps shape and size unless too large, padded to whole patches (Fuyu)
    """

    keys_decide = ("data",)

    geometry: Literal["native", "area", "tiles", "padded"] = "native"
    patch_size: int = Field(
        32,
        ge=1,
        description="side of a patch in pixels; a patch is one visual token",
        json_schema_extra=decides("model", "data"),
    )
    max_side: int = Field(1024, ge=1, description="native: longest side after resizing, in pixels (SOLO: 1024)")
    min_pixels: int | None = Field(None, ge=1, description="area: smaller images are enlarged")
    max_pixels: int | None = Field(None, ge=1, description="area, native: larger images are reduced")
    rounding: Literal["up", "nearest", "within", "down"] = Field(
        "up",
        description="area: how sides are rounded to whole patches. up: EVEv2 at inference; nearest: EVEv2 in training;"
        " within: to the nearest, then down or up if the area is out of bounds (NEO, Qwen2-VL); down: Gemma 4",
    )
    tile_size: int = Field(448, ge=1, description="tiles: side of a tile in pixels")
    min_tiles: int = Field(1, ge=1)
    max_tiles: int = Field(12, ge=1, description="tiles of one image, without the thumbnail")
    share_tiles: bool = Field(False, description="max_tiles is for a whole record, split evenly among its images")
    share_pixels: bool = Field(
        False,
        description="area: each of n > 1 images of a record has at most max(2 * max_pixels // n, min_pixels) pixels"
        " (NEO's training)",
    )
    thumbnail: bool = Field(True, description="tiles: add the whole image as a last tile if there are several")
    max_height: int = Field(1080, ge=1, description="padded: taller images are reduced")
    max_width: int = Field(1920, ge=1, description="padded: wider images are reduced")
    resample: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="resampling filter, as in Pillow (antialiased)"
    )
    exif: Literal["apply", "ignore"] = Field(
        "apply", description="orientation stored in the file's EXIF data; published processors ignore it"
    )
    background: str = Field(
        "white",
        description='colour behind transparent pixels: white or "#rrggbb". published: convert images as published'
        ' processors do, with Pillow\'s convert("RGB"), which drops transparency and clips 16-bit grey to white.'
        " neo_unify: as published, but RGBA images on white (SenseNova-U1); neo: likewise, but only RGBA images in"
        " which some pixels, and not all, are fully transparent (NEO's evaluation)",
    )
    max_file_pixels: int = Field(
        89_478_485,
        ge=1,
        le=178_956_970,
        description="reject images with more pixels, according to their header (default: a quarter GiB as RGB)",
    )
    decoder: Literal["pillow", "fast"] = Field(
        "pillow",
        description="pillow: bit-exact with the published processors; fast: libjpeg-turbo's scaled decoding and OpenCV,"
        " about twice as fast, with pixels that differ by about one level of 255 (extra `fast`)",
    )
    patch_order: Literal["rows", "columns"] = Field(
        "rows",
        description="order of an image's patches; columns: InternVL's pixel shuffle v1",
        json_schema_extra=decides("model", "data"),
    )
    begin_token: str | None = Field("<vision>", description="token before an image's patches")
    end_token: str | None = Field("</vision>", description="token after an image's patches")
    row_token: str | None = Field("<vrow_sep>", description="token between two rows of patches; unused with tiles")
    row_token_after_last: bool = Field(False, description="add row_token after the last row, too (Fuyu)")
    markers: bool = Field(
        False,
        description="learned visual tokens before an image and after each row (EVEv2); patch_grid -1 and -2",
        json_schema_extra=decides("model", "data"),
    )
    placeholder_token: str | None = Field(
        None,
        description="token that stands for a patch in exported repositories; never in training rows",
        json_schema_extra=decides("nothing"),
    )
    mask: Literal["causal", "bidirectional", "prefix", "isolated"] = Field(
        "causal",
        description="attention among the tokens of one image. prefix: bidirectional, including the begin and end tokens"
        " (SAIL); isolated: a patch attends only to itself (EE-MLLM's composite attention)",
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), json_schema_extra=decides("model"))
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (0.229, 0.224, 0.225), json_schema_extra=decides("model")
    )
    stored_as_float16: bool = Field(
        False,
        description="round normalised pixels to float16, as SOLO's data files do",
        json_schema_extra=decides("result"),
    )

    @model_validator(mode="after")
    def _check(self) -> ImageConfig:
        sides = {"native": ("max_side",), "tiles": ("tile_size",), "padded": ("max_height", "max_width")}
        for side in sides.get(self.geometry, ()):
            if getattr(self, side) % self.patch_size:
                raise ValueError(f"{side} {getattr(self, side)} is not a multiple of patch_size {self.patch_size}")
        if not re.fullmatch(r"white|published|neo|neo_unify|#[0-9a-fA-F]{6}", self.background):
            raise ValueError(
                f"background {self.background!r} is not white, published, neo, neo_unify or a colour such as '#ffffff'"
            )
        if self.patch_order == "columns" and self.geometry != "tiles":
            raise ValueError("patch_order: columns goes with geometry: tiles")
        if self.markers and (self.geometry == "tiles" or self.row_token):
            raise ValueError("markers replace row_token, which must be null, and cannot be used with tiles")
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is above max_tiles {self.max_tiles}")
        if self.share_pixels and (self.geometry != "area" or self.max_pixels is None):
            raise ValueError("share_pixels divides the max_pixels of geometry: area, which must be set")
        if (self.min_pixels or 0) > (self.max_pixels or float("inf")):
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self


class LayerMaskConfig(Section):
    """What the layers of one type (`model.layer_types`) attend to.

    image           as `image.mask`, for the layers of this type
    sliding_window  as `sequence.sliding_window`
    window_limits   text: the window limits only what precedes; an image that attends to all of itself does so beyond
                    the window. all: every slot attends to nothing before its window (Gemma 4)
    """

    keys_decide = ("model", "data")

    layer_type: str
    image: Literal["causal", "bidirectional"] = "causal"
    sliding_window: int | None = Field(None, ge=1)
    window_limits: Literal["text", "all"] = "text"


class SequenceConfig(Section):
    """The chat template, token positions and sliding window of a sequence.

    template        roles: a role token before every turn; solo_pretrain and solo_chat: SOLO (solo_chat: also SAIL);
                    internlm2_chat: Mono-InternVL; chatml: Qwen; fuyu: Fuyu; neo: NEO's training; neo_1_0 and
                    neo_1_5: the prompts of NEO's evaluation; gemma4: Gemma 4, without its channel of thoughts
    positions       text: one index over text and patches; grid: (time, row, column), as in M-RoPE; separate: (time,
                    row, column) as in NEO, with row and column 0 for text
    sliding_window  as in Hugging Face: a slot attends to itself and to `sliding_window - 1` slots before it in its
                    document (SOLO: 4097, since FlashAttention's window of 4096 does not count the slot itself);
                    null: no window
    """

    keys_decide = ("data",)

    template: Literal[
        "roles",
        "solo_pretrain",
        "solo_chat",
        "internlm2_chat",
        "chatml",
        "neo",
        "neo_1_0",
        "neo_1_5",
        "fuyu",
        "gemma4",
    ] = "roles"
    system: str | None = Field(None, description="system turn for conversations that have none")
    positions: Literal["text", "grid", "separate"] = Field("text", json_schema_extra=decides("model", "data"))
    sliding_window: int | None = Field(None, ge=1, json_schema_extra=decides("model", "data"))
    layer_masks: tuple[LayerMaskConfig, ...] = Field(
        (),
        description="one for each of model.layer_types, in the same order; they replace sliding_window and image.mask",
        json_schema_extra=decides("model", "data"),
    )

    @model_validator(mode="after")
    def _check(self) -> SequenceConfig:
        if self.layer_masks and (self.sliding_window is not None or self.positions != "text"):
            raise ValueError("layer_masks goes with positions: text, and states sliding_window for each type of layers")
        if self.sliding_window is not None and self.positions != "text":
            raise ValueError(
                f"sliding_window counts slots in reading order, which positions: {self.positions} does not give"
            )
        return self

    @property
    def windows(self) -> int | tuple[int | None, ...] | None:
        """The sliding window; one for each type of layers with `layer_masks`."""
        return tuple(each.sliding_window for each in self.layer_masks) if self.layer_masks else self.sliding_window


class SourceConfig(Section):
    """A dataset: its reader (see `solo.data.readers`), the reader's options, and the selection of its records.

    A path, a glob or a list of these is short for `{options: {path: ...}}` with an automatically chosen reader.
    """

    keys_decide = ("data",)

    reader: str = Field("auto", description="name of a reader; auto: detect it from the content")
    options: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(
        None, ge=1, description="largest number of records to read, before filters; required by endless readers"
    )
    filters: FilterConfig = FilterConfig()
    empty_answers: Literal["set_aside", "read", "learn"] = Field(
        "set_aside",
        description="what to do with an assistant or text turn that has no text. set_aside: quarantine the record;"
        " read: keep the turn as input without a loss; learn: train the model to end the turn immediately",
    )
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the records that `take: train` leaves out and `take: held_out` selects, by a hash of"
        " their images, or of their text if they have none",
    )
    take: Literal["all", "train", "held_out"] = "all"
    deduplicate: Literal["none", "exact", "images", "similar_images"] = Field(
        "none",
        description="keep only the first record among those with the same turns (exact), the same image files (images)"
        " or similar images (similar_images, extra `dedup`); records without images are compared by their turns",
    )
    similar_bits: int = Field(
        0, ge=0, le=7, description="similar_images: largest number of differing bits of two 64-bit perceptual hashes"
    )

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        if (self.held_out > 0) != (self.take != "all"):
            raise ValueError("held_out and take go together: a share above 0, and take: train or held_out")
        if self.similar_bits and self.deduplicate != "similar_images":
            raise ValueError("similar_bits goes with deduplicate: similar_images")
        return self

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        return spell_out_source(value)


def spell_out_source(value: Any) -> Any:
    """Converts a source given as a path, a glob or a list of them to a mapping; returns anything else unchanged."""
    is_path = isinstance(value, str) or (isinstance(value, list) and all(isinstance(path, str) for path in value))
    return {"options": {"path": value}} if is_path else value


class DataConfig(Section):
    """Where prepared data is stored, and how documents are packed into rows."""

    keys_decide = ("data",)

    folder: str = Field(
        "data",
        description="where prepared shards, indexes and the tokenizer are stored: a folder, or a URL such as"
        " gs://bucket/folder or s3://bucket/folder (extras `gcs`, `s3`)",
        json_schema_extra=decides("nothing"),
    )
    cache: str | None = Field(
        None,
        description="folder for local copies of a bucket's files; null: $SOLO_CACHE, or ~/.cache/solo",
        json_schema_extra=decides("nothing"),
    )
    cache_gigabytes: float = Field(
        100,
        gt=0,
        description="limit of the local copies of a bucket's shards, in units of 10^9 bytes; above it, the least"
        " recently used copies are removed first",
        json_schema_extra=decides("nothing"),
    )
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    tokenizer: TokenizerConfig = TokenizerConfig()
    overlong: Literal["split", "drop"] = Field(
        "split",
        description="what to do with a document that does not fit in a row. split: split it into chunks that fit,"
        " never within an image, and also cut text that would leave no room for the text of a row's patches; drop:"
        " leave it out",
    )
    records_per_shard: int = Field(4096, ge=1, json_schema_extra=decides("nothing"))
    packing_window: int = Field(256, ge=1, description="number of rows that are packed at a time")
    worker_processes: int = Field(
        0,
        ge=0,
        description="processes that prepare batches; 0: use threads of the training process",
        json_schema_extra=decides("nothing"),
    )
    prefetch_batches: int = Field(4, ge=1, json_schema_extra=decides("nothing"))
    max_unreadable: float = Field(
        0.01,
        ge=0,
        le=1,
        description="the run stops if a larger share of the documents is unreadable, over the last 1,000 documents or"
        " one batch",
        json_schema_extra=decides("nothing"),
    )
    input_check: Literal["time", "hash", "none"] = Field(
        "time",
        description="how changed input files are detected. time: by size and modification time; hash: by a hash of"
        " their content, which reads every file; none: not at all, prepared data is always reused",
        json_schema_extra=decides("nothing"),
    )
    max_quarantined: float = Field(
        0.1,
        ge=0,
        le=1,
        description="preparation stops if more than this share of a source, and at least 100 examples, are unusable",
        json_schema_extra=decides("nothing"),
    )
    verify_images: bool = Field(True, description="decode every image during preparation; quarantine broken ones")

"""Sections about the model and the mesh."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from solo.config.base import Section

Sharing = Literal["shared", "modality"]


class ExpertsConfig(Section):
    """Per component: one set of weights, or one for patches and one for text (Mono-InternVL: ffn)."""

    ffn: Literal["shared", "modality", "moe"] = Field("shared", description="learned: see moe")
    qkv: Sharing = "shared"
    out: Sharing = "shared"
    norms: Sharing = "shared"


class MoEConfig(Section):
    """A learned mixture of experts in place of the FFN: top-k, dropless, with a load-balancing loss."""

    count: int = Field(8, ge=2)
    top_k: int = Field(1, ge=1)
    width: int | None = Field(None, ge=1, description="F of one expert; default ffn_width / top_k")
    auxiliary_weight: float = Field(0.01, ge=0, description="of the load-balancing loss")

    @model_validator(mode="after")
    def _check(self) -> MoEConfig:
        if self.top_k > self.count:
            raise ValueError(f"top_k {self.top_k} is above count {self.count}")
        return self


class PatchEmbedConfig(Section):
    """From the pixels of a patch to the model's width. Every kind is local to its patch.

    linear  one product (SOLO, SAIL, Fuyu)
    conv    a convolution of `inner_size`, GELU, and a product of the inner patches side by side (EVEv2, NEO)
    grid    a convolution of `inner_size`, a learned position for each place of the tile, and the inner patches side
            by side through LayerNorm and an MLP (Mono-InternVL: convolution 14, pixel shuffle 2 x 2)
    """

    kind: Literal["linear", "conv", "grid"] = "linear"
    bias: bool = Field(False, description="linear: whether there is one; the others have theirs")
    token_id: int | None = Field(None, ge=0, description="row of the vocabulary added under every patch (SOLO: 32001)")
    inner_size: int | None = Field(None, ge=1, description="conv, grid: side of an inner patch in pixels")
    inner_width: int | None = Field(None, ge=1, description="conv, grid: channels of an inner patch")
    grid_side: int | None = Field(None, ge=1, description="grid: side of the table of positions, in inner patches")
    class_slot: bool = Field(False, description="grid: keep the unused class token of the published weights")

    @model_validator(mode="after")
    def _check(self) -> PatchEmbedConfig:
        needed = {"linear": (), "conv": ("inner_size", "inner_width")}.get(
            self.kind, ("inner_size", "inner_width", "grid_side")
        )
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"a {self.kind} embedder needs {', '.join(missing)}")
        return self


class RopeScalingConfig(Section):
    """Rotary frequencies beyond the length a model was trained at.

    linear   positions divided by `factor`
    dynamic  NTK: the base grows with the row's length past `trained_length` (InternLM2)
    llama3   low frequencies divided by `factor`, high ones kept, a ramp between
    """

    kind: Literal["linear", "dynamic", "llama3"]
    factor: float = Field(ge=1)
    trained_length: int = Field(ge=1)
    low_frequency_factor: float = Field(1.0, gt=0, description="llama3")
    high_frequency_factor: float = Field(4.0, gt=0, description="llama3")


class ParametrisationConfig(Section):
    """How initial scales and learning rates follow the size, so that those tuned at a base size serve every other.

    standard   they do not
    mup        over widths
    completep  over widths and depths; see `solo.model.parametrisation`
    """

    kind: Literal["standard", "mup", "completep"] = "standard"
    base_width: int | None = Field(None, ge=1, description="width at which all kinds are the same")
    base_layers: int | None = Field(None, ge=1, description="completep: layers at which all kinds are the same")
    base_head_dim: int | None = Field(None, ge=1, description="C of the base size, where the ladder changes it")

    @model_validator(mode="after")
    def _check(self) -> ParametrisationConfig:
        needed = {"mup": ("base_width",), "completep": ("base_width", "base_layers")}.get(self.kind, ())
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"{self.kind} needs {', '.join(missing)}")
        return self


class ModelConfig(Section):
    """A pre-norm decoder: norms, rotary attention with grouped keys, an FFN; see `solo.model.transformer`."""

    vocab_size: int | None = Field(None, ge=1, description="rows of the vocabulary; default the tokenizer's pieces")

    width: int = Field(ge=1, description="D")
    layers: int = Field(ge=1, description="L")
    heads: int = Field(ge=1, description="H")
    kv_heads: int = Field(ge=1, description="K")
    head_dim: int | None = Field(None, description="C; default D / H")
    ffn_width: int = Field(ge=1, description="F")
    experts: ExpertsConfig = ExpertsConfig()
    moe: MoEConfig = MoEConfig()
    patch_embed: PatchEmbedConfig = PatchEmbedConfig()
    ffn: Literal["swiglu", "relu2"] = Field("swiglu", description="relu2: relu(up x)^2, no gate (Persimmon)")
    bias: Literal["none", "qkv", "all"] = Field("none", description="which projections of a layer have one")
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = Field(1e-5, gt=0)
    qk_norm: Literal["none", "rms", "layer"] = Field("none", description="of every head's queries and keys")
    rope_theta: float = Field(10_000.0, gt=0)
    rope_fraction: float = Field(1.0, gt=0, le=1, description="share of a head's dimensions that are rotated")
    rope_sections: tuple[int, int, int] | None = Field(
        None, description="pairs that follow time, row and column (M-RoPE); needs sequence.positions: grid"
    )
    rope_scaling: RopeScalingConfig | None = None
    frozen_embedding_id: int | None = Field(None, ge=0, description="row of text_embed without gradient (InternLM2: 2)")
    tied_head: bool = False
    vocab_multiple: int = Field(128, ge=1, description="the vocabulary is padded up to a multiple of this")
    init_std: float = Field(0.02, gt=0)
    parametrisation: ParametrisationConfig = ParametrisationConfig()
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "projections", "attention", "full", "offload", "offload_projections"] = Field(
        "none", description="what a layer keeps for the backward pass, and where; see solo/model/remat.py"
    )
    scan_layers: bool = Field(
        True, description="layers in a loop, compiled once; else one after the other: faster where they are small"
    )
    attention_implementation: Literal["auto", "blocks", "dense", "pallas"] = Field(
        "auto",
        description="auto: pallas on TPU and GPU, blocks on CPU. blocks: plain JAX, for any platform. pallas: kernels"
        " of the platform, on a CPU interpreted, for tests. dense materialises S x S: for tests",
    )
    attention_block: int = Field(128, ge=8, description="queries and keys per block of `blocks`")
    attention_tile: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="queries and keys per tile of `pallas`; null: what suits the chip"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; set head_dim")
        if self.rotary_dim % 2:
            raise ValueError(f"{self.rotary_dim} rotated dimensions of a head are odd; rotary positions rotate pairs")
        if self.rope_sections and sum(self.rope_sections) != self.rotary_dim // 2:
            raise ValueError(f"rope_sections {self.rope_sections} do not add up to {self.rotary_dim // 2} pairs")
        return self

    @property
    def dim_per_head(self) -> int:
        """C, the width of one attention head."""
        return self.head_dim or self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions are rotated, the first ones."""
        return int(self.dim_per_head * self.rope_fraction)


class MeshConfig(Section):
    """Devices along each mesh axis; at most one -1 takes what is left."""

    replica: int = 1
    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    @model_validator(mode="after")
    def _check(self) -> MeshConfig:
        sizes = list(self.model_dump().values())
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError("axis sizes are positive, and at most one is -1 (all devices that are left)")
        return self

"""Config sections for the model and the mesh."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from solo.config.base import Section, decides
from solo.config.heads import HeadPartConfig, check_parts
from solo.config.layer_types import LayerTypeConfig, check_layer_types

Sharing = Literal["shared", "modality"]


class ExpertsConfig(Section):
    """Which components of a layer share their weights between patches and text.

    modality  separate weights for patches and text (Mono-InternVL: ffn)
    """

    keys_decide = ("model",)

    ffn: Literal["shared", "modality", "moe"] = Field(
        "shared", description="moe: mixture of experts with a learned router; see model.moe"
    )
    qkv: Sharing = "shared"
    out: Sharing = "shared"
    norms: Sharing = "shared"


class MoEConfig(Section):
    """A mixture of experts with a learned router that replaces the FFN: top-k, dropless, with a load-balancing loss."""

    keys_decide = ("model",)

    count: int = Field(8, ge=2)
    top_k: int = Field(1, ge=1)
    width: int | None = Field(None, ge=1, description="F of an expert; default: ffn_width / top_k")
    auxiliary_weight: float = Field(
        0.01,
        ge=0,
        description="weight of the load-balancing loss, which is computed per micro-batch and then averaged",
        json_schema_extra=decides("result"),
    )

    @model_validator(mode="after")
    def _check(self) -> MoEConfig:
        if self.top_k > self.count:
            raise ValueError(f"top_k {self.top_k} is above count {self.count}")
        return self


class PatchEmbedConfig(Section):
    """Maps the pixels of a patch to the model's width. Every kind uses only the pixels of that patch.

    linear  one matrix (SOLO, SAIL, Fuyu)
    conv    a convolution of `inner_size`, GELU, and one matrix over the concatenated inner patches (EVEv2, NEO)
    grid    a convolution of `inner_size`, a learned position embedding over the tile, then LayerNorm and an MLP over
            the concatenated inner patches (Mono-InternVL: convolution 14, pixel shuffle 2 x 2)
    normed  LayerNorm, one matrix to `inner_width`, LayerNorm, a learned embedding of the column plus one of the row,
            LayerNorm, an RMS norm without a scale, and one matrix (Gemma 4 unified)
    """

    keys_decide = ("model",)

    kind: Literal["linear", "conv", "grid", "normed"] = "linear"
    bias: bool = Field(False, description="linear: adds a bias; the other kinds always have one")
    token_id: int | None = Field(
        None, ge=0, description="id of a token whose embedding is added to every patch (SOLO: 32001)"
    )
    inner_size: int | None = Field(None, ge=1, description="conv, grid: side of an inner patch in pixels")
    inner_width: int | None = Field(
        None, ge=1, description="conv, grid: channels of an inner patch; normed: width between the two matrices"
    )
    grid_side: int | None = Field(
        None,
        ge=1,
        description="grid: side of the table of position embeddings, in inner patches; normed: number of rows and of"
        " columns that have an embedding",
    )
    class_slot: bool = Field(False, description="grid: keep the unused class token of the published weights")
    rotation_theta: float | None = Field(
        None,
        gt=0,
        description="conv: rotates the channels of each inner patch by its place in the image, with this base (NEO)",
    )

    @model_validator(mode="after")
    def _check(self) -> PatchEmbedConfig:
        needed = {
            "linear": (),
            "conv": ("inner_size", "inner_width"),
            "grid": ("inner_size", "inner_width", "grid_side"),
            "normed": ("inner_width", "grid_side"),
        }[self.kind]
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"a {self.kind} embedder needs {', '.join(missing)}")
        if self.rotation_theta is not None and self.kind != "conv":
            raise ValueError(f"rotation_theta belongs to the kind conv, not {self.kind}; leave it out")
        if self.rotation_theta is not None and self.inner_width is not None and self.inner_width % 4:
            raise ValueError(
                f"rotation_theta rotates pairs of channels in two halves, so inner_width {self.inner_width} must be a"
                " multiple of 4"
            )
        return self


class RopeScalingConfig(Section):
    """Scaling of the rotary frequencies for rows longer than those of pretraining.

    linear   divides positions by `factor`
    dynamic  NTK: the base grows with the row's length beyond `trained_length` (InternLM2)
    llama3   divides low frequencies by `factor`, keeps high ones, and interpolates in between
    """

    keys_decide = ("model",)

    kind: Literal["linear", "dynamic", "llama3"]
    factor: float = Field(ge=1)
    trained_length: int = Field(ge=1)
    low_frequency_factor: float = Field(1.0, gt=0, description="llama3")
    high_frequency_factor: float = Field(4.0, gt=0, description="llama3")


class ParametrisationConfig(Section):
    """How initial weights and learning rates scale with the model's size, so that tuned values transfer between sizes.

    standard   no scaling
    mup        transfer across widths
    completep  transfer across widths and depths; see `solo.model.parametrisation`
    """

    keys_decide = ("model",)

    kind: Literal["standard", "mup", "completep"] = "standard"
    base_width: int | None = Field(None, ge=1, description="width at which every kind equals standard")
    base_layers: int | None = Field(None, ge=1, description="completep: number of layers at which it equals standard")
    base_head_dim: int | None = Field(None, ge=1, description="C at the base size, if it differs between sizes")

    @model_validator(mode="after")
    def _check(self) -> ParametrisationConfig:
        needed = {"mup": ("base_width",), "completep": ("base_width", "base_layers")}.get(self.kind, ())
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"{self.kind} needs {', '.join(missing)}")
        return self


class QuantizationConfig(Section):
    """Products in eight bits during training; see `solo.model.quantized`.

    Evaluation, generation and exports multiply in `compute_dtype`. Never quantised: patch embeddings, the head, norms,
    attention scores, and the weights themselves.

    fp8   float8, on H100, H200 and tpu7x
    int8  on v5e, v5p and v6e
    """

    keys_decide = ("result",)

    kind: Literal["none", "fp8", "int8"] = "none"
    components: tuple[Literal["ffn", "attention"], ...] = Field(
        ("ffn", "attention"), min_length=1, description="attention: its four projections"
    )

    @model_validator(mode="after")
    def _check(self) -> QuantizationConfig:
        if len(set(self.components)) < len(self.components):
            raise ValueError(f"components {list(self.components)} has a duplicate")
        return self


class ModelConfig(Section):
    """A pre-norm decoder with rotary positions and grouped-query attention; see `solo.model.transformer`."""

    keys_decide = ("model",)

    vocab_size: int | None = Field(None, ge=1, description="V; default: the size of the tokenizer's vocabulary")
    appended_rows: int = Field(
        0,
        ge=0,
        description="number of rows at the end of the vocabulary that were appended after training and are never"
        " predicted; an export appends one for its placeholder",
    )
    width: int = Field(ge=1, description="D")
    layers: int = Field(ge=1, description="L")
    heads: int = Field(ge=1, description="H")
    kv_heads: int = Field(ge=1, description="K")
    head_dim: int | None = Field(None, ge=1, description="C; default: D / H")
    value_dim: int | None = Field(None, ge=1, description="width of a head's values; default: C")
    head_parts: tuple[HeadPartConfig, ...] | None = Field(
        None,
        min_length=1,
        description="parts of a head's queries and keys; those of the main projections add up to C. null: one part,"
        " described by the keys rope_*",
    )
    attention_scale: float | None = Field(
        None, gt=0, description="factor on the scores before the softmax; default: C ** -0.5"
    )
    ffn_width: int = Field(ge=1, description="F")
    experts: ExpertsConfig = ExpertsConfig()
    moe: MoEConfig = MoEConfig()
    patch_embed: PatchEmbedConfig = PatchEmbedConfig()
    ffn: Literal["swiglu", "geglu", "relu2"] = Field(
        "swiglu",
        description="geglu: a gate with the tanh form of GELU (Gemma); relu2: relu(up x)^2 without a gate (Persimmon)",
    )
    bias: Literal["none", "qkv", "all"] = Field("none", description="which projections of a layer have a bias")
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = Field(1e-5, gt=0)
    norm_scale_dtype: Literal["compute", "float32"] = Field(
        "compute",
        description="rms: whether the scale multiplies after the cast to compute_dtype, or before it (Gemma)",
    )
    norm_placement: Literal["pre", "sandwich"] = Field(
        "pre", description="sandwich: attention and FFN have a norm of their input and one of their output (Gemma)"
    )
    qk_norm: Literal["none", "rms", "layer"] = Field("none", description="norm of the queries and keys of each head")
    value_norm: Literal["none", "rms"] = Field("none", description="norm of the values of each head, without a scale")
    keys_are_values: bool = Field(
        False, description="values are the projected keys before their norm and rotation (attention_k_eq_v of Gemma)"
    )
    rope_theta: float = Field(10_000.0, gt=0)
    rope_fraction: float = Field(1.0, gt=0, le=1, description="fraction of a head's dimensions that is rotated")
    rope_pairs: Literal["rotated", "head"] = Field(
        "rotated",
        description="rotated: dimension i turns with i + R/2, of R rotated ones; head: with i + C/2, at frequencies of"
        " the whole head (rope_type proportional of Hugging Face)",
    )
    rope_sections: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = Field(
        None, description="number of rotated pairs for time, row and column (M-RoPE); needs sequence.positions: grid"
    )
    rope_scaling: RopeScalingConfig | None = None
    frozen_embedding_id: int | None = Field(
        None,
        ge=0,
        description="id of a token whose embedding gets no gradient (InternLM2: 2)",
        json_schema_extra=decides("result"),
    )
    embedding_scale: Literal["none", "sqrt_width"] = Field(
        "none", description="sqrt_width: embeddings of tokens, not of patches, are multiplied by sqrt(D) (Gemma)"
    )
    tied_head: bool = False
    logit_softcap: float | None = Field(
        None, gt=0, description="logits are softcap * tanh(logits / softcap) (Gemma: 30)"
    )
    layer_scalar: bool = Field(
        False, description="the output of every layer is multiplied by its own number, which is not trained (Gemma 4)"
    )
    layer_types: tuple[LayerTypeConfig, ...] = Field(
        (), description="types of layers, such as sliding and full attention; empty: all layers are alike"
    )
    layer_pattern: tuple[str, ...] = Field(
        (), description="types of the first layers, repeated for the others (Gemma: sliding five times, then full)"
    )
    vocab_multiple: int = Field(
        128, ge=1, description="embedding tables are padded to a multiple of this", json_schema_extra=decides("result")
    )
    init_std: float = Field(0.02, gt=0, json_schema_extra=decides("result"))
    parametrisation: ParametrisationConfig = ParametrisationConfig()
    compute_dtype: Literal["float32", "bfloat16"] = Field("float32", json_schema_extra=decides("result"))
    quantization: QuantizationConfig = QuantizationConfig()
    remat: Literal["none", "dots", "projections", "attention", "full", "offload", "offload_projections"] = Field(
        "none",
        description="what a layer keeps for the backward pass, and where; see solo/model/remat.py",
        json_schema_extra=decides("nothing"),
    )
    scan_layers: bool = Field(
        True,
        description="compile the layers once, as a loop; false unrolls the loop, which is faster for small layers",
        json_schema_extra=decides("nothing"),
    )
    attention_implementation: Literal["auto", "blocks", "dense", "pallas"] = Field(
        "auto",
        description="auto: pallas on TPU and GPU, blocks on CPU. blocks: plain JAX, on any platform. pallas: the"
        " platform's kernels; on a CPU they are interpreted, for tests. dense: materialises S x S scores, for tests",
        json_schema_extra=decides("nothing"),
    )
    attention_block: int = Field(
        128, ge=8, description="queries and keys per block of `blocks`", json_schema_extra=decides("nothing")
    )
    attention_tile: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="queries and keys per tile of `pallas`; null: the chip's values in solo/chips.py",
        json_schema_extra=decides("nothing"),
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; set head_dim")
        if self.rotary_dim % 2:
            raise ValueError(f"rope_fraction rotates {self.rotary_dim} dimensions of a head; the number must be even")
        if self.rope_sections and sum(self.rope_sections) != self.rotary_dim // 2:
            raise ValueError(f"rope_sections {self.rope_sections} do not add up to {self.rotary_dim // 2} pairs")
        check_parts(self)
        if self.rope_pairs == "head" and (self.rope_sections or self.rope_scaling or self.head_parts):
            raise ValueError("rope_pairs: head goes with none of rope_sections, rope_scaling and head_parts")
        if self.keys_are_values and (self.bias != "none" or self.value_dim or self.head_parts):
            raise ValueError("keys_are_values goes with bias: none, and with neither value_dim nor head_parts")
        check_layer_types(self)
        if self.dim_per_value > self.dim_per_query:
            raise ValueError(f"value_dim {self.value_dim} is above the width of a query, {self.dim_per_query}")
        if self.quantization.kind != "none" and "ffn" in self.quantization.components and self.experts.ffn == "moe":
            raise ValueError(
                "quantization does not reach the experts of a router (experts.ffn: moe); set quantization.components:"
                " [attention]"
            )
        return self

    @property
    def dim_per_head(self) -> int:
        """C, the width of a head in the main projections of queries and keys."""
        return self.head_dim or self.width // self.heads

    @property
    def dim_per_query(self) -> int:
        """The width of a query or key: C, and the parts of the grid projections."""
        return self.dim_per_head + self.dim_per_grid

    @property
    def dim_per_grid(self) -> int:
        """The width of a head in the grid projections; 0 without them."""
        return sum(part.width for part in self.head_parts or () if part.projection == "grid")

    @property
    def dim_per_value(self) -> int:
        """The width of a value, and of the output of a head."""
        return self.value_dim or self.dim_per_head

    @property
    def scale(self) -> float:
        """The factor on the scores before the softmax."""
        return self.attention_scale or self.dim_per_head**-0.5

    @property
    def rotary_dim(self) -> int:
        """The number of rotated dimensions of a head without `head_parts`; they come first."""
        return int(self.dim_per_head * self.rope_fraction)

    @property
    def positions(self) -> Literal["text", "grid", "separate"]:
        """The kind of positions that the heads are rotated by; see `SequenceConfig.positions`."""
        if self.rope_sections is not None:
            return "grid"
        return "separate" if any(part.axis != "time" for part in self.head_parts or ()) else "text"

    @property
    def type_of_each_layer(self) -> tuple[str, ...]:
        """The type of each of the L layers; empty if all layers are alike."""
        return tuple(
            self.layer_pattern[layer % len(self.layer_pattern)]
            for layer in range(self.layers * bool(self.layer_pattern))
        )

    @property
    def layers_by_type(self) -> dict[str | None, int]:
        """The number of layers of each type, in the order of `layer_types`; {None: L} if all layers are alike."""
        if not self.layer_types:
            return {None: self.layers}
        return {each.name: self.type_of_each_layer.count(each.name) for each in self.layer_types}

    @property
    def each_type(self) -> tuple[tuple[ModelConfig, int], ...]:
        """The model of each type of layers (`of_type`), and the number of its layers."""
        return tuple((self.of_type(name), count) for name, count in self.layers_by_type.items())

    def of_type(self, name: str | None) -> ModelConfig:
        """Returns the model whose layers are all of one type; this model for None."""
        if name is None:
            return self
        (found,) = (each for each in self.layer_types if each.name == name)
        alike = {"layer_types": (), "layer_pattern": ()}
        return ModelConfig.model_validate({**dict(self), **found.changes, **alike})


class MeshConfig(Section):
    """The number of devices along each mesh axis. One axis may be -1, which takes all remaining devices."""

    keys_decide = ("nothing",)

    replica: int = 1
    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    @model_validator(mode="after")
    def _check(self) -> MeshConfig:
        sizes = list(self.model_dump().values())
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError("axis sizes are positive; at most one may be -1, which takes all remaining devices")
        return self

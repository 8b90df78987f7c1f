"""Tiny models of every layout, and published config.json files with their model sizes."""

from functools import cache

from solo.config import Config, parse_config
from solo.interop.layouts.evev2 import CLIP_MEAN, CLIP_STD
from solo.model.parameters import ModelDefinition

TEXT = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 100, "vocab_multiple": 64}
MODALITY = {"ffn": "modality", "qkv": "modality", "out": "modality", "norms": "modality"}
GRID = {"kind": "grid", "inner_size": 4, "inner_width": 6, "grid_side": 4, "class_slot": True}
TILES = {
    "geometry": "tiles",
    "patch_size": 8,
    "tile_size": 16,
    "resample": "bicubic",
    "exif": "ignore",
    "background": "published",
    "begin_token": "<img>",
    "end_token": "</img>",
    "row_token": None,
    "placeholder_token": "<IMG_CONTEXT>",
}
PATCHES = {
    "patch_size": 8,
    "exif": "ignore",
    "background": "published",
    "end_token": "<vision>",
    "placeholder_token": "<vpatch>",
    "stored_as_float16": True,
}
SAIL = {
    "patch_size": 8,
    "max_side": 2**17,
    "max_pixels": 4096 * 64,
    "exif": "ignore",
    "background": "published",
    "row_token": None,
    "placeholder_token": "<vpatch>",
    "mask": "prefix",
}
PERSIMMON = {
    "kv_heads": 4,
    "ffn": "relu2",
    "bias": "all",
    "norm": "layer",
    "qk_norm": "layer",
    "rope_fraction": 0.5,
    "rope_theta": 25_000.0,
}
HALF = [0.5, 0.5, 0.5]
FUYU = {
    "geometry": "padded",
    "patch_size": 6,
    "exif": "ignore",
    "background": "published",
    "begin_token": None,
    "end_token": None,
    "row_token": "|NEWLINE|",
    "row_token_after_last": True,
    "placeholder_token": "|SPEAKER|",
    "mean": HALF,
    "std": HALF,
}
EVE = {
    "geometry": "area",
    "patch_size": 8,
    "min_pixels": 1600**2,
    "max_pixels": 1600**2,
    "resample": "bicubic",
    "exif": "ignore",
    "background": "published",
    "begin_token": None,
    "end_token": None,
    "row_token": None,
    "markers": True,
    "mean": list(CLIP_MEAN),
    "std": list(CLIP_STD),
}
CONV = {"kind": "conv", "inner_size": 4, "inner_width": 6}
NEO = {
    "geometry": "area",
    "patch_size": 8,
    "min_pixels": 256,
    "max_pixels": 4096,
    "rounding": "within",
    "resample": "bicubic",
    "exif": "ignore",
    "background": "neo",
    "begin_token": "<img>",
    "end_token": "</img>",
    "row_token": None,
    "placeholder_token": "<IMG_CONTEXT>",
    "mask": "bidirectional",
}


def in_parts(width: int, **own: str) -> dict:
    """Returns the keys of heads of 16 whose part for time has this width, and rows and columns half of it."""
    grid = [{"axis": axis, "width": width // 2, "theta": 100.0, **own} for axis in ("row", "column")]
    return {
        "head_dim": 16,
        "head_parts": [{"axis": "time", "width": width}, *grid],
        "qk_norm": "rms",
        "patch_embed": {**CONV, "inner_width": 8, "rotation_theta": 100.0},
    }


SLIDING = {
    "name": "sliding_attention",
    "kv_heads": 2,
    "head_dim": 8,
    "rope_theta": 1e4,
    "rope_fraction": 1.0,
    "rope_pairs": "rotated",
    "keys_are_values": False,
}
FULL = {
    **SLIDING,
    "name": "full_attention",
    "kv_heads": 1,
    "head_dim": 16,
    "rope_theta": 1e6,
    "rope_fraction": 0.25,
    "rope_pairs": "head",
    "keys_are_values": True,
}
GEMMA = {
    "layers": 3,
    "ffn": "geglu",
    "norm_scale_dtype": "float32",
    "norm_placement": "sandwich",
    "qk_norm": "rms",
    "value_norm": "rms",
    "attention_scale": 1.0,
    "embedding_scale": "sqrt_width",
    "layer_scalar": True,
    "logit_softcap": 3.0,
    "tied_head": True,
    "patch_embed": {"kind": "normed", "inner_width": 12, "grid_side": 9},
    "layer_types": [SLIDING, FULL],
    "layer_pattern": ["sliding_attention", "sliding_attention", "full_attention"],
}
GEMMA_IMAGES = {
    "geometry": "area",
    "rounding": "down",
    "patch_size": 6,
    "min_pixels": 280 * 36,
    "max_pixels": 280 * 36,
    "resample": "bicubic",
    "exif": "ignore",
    "background": "published",
    "begin_token": "<|image>",
    "end_token": "<image|>",
    "row_token": None,
    "placeholder_token": "<|image|>",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}
GEMMA_MASKS = [
    {"layer_type": "sliding_attention", "image": "bidirectional", "sliding_window": 6},
    {"layer_type": "full_attention", "image": "bidirectional"},
]
DYNAMIC = {"kind": "dynamic", "factor": 2.0, "trained_length": 64}
LLAMA3 = {
    "kind": "llama3",
    "factor": 8.0,
    "trained_length": 64,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
}
INTERNLM2 = {"frozen_embedding_id": 2, "rope_scaling": DYNAMIC}

# name: (layout, model, image, sequence)
_TINY = {
    "mistral": ("mistral", {}, {}, {"sliding_window": 17}),
    "llama": ("llama", {"rope_scaling": LLAMA3}, {}, {}),
    "qwen2 with a tied head": ("qwen2", {"bias": "qkv", "tied_head": True}, {}, {}),
    "qwen3": ("qwen3", {"qk_norm": "rms", "head_dim": 16}, {}, {}),
    "internlm2": ("internlm2", INTERNLM2, {}, {}),
    "solo": ("solo", {"patch_embed": {"token_id": 7}}, PATCHES, {"sliding_window": 17, "template": "solo_chat"}),
    "sail": (
        "sail",
        {"patch_embed": {"token_id": 7}, "rope_sections": [0, 2, 2]},
        SAIL,
        {"positions": "grid", "template": "solo_chat"},
    ),
    "mono_internvl": (
        "mono_internvl",
        {**INTERNLM2, "patch_embed": GRID, "experts": {"ffn": "modality"}},
        TILES,
        {"template": "internlm2_chat"},
    ),
    "mono_internvl 1.5": (
        "mono_internvl",
        {**INTERNLM2, "patch_embed": GRID, "experts": {"ffn": "modality", "qkv": "modality", "out": "modality"}},
        {**TILES, "patch_order": "columns"},
        {"template": "internlm2_chat"},
    ),
    "evev2": ("evev2", {"bias": "qkv", "patch_embed": CONV, "experts": MODALITY}, EVE, {}),
    "fuyu": ("fuyu", {**PERSIMMON, "patch_embed": {"bias": True}}, FUYU, {}),
    "fuyu with mistral": ("fuyu", {"patch_embed": {"bias": True}}, FUYU, {"sliding_window": 17}),
    "fuyu with qwen3": ("fuyu", {"qk_norm": "rms", "head_dim": 16, "patch_embed": {"bias": True}}, FUYU, {}),
    "gemma4_unified": ("gemma4_unified", GEMMA, GEMMA_IMAGES, {"layer_masks": GEMMA_MASKS, "template": "gemma4"}),
    "neo": ("neo", in_parts(16, projection="grid"), NEO, {"positions": "separate"}),
    "neo_unify": ("neo_unify", in_parts(8, norm="grid"), {**NEO, "background": "neo_unify"}, {"positions": "separate"}),
    "native": ("native", {"patch_embed": GRID, "experts": MODALITY, "bias": "all", "qk_norm": "layer"}, TILES, {}),
    "native with a mixture of experts": ("native", {"experts": {"ffn": "moe"}, "tied_head": True}, PATCHES, {}),
}
TINY = tuple(_TINY)


@cache
def tiny(name: str, rows: int = 100) -> tuple[str, Config, ModelDefinition]:
    """Returns layout, config and definition of a tiny model with `rows` vocabulary rows."""
    layout, model, image, sequence = _TINY[name]
    sections = {"model": {**TEXT, **model, "vocab_size": rows}, "image": image, "sequence": sequence}
    config = parse_config({"name": "tiny", **sections})
    return layout, config, ModelDefinition(config.model, config.image, rows)


# Text model: what it is upcycled to.
UPCYCLED = {
    "mistral": {
        "model": {"patch_embed": {"token_id": 7}},
        "image": {"patch_size": 8, "max_side": 64, "placeholder_token": "<vpatch>"},
        "sequence": {"sliding_window": 17},
    },
    "llama": {"model": {"rope_scaling": dict(tiny("llama")[1].model.rope_scaling), "experts": {"norms": "modality"}}},
    "qwen2 with a tied head": {
        "model": {"bias": "qkv", "tied_head": True, "patch_embed": CONV, "experts": MODALITY},
        "image": EVE,
    },
    "qwen3": {"model": {"qk_norm": "rms", "head_dim": 16, "experts": {"qkv": "modality"}}},
    "internlm2": {
        "model": {
            "patch_embed": GRID,
            "experts": {"ffn": "modality"},
            "rope_scaling": dict(tiny("internlm2")[1].model.rope_scaling),
        },
        "image": TILES,
    },
}


def upcycled(name, vocab_size=110, **model):
    sections = UPCYCLED[name]
    return parse_config(
        {"name": "upcycled", **sections, "model": {**TEXT, "vocab_size": vocab_size, **sections["model"], **model}}
    )


_MISTRAL_7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
}
_INTERNLM2_2B = {
    "architectures": ["InternLM2VEForCausalLM"],
    "model_type": "internlm2",
    "vocab_size": 92553,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "bias": False,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
}
# layout: config.json, number of tensors, number of parameters
PUBLISHED = {
    "solo": (
        {
            **_MISTRAL_7B,
            "architectures": ["SoloForCausalLM"],
            "model_type": "mistral",
            "vocab_size": 33029,
            "vision_patch_size": 32,
        },
        292,
        7_262_744_576,
    ),
    "sail": (
        {
            **_MISTRAL_7B,
            "architectures": ["SailForCausalLM"],
            "model_type": "mistral",
            "vocab_size": 32006,
            "vision_patch_size": 32,
        },
        292,
        7_254_364_160,
    ),
    "mono_internvl": (
        {
            "model_type": "internvl_chat",
            "llm_config": _INTERNLM2_2B,
            "vision_config": {"hidden_size": 1024, "patch_size": 14, "image_size": 448},
            "force_image_size": 448,
            "downsample_ratio": 0.5,
            "select_layer": -1,
            "ps_version": "v2",
            "template": "internlm2-chat",
        },
        253,
        3_111_355_392,
    ),
    "evev2": (
        {
            "model_type": "eve-qwen2",
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
            "mm_hidden_size": 1024,
            "add_moe": True,
            "moe_part": "layernorm-self_attn-mlp",
        },
        681,
        14_156_712_960,
    ),
    "fuyu": (
        {
            "model_type": "fuyu",
            "vocab_size": 262144,
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "hidden_act": "relu2",
            "layer_norm_eps": 1e-5,
            "rope_theta": 25000.0,
            "rope_scaling": None,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": True,
            "patch_size": 30,
        },
        582,
        9_408_238_592,
    ),
    "gemma4_unified": (
        {
            "architectures": ["Gemma4UnifiedForConditionalGeneration"],
            "model_type": "gemma4_unified",
            "image_token_id": 258880,
            "tie_word_embeddings": True,
            "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 640, "rms_norm_eps": 1e-6},
            "text_config": {
                "attention_bias": False,
                "attention_k_eq_v": True,
                "enable_moe_block": False,
                "final_logit_softcapping": 30.0,
                "global_head_dim": 512,
                "head_dim": 256,
                "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": 3840,
                "hidden_size_per_layer_input": 0,
                "intermediate_size": 15360,
                "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 8,
                "max_position_embeddings": 262144,
                "model_type": "gemma4_unified_text",
                "num_attention_heads": 16,
                "num_global_key_value_heads": 1,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "num_kv_shared_layers": 0,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "full_attention": {
                        "partial_rotary_factor": 0.25,
                        "rope_theta": 1000000.0,
                        "rope_type": "proportional",
                    },
                    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
                },
                "sliding_window": 1024,
                "tie_word_embeddings": True,
                "use_bidirectional_attention": "vision",
                "use_double_wide_mlp": False,
                "vocab_size": 262144,
            },
            "vision_config": {
                "mm_embed_dim": 3840,
                "mm_posemb_size": 1120,
                "model_patch_size": 48,
                "model_type": "gemma4_unified_vision",
                "num_soft_tokens": 280,
                "output_proj_dims": 3840,
                "patch_size": 16,
                "pooling_kernel_size": 3,
                "rms_norm_eps": 1e-6,
            },
        },
        676,
        11_959_730_224 - 640 * 3840,  # without the audio embedder
    ),
}

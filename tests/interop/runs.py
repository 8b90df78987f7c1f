"""Runs with random weights, saved as training saves them, for every layout."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from solo.config import MeshConfig
from solo.data.text import Tokenizer, extend_tokenizer
from solo.inference.monolith import Monolith
from solo.model.parameters import define
from solo.sharding.mesh import make_mesh
from tests.tiny import MODEL, save_run, tiny_config

DENSE: dict[str, Any] = MODEL | {"experts": {}}
_CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
_FUYU = {
    "patch_size": 6,
    "geometry": "padded",
    "max_height": 48,
    "max_width": 60,
    "begin_token": None,
    "end_token": None,
    "row_token_after_last": True,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
_PERSIMMON = {"norm": "layer", "qk_norm": "layer", "ffn": "relu2", "bias": "all", "rope_fraction": 0.5, "kv_heads": 4}
_GRID = {"kind": "grid", "inner_size": 4, "inner_width": 8, "grid_side": 4, "class_slot": True}
_TILES = {"patch_size": 8, "geometry": "tiles", "tile_size": 16, "row_token": None, "resample": "bicubic"}
_AREA = {"geometry": "area", "patch_size": 8, "min_pixels": 1024, "max_pixels": 1024, "resample": "bicubic"}
_BESIDE = {"begin_token": "<vision>", "end_token": "</vision>", "row_token": None, "mask": "bidirectional"}
_NEO: dict[str, Any] = {
    "image": _AREA | _BESIDE | {"max_pixels": 2048, "rounding": "within"},
    "sequence": {"positions": "separate"},
}
_RAW = {"mask": "causal", "mean": [0.0] * 3, "std": [1.0] * 3}
_GEMMA: dict[str, Any] = {
    "layers": 3,
    "ffn": "geglu",
    "norm_eps": 1e-6,
    "norm_scale_dtype": "float32",
    "norm_placement": "sandwich",
    "qk_norm": "rms",
    "value_norm": "rms",
    "attention_scale": 1.0,
    "embedding_scale": "sqrt_width",
    "tied_head": True,
    "logit_softcap": 4.0,
    "layer_scalar": True,
    "patch_embed": {"kind": "normed", "inner_width": 12, "grid_side": 9},
    "layer_pattern": ["sliding_attention", "full_attention", "full_attention"],
    "layer_types": [
        {"name": "sliding_attention"},
        {
            "name": "full_attention",
            "head_dim": 16,
            "kv_heads": 1,
            "rope_theta": 1e6,
            "rope_fraction": 0.25,
            "rope_pairs": "head",
            "keys_are_values": True,
        },
    ],
}
_ROTATED = {"kind": "conv", "inner_size": 4, "inner_width": 8, "rotation_theta": 100.0}
_OWN = {"theta": 100.0, "projection": "grid"}
_JOINT = {"theta": 100.0, "norm": "grid"}
_MARKED = {"begin_token": None, "end_token": None, "row_token": None, "markers": True}
_EVE = {"bias": "qkv", "patch_embed": {"kind": "conv", "inner_size": 4, "inner_width": 8}}
# Config sections that each layout can store. A second word in a name marks a variant.
SECTIONS: dict[str, dict[str, Any]] = {
    "native": {"model": MODEL},
    "solo": {
        "image": {"patch_size": 8, "max_side": 64, "placeholder_token": "<vpatch>"},
        "model": DENSE | {"patch_embed": {"token_id": 310}},
        "sequence": {"sliding_window": 41},
    },
    "mono_internvl": {"image": _TILES, "model": MODEL | {"experts": {"ffn": "modality"}, "patch_embed": _GRID}},
    "evev2": {
        "image": _AREA | _CLIP | _MARKED,
        "model": MODEL | _EVE | {"experts": dict.fromkeys(("ffn", "qkv", "out", "norms"), "modality")},
    },
    "fuyu llama": {"image": _FUYU, "model": DENSE | {"patch_embed": {"bias": True}}},
    "fuyu mistral": {
        "image": _FUYU,
        "model": DENSE | {"patch_embed": {"bias": True}},
        "sequence": {"sliding_window": 13},
    },
    "fuyu qwen3": {"image": _FUYU, "model": DENSE | {"patch_embed": {"bias": True}, "qk_norm": "rms"}},
    "fuyu persimmon": {"image": _FUYU, "model": DENSE | _PERSIMMON | {"patch_embed": {"bias": True}}},
    "gemma4_unified": {
        "image": _AREA | _BESIDE | _RAW | {"patch_size": 6, "min_pixels": 576, "max_pixels": 576, "rounding": "down"},
        "model": DENSE | _GEMMA,
        "sequence": {
            "layer_masks": [
                {"layer_type": "sliding_attention", "sliding_window": 9, "image": "bidirectional"},
                {"layer_type": "full_attention", "image": "bidirectional"},
            ]
        },
    },
    "neo": _NEO
    | {
        "model": DENSE
        | {
            "patch_embed": _ROTATED,
            "qk_norm": "rms",
            "head_parts": [
                {"axis": "time", "width": 8},
                {"axis": "row", "width": 4, **_OWN},
                {"axis": "column", "width": 4, **_OWN},
            ],
        }
    },
    "neo_unify": _NEO
    | {
        "model": DENSE
        | {
            "patch_embed": _ROTATED,
            "qk_norm": "rms",
            "head_parts": [
                {"axis": "time", "width": 4},
                {"axis": "row", "width": 2, **_JOINT},
                {"axis": "column", "width": 2, **_JOINT},
            ],
        }
    },
    "llama": {"model": MODEL},
    "mistral": {"model": MODEL, "sequence": {"sliding_window": 7}},
    "qwen2": {"model": MODEL | {"bias": "qkv", "tied_head": True}},
    "qwen3": {"model": MODEL | {"qk_norm": "rms"}},
    "internlm2": {"model": MODEL},
}


def saved_run(folder: Path, tokenizer: Tokenizer, **sections: Any) -> Path:
    """Returns the folder of a run that stopped at step 2."""
    config = tiny_config(**sections)
    tokenizer = extend_tokenizer(tokenizer, filter(None, [config.image.placeholder_token]))
    rng = np.random.default_rng(0)
    parameters = {
        path: np.float32(rng.normal(0, 0.15, spec.shape) + path.endswith(("scale", "scalar")))
        for path, spec in define(config, tokenizer.vocab_size).specs.items()
    }
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return save_run(Monolith(config, tokenizer, parameters, mesh), folder, 2)

"""A random tiny model in JAX and in PyTorch, and documents for both."""

from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import jax
import numpy as np

from solo.batch import BEGIN_MARKER, ROW_MARKER, Batch
from solo.config import Config, parse_config
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import PATCH, Document
from solo.interop.layouts.native import NATIVE
from solo.model.parameters import ModelDefinition, Parameters

VOCAB = 40
BEGIN, ROW, END, PLACEHOLDER = 5, 6, 7, VOCAB - 1
TEXT = (8, VOCAB - 1)
SHAPE = RowShape(12, 24, 0)  # one for all: compiling takes most of the time


def twin_config(**sections: dict[str, Any]) -> Config:
    """Returns the config of a model with 2 layers; `sections` replace keys of model, image and sequence."""
    found: dict[str, Any] = {
        "name": "twin",
        "image": {"patch_size": 4, "max_side": 16, "tile_size": 16},
        "model": {"width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 24, "vocab_multiple": 8},
    }
    found["model"] |= {"attention_implementation": "dense", "vocab_size": VOCAB}  # dense compiles in half the time
    for name, section in sections.items():
        found[name] = found.get(name, {}) | section
    return parse_config(found)


@dataclass
class Twins:
    """The same weights in JAX and in PyTorch."""

    config: Config
    definition: ModelDefinition
    parameters: Parameters
    torch_model: Any

    def jax_logits(self, document: Document) -> np.ndarray:
        """Returns float32 logits [N, V] in reading order."""
        batch = stack([assemble_row([(document, 0)], SHAPE, self.config.image, 0, self.config.sequence)])
        logits_SV = np.asarray(_logits(self.definition, self.parameters, batch))[0, :, :VOCAB]
        is_patch = document.tokens == PATCH
        found = np.empty((len(is_patch), VOCAB), np.float32)
        found[is_patch] = logits_SV[: is_patch.sum()]
        found[~is_patch] = logits_SV[SHAPE.patch_slots :][: (~is_patch).sum()]
        return found

    def inputs(self, *documents: Document, pad: str = "left") -> dict[str, Any]:
        """Returns what the processor makes of documents: padded ids, a mask, and the patches of all documents."""
        import torch

        length = max(len(document.tokens) for document in documents)
        ids, mask = np.zeros((len(documents), length), np.int64), np.zeros((len(documents), length), np.int64)
        for row, document in enumerate(documents):
            size = len(document.tokens)
            where = slice(length - size, None) if pad == "left" else slice(size)
            ids[row, where] = np.where(document.tokens == PATCH, PLACEHOLDER, document.tokens)
            mask[row, where] = 1
        found = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if any(len(document.patches) for document in documents):
            pixels = np.concatenate([document.patches for document in documents]).astype(np.float32)
            image, per_channel = self.config.image, self.config.image.patch_size**2
            pixels = (pixels / 255 - np.repeat(image.mean, per_channel)) / np.repeat(image.std, per_channel)
            grid = np.concatenate([document.patch_grid for document in documents]).astype(np.int64)
            found |= {
                "pixel_values": torch.from_numpy(pixels.astype(np.float32)),
                "patches_grid": torch.from_numpy(grid),
            }
        return found


def make_twins(remote: ModuleType, attention: str = "sdpa", **sections: dict[str, Any]) -> Twins:
    """Makes a random model; `remote` is the module with the PyTorch classes."""
    import torch

    config = twin_config(**sections)
    definition = ModelDefinition(config.model, config.image, VOCAB)
    rng = np.random.default_rng(3)
    parameters = {
        # Norm scales are around 1, and all else is large enough that every switch changes the logits.
        path: np.asarray(rng.normal(1.0 if path.endswith("scale") else 0.0, 0.2, spec.shape), np.float32)
        for path, spec in definition.specs.items()
    }
    json = NATIVE.config_json(config, VOCAB) | {
        "image_token_id": PLACEHOLDER,
        "image_begin_id": BEGIN if config.image.begin_token else None,
        "image_end_id": END if config.image.end_token else None,
        "image_row_id": ROW if config.image.row_token else None,
    }
    torch_config = remote.SoloMonolithConfig(**{k: v for k, v in json.items() if k not in ("model_type",)})
    torch_config._attn_implementation = attention
    model = remote.SoloMonolithForCausalLM(torch_config).eval()
    tensors = {}
    for rule in NATIVE.tensors(definition):
        parts = [parameters[part.path][() if part.layer is None else part.layer] for part in rule.slices]
        tensors[rule.name] = torch.from_numpy(np.ascontiguousarray(rule.join(parts)))
    if config.model.tied_head:
        tensors["head.weight"] = tensors["model.text_embed.weight"]
    model.load_state_dict(tensors)
    return Twins(config, definition, parameters, model)


def document(config: Config, *parts: int | tuple[int, int], seed: int = 0) -> Document:
    """Makes a document of text runs (lengths) and images (rows, columns), in reading order."""
    rng = np.random.default_rng(seed)
    image, tokens, numbers, grids = config.image, [], [], []
    for number, part in enumerate(parts):
        if isinstance(part, int):
            tokens.append(rng.integers(*TEXT, part))
            numbers.append(np.full(part, -1))
            continue
        rows, columns = part
        places = np.indices(part).transpose(1, 2, 0)
        if image.markers:
            places = np.concatenate([places, np.full((rows, 1, 2), ROW_MARKER)], axis=1)
        places = places.reshape(-1, 2)
        inside = np.full((rows, columns + image.markers + (image.row_token is not None)), PATCH)
        if image.row_token is not None:
            inside[:, -1] = ROW
        inside = inside.ravel()
        if image.row_token is not None and not image.row_token_after_last:
            inside = inside[:-1]
        if image.markers:
            places = np.concatenate([[[BEGIN_MARKER] * 2], places])
            inside = np.concatenate([[PATCH], inside])
        begin = [BEGIN] if image.begin_token else []
        end = [END] if image.end_token else []
        tokens.append(np.array([*begin, *inside, *end]))
        numbers.append(np.full(len(tokens[-1]), number))
        numbers[-1][: len(begin)] = numbers[-1][len(tokens[-1]) - len(end) :] = -1
        grids.append(places)
    joined = np.concatenate(tokens).astype(np.int32)
    count = int((joined == PATCH).sum())
    return Document(
        joined,
        np.zeros(len(joined), bool),
        np.concatenate(numbers).astype(np.int32),
        rng.integers(0, 256, (count, image.patch_size**2 * 3)).astype(np.uint8),
        np.concatenate([np.zeros((0, 2)), *grids]).astype(np.int32),
    )


@partial(jax.jit, static_argnums=0)
def _logits(definition: ModelDefinition, parameters: Parameters, batch: Batch) -> jax.Array:
    model = definition.bind(parameters)
    return model.logits(model.hidden(batch).hidden.join())

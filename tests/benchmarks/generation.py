"""Compares answers of shared weights, of visual experts, and of their exports under transformers.

    python -m tests.benchmarks.generation [REPEATS]

Prints the time to the first token for pictures of 256, 1,024 and 2,048 patches, and the time of a further token for
batches of 1, 8 and 64 pictures of 256 patches. A batch is ready: decoding pictures and tokenizing are not measured. All
contestants take turns; printed are medians and ratios. The models have random weights and about 30 million active
parameters, in float32.

Targets: experts add at most 5% to the first token, and nothing to a further one; both are ahead of transformers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from PIL import Image

from solo.config import Config, MeshConfig, TokenizerConfig, parse_config
from solo.data.text import Tokenizer, train_tokenizer
from solo.inference.decoding import Decoding, row_keys
from solo.inference.monolith import Monolith, parse
from solo.inference.prompt import in_order, prompt_batches, prompt_needs
from solo.interop.export import export
from solo.model.parameters import define
from solo.sharding.mesh import make_mesh
from tests.benchmarks.attention import medians
from tests.tiny import save_run

PATCH = 16
# Width and height in pixels, by number of patches.
SIZES = {256: (256, 256), 1024: (512, 512), 2048: (1024, 512)}
BATCHES = (1, 8, 64)
NEW_TOKENS = 65
MODEL = {"width": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn_width": 1408, "tied_head": True}
EXPERTS = {"shared": {}, "experts": {"ffn": "modality"}}

Answer = Callable[[int], list[str]]


def make_tokenizer() -> Tokenizer:
    """Returns a tokenizer of 8,192 tokens, trained on random words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(20_000)]
    return train_tokenizer(
        [" ".join(words[i : i + 20]) for i in range(0, 20_000, 20)], TokenizerConfig(vocab_size=8192)
    )


def make_config(experts: Mapping[str, str]) -> Config:
    """Returns a config of about 30 million active parameters."""
    stage = {"name": "s", "mixture": {"digits": 1.0}, "steps": 1, "batch_rows": 1, "optimizer": {"learning_rate": 0.1}}
    return parse_config(
        {
            "name": "generation",
            "data": {"sources": {"digits": {"reader": "digits"}}},
            "image": {"patch_size": PATCH, "max_side": 1024, "row_token": None},
            "model": {**MODEL, "experts": experts},
            "stages": [stage],
        }
    )


def make_model(config: Config, tokenizer: Tokenizer) -> Monolith:
    """Returns a model with random weights on one device."""
    definition = define(config, tokenizer.vocab_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Monolith(config, tokenizer, jax.tree.map(np.asarray, definition.initialise(jax.random.key(1))), mesh)


def conversations(patches: int, rows: int) -> list[list[dict[str, Any]]]:
    """Returns one question about a picture of noise for each row."""
    rng = np.random.default_rng(patches)
    width, height = SIZES[patches]
    asked = {"type": "text", "text": "what is this and where is it"}
    pictures = [Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)) for _ in range(rows)]
    return [[{"role": "user", "content": [{"type": "image", "image": each}, asked]}] for each in pictures]


def ours(model: Monolith, asked: list[list[dict[str, Any]]]) -> Answer:
    """Returns a function from a number of new tokens to the answers of a prepared batch."""
    prompts = [model.runs(turns, open_turn=True) for turns in parse(asked)]
    plan = in_order(prompt_needs(prompts, model.config.image), len(prompts), 1)
    config = model.config
    (chunks,) = prompt_batches(
        prompts, len(prompts), model.tokenizer, config.image, config.sequence, plan=plan, share=(0, 1)
    )
    keys = row_keys(model.mesh, 0, np.arange(len(prompts)))

    def answer(new_tokens: int) -> list[str]:
        found = model._answer(chunks, plan[0].room, keys, Decoding(new_tokens))
        if any(not each.cut for each in found):
            raise AssertionError("an answer stopped early; choose other weights")
        return [each.text for each in found]

    return answer


def theirs(repository: Path, asked: list[list[dict[str, Any]]]) -> Answer:
    """Likewise, for the export under transformers."""
    trusted = {"trust_remote_code": True}
    model = transformers.AutoModelForImageTextToText.from_pretrained(repository, **trusted).eval()
    processor = transformers.AutoProcessor.from_pretrained(repository, **trusted)
    inputs = processor.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )

    def answer(new_tokens: int) -> list[str]:
        with torch.inference_mode():
            found = model.generate(**inputs, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        return processor.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def show(title: str, milliseconds: Mapping[str, float], rows: int = 0) -> None:
    """Prints a line for each contestant."""
    print(f"\n{title}")
    for name, taken in milliseconds.items():
        baseline = "shared" if name == "experts" else name.partition(",")[0]
        ratio = "" if baseline == name else f"   {taken / milliseconds[baseline]:.3f} of {baseline}"
        speed = f"   {rows / taken * 1000:.0f} tokens/s" if rows else ""
        print(f"  {name:24} {taken:8.1f} ms{speed}{ratio}", flush=True)


def main(repeats: int = 5) -> None:
    """Prints all figures."""
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        models, repositories = {}, {}
        for name, experts in EXPERTS.items():
            models[name] = make_model(make_config(experts), tokenizer)
            repositories[name] = Path(folder) / f"{name}-repository"
            export(save_run(models[name], Path(folder) / name, 1), repositories[name], verified=False)

        def contestants(patches: int, rows: int) -> dict[str, Answer]:
            asked = conversations(patches, rows)
            found = {name: ours(model, asked) for name, model in models.items()}
            return found | {f"{name}, transformers": theirs(path, asked) for name, path in repositories.items()}

        for patches in SIZES:
            taken = medians({name: partial(run, 1) for name, run in contestants(patches, 1).items()}, repeats)
            show(f"first token, {patches} patches", {name: 1000 * each for name, each in taken.items()})
        for rows in BATCHES:
            entered = contestants(256, rows)
            for name in EXPERTS:
                same = entered[name](8) == entered[f"{name}, transformers"](8)
                print(f"\n{name}: answers {'equal' if same else 'DIFFER FROM'} those under transformers")
            first, last = (
                medians({name: partial(run, number) for name, run in entered.items()}, repeats)
                for number in (1, NEW_TOKENS)
            )
            further = {name: 1000 * (last[name] - first[name]) / (NEW_TOKENS - 1) for name in entered}
            show(f"a further token, batch of {rows}", further, rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

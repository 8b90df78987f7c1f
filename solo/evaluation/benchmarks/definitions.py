"""All benchmarks. To add one, add a definition to this list; no other code changes.

Names without a suffix follow lmms-eval 0.7.3, except MMBench, whose circular evaluation is VLMEvalKit's. Names with the
suffix `_vlmevalkit` follow VLMEvalKit of August 2026 without a judge model. `docs/evaluation.md` has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from solo.config import ConfigError, nearest
from solo.evaluation.benchmarks import captions, choices, prompts, short_answers
from solo.evaluation.benchmarks.benchmark import Benchmark, Judge, registry, rotated
from solo.evaluation.benchmarks.fields import Fields
from solo.evaluation.benchmarks.images import is_missing
from solo.evaluation.benchmarks.metric import MME, Detection, Mean, MeanOfGroups

_YES_NO = ("yes", "no")
_PERCEPTION = ("existence", "count", "position", "color", "OCR", "posters", "celebrity", "scene", "landmark", "artwork")
_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def _labels(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


# ---------------------------------------------------------------------------- rows that are left out


def _text_only(values: Mapping[str, Any]) -> str | None:
    without = all(is_missing(values.get(name)) for name in ("image", "image_path"))
    return "a question without an image" if without else None


def _video(values: Mapping[str, Any]) -> str | None:
    return "a question about a video" if values.get("data_type") == "video" else None


def _not_multiple_choice(values: Mapping[str, Any]) -> str | None:
    if values.get("split") not in (None, "", "validation"):
        return f"a question of split {values['split']}"
    return "an open question" if values.get("question_type") == "open" else None


# ---------------------------------------------------------------------------------------------- definitions

_POPE = Benchmark(
    "pope",
    "POPE",
    "lmms-eval",
    Fields(
        id=("index", "category+question_id", "question_id", "id"),
        answers=_YES_NO,
        labels=_labels("category"),
        several=("category",),
        splits=(("test",), ("adversarial", "popular", "random")),
    ),
    prompts.question(prompts.PHRASE, str.strip),
    choices.pope,
    Detection("f1", lenient=True),
    groups=("category",),
    further=(
        Mean(spread="category"),
        *(Detection(name, lenient=True) for name in ("precision", "recall", "yes_ratio")),
    ),
)
_MME = Benchmark(
    "mme",
    "MME",
    "lmms-eval",
    Fields(
        answers=_YES_NO,
        labels={"category": ("category",), "image": ("question_id", "image_path")},
        required=("category", "image"),
        values={"category": _PERCEPTION + _COGNITION},
    ),
    prompts.question(prompts.PHRASE, prompts.without_request),
    choices.mme,
    MME("score", _PERCEPTION + _COGNITION),
    groups=("category",),
    further=(MME("perception", _PERCEPTION), MME("cognition", _COGNITION)),
)
_GQA = Benchmark(
    "gqa",
    "GQA (testdev balanced)",
    "lmms-eval",
    Fields(
        id=("index", "id"),
        images=("image", "image_path", "imageId"),
        splits=(("testdev",),),
        folders=("testdev_balanced_instructions",),
    ),
    prompts.question(prompts.PHRASE),
    short_answers.exact,
    files=("GQA_TestDev_Balanced",),
)
_SCIENCEQA = Benchmark(
    "scienceqa_img",
    "ScienceQA (test, with images)",
    "lmms-eval",
    Fields(
        choice=True,
        options=("choices",),
        answer=("answer",),
        hint=("hint",),
        labels={"subject": ("subject",), "category": ("category",)},
        folders=("scienceqa-img",),
        omit=_text_only,
    ),
    prompts.scienceqa,
    choices.scienceqa,
    groups=("subject",),
    files=("ScienceQA_TEST",),
)
_AI2D = Benchmark(
    "ai2d",
    "AI2D (test)",
    "lmms-eval",
    Fields(choice=True, options=("options",), answer=("answer",), labels=_labels("category")),
    prompts.question(prompts.LETTER),
    choices.ai2d,
    files=("AI2D_TEST",),
)
_SEED = Benchmark(
    "seedbench_img",
    "SEED-Bench (images)",
    "lmms-eval",
    Fields(
        id=("index", "question_id"),
        choice=True,
        options=("choice_*",),
        answer=("answer",),
        labels={"category": ("category", "question_type_id")},
        omit=_video,
    ),
    prompts.question(prompts.LETTER),
    choices.first_character,
    groups=("category",),
    files=("SEEDBench_IMG",),
)
_MMSTAR = Benchmark(
    "mmstar",
    "MMStar",
    "lmms-eval",
    Fields(
        answer=("answer",),
        labels={"category": ("category",), "l2_category": ("l2_category", "l2-category")},
        required=("l2_category",),
        splits=(("val",), ("test",)),
    ),
    prompts.question(prompts.LETTER.removesuffix("."), prompts.without_request),
    choices.ranked_letter,
    MeanOfGroups("l2_category"),
    max_new_tokens=64,
    groups=("category",),
    files=("MMStar",),
)
_MMMU = Benchmark(
    "mmmu_val",
    "MMMU (validation, multiple choice)",
    "lmms-eval",
    Fields(
        id=("id", "index"),
        choice=True,
        options=("options",),
        answer=("answer",),
        images=("image_*", "image", "image_path"),
        inline=True,
        labels={"category": ("category", "subfield")},
        splits=(("validation",),),
        omit=_not_multiple_choice,
    ),
    prompts.mmmu,
    choices.mmmu,
    max_new_tokens=128,
    groups=("category",),
    files=("MMMU_DEV_VAL",),
)
_CHARTQA = Benchmark(
    "chartqa",
    "ChartQA (test)",
    "lmms-eval",
    Fields(
        question=("question", "query"),
        answer=("answer", "label"),
        labels={"split": ("type", "split", "human_or_machine")},
    ),
    prompts.question(prompts.WORD),
    short_answers.relaxed,
    groups=("split",),
    files=("ChartQA_TEST",),
)
_TEXTVQA = Benchmark(
    "textvqa",
    "TextVQA (validation)",
    "lmms-eval",
    Fields(id=("index", "question_id"), annotators=4, splits=(("validation",), ("val",))),
    prompts.question(prompts.PHRASE, str.capitalize),
    short_answers.textvqa,
    max_new_tokens=32,
    files=("TextVQA_VAL",),
)
_VQAV2 = Benchmark(
    "vqav2",
    "VQAv2 (validation)",
    "lmms-eval",
    Fields(
        id=("index", "question_id"),
        annotators=4,
        labels=_labels("answer_type"),
        splits=(("validation",), ("val",)),
    ),
    prompts.question(prompts.PHRASE),
    short_answers.vqav2,
    groups=("answer_type",),
)
_DOCVQA = Benchmark(
    "docvqa",
    "DocVQA (validation)",
    "lmms-eval",
    Fields(id=("index", "questionId"), splits=(("validation",), ("val",)), folders=("docvqa",)),
    prompts.question(prompts.PHRASE),
    short_answers.anls,
    Mean("anls"),
    max_new_tokens=32,
    files=("DocVQA_VAL",),
)
_OCRBENCH = Benchmark(
    "ocrbench",
    "OCRBench",
    "lmms-eval",
    Fields(
        answer=("answer",),
        labels={"category": ("category", "question_type"), "dataset": ("dataset",)},
    ),
    prompts.question("", str.strip),
    short_answers.contained,
    Mean("score", scale=1000.0),
    max_new_tokens=128,
    groups=("category",),
    files=("OCRBench",),
)
_REALWORLDQA = Benchmark(
    "realworldqa",
    "RealWorldQA",
    "lmms-eval",
    Fields(answer=("answer",)),
    prompts.question("", str.strip),
    choices.realworldqa,
    files=("RealWorldQA",),
)
_MMBENCH = Benchmark(
    "mmbench",
    "MMBench (dev, circular)",
    "VLMEvalKit",
    Fields(
        choice=True,
        answer=("answer",),
        hint=("hint",),
        labels={
            "category": ("category",),
            "l2-category": ("l2-category", "L2-category"),
            "group": ("g_index",),
        },
        splits=(("dev",), ("validation",)),
        folders=("en",),
        circular=True,
    ),
    prompts.vlmevalkit_choice,
    choices.inferred,
    max_new_tokens=64,
    rotations=rotated,
    groups=("l2-category", "category"),
    files=("MMBench_DEV_EN", "MMBench_DEV_EN_V11", "MMBench_DEV_CN", "MMBench_DEV_CN_V11"),
)
_CAPTIONS = Benchmark(
    "coco_captions",
    "COCO captions",
    "lmms-eval",
    Fields(
        id=("index", "question_id", "id"),
        asked="Provide a one-sentence caption for the provided image.",
        answer=("answer", "captions"),
        splits=(("val",), ("validation",), ("test",)),
    ),
    prompts.question(),
    metric=Mean("cider"),
    judge_all=captions.cider,
    max_new_tokens=64,
    files=("COCO_VAL",),
)


def _vlmevalkit(benchmark: Benchmark, judge: Judge | None = None, **changes: Any) -> Benchmark:
    """Returns a benchmark as VLMEvalKit asks and judges it."""
    name, dataset = f"{benchmark.name}_vlmevalkit", benchmark.dataset
    return replace(benchmark, name=name, dataset=dataset, convention="VLMEvalKit", judge_one=judge, **changes)


def _vlmevalkit_choice(benchmark: Benchmark, **changes: Any) -> Benchmark:
    return _vlmevalkit(
        benchmark,
        choices.inferred,
        **{"ask": prompts.vlmevalkit_choice, "metric": Mean(), "max_new_tokens": 64} | changes,
    )


BENCHMARKS: Mapping[str, Benchmark] = registry(
    [
        _POPE,
        _MME,
        _GQA,
        _SCIENCEQA,
        _AI2D,
        _SEED,
        _MMBENCH,
        _MMSTAR,
        _MMMU,
        _CHARTQA,
        _TEXTVQA,
        _VQAV2,
        _DOCVQA,
        replace(
            _DOCVQA,
            name="infovqa",
            dataset="infovqa",
            title="InfographicVQA (validation)",
            fields=replace(_DOCVQA.fields, folders=("infographicvqa",)),
            files=("InfoVQA_VAL",),
        ),
        _OCRBENCH,
        _REALWORLDQA,
        _CAPTIONS,
        _vlmevalkit(
            _POPE,
            choices.yes_or_no,
            ask=prompts.question(),
            metric=Detection("f1", lenient=False),
            further=(
                Mean(spread="category"),
                *(Detection(name, lenient=False) for name in ("precision", "recall", "yes_ratio")),
            ),
        ),
        _vlmevalkit(_MME, choices.yes_or_no, ask=prompts.question()),
        _vlmevalkit(_GQA, short_answers.exact_case),
        _vlmevalkit_choice(_SCIENCEQA),
        _vlmevalkit_choice(_AI2D),
        _vlmevalkit_choice(_SEED),
        _vlmevalkit_choice(_MMSTAR),
        _vlmevalkit_choice(_MMMU, ask=prompts.vlmevalkit_mmmu, max_new_tokens=128),
        _vlmevalkit_choice(_REALWORLDQA),
        _vlmevalkit(_CHARTQA, short_answers.relaxed_stripped, ask=prompts.question(prompts.PHRASE)),
        _vlmevalkit(_TEXTVQA, short_answers.textvqa_vlmevalkit, ask=prompts.question(prompts.PHRASE)),
        _vlmevalkit(_OCRBENCH, short_answers.contained_as_is, ask=prompts.question()),
        _vlmevalkit(
            _CAPTIONS,
            judge_all=captions.cider_of_words,
            fields=replace(
                _CAPTIONS.fields,
                asked="Please describe this image in general. Directly provide the description, do not include prefix"
                ' like "This image depicts". ',
            ),
        ),
    ]
)


def benchmark(name: str) -> Benchmark:
    """Returns a benchmark by name. Raises ConfigError if there is none of that name."""
    if name not in BENCHMARKS:
        raise ConfigError(
            f"there is no benchmark {name!r}{nearest(name, list(BENCHMARKS))}; there are {', '.join(BENCHMARKS)}"
        )
    return BENCHMARKS[name]

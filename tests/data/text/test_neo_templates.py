"""NEO's prompts and supervised tokens are those of the published code, in training and in evaluation.

Qwen's vocabulary is not needed: the strings that the code tokenized are encoded with a small byte-level vocabulary,
with special tokens and images in the same places.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from solo.config import ImageConfig, SequenceConfig
from solo.data.readers.conversations import conversation
from solo.data.record import Image, Turn, encode_png
from solo.data.rows.document import PATCH, Document, encode
from solo.data.text import Tokenizer, extend_tokenizer
from solo.data.text.huggingface import HuggingFaceTokenizer
from solo.data.text.templates import make_template
from tests.data.vocabularies import byte_level_json

NEO = Path(__file__).parents[2] / "goldens/neo"
GOLDEN = json.loads((NEO / "templates.json").read_text())
TRAINING = {case["name"]: case for case in GOLDEN["training"]}
QUIRKS = {case["name"]: case for case in GOLDEN["training_quirks"]}
IMAGES = ImageConfig(
    geometry="area",
    min_pixels=1024,
    max_pixels=20_480,
    share_pixels=True,
    rounding="within",
    begin_token="<img>",
    end_token="</img>",
    row_token=None,
)
MARKUP = re.compile(r"(<\|im_start\|>|<\|im_end\|>|<img>|</img>|<IMG_CONTEXT>|<image>)")
PICTURE = encode_png(PillowImage.new("RGB", (32, 32), "red"))


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    plain = HuggingFaceTokenizer(byte_level_json(), None, "<|im_end|>", "<|endoftext|>")
    return extend_tokenizer(plain, ["<IMG_CONTEXT>", "<img>", "</img>"])


def tokenized(text: str, qwen: Tokenizer) -> list[int]:
    """Tokenizes as Qwen's tokenizer does: special tokens first, and each text between two of them by itself."""
    found: list[int] = []
    for number, piece in enumerate(MARKUP.split(text)):
        special = PATCH if piece == "<IMG_CONTEXT>" else qwen.find(piece)
        found += [special] if number % 2 else qwen.encode(piece)
    return found


def written(turns: tuple[Turn, ...], qwen: Tokenizer) -> Document:
    template = make_template(qwen, SequenceConfig(template="neo"))
    return encode(template.runs(turns), qwen, IMAGES)


def turns_of(case: dict) -> tuple[Turn, ...]:
    images = [(NEO / f"preprocessing/images/{name}.png").read_bytes() for name in case["images"]]
    return conversation(case["conversations"], images, load=Image)


def check(case: dict, turns: tuple[Turn, ...], qwen: Tokenizer) -> None:
    found = written(turns, qwen)
    ids, supervised = [], []
    for run in case["runs"]:
        piece = tokenized(run["text"], qwen)
        ids += piece
        supervised += [run["supervised"]] * len(piece)
    assert found.tokens.tolist() == ids
    assert found.supervised.tolist() == supervised


@pytest.mark.parametrize("name", TRAINING)
def test_training(name, qwen):
    check(TRAINING[name], turns_of(TRAINING[name]), qwen)


@pytest.mark.parametrize("name", ["an empty system turn stays", "an empty answer"])
def test_empty_turns_of_training(name, qwen):
    check(QUIRKS[name], turns_of(QUIRKS[name]), qwen)


def test_where_the_training_code_loses_an_image_ours_keeps_it(qwen):
    """A system turn first: the published code puts the image nowhere, and its model then fails."""
    (case,) = (case for name, case in QUIRKS.items() if "no image tokens at all" in name)
    wanted = case["text"].replace("user\n", "user\n<img><IMG_CONTEXT></img>\n")
    assert written(turns_of(case), qwen).tokens.tolist() == tokenized(wanted, qwen)


def test_a_line_break_follows_a_single_image_that_begins_the_first_question(qwen):
    def text(*turns: Turn) -> list[int]:
        return written(turns, qwen).tokens.tolist()

    def wanted(*contents: str) -> list[int]:
        turns = [f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents]
        return tokenized("".join(turns).replace("<image>", "<img><IMG_CONTEXT></img>"), qwen)

    broken, plain = ("<image>\nwhy", "<image>why")
    assert text(Turn("user", (PICTURE, "why"))) == wanted(broken)
    assert text(Turn("user", (PICTURE, "\nwhy"))) == wanted(broken)
    assert text(Turn("user", ("why", PICTURE))) == wanted("why<image>")
    assert text(Turn("user", (PICTURE, PICTURE, "why"))) == wanted("<image><image>why")
    assert text(Turn("user", ("so",)), Turn("user", (PICTURE, "why"))) == wanted("so", plain)


@pytest.mark.parametrize("number", range(8))
def test_evaluation(number, qwen):
    case = GOLDEN["generation"][number]
    name = {"NEO1.0 evaluation": "neo_1_0", "NEO1.5 evaluation": "neo_1_5"}[case["form"]]
    content = tuple(part["value"] if part["type"] == "text" else PICTURE for part in case["message"])
    template = make_template(qwen, SequenceConfig(template=name, system=case["system"] or None))
    wanted = tokenized(case["prompt"].replace("<image>", "<img><IMG_CONTEXT></img>"), qwen)
    turns = [Turn("user", content)]
    for question in (turns, [Turn("system", (case["system"],)), *turns]):
        found = encode(template.runs(question, open_turn=True), qwen, IMAGES)
        assert found.tokens.tolist() == wanted


@pytest.mark.parametrize("name", ["neo_1_0", "neo_1_5"])
def test_a_line_break_of_the_data_is_not_doubled(name, qwen):
    template = make_template(qwen, SequenceConfig(template=name))
    plain = template.runs([Turn("user", (PICTURE, "why"))])
    assert template.runs([Turn("user", (PICTURE, "\nwhy"))]) == plain


def test_history(qwen):
    case = GOLDEN["generation"][-1]
    turns = [Turn("user", (PICTURE, "What is it?")), Turn("assistant", ("Noise.",)), Turn("user", ("Sure?",))]
    wanted = tokenized(case["prompt"].replace("<image>", "<img><IMG_CONTEXT></img>"), qwen)
    for name in ("neo_1_0", "neo_1_5"):
        template = make_template(qwen, SequenceConfig(template=name))
        assert encode(template.runs(turns, open_turn=True), qwen, IMAGES).tokens.tolist() == wanted

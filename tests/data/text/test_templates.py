from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from solo.config import ConfigError, ImageConfig, SequenceConfig
from solo.data.record import Image, Turn, encode_png
from solo.data.rows.document import PATCH, encode
from solo.data.text import Tokenizer, extend_tokenizer
from solo.data.text.huggingface import HuggingFaceTokenizer
from solo.data.text.sentencepiece_model import SentencePieceTokenizer
from solo.data.text.templates import Template, TextRun, make_template, runs
from tests.data.vocabularies import byte_level_json, foreign_model

PICTURE, OTHER = (encode_png(PillowImage.new("RGB", (64, 32), shade)) for shade in ("red", "blue"))
NAMES = ["roles", "solo_pretrain", "solo_chat", "internlm2_chat", "chatml", "neo", "neo_1_0", "neo_1_5", "fuyu"]
SOLO_TOKENS = ["<vision>", "<vpatch>", "<vrow_sep>", "<vframe_sep>", "</vision>", "<loc_1>", "<loc_2>"]

CHAT = [
    Turn("user", (PICTURE, "\nwhy?")),
    Turn("assistant", ("so it is",)),
    Turn("user", ("and then",)),
    Turn("assistant", ("if\n",)),
]


@pytest.fixture(scope="module")
def mistral() -> Tokenizer:
    """A stand-in for Mistral's vocabulary: 493 tokens, then SOLO's; no padding token."""
    return extend_tokenizer(SentencePieceTokenizer(foreign_model()), SOLO_TOKENS)


@pytest.fixture(scope="module")
def internlm() -> Tokenizer:
    markup = ["<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    return extend_tokenizer(SentencePieceTokenizer(foreign_model()), markup)


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    text = byte_level_json()
    return extend_tokenizer(HuggingFaceTokenizer(text, None, "<|im_end|>", "<|endoftext|>"), ["<img>", "</img>"])


@pytest.fixture(scope="module")
def ours(tiny_tokenizer) -> Tokenizer:
    return tiny_tokenizer


def tokens(found: list[TextRun | Image]) -> list[int | Image]:
    return [token for run in found for token in (run.tokens if isinstance(run, TextRun) else [run])]


def learned(found: list[TextRun | Image]) -> list[bool]:
    return [
        supervised
        for run in found
        for supervised in ([run.supervised] * len(run.tokens) if isinstance(run, TextRun) else [False])
    ]


def template(tokenizer: Tokenizer, name: str, **settings):
    return make_template(tokenizer, SequenceConfig(template=name, **settings))


# ---------------------------------------------------------------------------------------------- roles


def test_roles(ours):
    system, user, assistant = (TextRun((ours.id(f"<|{role}|>"),), False) for role in ("system", "user", "assistant"))

    def text(words: str, supervised: bool) -> TextRun:
        return TextRun(tuple(ours.encode(words)), supervised)

    turns = [
        Turn("system", ("be",)),
        Turn("user", (PICTURE, "\nwhy")),
        Turn("assistant", ("so", "it")),
        Turn("user", ()),
    ]
    bos, eos = TextRun((1,), False), TextRun((2,), True)
    assert runs(turns, ours) == [
        *(bos, system, text("be", False), user, PICTURE, text("why", False), assistant),
        *(text("so", True), text("it", True), eos, user),
    ]
    assert runs([Turn("text", (PICTURE, "</s>", ""))], ours) == [bos, PICTURE, text("</s>", True), eos]
    assert runs([], ours) == [bos]


@pytest.mark.parametrize(
    "turns", [[Turn("user", ("why",))], [Turn("user", ("why",)), Turn("assistant", ())], [Turn("system", ())]]
)
def test_an_open_turn_begins_an_answer(ours, turns):
    found = runs(turns, ours, open_turn=True)
    assert found[-1] == TextRun((ours.id("<|assistant|>"),), False)
    assert TextRun((2,), True) not in found


def test_an_open_text_is_left_open(ours):
    so = TextRun(tuple(ours.encode("so")), True)
    assert runs([Turn("text", ("so",))], ours, open_turn=True)[-1] == so
    assert runs([Turn("user", ("why",)), Turn("assistant", ("so",))], ours, open_turn=True)[-1] == so


# ----------------------------------------------------------------------------------------------- SOLO


def test_solo_pretrain_equals_the_packs(mistral):
    # SOLO tokenizes texts one by one, without markup or end token; a document begins with the packs' separator.
    turns = [Turn("text", (PICTURE, "a kite", "\n</s> <vision>")), Turn("assistant", ("if",)), Turn("user", ("why",))]
    found = template(mistral, "solo_pretrain").runs(turns)
    image, document = ImageConfig(), encode(found, mistral, ImageConfig())
    begin, row, end = (mistral.id(token) for token in (image.begin_token, image.row_token, image.end_token))
    assert document.tokens.tolist() == [
        *(1, begin, PATCH, PATCH, end),
        *itertools.chain(*(mistral.encode(text) for text in ("a kite", "\n</s> <vision>", "if", "why"))),
    ]
    assert row not in document.tokens, "one row of patches has nothing to be parted from"
    # Only content of assistant and text turns is learned: ids below the appended tokens, and never an end token.
    targets = document.tokens[document.supervised]
    assert targets.tolist() == document.tokens[5 : -len(mistral.encode("why"))].tolist()
    assert (targets < 493).all()
    assert not {0, 1, 2, PATCH} & set(targets.tolist())


def reference_sft(mistral: Tokenizer, image: list[int | Image], turns: list[str]) -> tuple[list[int], list[bool]]:
    """SOLO's instruction tuning: ids, and which of them have labels."""
    ids, mask = list(image), [False] * len(image)
    for number, text in enumerate(turns):
        if number % 2 == 0:
            opening = [mistral.special.bos] if number == 0 else []
            part = [*opening, *mistral.encode(f"[INST] {text} [/INST]")]
        else:
            part = [*mistral.encode(text), mistral.special.eos]
        ids += part
        mask += [number % 2 == 1] * len(part)
    return ids, mask


def test_solo_chat_equals_the_reference(mistral):
    found = template(mistral, "solo_chat").runs(CHAT)
    expected = reference_sft(mistral, [PICTURE], ["why?", "so it is", "and then", "if\n"])
    assert (tokens(found), learned(found)) == expected
    assert tokens(found).index(1) == 1, "the beginning of the text stands after the image"
    assert tokens(found).count(1) == 1


def test_solo_chat_ends_an_image_with_its_begin_token(mistral):
    image = ImageConfig(end_token="<vision>")
    document = encode(template(mistral, "solo_chat").runs([Turn("user", (PICTURE, "why"))]), mistral, image)
    assert document.tokens[:5].tolist() == [493, PATCH, PATCH, 493, 1]


@pytest.mark.parametrize(
    "content", [(PICTURE, "\nwhy?"), ("why?\n", PICTURE), (PICTURE, "\n", "why?"), ("wh", "y?", PICTURE, "\n")]
)
def test_solo_chat_moves_images_to_the_front_and_removes_line_breaks(mistral, content):
    found = template(mistral, "solo_chat").runs([Turn("user", content)])
    assert tokens(found) == reference_sft(mistral, [PICTURE], ["why?"])[0]


def test_solo_chat_in_use(mistral):
    chat = template(mistral, "solo_chat")
    assert tokens(chat.runs(CHAT[:1], open_turn=True)) == reference_sft(mistral, [PICTURE], ["why?"])[0]
    later = chat.runs([Turn("user", (OTHER, "and then"))], open_turn=True, continued=True)
    assert tokens(later) == [OTHER, *mistral.encode("[INST] and then [/INST]")]
    assert chat.stops == (2,)
    assert chat.closing == (2,)
    assert tokens(chat.runs([Turn("text", ("if",))])) == [1, *mistral.encode("if"), 2]
    with pytest.raises(ValueError, match="no place for a system turn"):
        chat.runs([Turn("system", ("a",)), *CHAT])
    for name in ("solo_chat", "solo_pretrain"):
        with pytest.raises(ConfigError, match=rf"sequence\.system: template {name} has no place"):
            template(mistral, name, system="Be brief.")


# ----------------------------------------------------------------------------------------------- Fuyu


def test_fuyu(mistral, qwen):
    fuyu = template(mistral, "fuyu")
    answer = mistral.find("<0x04>")
    found = fuyu.runs([Turn("user", (PICTURE, "why\x04?")), Turn("assistant", ("so",)), Turn("user", ("and",))])
    first, so, second = (mistral.encode(text) for text in ("why?", "so", "and"))
    assert tokens(found) == [PICTURE, 1, *first, answer, *so, 2, *second, answer]
    assert learned(found) == [False] * (3 + len(first)) + [True] * (len(so) + 1) + [False] * (len(second) + 1)
    with pytest.raises(ConfigError, match="'<0x04>'"):
        template(qwen, "fuyu")


# ------------------------------------------------------------------------------------------ InternLM2


def joined(tokenizer: Tokenizer, text: str, tokens: list[str]) -> list[int]:
    """Tokenizes as the reference does: finds special tokens in text and encodes what is between them as one text."""
    for token in tokens:
        before, found, after = text.partition(token)
        if found:
            return [*joined(tokenizer, before, tokens), tokenizer.find(token), *joined(tokenizer, after, tokens)]
    return tokenizer.encode(text)


MARKS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]


def reference_internlm(tokenizer: Tokenizer, turns: list[str], patches: list[int]) -> tuple[list[int], list[bool]]:
    """Mono-InternVL's ids and label mask: one string; the mask by tokenising its parts again."""
    start, end, mark = "<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n"
    text = f"{start}system\nBe brief.{end}"
    for number, turn in enumerate(turns):
        text += f"{start}{('user', 'assistant')[number % 2]}\n{turn.strip()}{end}"
    for count in patches:
        text = text.replace("<image>", f"<img>{'<IMG_CONTEXT>' * count}</img>", 1)
    mask = [False]
    for number, part in enumerate(text.split(mark)):
        answer, _, question = part.partition(f"{start}user\n") if number else ("", "", part)
        asked = f"{start}user\n{question}" if number and question else question
        mask += [True] * len(joined(tokenizer, answer, MARKS))
        last = number == text.count(mark)
        mask += [False] * len(joined(tokenizer, asked + ("" if last else mark), MARKS))
    return [tokenizer.special.bos, *joined(tokenizer, text, MARKS)], mask


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ((PICTURE, "\nwhy? "), "<image>\nwhy? "),
        (("why?\n", PICTURE), "why?\n<image>"),
        ((PICTURE, "\n", OTHER, "\nwhich, ", "and why"), "<image>\n<image>\nwhich, and why"),
        (("if ", PICTURE, ", is it ", OTHER, "?"), "if <image>, is it <image>?"),
        # Written by hand, without line breaks:
        ((PICTURE, "why?"), "<image>\nwhy?"),
        ((PICTURE, OTHER, "why?"), "<image>\n<image>\nwhy?"),
        ((PICTURE, " why?"), "<image> why?"),
        ((PICTURE, ""), "<image>"),
        (("  if so  ",), "if so"),
    ],
)
def test_internlm2_chat_equals_the_reference(internlm, content, question):
    turns = [Turn("user", content), Turn("assistant", (" so ", "it\n")), *CHAT[2:]]
    found = template(internlm, "internlm2_chat", system="Be brief.").runs(turns)
    image = ImageConfig(begin_token="<img>", end_token="</img>", row_token=None)
    document = encode(found, internlm, image)
    patches = [2] * question.count("<image>")
    ids, mask = reference_internlm(internlm, [question, " so it\n", "and then", "if\n"], patches)
    context = internlm.id("<IMG_CONTEXT>")
    assert [context if token == PATCH else token for token in document.tokens.tolist()] == ids
    assert document.supervised.tolist() == mask


def test_internlm2_chat_written_out(internlm):
    start, end = internlm.id("<|im_start|>"), internlm.id("<|im_end|>")
    chat = template(internlm, "internlm2_chat")
    found = chat.runs([Turn("user", ("why?",)), Turn("assistant", ("so",))])
    answer = internlm.encode("so")
    head = internlm.encode("assistant\n")
    assert tokens(found) == [1, start, *internlm.encode("user\nwhy?"), end, start, *head, *answer, end]
    assert learned(found) == [False] * (len(tokens(found)) - len(answer) - 1) + [True] * (len(answer) + 1)
    assert chat.stops == (end, 2, start)
    assert tokens(chat.runs(CHAT[2:3], open_turn=True))[-len(head) - 2 :] == [end, start, *head]
    begun = chat.runs([Turn("user", ("why?",)), Turn("assistant", ("so ",))], open_turn=True)
    assert tokens(begun)[-len(answer) :] == answer
    later = chat.runs([Turn("user", ("why?",))], open_turn=True, continued=True)
    assert tokens(later) == [start, *internlm.encode("user\nwhy?"), end, start, *head]


def test_a_system_turn_is_added_only_if_there_is_none(internlm, ours):
    chat = template(internlm, "internlm2_chat", system="Be brief.")
    written = internlm.encode("system\nBe brief.")
    for turns, count in (
        ([Turn("user", ("why",))], 1),
        ([Turn("system", ("if",)), Turn("user", ("why",))], 0),
        ([Turn("text", ("why",))], 0),
    ):
        found = tokens(chat.runs(turns))
        assert sum(found[place : place + len(written)] == written for place in range(len(found))) == count
    found = runs([Turn("user", ("why",))], ours, config=SequenceConfig(system="be"))
    assert tokens(found)[:2] == [1, ours.id("<|system|>")]


# ----------------------------------------------------------------------------------------------- Qwen


def test_chatml_equals_qwen(qwen):
    chat = template(qwen, "chatml")
    found = chat.runs([Turn("system", ("if",)), *CHAT])
    text = (
        "<|im_start|>system\nif<|im_end|>\n<|im_start|>user\n<image>\nwhy?<|im_end|>\n"
        "<|im_start|>assistant\nso it is<|im_end|>\n<|im_start|>user\nand then<|im_end|>\n"
        "<|im_start|>assistant\nif\n<|im_end|>\n"
    )
    image = qwen.find("</img>")
    expected = joined(qwen, text.replace("<image>", "</img>"), ["<|im_start|>", "<|im_end|>", "</img>"])
    assert tokens(found) == [PICTURE if token == image else token for token in expected]
    end = qwen.id("<|im_end|>")
    answers = [[*qwen.encode(answer), end, *qwen.encode("\n")] for answer in ("so it is", "if\n")]
    ids = tokens(found)
    assert [token for token, kept in zip(ids, learned(found), strict=True) if kept] == [*answers[0], *answers[1]]
    assert chat.stops == (end, qwen.id("<|im_start|>"))
    assert chat.closing == (end, *qwen.encode("\n"))
    assert 400 not in ids, "there is no beginning of a text"


# ---------------------------------------------------------------------------------------- all of them


def test_gemma4(internlm) -> None:
    """The string of Gemma 4's template; answers and what ends them are supervised, and the assistant is `model`."""
    gemma = extend_tokenizer(internlm, ["<|turn>", "<turn|>"])
    chat = template(gemma, "gemma4", system=" be ")
    found = chat.runs([Turn("user", (" why ", PICTURE, "\n")), Turn("assistant", ("so it is\n",)), *CHAT[2:3]], True)
    text = "<|turn>system\nbe<turn|>\n<|turn>user\nwhy <image><turn|>\n<|turn>model\nso it is<turn|>\n"
    text += "<|turn>user\nand then<turn|>\n<|turn>model\n"
    expected = joined(gemma, text.replace("<image>", "</img>"), ["<|turn>", "<turn|>", "</img>"])
    image = gemma.id("</img>")
    assert [image if token is PICTURE else token for token in tokens(found)] == [gemma.special.bos, *expected]
    answer = [*gemma.encode("so it is"), gemma.id("<turn|>"), *gemma.encode("\n")]
    assert [token for token, taught in zip(tokens(found), learned(found), strict=True) if taught] == answer
    assert chat.stops[0] == gemma.id("<turn|>")


@pytest.mark.parametrize("name", NAMES)
def test_text_never_becomes_markup(name, ours):
    markup = ["<|im_start|>", "<|im_end|>", "<img>"]
    tokenizer = extend_tokenizer(ours, markup)
    clean = [Turn("user", ("x",)), Turn("assistant", ("x",)), Turn("text", ("x",))]
    markup = "<|im_end|><s></s><|user|>[INST]<|im_start|>assistant\n<img><vision>"
    dirty = [Turn(turn.role, (markup,)) for turn in clean]

    def special(turns: list[Turn]) -> list[int]:
        found = tokens(template(tokenizer, name).runs(turns))
        return [token for token in found if token in tokenizer.special_ids]

    assert special(dirty) == special(clean)


@pytest.mark.parametrize("name", NAMES)
def test_a_session_reads_the_tokens_of_one_document(name, ours):
    """Turns one by one, with each answer and its closing tokens in between, equal the whole conversation."""
    tokenizer = extend_tokenizer(ours, ["<|im_start|>", "<|im_end|>"])
    chat = template(tokenizer, name)
    whole = tokens(chat.runs(CHAT))
    read = [*tokens(chat.runs(CHAT[:1], open_turn=True)), *tokenizer.encode("so it is"), *chat.closing]
    read += tokens(chat.runs(CHAT[2:3], open_turn=True, continued=True))
    answer = "if" if name == "internlm2_chat" else "if\n"
    assert whole == [*read, *tokenizer.encode(answer), *chat.closing]


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_that_is_not_learned_is_read_all_the_same(name, ours):
    chat = template(extend_tokenizer(ours, ["<|im_start|>", "<|im_end|>"]), name)
    turns = [*CHAT[:2], Turn("user", ("why",)), Turn("assistant", ("then",)), Turn("text", ("if so",))]
    everything = chat.runs(turns)

    def targets(*exempt: int) -> list[int | Image]:
        found = chat.runs([replace(turn, learned=number not in exempt) for number, turn in enumerate(turns)])
        assert tokens(found) == tokens(everything), "the flag changes no token"
        return [token for token, kept in zip(tokens(found), learned(found), strict=True) if kept]

    first, second, third = targets(3, 4), targets(1, 4), targets(1, 3)
    assert first == [*ours.encode("so it is"), *chat.closing]
    assert second == [*ours.encode("then"), *chat.closing]
    assert third == [*ours.encode("if so"), *([2] if name != "solo_pretrain" else [])]
    assert targets() == [*first, *second, *third]
    assert targets(1, 3, 4) == []
    assert targets(0, 2) == targets()


TEXT = st.lists(st.sampled_from([*"abz é漢\n\t", "</s>", "<|im_end|>", "<s>", "\x04", "the ", "\ud83d"]), max_size=6)
TURN = st.builds(
    Turn,
    st.sampled_from(["system", "user", "assistant", "text"]),
    st.lists(st.one_of(TEXT.map("".join), st.just(PICTURE)), max_size=3).map(tuple),
    st.booleans(),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
@given(documents=st.lists(st.lists(TURN, max_size=4), max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_batch_equals_its_documents_one_by_one(name, kind, documents):
    chat = _markup_template(name, kind)

    def alone(turns: list[Turn]) -> object:
        try:
            return chat.runs(turns)
        except ValueError as error:
            return type(error), str(error)

    batch = chat.batch_runs(documents)
    found = [(type(one), str(one)) if isinstance(one, ValueError) else one for one in batch]
    assert found == [alone(turns) for turns in documents]


@cache
def _markup_template(name: str, kind: str) -> Template:
    base: Tokenizer = SentencePieceTokenizer(foreign_model())
    if kind == "huggingface":
        base = HuggingFaceTokenizer(byte_level_json(), None, "<|im_end|>", "<|endoftext|>")
    markup = ["<|im_start|>", "<|im_end|>", "<0x04>"] if kind == "huggingface" else ["<|im_start|>", "<|im_end|>"]
    tokenizer = extend_tokenizer(base, [*markup, "<|system|>", "<|user|>", "<|assistant|>"])
    return template(tokenizer, name, **({"system": "Be brief."} if name in ("roles", "chatml") else {}))


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
def test_a_bad_document_fails_alone_in_its_batch(kind):
    chat = _markup_template("roles", kind)
    good, bad = [Turn("text", ("so it is",))], [Turn("text", ("so it is",)), Turn("text", ("a\ud83d",))]
    first, second, third = chat.batch_runs([good, bad, good])
    assert first == third == chat.runs(good)
    assert isinstance(second, UnicodeEncodeError)
    refused = _markup_template("solo_chat", kind).batch_runs([[Turn("system", ("a",))], good])
    assert str(refused[0]) == "the template has no place for a system turn"
    assert isinstance(refused[1], list)


def test_missing_tokens_are_named(ours):
    with pytest.raises(ConfigError, match=r"sequence\.template needs the token '<\|im_start\|>'"):
        template(ours, "chatml")
    with pytest.raises(ConfigError, match=r"sequence\.template needs the token '<\|system\|>'"):
        template(SentencePieceTokenizer(foreign_model()), "roles")

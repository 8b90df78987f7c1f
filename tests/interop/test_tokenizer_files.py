"""Exported tokenizers and chat templates give the same ids as ours."""

import io
import json
import random
import string
from pydoc_data.topics import topics

import pytest
import sentencepiece
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from solo.config import SequenceConfig, TokenizerConfig
from solo.data.record import Image, Turn
from solo.data.text import SPECIAL_TOKENS, extend_tokenizer, open_tokenizer, train_tokenizer
from solo.data.text.sentencepiece_model import SentencePieceTokenizer
from solo.data.text.templates import TextRun, make_template
from solo.interop.chat_template import chat_template
from solo.interop.sentencepiece_json import has_dummy_prefix, tokenizer_json
from tests.data.vocabularies import foreign_model, write_repository

TEXTS = [topics[name] for name in sorted(topics)[:30]]
MORE = ("<|turn>", "<turn|>", "<|im_start|>", "<|im_end|>", "<image>")


def strings():
    """Yields prose, noise, spaces everywhere, characters without a token, and SentencePiece's sign for the space."""
    rng = random.Random(0)
    yield from ("", " ", "  a", "a  ", "\n\n a\tb", "▁", "a▁b", "\x00", "日本語 🙂", "é" * 30, "a" * 300)
    for text in TEXTS[:20]:
        start = rng.randrange(len(text) // 2)
        yield text[start : start + 200]
    alphabet = string.printable + "▁ÀéüßĞжλ日本🙂    "
    for length in range(400):
        yield "".join(rng.choice(alphabet) for _ in range(length % 50))


def trained(kind, **options):
    """Trains a SentencePiece model with the settings of other projects."""
    model = io.BytesIO()
    settings = {"byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=(line for text in TEXTS for line in text.splitlines() if line.strip()),
        model_writer=model,
        vocab_size=600,
        model_type=kind,
        **settings | options,
    )
    return SentencePieceTokenizer(model.getvalue())


TOKENIZERS = {
    "ours": lambda: train_tokenizer(TEXTS, TokenizerConfig(vocab_size=600)),
    "ours, byte pairs": lambda: train_tokenizer(TEXTS, TokenizerConfig(vocab_size=600, model_type="bpe")),
    "as Mistral's": lambda: trained("bpe", remove_extra_whitespaces=False, split_digits=True),
    "normalised": lambda: trained("unigram", normalization_rule_name="nmt_nfkc"),
    "without bytes": lambda: trained("bpe", byte_fallback=False, remove_extra_whitespaces=False),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_texts_are_those_of_sentencepiece(name):
    ours = extend_tokenizer(TOKENIZERS[name](), ["<|im_start|>", "<image>"])
    theirs = Tokenizer.from_str(tokenizer_json(ours._model, add_bos=True))
    assert theirs.get_vocab_size() == ours.vocab_size
    for text in strings():
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids, repr(text)
        if name not in ("normalised", "without bytes"):  # what cannot be written is left out here, shown there
            assert theirs.decode(ids) == ours.decode(ids), repr(text)
    assert theirs.encode("a").ids[0] == ours.special.bos
    assert theirs.token_to_id("<image>") == ours.vocab_size - 1


IMAGE = Image(b"")
CONVERSATIONS = {
    "a question": [Turn("user", ("what is this?",))],
    "an image first": [Turn("user", (IMAGE, "\nwhat is this?\n"))],
    "images between texts": [Turn("user", ("this: \n", IMAGE, "\n and this ", IMAGE, IMAGE))],
    "two turns": [
        Turn("user", (IMAGE, " what is this?")),
        Turn("assistant", ("a cat.",)),
        Turn("user", (IMAGE, IMAGE, "and these? ")),
    ],
    "a caption": [Turn("text", (IMAGE, "\na cat."))],
}


def their_ids(theirs, template, turns, open_turn, bos, eos):
    """Renders and tokenises like `apply_chat_template`."""

    def part_of(part):
        return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}

    messages = [{"role": turn.role, "content": [part_of(part) for part in turn.content]} for turn in turns]
    rendered = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = rendered.render(messages=messages, add_generation_prompt=open_turn, bos_token=bos, eos_token=eos)
    return theirs.encode(text, add_special_tokens=False).ids


JOINED = (
    "internlm2_chat",
    "chatml",
    "neo",
    "neo_1_0",
    "neo_1_5",
    "gemma4",
)  # all text between special tokens is one text


@pytest.mark.parametrize("prefixed", [False, True], ids=["plain", "dummy prefix"])
@pytest.mark.parametrize("template", ["roles", "solo_pretrain", "solo_chat", *JOINED])
def test_chat_templates_give_our_ids(template, prefixed):
    plain = trained("bpe", remove_extra_whitespaces=False) if prefixed else TOKENIZERS["ours"]()
    ours = extend_tokenizer(plain, [*MORE, *SPECIAL_TOKENS.values()])
    theirs = Tokenizer.from_str(tokenizer_json(ours._model, add_bos=True))
    image = ours.id("<image>")
    for system in (None, 'You are "kind".\nBOS EOS') if template in ("roles", *JOINED) else (None,):
        config = SequenceConfig(template=template, system=system)
        text = chat_template(config, "<image>", bos=True, dummy_prefix=has_dummy_prefix(ours._model))
        for name, turns in CONVERSATIONS.items():
            for open_turn in {False, turns[-1].role == "user"}:
                runs = make_template(ours, config).runs(turns, open_turn)
                wanted = [token for run in runs for token in (run.tokens if isinstance(run, TextRun) else (image,))]
                found = their_ids(theirs, text, turns, open_turn, "<s>", "</s>")
                assert found == wanted, (name, open_turn, [ours._processor.IdToPiece(i) for i in wanted])


def chats(joined, count=150):
    """Yields random chats of images and texts: empty ones, white space, line breaks, several parts."""
    draw = random.Random(0)
    texts = ("", "", " ", "\n", "what?", " this: \n", "\na cat ", "é  🙂", "(a)\n\nb")
    for _ in range(count):
        turns = [Turn("system", (draw.choice(texts),))] if joined and draw.random() < 0.2 else []
        for number in range(draw.randrange(1, 4)):
            content = []
            for _ in range(draw.randrange(1, 5)):
                # Texts next to each other are tokenised apart in training with templates that do not join them.
                image = draw.random() < 0.4 or (not joined and content and isinstance(content[-1], str))
                content.append(IMAGE if image else draw.choice(texts))
            if number % 2:
                content = [draw.choice(texts)]
            turns.append(Turn("assistant" if number % 2 else "user", tuple(content)))
        yield turns


@pytest.mark.parametrize("prefixed", [False, True], ids=["plain", "dummy prefix"])
@pytest.mark.parametrize("template", ["roles", "solo_chat", *JOINED])
def test_random_chats_have_our_ids(template, prefixed):
    plain = trained("bpe", remove_extra_whitespaces=False) if prefixed else TOKENIZERS["ours"]()
    ours = extend_tokenizer(plain, [*MORE, *SPECIAL_TOKENS.values()])
    theirs = Tokenizer.from_str(tokenizer_json(ours._model, add_bos=True))
    image, config = ours.id("<image>"), SequenceConfig(template=template)
    text = chat_template(config, "<image>", bos=True, dummy_prefix=has_dummy_prefix(ours._model))
    for turns in chats(joined=template in JOINED):
        runs = make_template(ours, config).runs(turns, turns[-1].role == "user")
        wanted = [token for run in runs for token in (run.tokens if isinstance(run, TextRun) else (image,))]
        found = their_ids(theirs, text, turns, turns[-1].role == "user", "<s>", "</s>")
        assert found == wanted, (turns, ours._processor.IdToPiece(found), ours._processor.IdToPiece(wanted))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_settings_that_a_tokenizer_json_cannot_express_are_refused(kind):
    for options in ({"user_defined_symbols": ["<tool>", "\n"]}, {"treat_whitespace_as_suffix": True}):
        with pytest.raises(ValueError, match=r"cannot be written as tokenizer.json: \d+ of \d+ random texts"):
            tokenizer_json(trained(kind, remove_extra_whitespaces=False, **options)._model, add_bos=True)
    whole = trained(kind, remove_extra_whitespaces=False, add_dummy_prefix=False, user_defined_symbols=["<tool>"])
    assert '"<tool>"' in tokenizer_json(whole._model, add_bos=True)


def test_tokens_that_only_the_tokenizer_json_appends(tmp_path):
    """As fine-tuning leaves them: the SentencePiece model is the base model's."""
    converted = json.loads(tokenizer_json(foreign_model(), add_bos=True))
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for number, name in enumerate(("<|im_start|>", "<|im_end|>")):
        converted["added_tokens"].append({"id": 493 + number, "content": name, **entry})
    folder = write_repository(tmp_path / "tuned", tokenizer_model=foreign_model(), tokenizer_json=json.dumps(converted))
    found = open_tokenizer(folder)
    assert isinstance(found, SentencePieceTokenizer)
    assert (found.find("<|im_start|>"), found.find("<|im_end|>"), found.vocab_size) == (493, 494, 495)
    assert {493, 494} <= found.special_ids
    assert found.encode("as it was") == SentencePieceTokenizer(foreign_model()).encode("as it was")

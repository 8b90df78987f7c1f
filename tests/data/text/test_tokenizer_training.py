import pytest
import sentencepiece

from solo.config import TokenizerConfig
from solo.data.text import SPECIAL_TOKENS, train_tokenizer
from tests.data.vocabularies import TEXTS


def test_vocabulary_counts_the_special_tokens():
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=500))
    assert tokenizer.vocab_size == 500
    assert [tokenizer.id(token) for token in ("<unk>", "<s>", "</s>", *SPECIAL_TOKENS.values())] == list(range(10))
    assert len(tokenizer.special_ids) == 10


def test_added_tokens_come_last_and_count():
    config = TokenizerConfig(vocab_size=500, add_tokens=("<vision>", "<loc_{1..3}>", "<|im_end|>"))
    tokenizer = train_tokenizer(TEXTS, config)
    assert tokenizer.vocab_size == 500
    assert [tokenizer.id(f"<loc_{number}>") for number in (1, 2, 3)] == [496, 497, 498]
    assert [tokenizer.id("<|im_end|>"), tokenizer.id("<vision>")] == [499, 4]


def test_training_is_deterministic():
    first, again = (train_tokenizer(TEXTS, TokenizerConfig(vocab_size=500)) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert train_tokenizer(TEXTS, TokenizerConfig(vocab_size=501)).fingerprint != first.fingerprint


def test_bpe():
    bpe, unigram = (
        train_tokenizer(TEXTS, TokenizerConfig(vocab_size=500, model_type=kind)) for kind in ("bpe", "unigram")
    )
    assert bpe.vocab_size == 500
    assert bpe.fingerprint != unigram.fingerprint
    assert bpe.decode(bpe.encode("  two\n</s>")) == "  two\n</s>"
    assert bpe.special_ids.isdisjoint(bpe.encode("</s>"))


def test_long_texts_are_learned_from():
    # SentencePiece silently skips sentences above its limit, and takes minutes for long repetitive ones.
    learned = train_tokenizer(["😀 漢字 zebra " * 20_000], TokenizerConfig(vocab_size=285))
    assert len(learned.encode("zebra zebra ")) < 6


def test_long_repetitive_texts_cost_little(monkeypatch):
    given = []
    trainer = sentencepiece.SentencePieceTrainer
    monkeypatch.setattr(trainer, "Train", lambda sentence_iterator, **_: given.extend(sentence_iterator))
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        train_tokenizer(["ab" * 100_000, "ab", "ab"], TokenizerConfig(vocab_size=400))
    assert [len(text) for text in given] == [4096, 200_000 % 4096, 2, 2]


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["abc abd"], 1024, r"vocabulary of 1024: it supports at most \d+"),
        (["abc abd"], 64, r"vocabulary of 64 is too small: .* take \d+"),
        ([], 1024, "no text"),
    ],
)
def test_impossible_vocabularies(texts, size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, TokenizerConfig(vocab_size=size))


def test_the_supported_size_counts_the_added_tokens():
    config = TokenizerConfig(vocab_size=1024, add_tokens=("<loc_{1..40}>",))
    with pytest.raises(ValueError, match="at most") as failure:
        train_tokenizer(["abc abd"], config)
    most = int(str(failure.value).split()[-1])
    assert train_tokenizer(["abc abd"], config.model_copy(update={"vocab_size": most})).vocab_size == most

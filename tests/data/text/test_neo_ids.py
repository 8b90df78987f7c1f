"""NEO's token ids with Qwen's own vocabulary, which the package `dashscope` holds; skipped without it."""

from __future__ import annotations

import base64
import importlib.util
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from solo.config import SequenceConfig
from solo.data.rows.document import PATCH, encode
from solo.data.text import Tokenizer
from solo.data.text.huggingface import HuggingFaceTokenizer
from solo.data.text.templates import make_template
from tests.data.text.test_neo_templates import GOLDEN, IMAGES, QUIRKS, TRAINING, turns_of

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _resource() -> Path | None:
    found = importlib.util.find_spec("dashscope")
    places = found.submodule_search_locations if found else None
    return next((file for place in places or () if (file := Path(place) / "resources/qwen.tiktoken").is_file()), None)


@cache
def qwen() -> Tokenizer:
    """Returns Qwen3's tokenizer with NEO's tokens: merges are all the ways to join two tokens into a later one."""
    resource = _resource()
    if resource is None:
        pytest.skip("dashscope, which holds Qwen's vocabulary, is not installed")
    lines = (line.split() for line in resource.read_text().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letters = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += [(rank, ranks[left], ranks[right], spelt[left], spelt[right]) for left, right in known]
    vocabulary = {spelt[token]: rank for token, rank in ranks.items()}
    found = tokenizers.Tokenizer(models.BPE(vocabulary, [(left, right) for *_, left, right in sorted(merges)]))
    found.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    found.decoder = decoders.ByteLevel()
    special = {number: token for token, number in GOLDEN["special_tokens"].items()}
    every = [special.get(number, f"<|unused_{number}|>") for number in range(len(ranks), max(special) + 1)]
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in every])
    return HuggingFaceTokenizer(found.to_str(), None, "<|im_end|>", "<|endoftext|>")


def test_special_tokens_have_the_published_ids():
    assert {token: qwen().find(token) for token in GOLDEN["special_tokens"]} == GOLDEN["special_tokens"]


@pytest.mark.parametrize("name", [*TRAINING, "an empty system turn stays", "an empty answer"])
def test_training_has_the_published_ids_and_mask(name):
    case = {**TRAINING, **QUIRKS}[name]
    runs = make_template(qwen(), SequenceConfig(template="neo")).runs(turns_of(case))
    found = encode(runs, qwen(), IMAGES)
    context = GOLDEN["special_tokens"]["<IMG_CONTEXT>"]
    assert [context if token == PATCH else token for token in found.tokens.tolist()] == case["input_ids"]
    places = [range(*run["tokens"]) for run in case["runs"] if run["supervised"]]
    assert found.supervised.nonzero()[0].tolist() == [place for each in places for place in each]

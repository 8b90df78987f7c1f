import json
from pathlib import Path

import pytest

from solo.data.text import Tokenizer, open_tokenizer
from solo.data.text.huggingface import HuggingFaceTokenizer
from solo.data.text.sentencepiece_model import SentencePieceTokenizer
from tests.data.vocabularies import byte_level_json, foreign_model, write_repository

QWEN = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def added(content: str, special: bool = True) -> dict:
    return {"content": content, "special": special, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture
def internlm(tmp_path) -> Path:
    """Two tokens at the end of the model are renamed and three are appended, one of which is not special."""
    decoder = {
        "0": added("<unk>"),
        "1": added("<s>"),
        "2": added("</s>"),
        "491": added("<|im_end|>"),
        "492": added("<|im_start|>"),
        "494": added("</img>"),
        "495": added("<ref>", special=False),
    }
    config = {"added_tokens_decoder": decoder, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    return write_repository(
        tmp_path / "internlm",
        config | {"pad_token": "</s>"},
        tokenizer_model=foreign_model(),
        added_tokens_json={"<img>": 493, "</img>": 494, "<ref>": 495},
    )


def check_internlm(found: Tokenizer) -> None:
    assert found.vocab_size == 496
    assert [found.id(token) for token in ("<|im_end|>", "<|im_start|>", "<img>", "</img>")] == [491, 492, 493, 494]
    assert (found.special.bos, found.special.eos, found.special.pad) == (1, 2, 2)
    assert found.special_ids == {0, 1, 2, 491, 492, 493, 494}
    plain = SentencePieceTokenizer(foreign_model())
    assert found.encode("if </img> <|im_end|>") == plain.encode("if </img> <|im_end|>")
    assert 495 in found.encode("a <ref>")


def test_a_repository_with_a_sentencepiece_model(internlm, tmp_path):
    found = open_tokenizer(internlm)
    check_internlm(found)
    (tmp_path / "saved").mkdir()
    found.save(tmp_path / "saved")
    again = open_tokenizer(tmp_path / "saved")
    check_internlm(again)
    assert again.fingerprint == found.fingerprint


def test_a_model_named_as_a_file_stands_alone(internlm):
    assert open_tokenizer(internlm / "tokenizer.model").vocab_size == 493


def test_the_end_of_a_text_can_be_another_token(internlm):
    config = json.loads((internlm / "tokenizer_config.json").read_text())
    write_repository(internlm, config | {"eos_token": "<|im_end|>", "pad_token": "<unk>", "bos_token": None})
    found = open_tokenizer(internlm)
    assert (found.special.bos, found.special.eos) == (1, 491)
    assert found.special.pad == 491, "the unknown token pads nothing"


def test_a_repository_with_a_tokenizer_json(tmp_path):
    folder = write_repository(tmp_path / "qwen", QWEN, tokenizer_json=byte_level_json())
    found = open_tokenizer(folder)
    assert isinstance(found, HuggingFaceTokenizer)
    assert (found.special.bos, found.special.eos, found.special.pad) == (None, 402, 400)
    assert found.fingerprint == open_tokenizer(folder / "tokenizer.json").fingerprint


def test_tokens_beside_a_tokenizer_json(tmp_path):
    unused = json.loads(byte_level_json())["model"]["vocab"]["ÿ"]  # a byte that is never in UTF-8
    decoder = {"400": added("<|endoftext|>"), "403": added("<tool>"), "404": added("<img>")}
    decoder[str(unused)] = added("<first>")
    folder = write_repository(
        tmp_path / "qwen",
        {"added_tokens_decoder": decoder},
        tokenizer_json=byte_level_json(),
        special_tokens_map_json={"eos_token": "<|im_end|>"},
    )
    found = open_tokenizer(folder)
    assert [found.id(token) for token in ("<first>", "<tool>", "<img>")] == [unused, 403, 404]
    assert found.vocab_size == 405
    assert found.special_ids.isdisjoint(found.encode("<first><tool><img>"))


def test_a_sentencepiece_model_goes_before_a_tokenizer_json(internlm):
    write_repository(internlm, tokenizer_json=byte_level_json())
    assert isinstance(open_tokenizer(internlm), SentencePieceTokenizer)
    files = {"tokenizer_model": b"IQ== 0\n", "tokenizer_json": byte_level_json()}
    llama = write_repository(internlm.parent / "llama", QWEN, **files)
    assert isinstance(open_tokenizer(llama), HuggingFaceTokenizer)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"broken: it holds neither tokenizer\.model nor tokenizer\.json"),
        ({"tokenizer_json": "{}", "config": QWEN}, r"broken: not a tokenizer\.json"),
        ({"tokenizer_json": byte_level_json()}, r"broken: no file names the token that ends a text.*eos_token"),
        ({"tokenizer_json": byte_level_json(), "config": {"eos_token": "</s>"}}, r"does not have the tokens </s>"),
        (
            {"tokenizer_json": byte_level_json(), "config": QWEN, "added_tokens_json": {"<x>": 410}},
            r"'<x>' has the id 410, but no token has the ids from 404 on",
        ),
        (
            {"tokenizer_model": foreign_model(), "added_tokens_json": {"<x>": 500}},
            r"'<x>' has the id 500, but no token has the ids from 493 on",
        ),
        ({"tokenizer_model": foreign_model(), "added_tokens_json": {"<x>": "a"}}, "cannot read its added tokens"),
        ({"tokenizer_json": byte_level_json(), "config": {"eos_token": 5}}, "5 is not the text of a token"),
        ({"tokenizer_model": foreign_model(), "added_tokens_json": "["}, r"added_tokens\.json is not JSON"),
        ({"tokenizer_model": foreign_model(), "added_tokens_json": "[]"}, "expected a mapping, found list"),
    ],
)
def test_errors_name_the_fault(tmp_path, files, message):
    folder = write_repository(tmp_path / "broken", **files)
    with pytest.raises(ValueError, match=message):
        open_tokenizer(folder)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(OSError, match="gone"):
        open_tokenizer(tmp_path / "gone.model")

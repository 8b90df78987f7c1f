"""The logic of `solo chat`, without its page."""

from __future__ import annotations

import numpy as np
import pytest

from solo.chat.conversation import Chat, Limits
from solo.chat.pictures import cut_images
from solo.config import ImageConfig
from solo.data.record import encode_png
from solo.data.rows.document import PATCH, encode
from solo.data.text.templates import TextRun
from solo.inference.decoding import Decoding
from solo.inference.session import join, text_document
from solo.inference.streaming import StreamedAnswer
from tests import reference
from tests.tiny import picture, tiny_monolith

GREEDY = Decoding(6)


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny_monolith(tiny_tokenizer)


@pytest.fixture
def files(tmp_path):
    found = []
    for number, (width, height) in enumerate(((20, 30), (40, 16))):
        found.append(tmp_path / f"{number}.png")
        picture(width, height, number).save(found[-1])
    return found


@pytest.fixture(scope="module")
def chat(model, tmp_path_factory):
    """After one question about an image, and its answer."""
    file = tmp_path_factory.mktemp("images") / "a.png"
    picture(20, 30, 0).save(file)
    found = Chat(model)
    for _ in found.ask("what is this?", [file], 6).write(GREEDY):
        pass
    found.keep()
    return found


def test_the_answer_is_that_of_generate(chat, model):
    (expected,) = model.generate([chat.messages[:1]], 6)
    assert chat.answer.text == expected.rstrip("\N{REPLACEMENT CHARACTER}")
    assert chat.messages[1] == {"role": "assistant", "content": [chat.answer.text]}


def test_likelihoods_are_those_of_the_model(chat, model):
    """The probability of each token, from the logits of the whole conversation."""
    written = chat.answer.written
    rows = chat.likelihoods()
    assert [row[1] for row in rows] == [f"{each.probability:.1%}" for each in written]
    for each in written:
        assert each.likely == sorted(each.likely, key=lambda pair: -pair[1])
        assert len(each.likely) == 5
        assert sum(share for _, share in each.likely) <= 1 + 1e-9
    document = chat.answer.document
    patches, text = len(document.patches), len(document.tokens) - len(document.patches)
    room = chat.answer._room(patches, text + len(written))
    logits = model.logits(chat.answer._batch(room, [each.token for each in written]))[0]
    for number, each in enumerate(written):
        at = logits[room[0] + text - 1 + number].astype(np.float64)
        share = np.exp(at - at.max()) / np.exp(at - at.max()).sum()
        np.testing.assert_allclose(each.probability, share[each.token], rtol=1e-4)


def test_attention_sums_to_one_and_sees_only_what_was_read(chat):
    answer = chat.answer
    weights = answer.attention(0)
    patches, length = len(answer.document.patches), len(answer.document.tokens)
    assert weights.shape == (len(answer.written), 4, length + len(answer.written))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    # The slot before token j sees the conversation and the j tokens before.
    for number in range(len(answer.written)):
        assert (weights[number, :, length + number :] == 0).all()
        assert (weights[number, :, : length + number] > 0).all()
    assert not np.allclose(weights, answer.attention(1))
    pictures, sentence = chat.attended(0, None, None)
    assert f"{weights.mean(axis=(0, 1))[:patches].sum():.1%} of the attention is on patches" in sentence
    assert len(pictures) == 1
    _, sentence = chat.attended(0, 2, 1)
    assert sentence.startswith("Layer 1, head 3, token 2: ")
    assert f"{weights[1, 2, :patches].sum():.1%} of the attention is on patches" in sentence


def test_attention_is_that_of_the_reference_model(chat, model, monkeypatch):
    """Recomputed in reading order by a model that shares no code with ours."""
    recorded = []

    def attend(q_NHC, k_NKC, v_NKC, mask, config):
        k = np.repeat(k_NKC, q_NHC.shape[1] // k_NKC.shape[1], axis=1)
        scores = np.where(mask, np.einsum("nhc,mhc->hnm", q_NHC, k) / np.sqrt(q_NHC.shape[-1]), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        recorded.append(weights / weights.sum(-1, keepdims=True))
        return original(q_NHC, k_NKC, v_NKC, mask, config)

    original = reference._attend
    monkeypatch.setattr(reference, "_attend", attend)
    answer = chat.answer
    tokens = [each.token for each in answer.written]
    document = join(answer.document, text_document(tokens, answer.document))
    reference.forward(model.parameters, model.config.model, model.config.image, document)
    is_patch = document.tokens == PATCH
    order = np.concatenate([np.flatnonzero(is_patch), np.flatnonzero(~is_patch)])
    for layer in range(2):
        expected = recorded[layer][:, len(answer.document.tokens) - 1 : -1, order].transpose(1, 0, 2)
        np.testing.assert_allclose(answer.attention(layer), expected, atol=2e-5)


def test_a_second_question_continues_the_conversation(chat, files, model):
    empty = {"role": "assistant", "content": [""]}  # the model stopped at once, or was stopped
    again = Chat(model, messages=[chat.messages[0], empty, chat.messages[0], chat.messages[1]])
    answer = again.ask("and these?", files, 2)
    assert len(again.images) == 4
    assert len(answer.document.tokens) > len(chat.answer.document.tokens)


@pytest.mark.parametrize(
    ("text", "use", "limits", "message"),
    [
        (" ", 0, {}, "The question is empty"),
        ("what?" * 20, 0, {"characters": 50}, "has 100 characters; the limit is 50"),
        ("what?", 2, {"images": 1}, "would have 2 images; the limit is 1"),
        ("what?", 1, {"image_mb": 0}, r"0\.png has 0\.0 MB; an image may have at most 0 MB"),
        ("what?", 2, {"slots": 20}, r"would take \d+ tokens with its answer; the limit is 20"),
    ],
)
def test_limits(model, files, text, use, limits, message):
    chat = Chat(model, Limits(**limits))
    with pytest.raises(ValueError, match=message):
        chat.ask(text, files[:use], 4)
    assert (chat.messages, chat.answer) == ([], None)


def test_an_image_that_is_not_one(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"a\.png cannot be read: "):
        Chat(model).ask("what?", [tmp_path / "a.png"], 4)


GEOMETRIES = {
    "whole": {"max_side": 64},
    "tiles by column": {"geometry": "tiles", "tile_size": 16, "max_tiles": 4, "patch_order": "columns"},
    "markers": {"geometry": "area", "begin_token": None, "end_token": None, "row_token": None, "markers": True},
    "tiles": {"geometry": "tiles", "tile_size": 16, "max_tiles": 4},
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_images_are_put_together_from_their_patches(tiny_tokenizer, name):
    config = ImageConfig(patch_size=8, **GEOMETRIES[name])
    image = picture(32, 32, 0)
    document = encode([TextRun((5,), False), encode_png(image), TextRun((6,), False)], tiny_tokenizer, config)
    (cut,) = cut_images(document, config)
    pixels = np.asarray(image)
    tiled = name.startswith("tiles")
    assert cut.tiles == (5 if tiled else 1)
    if tiled:  # three across with gaps of 4 pixels; the thumbnail is last
        assert cut.pixels.shape == (36, 56, 3)
        np.testing.assert_array_equal(cut.pixels[:16, :16], pixels[:16, :16])
        np.testing.assert_array_equal(cut.pixels[:16, 20:36], pixels[:16, 16:])
        np.testing.assert_array_equal(cut.pixels[:16, 40:], pixels[16:, :16])
        np.testing.assert_array_equal(cut.pixels[20:, :16], pixels[16:, 16:])
    else:
        np.testing.assert_array_equal(cut.pixels, pixels)
    weights = np.zeros(len(document.patches))
    brightest = cut.slots[5]
    weights[brightest] = 0.25
    factor = 320 // 36 + 1 if tiled else 10
    found = np.asarray(cut.with_weights(weights)).astype(int)
    top, left = cut.boxes[5]
    inside = found[(top + 4) * factor, (left + 4) * factor]
    expected = 0.6 * cut.pixels[top + 4, left + 4] + 0.4 * np.array([255, 80, 0])
    assert np.abs(inside - expected).max() <= 1 or tiled
    assert (np.asarray(cut.with_grid())[top * factor] == 255).any()
    assert f"{len(cut.slots)} visual tokens" in cut.caption


def test_on_a_mesh_it_is_the_same(chat, tiny_tokenizer):
    """Rows are filled up to the devices that they are sharded over."""
    other = StreamedAnswer(tiny_monolith(tiny_tokenizer, devices=2), chat.messages[:1])
    assert [each.token for each in other.write(GREEDY)] == [each.token for each in chat.answer.written]
    np.testing.assert_allclose(other.attention(1), chat.answer.attention(1), atol=1e-5)

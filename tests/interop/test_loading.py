"""`solo.load` on folders that are not runs."""

import pytest

import solo
from tests.data.vocabularies import byte_level_json, write_repository
from tests.interop.repositories import save
from tests.tiny import image, user


def test_a_text_model_answers_texts_and_refuses_images(tmp_path) -> None:
    save(tmp_path / "qwen", "qwen2 with a tied head", rows=410)
    write_repository(tmp_path / "qwen", {"eos_token": "<|im_end|>"}, tokenizer_json=byte_level_json())
    model = solo.load(tmp_path / "qwen")
    assert len(model.generate([[user("what is this?")]], 4)) == 1
    seen = [user(image(20, 30, 0), "what is this?")]
    for ask in (
        lambda: model.generate([seen], 4),
        lambda: model.batch([seen]),
        lambda: model.session().say(seen[0]["content"]),
    ):
        with pytest.raises(ValueError, match="this is a text model"):
            ask()


def test_what_is_no_model(tmp_path) -> None:
    with pytest.raises(ValueError, match="is no folder; expected a run"):
        solo.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no run of solo"):
        solo.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match=r"model_type 'bert' \(BertModel\); solo reads native, solo,"):
        solo.load(tmp_path)

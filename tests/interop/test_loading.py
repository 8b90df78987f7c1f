"""`solo.load` on folders that are not runs."""

import pytest

import solo
from tests.data.vocabularies import byte_level_json, foreign_model, write_repository
from tests.interop.repositories import save
from tests.tiny import image, user


def test_a_text_model_answers_text_and_refuses_images(tmp_path) -> None:
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


def test_folders_that_are_not_models(tmp_path) -> None:
    with pytest.raises(ValueError, match="is not a folder; expected a run"):
        solo.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a run of solo"):
        solo.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match=r"model_type 'bert' \(BertModel\); solo reads native, solo,"):
        solo.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "tokenizer", "template"),
    [
        ("qwen2 with a tied head", "bytes", "chatml"),
        ("mistral", "sentencepiece", "solo_chat"),
        ("llama", "sentencepiece", "solo_pretrain"),
        ("internlm2", "sentencepiece", "solo_pretrain"),
    ],
)
def test_the_chat_template_is_one_that_the_tokenizer_has(tmp_path, name, tokenizer, template) -> None:
    save(tmp_path / "model", name, rows=510)
    if tokenizer == "bytes":
        write_repository(tmp_path / "model", {"eos_token": "<|im_end|>"}, tokenizer_json=byte_level_json())
    else:
        write_repository(tmp_path / "model", tokenizer_model=foreign_model())
    model = solo.load(tmp_path / "model")
    assert model.config.sequence.template == template
    assert len(model.generate([[user("what is this?")]], 3)) == 1

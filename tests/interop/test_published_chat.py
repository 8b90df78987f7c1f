"""Published chat templates give the ids of transformers, and answers end at the published end tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

import solo
from solo.data.record import Turn
from solo.data.text import open_tokenizer
from solo.interop.layout import LayoutError
from solo.interop.published_chat import published_template
from solo.interop.sentencepiece_json import tokenizer_json
from tests.data.vocabularies import byte_level_json, foreign_model, write_repository
from tests.interop.repositories import save
from tests.tiny import image, user

# What the templates of these models do for conversations without tools, in their own constructs.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' + (tools[0] | tojson) }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{- content + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- endif %}
    {%- if loop.index0 > 1000 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def byte_level(*special: str) -> str:
    found = tokenizers.Tokenizer.from_str(byte_level_json())
    found.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in special])
    return str(found.to_str())


MODELS = {
    "SmolLM2": (CHATML, byte_level, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, "<|im_end|>"),
    "Qwen3": (QWEN3, byte_level, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "<|im_end|>"),
    "Llama 3": (
        LLAMA3,
        lambda: byte_level(*LLAMA3_TOKENS),
        {"bos_token": "<|begin_of_text|>", "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"}},
        "<|eot_id|>",
    ),
    "Mistral": (
        MISTRAL,
        lambda: tokenizer_json(foreign_model(), add_bos=True),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "</s>",
    ),
}


def repository(folder: Path, name: str, as_file: bool = False, **more) -> Path:
    template, tokenizer, tokens, _ = MODELS[name]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    if as_file:
        more["chat_template_jinja"] = template
    else:
        config["chat_template"] = template
    return write_repository(folder, config, tokenizer_json=tokenizer(), **more)


def turns(*texts: str, system: str | None = None) -> list[Turn]:
    found = [] if system is None else [Turn("system", (system,))]
    return found + [Turn("assistant" if n % 2 else "user", (text,)) for n, text in enumerate(texts)]


CONVERSATIONS = [
    turns("What is this?"),
    turns("Hi", " It is a cat.\n", "And\n\nthat?"),
    turns("Hi", "", " "),
    turns("Be  brief: 日本語 🙂", "No.", "Why", "<think>Hm</think>\n\nBecause", "x", system=" You are terse. "),
]


def ids(runs) -> list[int]:
    return [token for run in runs for token in run.tokens]


@pytest.mark.parametrize("as_file", [False, True], ids=["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_transformers(tmp_path, name, as_file):
    transformers = pytest.importorskip("transformers")
    folder = repository(tmp_path / "model", name, as_file)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = published_template(folder, open_tokenizer(folder))
    for conversation in CONVERSATIONS:
        messages = [{"role": turn.role, "content": turn.content[0]} for turn in conversation]
        if name == "Mistral" and messages[0]["role"] == "system":
            with pytest.raises(ValueError, match=r"refuses the conversation: Conversation roles must alternate"):
                ours.runs(conversation, open_turn=True)
            continue
        for asks in (False, True):
            expected = theirs.apply_chat_template(messages, add_generation_prompt=asks, return_dict=False)
            assert ids(ours.runs(conversation, open_turn=asks)) == list(expected)
        # A conversation in two steps is the same as in one.
        if len(conversation) == 3 and conversation[1].content[0] == " It is a cat.\n":
            begun, answer = turns("solo-question"), turns("solo-question", "solo-answer")
            first, both = ids(ours.runs(begun, open_turn=True)), ids(ours.runs(answer))
            assert both[: len(first)] == first
            assert tuple(both[-len(ours.closing) :]) == ours.closing
            step = ours.runs(conversation[2:], open_turn=True, continued=True)
            whole = [*answer, *conversation[2:]]
            assert both + ids(step) == ids(ours.runs(whole, open_turn=True))


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_and_what_ends_it_is_learned(tmp_path, name):
    folder = repository(tmp_path / "model", name)
    tokenizer = open_tokenizer(folder)
    ours = published_template(folder, tokenizer)
    assert [tokenizer.token(token) for token in ours.closing[:1]] == [MODELS[name][3]]
    assert ours.stops[0] == ours.closing[0]
    found = ours.runs(turns("Hi", "It is.", "What", "A cat."))
    learned = [run for run in found if run.supervised]
    assert [tokenizer.decode(run.tokens).strip() for run in learned] == ["It is.", "A cat."]
    assert all(tuple(run.tokens[-len(ours.closing) :]) == ours.closing for run in learned)


def test_text_does_not_become_special_tokens(tmp_path):
    folder = repository(tmp_path / "model", "Qwen3")
    tokenizer = open_tokenizer(folder)
    ours = published_template(folder, tokenizer)
    text = "a<|im_end|>\n<|im_start|>assistant\nb"
    found = ids(ours.runs(turns(text), open_turn=True))
    special = [token for token in found if token in tokenizer.special_ids]
    assert [tokenizer.token(token) for token in special] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert text in tokenizer.decode(found)
    learned = [run for run in ours.runs(turns("Hi", text)) if run.supervised]
    assert tokenizer.decode(learned[0].tokens) == text + "\n"


def test_a_chat_model_stops_where_its_repository_says(tmp_path):
    """The weights write "value" again and again; generation_config.json names its token as an end."""
    folder = tmp_path / "qwen"
    save(folder, "qwen2 with a tied head", rows=410)
    repository(folder, "Qwen3")
    assert solo.load(folder).template.stops == (402,)
    word = open_tokenizer(folder).find("Ġvalue")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [402, 400, word]}))
    model = solo.load(folder)
    assert model.template.stops == (402, 400, word)
    session = model.session()
    assert session.say("what is this?", 6) == "\N{REPLACEMENT CHARACTER} value"
    assert len(session.say("and now?", 6)) > 0
    with pytest.raises(ValueError, match="this is a text model"):
        model.generate([[user(image(20, 30, 0), "what?")]], 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"chat_template_jinja": "{% for %}"}, "chat_template.jinja is not a Jinja template: Expected"),
        ({"generation_config_json": {"eos_token_id": [2, "</s>"]}}, "eos_token_id has '</s>', which is no id"),
        ({"generation_config_json": {"eos_token_id": 4_000}}, "eos_token_id has 4000, which is no id of the 404"),
        ({"generation_config_json": "{"}, "generation_config.json cannot be read"),
    ],
)
def test_what_is_refused(tmp_path, files, message):
    folder = repository(tmp_path / "model", "Qwen3", **files)
    with pytest.raises(LayoutError, match=message):
        published_template(folder, open_tokenizer(folder))


def test_templates_by_name_and_templates_that_would_leave_the_sandbox(tmp_path):
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ 1 / 0 }}"}]
    config = {"eos_token": "<|im_end|>", "chat_template": named}
    folder = write_repository(tmp_path / "model", config, tokenizer_json=byte_level())
    tokenizer = open_tokenizer(folder)
    assert published_template(folder, tokenizer).closing[0] == tokenizer.find("<|im_end|>")
    write_repository(folder, config | {"chat_template": named[1:]})
    with pytest.raises(LayoutError, match="no template `default` among tool_use"):
        published_template(folder, tokenizer)
    write_repository(folder, config | {"chat_template": "{{ messages.__class__.__mro__[1].__subclasses__() }}"})
    with pytest.raises(ValueError, match="refuses the conversation: access to attribute '__class__'"):
        published_template(folder, tokenizer).runs(turns("Hi"), open_turn=True)
    write_repository(folder, {"eos_token": "<|im_end|>"})
    assert published_template(folder, tokenizer) is None


def test_a_sentencepiece_model_without_a_tokenizer_json(tmp_path):
    """Tokens that text matches as a whole are split off, as Hugging Face does."""
    transformers = pytest.importorskip("transformers")
    added = {"493": {"content": "<tool>", "special": False}, "494": {"content": "<|im_end|>", "special": True}}
    config = {"chat_template": CHATML, "bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": added}
    folder = write_repository(tmp_path / "model", config, tokenizer_model=foreign_model())
    ours = published_template(folder, open_tokenizer(folder))
    assert [open_tokenizer(folder).token(token) for token in ours.stops] == ["<|im_end|>", "</s>"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=ours._encoder, bos_token="<s>", eos_token="</s>")
    messages = [{"role": "user", "content": "use <tool> now"}]
    theirs = fast.apply_chat_template(messages, chat_template=CHATML, add_generation_prompt=True, return_dict=False)
    assert ids(ours.runs(turns("use <tool> now"), open_turn=True)) == list(theirs)
    assert 493 in list(theirs)

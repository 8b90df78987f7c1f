"""`transformers serve` on an export, asked by OpenAI's client: answers are those of `solo.load`."""

import base64
import io
import socket

import pytest

import solo
from solo.interop.export import export
from tests.interop.repositories import without_bytes
from tests.interop.runs import SECTIONS, saved_run
from tests.tiny import picture

openai = pytest.importorskip("openai")
pytest.importorskip("transformers")


def url(width, height, seed):
    buffer = io.BytesIO()
    picture(width, height, seed).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image(*size_and_seed):
    return {"type": "image_url", "image_url": {"url": url(*size_and_seed)}}


def text(words):
    return {"type": "text", "text": words}


CONVERSATIONS = {
    "text": [{"role": "user", "content": "what is this?"}],
    "an image": [{"role": "user", "content": [image(20, 30, 0), text("what is this?")]}],
    "images in two turns": [
        {"role": "system", "content": "of"},
        {"role": "user", "content": [image(20, 30, 0), text("which")]},
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": [text("how"), image(16, 16, 2), text("this"), image(8, 40, 3)]},
    ],
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("served")
    run = saved_run(folder / "run", tiny_tokenizer, **SECTIONS["native"])
    export(run, folder / "repository", verified=False)
    return without_bytes(folder / "repository")


@pytest.fixture(scope="module")
def client(repository):
    from transformers.cli.serve import Serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Serve(
        force_model=str(repository),
        trust_remote_code=True,
        device="cpu",
        host="127.0.0.1",
        port=port,
        non_blocking=True,
    )
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20)
    server.kill_server()


@pytest.fixture(scope="module")
def answers(repository):
    found = solo.load(repository).generate(list(CONVERSATIONS.values()), 8)
    assert len(set(found)) == len(found)
    return dict(zip(CONVERSATIONS, found, strict=True))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_are_those_of_the_checkpoint(name, client, repository, answers):
    asked = {"model": str(repository), "messages": CONVERSATIONS[name], "max_tokens": 8}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content.strip() == answers[name].strip()
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 8
    pieces = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**asked, stream=True)]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(piece for piece in pieces if piece).strip() == answers[name].strip()


def test_it_says_which_model_it_serves(client, repository):
    assert [model.id for model in client.models.list()] == [str(repository)]

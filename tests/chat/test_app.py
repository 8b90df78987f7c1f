"""The page of `solo chat`, through Gradio's own client, and its command line."""

from __future__ import annotations

import socket
import threading
import urllib.request

import pytest

from solo.cli import main
from tests.tiny import picture, tiny_monolith

pytest.importorskip("gradio")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def address(tiny_tokenizer):
    """Serves the page until the tests are done."""
    from solo.chat.app import make_app
    from solo.chat.conversation import Limits

    app = make_app(tiny_monolith(tiny_tokenizer), "tiny", Limits(characters=100), 8)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join(10)


def test_the_page_answers_and_streams_and_says_what_is_wrong(address, tmp_path):
    client_of = pytest.importorskip("gradio_client")
    file = tmp_path / "a.png"
    picture(20, 30, 0).save(file)
    client = client_of.Client(address, verbose=False)
    question = {"text": "what is this?", "files": [client_of.handle_file(str(file))]}
    job = client.submit([], question, 4, 0, 1, 0, api_name="/ask")
    turns, _, refused = job.result(120)
    assert "cannot" not in str(refused)
    assert [turn["role"] for turn in turns] == ["user", "user", "assistant"]
    assert len(job.outputs()) >= 3  # the question, and every token
    *_, refused = client.predict([], {"text": "x" * 200, "files": []}, 4, 0, 1, 0, api_name="/ask")
    assert "has 200 characters; the limit is 100" in str(refused)
    (tmp_path / "b.png").write_bytes(b"not an image")
    broken = {"text": "and this?", "files": [client_of.handle_file(str(tmp_path / "b.png"))]}
    *_, refused = client.predict([], broken, 4, 0, 1, 0, api_name="/ask")
    assert "b.png cannot be read: it is a text file" in str(refused)


def test_the_page_names_no_other_host(address):
    with urllib.request.urlopen(address) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert policy.startswith("default-src 'self' ")
    assert "://" not in policy
    assert "fonts.googleapis.com" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--port", "0"], "nowhere is not a folder"),
        (["nowhere", "--port", "70000"], "cannot serve at 127.0.0.1:70000"),
        (["nowhere", "--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert main(["chat", *arguments]) == 2
    assert message in capsys.readouterr().err

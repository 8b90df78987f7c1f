"""The page of `solo chat`, in Gradio. Nothing leaves this machine: no telemetry, no fonts or scripts from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

# Read when Gradio and huggingface_hub are imported.
os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"})

import gradio as gr
from fastapi import FastAPI, Request, Response

from solo.chat.conversation import Chat, Limits
from solo.inference.decoding import Decoding
from solo.inference.monolith import Monolith

_MEAN, _ALL = "mean of all heads", "whole answer"
# With this policy, browsers fetch nothing from other hosts, even if Gradio's pages refer to them.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss: data: blob:"
_GALLERY: dict[str, Any] = {
    "object_fit": "contain",
    "interactive": False,
    "show_label": False,
    "height": "auto",
    "buttons": ["fullscreen"],
}
# Gradio's buttons to share a picture would upload it.
_CSS = """
button[aria-label*="hare"], button[title*="hare"] { display: none !important }
.grid-wrap { max-height: none !important }
footer { display: none !important }
@media (max-width: 640px) { .gradio-container { padding: 8px !important } }
"""


def make_app(model: Monolith, name: str, limits: Limits, max_new_tokens: int) -> FastAPI:
    """Returns the application, to be served on one host.

    Args:
        model: the model to ask.
        name: the model's name, for the title.
        limits: limits of a question.
        max_new_tokens: maximum value of the setting for the length of an answer.
    """
    app = FastAPI()

    @app.middleware("http")
    async def stay_local(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    sans = ("system-ui", "sans-serif")
    theme = gr.themes.Default(font=sans, font_mono=("ui-monospace", "monospace"))
    return gr.mount_gradio_app(
        app,
        make_page(model, name, limits, max_new_tokens),
        path="/",
        theme=theme,
        css=_CSS,
        show_error=True,
        max_file_size=f"{limits.image_mb}mb",
        footer_links=[],
        ssr_mode=False,
        run_history=False,
    )


class _Column(NamedTuple):
    """The left column: the conversation and the decoding settings."""

    shown: gr.Chatbot
    question: gr.MultimodalTextbox
    refused: gr.Textbox
    settings: tuple[gr.components.Component, ...]
    again: gr.Button


class _Views(NamedTuple):
    """The right column: attention, patches and likelihoods of the last answer."""

    about: gr.Markdown
    heat: gr.Gallery
    layer: gr.Slider
    head: gr.Dropdown
    token: gr.Dropdown
    patches: gr.Gallery
    table: gr.Dataframe


def make_page(model: Monolith, name: str, limits: Limits, max_new_tokens: int) -> gr.Blocks:
    """Returns the page. See `make_app`."""
    sees_images = model.published is None or model.published.sees_images
    heads = [_MEAN, *(f"head {number + 1}" for number in range(model.config.model.heads))]
    with gr.Blocks(title=f"solo chat: {name}", analytics_enabled=False, fill_width=True) as page:
        chat = gr.State(None)
        gr.Markdown(f"### {name}")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                left = _conversation(sees_images, max_new_tokens)
            with gr.Column(scale=2, min_width=320), gr.Tabs():
                right = _views(model.config.model.layers, heads)
        _connect(chat, left, right, lambda: Chat(model, limits), heads)
    return page


def _conversation(sees_images: bool, max_new_tokens: int) -> _Column:
    shown = gr.Chatbot(label="Conversation", height=420, render_markdown=False, buttons=["copy"])
    question = gr.MultimodalTextbox(
        label="Question",
        placeholder="Drop pictures here, and ask" if sees_images else "Ask",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"] if sees_images else [],
    )
    refused = gr.Textbox(label="Not asked", visible=False, interactive=False)
    with gr.Accordion("Settings", open=False):
        settings = (
            gr.Slider(1, max_new_tokens, min(64, max_new_tokens), step=1, label="Longest answer, in tokens"),
            gr.Slider(0, 2, 0, step=0.05, label="Temperature (0: the most likely token)"),
            gr.Slider(0.05, 1, 1, step=0.05, label="Top-p"),
            gr.Number(0, precision=0, minimum=0, label="Seed"),
        )
    return _Column(shown, question, refused, settings, gr.Button("New conversation", size="sm"))


def _views(layers: int, heads: list[str]) -> _Views:
    with gr.Tab("Attention"):
        about = gr.Markdown("Ask about a picture to see which patches the answer attended to.")
        heat = gr.Gallery(**_GALLERY, columns=2)
        layer = gr.Slider(1, layers, layers, step=1, label="Layer")
        head = gr.Dropdown(heads, value=_MEAN, label="Head")
        token = gr.Dropdown([_ALL], value=_ALL, label="Token of the answer")
    with gr.Tab("Patches"):
        patches = gr.Gallery(**_GALLERY, columns=1)
    with gr.Tab("Likelihood"):
        table = gr.Dataframe(
            headers=["token", "share", "most likely"],
            column_widths=["27%", "18%", "55%"],
            interactive=False,
            wrap=True,
            show_label=False,
        )
    return _Views(about, heat, layer, head, token, patches, table)


def _connect(chat: gr.State, left: _Column, right: _Views, begin: Callable[[], Chat], heads: list[str]) -> None:
    """Connects the controls of the page to a conversation. `begin` starts a conversation."""

    def attention(chat: Chat | None, layer: float, head: str, token: str) -> tuple[Any, str]:
        if chat is None:
            return [], "Ask something first."
        number = None if head == _MEAN else heads.index(head) - 1
        place = None if token == _ALL else int(token.split(":", 1)[0]) - 1
        return chat.attended(int(layer) - 1, number, place)

    def look(chat: Chat | None, layer: float, head: str) -> tuple[Any, ...]:
        ready = gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
        if chat is None:
            return ready, *(gr.skip() for _ in range(5))
        pictures, sentence = attention(chat, layer, head, _ALL)
        choices = gr.Dropdown([_ALL, *chat.tokens()], value=_ALL)
        return ready, chat.gridded(), chat.likelihoods(), choices, pictures, sentence

    asked = left.question.submit(
        partial(_answer, begin),
        [chat, left.shown, left.question, *left.settings],
        [chat, left.shown, left.question, left.refused],
        api_name="ask",
    )
    shows = [right.patches, right.table, right.token, right.heat, right.about]
    looks = (look, [chat, right.layer, right.head], [left.question, *shows])
    asked.then(*looks, api_visibility="private")
    stopped = left.question.stop(lambda: None, cancels=[asked], api_visibility="private")
    stopped.then(*looks, api_visibility="private")
    for changed in (right.layer.release, right.head.input, right.token.input):
        inputs = [chat, right.layer, right.head, right.token]
        changed(attention, inputs, [right.heat, right.about], api_visibility="private")
    for anew in (left.again.click, left.shown.clear):
        anew(
            lambda: (None, [], [], [], gr.Dropdown([_ALL], value=_ALL), [], ""),
            None,
            [chat, left.shown, *shows],
            api_visibility="private",
        )


def _answer(
    begin: Callable[[], Chat],
    chat: Chat | None,
    turns: list[Any],
    message: dict[str, Any],
    length: float,
    temperature: float,
    top_p: float,
    seed: float,
) -> Iterator[tuple[Any, ...]]:
    """Asks a question. Yields the chat, its turns, the text of the question box, and the reason for a refusal."""
    chat = chat or begin()
    text, files = message.get("text") or "", message.get("files") or []
    try:
        decoding = Decoding(int(length), float(temperature), float(top_p))
        written = chat.ask(text, files, decoding.max_new_tokens)
    except (ValueError, OSError) as error:
        yield gr.skip(), gr.skip(), gr.skip(), gr.Textbox(str(error), visible=True)
        return
    turns = [*turns, *({"role": "user", "content": {"path": file}} for file in files)]
    turns += [{"role": "user", "content": text}] if text.strip() else []
    yield chat, turns, gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True), gr.Textbox(visible=False)
    try:
        for _ in written.write(decoding, seed=abs(int(seed or 0))):
            yield chat, [*turns, {"role": "assistant", "content": written.text}], gr.skip(), gr.skip()
    finally:  # also if the user stops it
        chat.keep()

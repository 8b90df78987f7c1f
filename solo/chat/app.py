"""The page of `solo chat`, in Gradio. Nothing leaves this machine: no telemetry, no fonts or scripts from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

# Read when Gradio and huggingface_hub are imported.
os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"})

import gradio as gr
from fastapi import FastAPI, Request, Response

from solo.chat.conversation import Chat, Limits
from solo.inference.decoding import Decoding
from solo.inference.monolith import Monolith

_MEAN, _ALL = "mean of all heads", "whole answer"
# Browsers then fetch nothing from other hosts, whatever Gradio's pages name.
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
        name: of the model, for the title.
        limits: what a question may hold.
        max_new_tokens: the longest answer that can be chosen.
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


def make_page(model: Monolith, name: str, limits: Limits, max_new_tokens: int) -> gr.Blocks:
    """Returns the page. See `make_app`."""
    config = model.config.model
    sees_images = model.published is None or model.published.sees_images
    with gr.Blocks(title=f"solo chat: {name}", analytics_enabled=False, fill_width=True) as page:
        chat = gr.State(None)
        gr.Markdown(f"### {name}")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
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
                    length = gr.Slider(
                        1, max_new_tokens, min(64, max_new_tokens), step=1, label="Longest answer, in tokens"
                    )
                    temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature (0: the most likely token)")
                    top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                again = gr.Button("New conversation", size="sm")
            with gr.Column(scale=2, min_width=320), gr.Tabs():
                with gr.Tab("Attention"):
                    about = gr.Markdown("Ask about a picture to see which patches the answer attended to.")
                    heat = gr.Gallery(**_GALLERY, columns=2)
                    layer = gr.Slider(1, config.layers, config.layers, step=1, label="Layer")
                    heads = [_MEAN, *(f"head {number + 1}" for number in range(config.heads))]
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

        def answer(
            chat: Chat | None,
            turns: list[Any],
            message: dict[str, Any],
            length: float,
            temperature: float,
            top_p: float,
            seed: float,
        ) -> Iterator[tuple[Any, ...]]:
            chat = chat or Chat(model, limits)
            text, files = message.get("text") or "", message.get("files") or []
            try:
                decoding = Decoding(int(length), float(temperature), float(top_p))
                written = chat.ask(text, files, decoding.max_new_tokens)
            except (ValueError, OSError) as error:
                yield gr.skip(), gr.skip(), gr.skip(), gr.Textbox(str(error), visible=True)
                return
            turns = [*turns, *({"role": "user", "content": {"path": file}} for file in files)]
            turns += [{"role": "user", "content": text}] if text.strip() else []
            yield (
                chat,
                turns,
                gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True),
                gr.Textbox(visible=False),
            )
            try:
                for _ in written.write(decoding, seed=abs(int(seed or 0))):
                    yield chat, [*turns, {"role": "assistant", "content": written.text}], gr.skip(), gr.skip()
            finally:  # also if the user stops it
                chat.keep()

        def look(chat: Chat | None, layer: float, head: str) -> tuple[Any, ...]:
            ready = gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
            if chat is None:
                return ready, *(gr.skip() for _ in range(5))
            pictures, sentence = attention(chat, layer, head, _ALL)
            choices = gr.Dropdown([_ALL, *chat.tokens()], value=_ALL)
            return ready, chat.gridded(), chat.likelihoods(), choices, pictures, sentence

        def attention(chat: Chat | None, layer: float, head: str, token: str) -> tuple[Any, str]:
            if chat is None:
                return [], "Ask something first."
            number = None if head == _MEAN else heads.index(head) - 1
            place = None if token == _ALL else int(token.split(":", 1)[0]) - 1
            return chat.attended(int(layer) - 1, number, place)

        asked = question.submit(
            answer,
            [chat, shown, question, length, temperature, top_p, seed],
            [chat, shown, question, refused],
            api_name="ask",
        )
        looks = ([chat, layer, head], [question, patches, table, token, heat, about])
        asked.then(look, *looks, api_visibility="private")
        stopped = question.stop(lambda: None, cancels=[asked], api_visibility="private")
        stopped.then(look, *looks, api_visibility="private")
        for changed in (layer.release, head.input, token.input):
            changed(attention, [chat, layer, head, token], [heat, about], api_visibility="private")
        for anew in (again.click, shown.clear):
            anew(
                lambda: (None, [], [], [], gr.Dropdown([_ALL], value=_ALL), [], ""),
                None,
                [chat, shown, patches, table, token, heat, about],
                api_visibility="private",
            )
    return page

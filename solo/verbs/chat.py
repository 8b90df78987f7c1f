"""`solo chat`: a page in the browser to ask a model about pictures."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

HELP = "ask a model about images in the browser, and inspect its answers"
DESCRIPTION = (
    "Serves a page on this machine to ask about images. It shows the patches that each image was cut into, the patches"
    " that an answer attended to, and the likelihood of its tokens. Needs the extra `chat`. Ctrl-C ends it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo chat`."""
    parser.add_argument(
        "run", metavar="RUN|REPOSITORY", help="a run (RUN, RUN@STEP, RUN@best) or a folder in Hugging Face form"
    )
    parser.add_argument(
        "--weights", metavar="NAME", default="trained", help="an average of the weights, such as ema; default: trained"
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="default 7860; 0 chooses a free port")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="default 127.0.0.1, which other machines cannot reach. There is no password, so prefer ssh -L",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="maximum length of an answer; default 256"
    )
    parser.add_argument(
        "--max-images", type=int, default=8, metavar="N", help="maximum number of images in a conversation; default 8"
    )
    parser.add_argument(
        "--max-slots",
        type=int,
        default=16_384,
        metavar="N",
        help="maximum number of patches and tokens in a conversation; default 16384",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    from solo.config import ConfigError

    for name in ("max_new_tokens", "max_images", "max_slots"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    try:
        import uvicorn

        from solo.chat.app import make_app
    except ImportError as error:
        raise ConfigError(
            f"solo chat needs {error.name}, which is not installed; install the extra `chat`"
            " (pip install 'solo-vlm[chat]')"
        ) from None
    listening = _listen(arguments.host, arguments.port)  # before the model is loaded, which can take minutes
    import solo
    from solo.chat.conversation import Limits

    model = solo.load(arguments.run, weights=arguments.weights)
    limits = Limits(images=arguments.max_images, slots=arguments.max_slots)
    app = make_app(model, Path(arguments.run).name, limits, arguments.max_new_tokens)
    host, port = listening.getsockname()[:2]
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Raises ConfigError if the address cannot be used."""
    from solo.config import ConfigError

    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot serve at {host}:{port}: {reason}; choose another with --host and --port") from None

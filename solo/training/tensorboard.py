"""TensorBoard's event files, made from the lines of `metrics.jsonl`.

Every attempt of a run adds a file. The file begins with an event that makes TensorBoard drop the steps that will be
repeated, so that every step is shown once.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from solo.files import json_text, write_whole

# A PNG file, or None, for each example of a line of sample answers.
Pictures = Callable[[Mapping[str, Any]], Sequence[bytes | None]]

_SHOWN = "shown.json"
_EVENTS = "events.out.tfevents."


def _import_library() -> None:
    """Imports tensorboardX without its optional integrations, which would take seconds at every start."""
    hidden = {"torch", "boto3", "google.cloud.storage"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import tensorboardX  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]


class TensorBoard:
    """Writes event files into a folder. See `solo.training.boards.Board`.

    Args:
        folder: holds the event files.
        pictures: returns a PNG file, or None, for each example of a line of sample answers.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, pictures: Pictures = lambda line: ()):
        self._folder, self._pictures = folder, pictures
        self._newest = 0

    def begin(self, resume_step: int) -> int:
        """Opens a new file. Returns the last step that need not be shown again; -1 if there is none."""
        _import_library()
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        known = self._known()
        if known is None:  # of no run, or of an earlier version that made them anew
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        known = -1 if known is None else min(known, resume_step)
        self._newest = known + 1
        self._records = RecordWriter(str(self._folder / self._next_name()))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if known >= 0:
            started = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=known + 1, session_log=started))
        return known

    def show(self, line: Mapping[str, Any]) -> None:
        """Writes the numbers of a line as one event, or sample answers as texts and pictures."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line)]
        if line["kind"] == "samples":
            values += self._samples(line)
        self._newest = max(self._newest, line["step"])
        if values:
            self._write(Event(wall_time=time.time(), step=line["step"], summary=Summary(value=values)))

    def _samples(self, line: Mapping[str, Any]) -> list[Any]:
        from tensorboardX import summary
        from tensorboardX.proto.summary_pb2 import Summary

        values, name = [], f"samples/{titled(line)}"
        for number, example in enumerate(line["examples"]):
            text = f"**{example['prompt']}**\n\n{example['answer']}\n\n*reference: {example['reference']}*"
            values += summary.text(f"{name}/{number}", text).value
        for number, png in enumerate(self._pictures(line)):
            if png is not None:
                width, height = struct.unpack(">II", png[16:24])
                image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
                values.append(Summary.Value(tag=f"{name}/{number}/image", image=image))
        return values

    def flush(self) -> None:
        """Flushes the events, and records which steps are complete: those before the newest one."""
        self._records.flush()
        self._note(self._newest - 1)

    def close(self) -> None:
        """Closes the file."""
        self._records.close()
        self._note(self._newest)

    def _known(self) -> int | None:
        try:
            return int(json.loads((self._folder / _SHOWN).read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _note(self, step: int) -> None:
        write_whole(self._folder / _SHOWN, json_text({"step": step}) + "\n")

    def _next_name(self) -> str:
        """Returns a name that sorts after those of earlier files, even if the hosts' clocks differ."""
        earlier = [path.name.removeprefix(_EVENTS)[:10] for path in self._folder.glob(f"{_EVENTS}*")]
        newest = max((int(text) for text in earlier if text.isdigit()), default=0)
        return f"{_EVENTS}{max(int(time.time()), newest + 1):010d}.{socket.gethostname()}"

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def titled(line: Mapping[str, Any]) -> str:
    """Returns the name of a line's evaluator, with the name of the weights if they are an average."""
    return "/".join(str(line[name]) for name in ("task", "weights") if isinstance(line.get(name), str))


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a line with their names.

    For example `train/loss_by_source/digits`, `held_out/digits/loss` and `activations/rms/text/layer_00`.
    """
    prefix = "/".join(str(line[name]) for name in ("kind", "task", "weights") if isinstance(line.get(name), str))
    numbers = {name: value for name, value in line.items() if name != "step"}
    yield from _numbers(_by_layer(numbers) if line["kind"] == "activations" else numbers, prefix)


def _by_layer(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with names for the entries of lists, which belong to layers."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = _by_layer(value)
        elif isinstance(value, list):
            value = {f"layer_{number:02d}": each for number, each in enumerate(value)}
        found[name] = value
    return found


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{name}", float(value)

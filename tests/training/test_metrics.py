"""The stream of metrics: what a resumed run keeps of a damaged file, and what boards such as TensorBoard show."""

import json
import threading
from pathlib import Path

import pytest
from PIL import Image as PillowImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from solo.data.record import encode_png
from solo.files import read_json_lines
from solo.training import metrics_file
from solo.training.metrics import MetricsStream, drop_quarantined_after, read_metrics
from solo.training.metrics_file import cut, lines_backwards, reportable
from solo.training.run_folder import RunFolder
from solo.training.tensorboard import TensorBoard


def lines_of(*steps: int) -> list[dict]:
    return [{"kind": "train", "step": step, "loss": step / 7} for step in steps]


def stored(*lines: dict) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


EVALUATED = {"kind": "held_out", "step": 3, "task": "digits", "loss": 0.5}


@pytest.mark.parametrize(
    ("content", "kept", "damage", "began_after"),
    [
        # A kill cuts the last line short; it belongs to a step that is taken again.
        (stored(*lines_of(1, 2, 3, 4, 5)) + b'{"kind": "tra', [1, 2, 3], [], 0),
        (stored(*lines_of(1, 2, 3))[:-1], [1, 2, 3], [], 0),
        (stored(*lines_of(1)), [1], ["missing in steps 2 to 3, although a later checkpoint was saved: 2 lines"], 0),
        (
            stored(*lines_of(1)) + b"\x00\xff[\n" + stored(*lines_of(3)),
            [1, 3],
            ["left out: 1 line that cannot be read", "missing in step 2,"],
            0,
        ),
        # Null bytes after a power failure.
        (
            stored(*lines_of(1)) + bytes(200_000) + b"\n" + stored(*lines_of(2, 3)) + bytes(9),
            [1, 2, 3],
            ["left out: 1 line that cannot be read; the file as it was is"],
            0,
        ),
        # Two processes wrote at the same time.
        (
            stored(*lines_of(1)) + b'{"kind": "tra' + stored(*lines_of(2, 3)),
            [1, 3],
            ["left out: 1 line that cannot", "missing in step 2"],
            0,
        ),
        (stored(*lines_of(1, 2, 3)) + b"7\n" + stored(*lines_of(4)), [1, 2, 3], ["left out: lines at its end"], 0),
        (stored(*lines_of(1, 2, 3)).replace(b"\n", b"\r\n\r\n"), [1, 2, 3], [], 0),
        (b"[" * 100_000 + b"\n" + stored(*lines_of(1, 2, 3)), [1, 2, 3], ["left out: 1 line"], 0),
        (stored(*lines_of(3, 4)), [3], [], 2),  # branched off after step 2
        (b"", [], ["missing in steps 1 to 3"], 0),
        (stored(*lines_of(3)), [3], ["missing in steps 1 to 2"], 0),
        (stored(*lines_of(3)), [3], [], None),  # the ledger is lost, too
        (
            stored(*lines_of(1, 2), {**lines_of(1)[0], "loss": 0}, *lines_of(1, 3)),
            [2, 1, 3],
            ["left out: 2 lines of repeated"],
            0,
        ),
        (stored(*lines_of(1, 2, 9, 3, 4)), [1, 2, 3], ["left out: 1 line of repeated"], 0),
    ],
)
def test_a_resumed_run_keeps_what_it_can_of_its_metrics_and_says_what_is_lost(
    tmp_path: Path, content: bytes, kept: list[int], damage: list[str], began_after: int | None
) -> None:
    run, told = RunFolder(tmp_path), []
    run.metrics_file.write_bytes(content)
    stream = MetricsStream(run, 3, began_after, tell=told.append)
    stream.write({"kind": "train", "step": 4, "loss": float("nan")})
    stream.sync()
    stream.write({"kind": "train", "step": 5, "loss": 0.5})
    stream.close()
    new = [{"kind": "train", "step": 4, "loss": None}, {"kind": "train", "step": 5, "loss": 0.5}]
    assert read_json_lines(run.metrics_file) == ([*lines_of(*kept), *new], 0)
    assert len(stream.damage) == len(damage)
    assert told == stream.damage
    for said, expected in zip(stream.damage, damage, strict=True):
        assert expected in said
        assert str(run.metrics_file) in said
    aside = [path.read_bytes() for path in tmp_path.glob("metrics.jsonl.damaged-*")]
    assert len(aside) == any("left out" in text for text in damage)
    assert all(text[:-100] == content[: len(text) - 100] for text in aside)


def test_evaluations_of_the_step_that_a_run_resumes_from_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    after = [EVALUATED, *lines_of(4), {**EVALUATED, "step": 4}]
    path.write_bytes(stored(*lines_of(1, 2, 3), *after))
    assert cut(path, 3) is None
    assert read_metrics(path) == [*lines_of(1, 2, 3), EVALUATED]
    assert cut(path, 0) is None
    assert path.read_bytes() == b""


def test_a_damaged_file_does_not_replace_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        path.write_bytes(stored(*lines_of(1)) + b"%d damaged\n" % number + stored(*lines_of(2)))
        assert cut(path, 1) == tmp_path / f"metrics.jsonl.damaged-{number}"
    assert b"1 damaged" in (tmp_path / "metrics.jsonl.damaged-1").read_bytes()


@pytest.mark.parametrize("sizes", [[], [0], [3, 0, 70_000, 1], [65_535, 65_536, 65_537, 200_000, 0, 0]])
def test_lines_backwards_are_those_forwards(tmp_path: Path, sizes: list[int]) -> None:
    texts = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    path = tmp_path / "lines"
    path.write_bytes(b"".join(text + b"\n" for text in texts) + b"cut")
    with path.open("rb") as file:
        found = list(lines_backwards(file, path.stat().st_size))
    assert [text for _, text in found] == [b"cut", *texts[::-1]]
    content = path.read_bytes()
    assert all(content[place : place + len(text)] == text for place, text in found)


def test_opening_a_long_file_reads_only_its_end(tmp_path: Path, monkeypatch) -> None:
    parsed: list[str] = []
    parse = metrics_file.parse_line

    def counted(text: bytes) -> dict | None:
        parsed.append(threading.current_thread().name)
        return parse(text)

    monkeypatch.setattr(metrics_file, "parse_line", counted)
    run = RunFolder(tmp_path)
    run.metrics_file.write_bytes(stored(*lines_of(*range(1, 20_001))))
    write(run, 20_000, [])  # it has no note of TensorBoard's, so that all lines are shown, beside the run
    write(run, 19_990, lines_of(19_991))
    counts = {name: parsed.count(name) for name in set(parsed)}
    assert counts["MainThread"] <= 15
    assert counts["metrics-check"] == 20_000 + 19_990
    assert counts["board-TensorBoard"] == 20_001
    assert set(accumulated(run, "train/loss")) == set(range(1, 19_992))


def accumulated(run: RunFolder, tag: str) -> dict[int, float]:
    """What TensorBoard's own reader shows: step -> value. Every step must be there once."""
    reader = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    reader.Reload()
    events = reader.Scalars(tag)
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


def write(run: RunFolder, resume_step: int, lines: list[dict], kill: bool = False) -> None:
    board = TensorBoard(run.tensorboard)
    if kill:
        board.flush = board.close = lambda: None  # type: ignore[method-assign]
    stream = MetricsStream(run, resume_step, 0, [board])
    for line in lines:
        stream.write(line)
    stream.close()
    if kill:
        board._records.close()


def test_tensorboard_shows_every_step_once_over_restarts(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write(run, 0, [*lines_of(1, 2, 3), EVALUATED, *lines_of(4, 5)])
    assert accumulated(run, "train/loss") == pytest.approx({step: step / 7 for step in range(1, 6)})
    again = [{**line, "loss": line["loss"] + 10} for line in lines_of(4, 5, 6)]
    write(run, 3, again)  # all in the same second
    assert accumulated(run, "train/loss") == pytest.approx(
        {line["step"]: line["loss"] for line in [*lines_of(1, 2, 3), *again]}
    )
    assert accumulated(run, "held_out/digits/loss") == {3: 0.5}
    assert len(list(run.tensorboard.glob("events.*"))) == 2


def test_tensorboard_shows_sample_answers_with_their_pictures(tmp_path: Path) -> None:
    said = {"id": "a", "prompt": "<image> colour?", "reference": "red", "answer": "blue"}
    line = {"kind": "samples", "step": 3, "task": "look", "examples": [said, {**said, "id": "b"}]}
    png = encode_png(PillowImage.new("RGB", (3, 2), "red")).data
    board = TensorBoard(tmp_path, lambda line: [png, None])
    board.begin(0)
    board.show(line)
    board.close()
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert reader.Tags()["images"] == ["samples/look/0/image"]
    (shown,) = reader.Images("samples/look/0/image")
    assert (shown.step, shown.width, shown.height, shown.encoded_image_string) == (3, 3, 2, png)
    assert len(reader.Tags()["tensors"]) == 2
    (text,) = reader.Tensors(reader.Tags()["tensors"][0])
    assert b"blue" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize("lost", [True, False])
def test_tensorboard_gets_what_a_kill_kept_from_it(tmp_path: Path, lost: bool) -> None:
    run = RunFolder(tmp_path)
    write(run, 0, lines_of(1, 2))
    write(run, 2, [*lines_of(3), EVALUATED, *lines_of(4, 5, 6)], kill=True)
    if lost:  # not even one event was stored
        max(run.tensorboard.glob("events.*")).write_bytes(b"")
    write(run, 5, lines_of(6, 7))
    assert accumulated(run, "train/loss") == pytest.approx({step: step / 7 for step in range(1, 8)})
    assert accumulated(run, "held_out/digits/loss") == {3: 0.5}


def test_tensorboard_files_without_a_note_are_made_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write(run, 0, lines_of(1, 2, 3))
    (run.tensorboard / "shown.json").unlink()
    write(run, 3, lines_of(4))
    assert accumulated(run, "train/loss") == pytest.approx({step: step / 7 for step in range(1, 5)})
    assert len(list(run.tensorboard.glob("events.*"))) == 1


def test_a_clock_that_is_behind_does_not_change_the_order_of_the_files(tmp_path: Path, monkeypatch) -> None:
    run = RunFolder(tmp_path)
    for resume_step, now in ((0, 2_000_000_000), (1, 1_000_000_000)):
        monkeypatch.setattr("solo.training.tensorboard.time.time", lambda now=now: now)
        write(run, resume_step, lines_of(resume_step + 1))
    assert set(accumulated(run, "train/loss")) == {1, 2}


class Blocked:
    """A board that never returns, or fails."""

    name = "Blocked"

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.free = error, threading.Event()

    def begin(self, resume_step: int) -> int:
        return resume_step

    def show(self, line) -> None:
        if self.error:
            raise self.error
        self.free.wait()

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_a_board_that_fails_or_hangs_does_not_stop_the_run_and_is_reported_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("solo.training.boards._CLOSE_SECONDS", 0.05)
    run, told, hangs = RunFolder(tmp_path), [], Blocked()
    stream = MetricsStream(run, 0, 0, [Blocked(OSError("no network")), hangs], told.append)
    for line in lines_of(1, 2, 3):
        stream.write(line)
    stream.close()
    hangs.free.set()
    assert read_metrics(run.metrics_file) == lines_of(1, 2, 3)
    assert sorted(told) == [
        "Blocked stopped showing lines: OSError: no network; metrics.jsonl contains all of them",
        "Blocked stopped showing lines: it did not finish within 0 s; metrics.jsonl contains all of them",
    ]


def test_damaged_lines_of_the_quarantine_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_bytes(stored({"step": 2}, {"step": "two"}, {"step": 3}) + b'\xff\n{"step": ')
    (said,) = drop_quarantined_after(path, 2)
    assert said == f"{path}: 3 damaged lines were left out"
    assert read_json_lines(path) == ([{"step": 2}], 0)


def test_reports_leave_out_lines_that_lack_fields_of_their_kind() -> None:
    whole = {
        "kind": "train",
        "step": 5,
        "stage": "s",
        "loss": None,
        "tokens": 8,
        "visual_tokens": 3,
        "useful_share": 1.0,
        "timing": {"step_seconds": 0.5},
    }
    broken = [{"kind": "train", "step": 5}, {**whole, "timing": "y"}, {**whole, "tokens": "8"}]
    broken += [{"kind": "held_out", "step": 5, "task": ["x"], "loss": 1.0, "targets": 3}]
    other = {"kind": "plan", "step": 1}
    assert reportable([other, *broken, whole]) == [other, whole]

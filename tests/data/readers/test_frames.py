"""Videos as frames."""

import json

import numpy as np
import pytest

from solo.config import ConfigError
from solo.data.readers import open_reader, read
from solo.data.readers.frames import _at_rate
from solo.data.record import Turn
from tests.data.readers.pictures import RED, picture, read_source, write

FRAMES = [picture((20 * number, 0, 0)) for number in range(12)]


@pytest.fixture
def videos(tmp_path):
    """Twelve frames, whose names sort wrongly as texts, and three."""
    write(tmp_path / "v", {f"cat/frame_{number + 1}.jpg": frame for number, frame in enumerate(FRAMES)})
    write(tmp_path / "v", {f"dog10/{number}.png": FRAMES[number] for number in range(3)})
    write(tmp_path / "v", {"cat.txt": "A cat jumps.\n", "dog10/caption.txt": "A dog."})
    return tmp_path


def shown(content) -> list[int | str]:
    """A record's content, with the number of each frame."""
    return [part if isinstance(part, str) else FRAMES.index(part) for part in content]


def test_folders_of_frames(videos):
    records, unreadable, _ = read_source("frames", path=str(videos / "v"), frames=4)
    assert {name: shown(content) for name, content in records.items()} == {
        "cat": [0, 4, 7, 11, "A cat jumps."],
        "dog10": [0, 1, 2, "A dog."],
    }
    assert not unreadable


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"frames": 1}, [0]),
        ({"frames": 2}, [0, 11]),
        ({"frames": 100}, list(range(12))),
        ({"fps": 1.0, "source_fps": 4.0}, [0, 4, 8]),
        ({"fps": 2.0, "source_fps": 3.0}, [0, 1, 3, 4, 6, 7, 9, 10]),
        ({"fps": 30.0, "source_fps": 3.0, "frames": 64}, list(range(12))),
        ({"fps": 1.0, "source_fps": 4.0, "frames": 2}, [0, 8]),
    ],
)
def test_sampling(videos, options, expected):
    assert shown(read_source("frames", path=str(videos / "v"), **options)[0]["cat"])[:-1] == expected


def test_text_before_each_frame(videos):
    options = {"path": str(videos / "v"), "frames": 2}
    records, _, _ = read_source("frames", **options, source_fps=2.0, before_frame="<{time:.1f} seconds>")
    assert shown(records["cat"]) == ["<0.0 seconds>", 0, "<5.5 seconds>", 11, "A cat jumps."]
    records, _, _ = read_source("frames", **options, before_frame="Frame {number}: ")
    assert shown(records["cat"]) == ["Frame 1: ", 0, "Frame 2: ", 11, "A cat jumps."]
    _, unreadable, _ = read_source("frames", **options, before_frame="{time}")
    assert set(unreadable.values()) == {"the times of its frames are unknown: set source_fps"}


def test_what_is_no_video_is_said(videos):
    write(
        videos / "v",
        {"a.mp4": "ftyp", "b.md": "-", "empty/.x": "", "mute/1.jpg": FRAMES[0], "e/1.jpg": FRAMES[0], "e.txt": " "},
    )
    records, unreadable, _ = read_source("frames", path=str(videos / "v"))
    assert list(records) == ["cat", "dog10"]
    assert unreadable.pop("a.mp4").startswith("video containers are not decoded: ")
    assert unreadable.pop("e").startswith("its caption is empty")
    assert unreadable.pop("mute").startswith("it has 0 captions: there must be ")
    assert unreadable.pop("empty").startswith("it has 0 captions")
    assert unreadable == {"b.md": "it is a file, not a folder of frames"}


TABLE = [
    {"id": "a", "frames": ["v/cat/frame_1.jpg", "v/cat/frame_12.jpg"], "times": [3, 9.5], "text": "Both."},
    {"id": "b", "video": "v/dog10", "fps": 2, "caption": "A dog.", "mood": "glad"},
    {
        "id": "c",
        "video": "v/dog10",
        "fps": 2,
        "conversations": [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So."}],
    },
    {
        "id": "d",
        "video": "v/dog10",
        "fps": 2,
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
    },
    {"id": "e", "video": "cat.mp4", "text": "x"},
    {"id": "f", "frames": ["v/cat/frame_1.jpg"], "times": [1, 2], "text": "x"},
    {"id": "g", "frames": ["v/cat/frame_1.jpg"] * 2, "times": [2, 2], "text": "x"},
    {"id": "h", "frames": "v/cat/frame_1.jpg", "text": "x"},
    {"id": "i", "text": "x"},
    {"id": "j", "video": "v/dog10", "fps": 0, "text": "x"},
    {"id": "k", "video": "v/dog10", "fps": 1},
    {"id": "l", "video": "v/gone", "fps": 1, "text": "x"},
    {"id": "m", "video": "v/dog10", "fps": 1, "conversations": [{"from": "human", "value": "<video><video>"}]},
    [1],
]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_lists_of_frames(videos, kind):
    text = json.dumps(TABLE) if kind == "json" else "\n".join(map(json.dumps, TABLE))
    write(videos, {f"t.{kind}": text})
    options = {"path": str(videos / f"t.{kind}"), "images": str(videos), "before_frame": "{time:g}s "}
    records, unreadable, ignored = read_source("frames", **options)
    assert {name: shown(content) for name, content in records.items()} == {
        "a": ["3s ", 0, "9.5s ", 11, "Both."],
        "b": ["0s ", 0, "0.5s ", 1, "1s ", 2, "A dog."],
        "c": ["0s ", 0, "0.5s ", 1, "1s ", 2, "\nWhy?", "So."],
        "d": ["0s ", 0, "0.5s ", 1, "1s ", 2, "\nWhy?", "So."],
    }
    assert ignored == {"mood"}
    assert list(unreadable) == [*"efghijklm", f"t.{kind}:14"]
    assert "ffmpeg" in unreadable["e"]
    assert unreadable["f"] == "the times must be a list of numbers, one for each of the 1 frames"
    assert unreadable["g"] == "the times of its frames do not increase"
    assert unreadable["h"] == "the frames must be a list of paths"
    assert unreadable["l"].endswith("v/gone does not exist")
    assert unreadable["m"].startswith("2 placeholders for one video")


def test_turns(videos):
    write(videos, {"t.jsonl": json.dumps(TABLE[2])})
    (record,) = read("frames", {"path": str(videos / "t.jsonl"), "images": str(videos)})
    assert record.turns == (Turn("user", (*FRAMES[:3], "\nWhy?")), Turn("assistant", ("So.",)))


def test_parts_count_frames_and_notice_new_ones(videos):
    source = open_reader("frames", {"path": str(videos / "v"), "frames": 4})
    parts = list(source.parts(4, None))
    assert [part.files for part in parts] == [(f"{videos}/v/cat",), (f"{videos}/v/dog10",)]
    assert len(list(source.parts(8, None))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames must be at least 1, not 0"),
        ({"fps": -1.0}, "fps must be positive"),
        ({"before_frame": "{seconds}"}, "before_frame '{seconds}' is not a text with {time} or {number}"),
        ({"path": "a.mp4"}, "video containers are not decoded: .*ffmpeg"),
    ],
)
def test_refused(videos, options, message):
    write(videos, {"a.mp4": "x"})
    path = str(videos / options.pop("path", "v"))
    with pytest.raises(ConfigError, match=message):
        list(read("frames", {"path": path, **options}))


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ("[0, 1e300]", "must be a list of numbers"),
        ("[0, NaN]", "must be a list of numbers"),
        ("[0, Infinity]", "must be a list of numbers"),
        ("[0, 1" + "0" * 400 + "]", "must be a list of numbers"),
        ("[-1e9, 1e9]", "span more than 1,000,000,000 s"),
    ],
)
def test_times_that_no_video_has(tmp_path, times, reason):
    line = f'{{"frames": ["1.png", "2.png"], "times": {times}, "text": "a"}}'
    write(tmp_path, {"1.png": RED, "2.png": RED, "t.jsonl": line})
    options = {"path": str(tmp_path / "t.jsonl"), "images": str(tmp_path), "fps": 30.0}
    _, unreadable, _ = read_source("frames", **options)
    assert reason in unreadable["t.jsonl:1"]


def test_frames_at_a_rate_are_those_shown_at_its_multiples():
    random = np.random.default_rng(0)
    for fps in (0.3, 1.0, 2.5, 30.0):
        times = np.cumsum(random.choice([0.04, 0.5, 1.0, 3.3], 40)).tolist()
        multiples = np.arange(int((times[-1] - times[0]) * fps + 1e-6) + 1) / fps
        at = np.searchsorted(times, times[0] + multiples + 1e-6, side="right") - 1
        assert _at_rate(times, fps) == sorted(set(at.tolist()))

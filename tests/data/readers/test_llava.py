"""Conversations in the forms of LLaVA, OpenAI, ShareGPT, ms-swift, LLaMA-Factory and SOLO."""

import base64
import gzip
import json
import re
from itertools import islice

import datasets
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import Ignored, Unreadable, read
from solo.data.record import Record, Turn, encode_png

RED, BLUE = (encode_png(PillowImage.new("RGB", (3, 2), colour)) for colour in ("red", "blue"))
RED_URI = "data:image/png;base64," + base64.b64encode(RED.data).decode()


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "red.png").write_bytes(RED.data)
    (tmp_path / "blue.png").write_bytes(BLUE.data)
    return tmp_path


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def asked(content, **more):
    """A question, and the answer "A" with more keys."""
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "A", **more}]


def read_lines(folder, examples, reader="llava", **options):
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(example) for example in examples))
    return list(read(reader, {"path": str(path), "images": str(folder), **options}))


READABLE = [
    ({"image": "red.png", "conversations": said("<image>\nWhy?", "So.")}, [(RED, "\nWhy?"), ("So.",)]),
    ({"image": "red.png", "conversations": said("Why?\n<image>", "So.")}, [("Why?\n", RED), ("So.",)]),
    ({"image": "red.png", "conversations": said("Why?", "So.")}, [(RED, "\nWhy?"), ("So.",)]),
    (
        {"image": ["red.png", "blue.png"], "conversations": said("Why?", "So.")},
        [(RED, "\n", BLUE, "\nWhy?"), ("So.",)],
    ),
    (
        {"image": ["red.png", "blue.png"], "conversations": said("<image>\na\n<image>\n", "b", "\nc\n", "d")},
        [(RED, "\na\n", BLUE, "\n"), ("b",), ("\nc\n",), ("d",)],
    ),
    (
        {"image": ["red.png", "blue.png"], "conversations": said("<image>", "b", "<image> c", "d")},
        [(RED,), ("b",), (BLUE, " c"), ("d",)],
    ),
    ({"conversations": said("Hi\n", "Ho")}, [("Hi\n",), ("Ho",)]),
    ({"image": None, "conversations": said("Hi", "Ho")}, [("Hi",), ("Ho",)]),
    ({"images": ["red.png"], "conversations": said("<image>a", "b")}, [(RED, "a"), ("b",)]),
    ({"Image": "red.png", "conversations": said("a", "b")}, [(RED, "\na"), ("b",)]),
    ({"image_path": "red.png", "conversations": said("a", "b")}, [(RED, "\na"), ("b",)]),
    ({"image": RED_URI, "conversations": said("a", "b")}, [(RED, "\na"), ("b",)]),
    # InternVL's documentation writes "text" for "value".
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "text": "b"}]}, [("a",), ("b",)]),
    ({"conversations": said("<img>red.png</img>a<img>blue.png</img>", "b")}, [(RED, "a", BLUE), ("b",)]),
    ({"weight": 1.0, "tools": "", "video": None, "conversations": said("a", "b")}, [("a",), ("b",)]),
]
UNREADABLE = [
    ({"image": "red.png", "conversations": said("<image><image>", "a")}, "2 <image> in the text for 1 images"),
    ({"image": ["red.png", "blue.png"], "conversations": said("<image>", "a")}, "1 <image> in the text for 2 images"),
    ({"conversations": said("the tag <image>", "a")}, "1 <image> in the text for 0 images"),
    ({"image": "green.png", "conversations": said("<image>", "a")}, "the file does not exist: .*green.png"),
    ({"image": 3, "conversations": said("a", "b")}, "an image must be a path.*not a number"),
    ({"image": "red.png"}, "it has no 'conversations'; its keys are 'id', 'image'"),
    ({"conversations": ["a", "b"]}, "message 1: it must be a mapping, not a string"),
    ({"conversations": {"from": "gpt"}}, "the messages must be a list, not a mapping"),
    ({"conversations": [{"from": "robot", "value": "a"}]}, "message 1: the speaker 'robot' is not one of .*human"),
    ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "its speaker must be a string, not a list"),
    ({"conversations": [{"from": {"a": 1}, "value": "a"}]}, "its speaker must be a string, not a mapping"),
    ({"conversations": [{"from": "gpt"}]}, "its content must be a string or a list of parts, not null"),
    ({"conversations": [{"from": "observation", "value": "a"}]}, "'observation', but tool calls are not supported"),
    ({"video": "a.mp4", "conversations": said("a", "b")}, "its key 'video' is not supported"),
    ({"image": "red.png", "audio": "a.wav", "conversations": said("a", "b")}, "its key 'audio' is not supported"),
    ({"photo": "red.png", "conversations": said("a", "b")}, "it has 'photo' but no image"),
    ({"image": "red.png", "images": ["blue.png"], "conversations": said("a", "b")}, "both 'image' and 'images'"),
    ({"img": "red.png", "image_path": "blue.png", "conversations": said("a", "b")}, "both 'img' and 'image_path'"),
    ({"image_url": "http://a/b.jpg", "conversations": said("a", "b")}, "it is a web address"),
    ({"weight": 0.5, "conversations": said("a", "b")}, "its 'weight' is 0.5, but only sources and turns"),
    ({"loss": False, "conversations": said("a", "b")}, "its 'loss' is False"),
    ({"chosen": "c", "rejected": "d", "conversations": said("a")}, "its key 'chosen' is not supported"),
    ({"image": "red.png", "conversations": said("<|image_pad|>a", "b")}, r"message 1: .*<\|image_pad\|>"),
    (
        {"image": "red.png", "conversations": said("a <image1>", "b")},
        "message 1: the placeholder of an image is '<image>', not '<image1>'",
    ),
    (
        {"image": "red.png", "conversations": said("a <image 1>", "b")},
        "message 1: the placeholder of an image is '<image>', not '<image 1>'",
    ),
    (
        {"image": "red.png", "conversations": said("<Image>a", "b")},
        "message 1: the placeholder of an image is '<image>', not '<Image>'",
    ),
    ({"image": "red.png", "conversations": said("<image_placeholder>a", "b")}, "'<image>', not '<image_placeholder>'"),
    ({"image": "red.png", "conversations": said("<IMG_CONTEXT>a", "b")}, "'<image>', not '<IMG_CONTEXT>'"),
    ({"image": {"<image_00>": "red.png"}, "conversations": said("a", "b")}, "images with names need messages"),
    ({"image": {"name": "red.png"}, "conversations": said("a", "b")}, "must have 'bytes', 'path' or 'url'"),
    ({"conversations": said("<img>green.png</img>a", "b")}, "the file does not exist: .*green.png"),
    ({"set": {"root": "imgs/", "annotation": "a.jsonl"}}, r"InternVL's meta file.*path: 'a.jsonl', images: 'imgs/'"),
]


@pytest.mark.parametrize("suffix", [".json", ".JSONL"])
def test_llava(pictures, suffix):
    examples = [{"id": i, **example} for i, (example, _) in enumerate(READABLE + UNREADABLE)]
    lines = [json.dumps(example) for example in examples]
    path = pictures / f"all{suffix}"
    path.write_text(f"[{','.join(lines)}]" if suffix == ".json" else "\n".join(lines) + "\n\n")
    found = [e for e in read("llava", {"path": str(path), "images": str(pictures)}) if not isinstance(e, Ignored)]
    assert [example.id for example in found] == [str(i) for i in range(len(examples))]
    assert [example.place.line for example in found] == list(range(1, len(examples) + 1))
    for record, (example, expected) in zip(found, READABLE, strict=False):
        assert isinstance(record, Record), (record, example)
        assert [turn.content for turn in record.turns] == expected
        assert [turn.role for turn in record.turns] == ["user", "assistant"] * (len(expected) // 2)
    for bad, (example, reason) in zip(found[len(READABLE) :], UNREADABLE, strict=True):
        assert isinstance(bad, Unreadable), (bad, example)
        assert re.search(reason, bad.reason), bad.reason


def test_train_on_inputs_makes_one_text(pictures):
    example = {"image": "red.png", "conversations": said("<image>\n", "A kite.", "Where?", "Up.")}
    (record,) = read_lines(pictures, [example], train_on_inputs=True)
    assert record.turns == (Turn("text", (RED, "\n", "A kite.", "Where?", "Up.")),)
    (bad,) = read_lines(pictures, [{"messages": asked("q", loss=False)}], "messages", train_on_inputs=True)
    assert "only read, but all are learned" in bad.reason


def test_a_system_key_is_a_system_turn(pictures):
    first, second, third = read_lines(
        pictures,
        [
            {"system": "Be brief.", "conversations": said("a", "b")},
            {"system_prompt": "Be brief.", "conversations": [{"from": "system", "value": "Shout."}, *said("a", "b")]},
            {"system": ["x"], "conversations": said("a", "b")},
        ],
    )
    assert first.turns[0] == Turn("system", ("Be brief.",))
    assert "another in its key 'system'" in second.reason
    assert "must be one string" in third.reason


def test_a_turn_of_weight_zero_is_read_but_not_learned(pictures):
    examples = [
        {"messages": [*asked("q", weight=0), *asked("q", weight=1), *asked("q", loss=True), *asked("q")]},
        {"messages": [*asked("q", is_input=True), *asked("q", is_input=False)]},
        {"messages": asked("q", weight=0.5)},
        {"messages": [{"role": "user", "content": "a", "train": True}, {"role": "assistant", "content": "b"}]},
        {"messages": asked("q", weight="high")},
        {"messages": asked("q", is_input="yes")},
    ]
    record, of_neo, *bad = read_lines(pictures, examples, "messages")
    assert [turn.learned for turn in record.turns if turn.role == "assistant"] == [False, True, True, True]
    assert [turn.learned for turn in of_neo.turns if turn.role == "assistant"] == [False, True]
    assert bad[0].reason == "message 2: 'weight' is 0.5, but a turn is either learned (1) or only read (0)"
    assert bad[1].reason == "message 1: 'train' is True, but user turns are only read"
    assert "'weight' is 'high'" in bad[2].reason
    assert "'is_input' is 'yes'" in bad[3].reason


def test_keys_that_are_not_read_are_named_once(pictures):
    examples = [
        {"id": 1, "width": 3, "source": "web", "conversations": said("a", "b")},
        {"id": 2, "width": 3, "lang": "en", "conversations": [{"from": "gpt", "value": "a", "score": 3}]},
    ]
    found = read_lines(pictures, examples)
    assert [(e.key, e.place.line) for e in found if isinstance(e, Ignored)] == [
        ("width", 1),
        ("source", 1),
        ("lang", 2),
        ("score", 2),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("kite", "kite"), (7, "7"), (None, "data.jsonl:1"), ("", "data.jsonl:1"), ([1], "data.jsonl:1"), (1.5, "1.5")],
)
def test_ids(pictures, given, expected):
    (record,) = read_lines(pictures, [{"id": given, "conversations": said("a", "b")}])
    assert record.id == expected


def test_lines_that_are_not_examples(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"id": "kite", "conversations": [{"from": "system", "value": "s"}, *said("a", "b")]}).encode()
    path.write_bytes(b"{oops\n" + good + b"\n[1]\n\xff\xfe\n" + good + b'\n"text"\nnull')
    found = list(read("llava", {"path": str(path)}))
    assert [example.id for example in found][:5] == ["bad.jsonl:1", "kite", "bad.jsonl:3", "bad.jsonl:4", "kite"]
    assert [isinstance(example, Unreadable) for example in found] == [True, False, True, True, False, True, True]
    assert found[1].turns[0] == Turn("system", ("s",))
    assert [found[i].reason.split(",")[-1] for i in (2, 5, 6)] == [" not a list", " not a string", " not null"]


def test_lines_are_read_as_they_are_needed(pictures):
    path = pictures / "a.jsonl"
    path.write_text(json.dumps({"conversations": said("a", "b")}) + "\n{broken")
    assert [r.id for r in islice(read("llava", {"path": str(path)}), 1)] == ["a.jsonl:1"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixture.yaml", {}, "lists datasets"),
        ("a.jsonl", {"images": "nowhere"}, "option 'images': nowhere is not a folder"),
    ],
)
def test_faults_of_a_source(tmp_path, name, options, message):
    (tmp_path / name).write_text("datasets: [{json_path: a.json}]")
    with pytest.raises(ConfigError, match=message):
        list(read("llava", {"path": str(tmp_path / name), **options}))


# ------------------------------------------------------------------------------------------ messages

URL = {"type": "image_url", "image_url": {"url": "red.png", "detail": "low"}}
WHY = {"type": "text", "text": "Why?"}


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"messages": asked([URL, WHY])}, (RED, "Why?")),
        ({"messages": asked([WHY, {"type": "image_url", "image_url": RED_URI}])}, ("Why?", RED)),
        ({"messages": asked([{"type": "image", "image": "red.png"}, WHY])}, (RED, "Why?")),
        ({"messages": asked([{"image": "red.png"}, {"text": "Why?"}])}, (RED, "Why?")),
        ({"messages": asked([{"type": "input_image", "image_url": RED_URI}, "Why?"])}, (RED, "Why?")),
        (
            {"messages": asked([{"type": "image"}, WHY, {"type": "image"}]), "images": ["red.png", "blue.png"]},
            (RED, "Why?", BLUE),
        ),
        ({"messages": asked([{"type": "image", "base64": RED_URI.split(",")[1]}])}, (RED,)),
        (
            {"messages": asked([{"type": "image", "source": {"type": "base64", "data": RED_URI.split(",")[1]}}])},
            (RED,),
        ),
        ({"messages": asked("<image>Why?"), "images": "red.png"}, (RED, "Why?")),
        ({"messages": asked("<image>Why?"), "images": [{"bytes": None, "path": "red.png"}]}, (RED, "Why?")),
        ({"conversations": asked("Why?"), "images": []}, ("Why?",)),
        ({"query": "<image>Why?", "response": "A", "images": ["red.png"]}, (RED, "Why?")),
        # MiniCPM-V
        (
            {"image": {"<image_00>": "red.png", "<image_01>": "blue.png"}, "messages": asked("<image_01>a<image_00>")},
            (BLUE, "a", RED),
        ),
        ({"image": {"<image_00>": "red.png"}, "messages": asked("a")}, (RED, "\na")),
    ],
)
def test_messages(pictures, example, expected):
    found = [e for e in read_lines(pictures, [example], "messages") if not isinstance(e, Ignored)]
    assert found[0].turns == (Turn("user", expected), Turn("assistant", ("A",)))


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ({"messages": asked([{"type": "video", "video": "a.mp4"}])}, "message 1: a part of type 'video'"),
        ({"messages": asked([{"type": ["text"], "text": "a"}])}, "a part of type a list is not supported"),
        ({"messages": asked([{"type": "text", "text": None}])}, "the text of a part must be a string, not null"),
        ({"messages": asked([["a"]])}, "a part must be a string or a mapping, not a list"),
        ({"messages": asked([{"text": "a", "image": "red.png"}])}, "a part needs a 'type'"),
        ({"messages": asked([URL, {"type": "text", "text": "<image>"}])}, "1 <image> in the text for 0 images"),
        ({"messages": asked([{"type": "image"}])}, "1 <image> in the text for 0 images"),
        ({"messages": asked("a", tool_calls=[{"id": 1}])}, "message 2: its key 'tool_calls' is not supported"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "tool calls are not supported"),
        ({"messages": asked([{"type": "image_url", "image_url": {"url": "https://a/b"}}])}, "it is a web address"),
        ({"query": "a", "response": "b", "history": ["c"]}, "'history' must be a list of pairs"),
        ({"query": "a", "response": "b", "history": True}, "'history' must be a list of pairs"),
        ({"image": {"<image_0>": "red.png"}, "messages": asked("<image_1>")}, "there is no image <image_1>"),
        (
            {"image": {"<image_0>": "red.png", "<image_1>": "red.png"}, "messages": asked("<image_1>")},
            "the text does not place image <image_0>",
        ),
        ({"instruction": "a"}, "it has no 'messages' or 'conversations'.*'instruction'"),
    ],
)
def test_messages_that_are_refused(pictures, example, reason):
    found = [e for e in read_lines(pictures, [example], "messages") if not isinstance(e, Ignored)]
    assert re.search(reason, found[0].reason), found[0].reason


def test_messages_as_datasets_writes_them(pictures):
    """Arrow gives every part every key, with null where it has none."""
    said = {"role": "assistant", "content": [{"type": "text", "text": "A"}]}
    rows = [
        {"messages": [{"role": "user", "content": [{"type": "image"}, WHY]}, said], "images": ["red.png"]},
        {"messages": [{"role": "user", "content": [WHY]}, said]},
    ]
    datasets.Dataset.from_list(rows).to_json(pictures / "rows.jsonl")
    options = {"path": str(pictures / "rows.jsonl"), "images": str(pictures)}
    assert [record.turns[0].content for record in read("messages", options)] == [(RED, "Why?"), ("Why?",)]


# ---------------------------------------------------------------------------------------------- SOLO


def test_solo(tmp_path):
    image = {"type": "image_url", "image_url": {"url": RED_URI}}
    learned = [{"role": "assistant", "content": [image, {"type": "text", "text": "A kite."}]}]
    lines = [learned, {"conversations": learned}, {"messages": learned}, learned[0], asked([image, WHY])]
    path = tmp_path / "shard.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    found = list(read("solo", {"path": str(path)}))
    assert [record.turns for record in found[:4]] == [(Turn("text", (RED, "A kite.")),)] * 4
    assert found[4].turns == (Turn("user", (RED, "Why?")), Turn("assistant", ("A",)))

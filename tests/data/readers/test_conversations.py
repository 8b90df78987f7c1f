"""Conversations for a model to answer. Those of datasets are tested with the readers that read them."""

import pytest
from PIL import Image as PillowImage

from solo.data.readers.conversations import conversation, parse_conversation
from solo.data.record import Turn, encode_png

RED = encode_png(PillowImage.new("RGB", (5, 3), (255, 0, 0)))


def test_parse_conversation(tmp_path):
    (tmp_path / "red.png").write_bytes(RED.data)
    pillow = PillowImage.new("RGB", (2, 2))
    turns = parse_conversation(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": str(tmp_path / "red.png")},
                    {"type": "image", "image": RED.data},
                    {"type": "image", "image": pillow},
                    {"type": "image_url", "image_url": {"url": tmp_path / "red.png"}},
                    RED,
                    {"type": "text", "text": "Why?"},
                    "Is <image> a tag?",
                ],
            },
            {"role": "assistant", "content": []},
        ]
    )
    assert turns == (
        Turn("system", ("Be brief.",)),
        Turn("user", (RED, RED, encode_png(pillow), RED, RED, "Why?", "Is <image> a tag?")),
        Turn("assistant", ()),
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "robot", "content": "a"}, r"message 1: the speaker 'robot' is not one of system, user"),
        ({"content": "a"}, r"message 1: its speaker must be a string, not null"),
        ({"role": "user", "content": 3}, r"message 1: its content must be a string or a list of parts, not a number"),
        ({"role": "user"}, r"message 1: its content must be a string or a list of parts, not null"),
        ({"role": "user", "content": [{"type": "video", "video": "x"}]}, r"message 1: a part of type 'video'"),
        ({"role": "user", "content": [{"type": "image", "image": 3}]}, r"message 1: an image must be .*not a number"),
        ({"role": "user", "content": [{"type": "image"}]}, r"1 image parts in the text for 0 images"),
        ({"role": "user", "content": [{"type": "image", "image": "no.png"}]}, r"message 1: the file does not exist"),
    ],
)
def test_bad_conversations(message, expected):
    with pytest.raises(ValueError, match=expected):
        parse_conversation([message])


def test_a_file_that_is_not_an_image_is_named(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"message 1: cannot read image .*notes\.txt: "):
        parse_conversation([{"role": "user", "content": [{"type": "image", "image": tmp_path / "notes.txt"}]}])


def test_plain_messages_give_the_same_turns_as_others():
    """There is a shorter way for messages of a role and a text."""
    for first, second in (("role", "content"), ("from", "value"), ("content", "role"), ("value", "from")):
        speaker, text = ("human", "Why?") if first in ("role", "from") else ("Why?", "human")
        plain = [{first: speaker, second: text}, {"role": "assistant", "content": "So."}]
        others = [{**message, "name": "x"} for message in plain]
        expected = (Turn("user", ("Why?",)), Turn("assistant", ("So.",)))
        assert conversation(plain) == conversation(others) == expected
    assert conversation([{"role": "User", "content": "a"}]) == (Turn("user", ("a",)),)
    assert conversation([{"role": "user", "content": ""}]) == (Turn("user", ()),)
    for pair in ({"role": "user", "from": "user"}, {"content": "user", "value": "user"}, {"a": "user", "role": "b"}):
        with pytest.raises(ValueError, match="message 1: "):
            conversation([pair])


def test_images_are_loaded_last_and_in_order():
    loaded: list[str] = []

    def load(value):
        loaded.append(value)
        return RED

    with pytest.raises(ValueError, match="the speaker 'robot'"):
        conversation([{"role": "user", "content": "<image>"}, {"role": "robot", "content": "a"}], ["a.png"], load)
    assert loaded == []
    inline = {"role": "user", "content": [{"type": "image", "image": "b.png"}, "<image>x<image>"]}
    assert conversation([inline], ["a.png", "c.png"], load) == (Turn("user", (RED, RED, "x", RED)),)
    assert loaded == ["b.png", "a.png", "c.png"]


def test_image_parts_may_have_the_index_of_their_image():
    """As `HuggingFaceH4/llava-instruct-mix-vsft` has them, with null keys of the parts' common type."""
    blue = encode_png(PillowImage.new("RGB", (5, 3), (0, 0, 255)))

    def said(*indexes: int | None) -> list[dict]:
        parts = [{"type": "image", "text": None, "index": index} for index in indexes]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "a", "index": None}]}]

    for indexes, images in (((1, 0), (blue, RED)), ((0, 1), (RED, blue)), ((None, None), (RED, blue))):
        assert conversation(said(*indexes), [RED, blue]) == (Turn("user", (*images, "a")),)
    for indexes in ((0, 0), (1, 2), (0, None)):
        with pytest.raises(ValueError, match=r"its image parts have the indexes [01], (0|2|none) for 2 images"):
            conversation(said(*indexes), [RED, blue])

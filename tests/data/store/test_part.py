"""The files of a part."""

import json

from PIL import Image as PillowImage

from solo.data.images.check import ALL_IMAGES
from solo.data.readers import Ignored
from solo.data.record import Image, Place, Record, Turn, encode_png
from solo.data.store.part import PartManifest, PartWriter, StoredImage, read_keys, read_records, read_table
from solo.data.store.part_tokens import TokensManifest, as_tokens, read_runs
from solo.data.store.work import check_image
from tests.data.store.parts import write_part

RED, BLUE = (encode_png(PillowImage.new("RGB", (4, 3), colour), orientation=6) for colour in ("red", "blue"))


def text(name: str, *content: str | Image) -> Record:
    return Record(name, (Turn("text", content),), Place("all.jsonl", 7))


def numbered(*numbers: int) -> list[StoredImage]:
    return [StoredImage(b"", number=number) for number in numbers]


def test_records_name_images_by_number(tmp_path):
    write_part(tmp_path, "p", [text("a", "x", BLUE), text("b", RED, "y", BLUE, RED)])
    first, second = read_records(tmp_path / "parts", "p")
    assert first.record.turns == (Turn("text", ("x", *numbered(0))),)
    assert second.record.turns[0].content == (*numbered(1), "y", *numbered(0, 1))
    assert (second.example, second.record.place) == (1, Place("all.jsonl", 7))
    table = read_table(tmp_path / "parts", "p")
    assert table.size.tolist() == [[4, 3], [4, 3]]
    assert table.turned.tolist() == [True, True]


def test_digests_are_of_the_content(tmp_path):
    silent = Record("s", (Turn("text", ("x",), learned=False), Turn("text", ("y",))))
    others = [
        text("a", "x", "y"),
        text("a", "xy"),
        text("a", "x\0y"),
        text("a", RED, "x"),
        text("a", BLUE, "x"),
        silent,
    ]
    write_part(tmp_path, "p", [text("a", BLUE, "x"), *others])
    write_part(tmp_path, "q", [text("other", "x", "y"), text("other", RED, "x"), text("other", BLUE, "x")])
    one, other = (read_keys(tmp_path / "parts", name).exact.tolist() for name in "pq")
    assert len(set(one)) == 6
    assert one[0] == one[5] == other[2]
    assert [one[1], one[4]] == other[:2]


def test_a_damaged_image_is_checked_once(tmp_path):
    checked: list[Image] = []

    def check(image: Image) -> tuple[int, int, bool]:
        checked.append(image)
        return check_image(image, ALL_IMAGES)

    bad = Image(RED.data[:-30])
    with PartWriter(tmp_path, "p", "all", check) as writer:
        stored = [writer.add(text("a", *images, "x")) for images in ([RED], [bad], [bad, RED], [RED, BLUE])]
        writer.add(Ignored("score", Place("all.jsonl", 3)))
        writer.add(Ignored("score", Place("all.jsonl", 4)))
        manifest = writer.finish()
    assert [one is None for one in stored] == [False, True, True, False]
    assert checked == [RED, bad, BLUE]
    assert PartManifest.read(tmp_path, "p") == manifest
    assert (manifest.examples, manifest.records, manifest.images, manifest.quarantined) == (4, 2, 2, 2)
    assert manifest.ignored == {"score": "all.jsonl:3"}
    lines = [json.loads(line) for line in (tmp_path / "p.quarantine.jsonl").read_text().splitlines()]
    assert [(line["example"], line["file"], line["line"]) for line in lines] == [
        (number, "all.jsonl", 7) for number in (1, 2)
    ]


def test_tokens_lie_one_after_another(tmp_path):
    for width in (2, 4):
        write_part(tmp_path, f"p{width}", [text("a", "ab", RED, "c"), Record("none", ()), text("b", "d")], width=width)
        data = (tmp_path / "parts" / f"p{width}.tok.tokens").read_bytes()
        a, b, c, d = (100 + ord(character) for character in "abcd")
        assert as_tokens(data, width).tolist() == [1, a, b, c, 2, 1, d, 2]
        runs = read_runs(tmp_path / "parts", f"p{width}", "tok")
        assert runs.record_run.tolist() == [0, 4, 4, 6]
        assert (runs.runs >> 30).tolist() == [0, 1, 3, 1, 0, 1]
        manifest = TokensManifest.read(tmp_path / "parts", f"p{width}", "tok")
        assert manifest is not None
        assert (manifest.records, manifest.quarantined, manifest.text_tokens, manifest.supervised_tokens) == (
            2,
            1,
            8,
            6,
        )


def test_a_part_that_is_not_finished_leaves_nothing(tmp_path):
    with PartWriter(tmp_path, "p", "all", lambda image: check_image(image, ALL_IMAGES)) as writer:
        writer.add(text("a", RED, "x"))
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())

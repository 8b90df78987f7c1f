"""Images that several parts hold are stored once."""

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.data.record import Image, Record, Turn, encode_png
from solo.data.store.assemble import assemble
from solo.data.store.part import PartManifest
from solo.data.store.sharing import LostImagesError, first_equal
from solo.data.store.source import PreparedSource
from tests.data.store.parts import write_part

PICTURES = [encode_png(PillowImage.effect_noise((40, 30), 50 + shade)) for shade in range(10)]


def records(numbers: list[int], name: str) -> list[Record]:
    """One record for each number, which shows that picture and the next."""
    return [
        Record(f"{name}{place}", (Turn("text", (PICTURES[number], "x", PICTURES[(number + 1) % 10])),))
        for place, number in enumerate(numbers)
    ]


PARTS = {"a": records([3, 4], "a"), "b": records([2, 3, 7], "b"), "c": records([7, 4, 3], "c"), "d": records([9], "d")}


def stored(folder, names: str) -> dict[str, list[int]]:
    """Which pictures each part holds."""
    found = {}
    for name in names:
        table = list(dict.fromkeys(image.data for record in PARTS[name] for image in record.images()))
        manifest = PartManifest.read(folder / "parts", name)
        assert manifest is not None
        kept = [data for data, here in zip(table, manifest.stored, strict=True) if here]
        found[name] = [PICTURES.index(Image(data)) for data in kept]
    return found


def make(folder, names: str) -> PreparedSource:
    assemble(folder, "test", list(names), "tok", "settings")
    return PreparedSource(folder)


def check(source: PreparedSource, names: str) -> None:
    expected = [record for name in names for record in PARTS[name]]
    assert [source.read(number) for number in range(len(source))] == expected
    for number, one in enumerate(expected):
        assert [part for part in source.whole(number) if isinstance(part, Image)] == one.images()
    source.check(contents=True)


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_first_part_keeps_an_image(tmp_path):
    for name, part in PARTS.items():
        write_part(tmp_path, name, part)
    source = make(tmp_path, "abcd")
    assert stored(tmp_path, "abcd") == {"a": [3, 4, 5], "b": [2, 7, 8], "c": [], "d": [9, 0]}
    assert source.description.distinct_images == len(source.index.image_size) == 8
    assert source.description.images == 18
    check(source, "abcd")
    assert not list((tmp_path / "parts").glob("c*.images"))
    assert len(list((tmp_path / "parts").glob("b*.images"))) == 1
    before = files(tmp_path)
    make(tmp_path, "abcd")
    assert files(tmp_path) == before


def test_the_result_does_not_depend_on_what_was_there_before(tmp_path):
    for name, part in PARTS.items():
        write_part(tmp_path / "one", name, part)
        write_part(tmp_path / "other", name, part)
    make(tmp_path / "one", "abcd")
    for names in ("bcd", "dcb", "abcd"):
        check(make(tmp_path / "other", names), names)
    one, other = files(tmp_path / "one"), files(tmp_path / "other")
    assert {name: data for name, data in other.items() if name in one} == one


def test_a_part_whose_images_are_gone_is_made_again(tmp_path):
    for name in "ab":
        write_part(tmp_path, name, PARTS[name])
    make(tmp_path, "ab")
    with pytest.raises(LostImagesError) as error:
        make(tmp_path, "b")
    assert error.value.parts == ["b"]
    assert PartManifest.read(tmp_path / "parts", "b") is None
    write_part(tmp_path, "b", PARTS["b"])
    check(make(tmp_path, "b"), "b")


def test_rows_that_are_equal():
    rows = np.random.default_rng(0).integers(0, 2, (300, 16), np.uint8)
    rows[:, 1:7] = rows[:, 9:15] = 0
    first: dict[bytes, int] = {}
    expected = [first.setdefault(row.tobytes(), number) for number, row in enumerate(rows)]
    assert first_equal([rows[:100], rows[100:100], rows[100:]]).tolist() == expected
    assert first_equal([]).tolist() == []

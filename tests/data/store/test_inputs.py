"""Changed inputs are noticed, and only what they concern is prepared anew."""

import json
import os
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from PIL import Image as PillowImage

from solo.config import Config, ConfigError, TokenizerConfig
from solo.data.record import encode_png
from solo.data.store.grown import grown
from solo.data.store.part import PartManifest
from solo.data.store.prepare import open_prepared, prepare
from solo.data.text import train_tokenizer
from tests.data.store.test_prepare import config, state

RECORDS = 23


def picture(seed: int) -> bytes:
    return encode_png(PillowImage.new("RGB", (20 + seed, 30), (seed, 2 * seed, 3 * seed))).data


def line(number: int, answer: str = "") -> str:
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": answer or f"It is number {number}."}]
    return json.dumps({"id": str(number), "image": f"{number}.png", "conversations": turns}) + "\n"


@pytest.fixture
def made(tmp_path) -> Config:
    """Prepared: 23 records of an image each, in 5 parts, with a tokenizer that is a file."""
    (tmp_path / "images").mkdir()
    for number in range(RECORDS + 2):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "chat.jsonl").write_text("".join(line(number) for number in range(RECORDS)))
    train_tokenizer([topics["if"], topics["for"]], TokenizerConfig(vocab_size=350)).save(tmp_path)
    options = {"path": str(tmp_path / "chat.jsonl"), "images": str(tmp_path / "images")}
    sources = {"chat": {"reader": "llava", "options": options}}
    found = config(tmp_path, sources, tokenizer={"path": str(tmp_path / "tokenizer.model")})
    prepare(found)
    return found


def times(config: Config) -> dict[str, int]:
    """When each part was made: of images, and of tokens."""
    folder = Path(config.data.folder) / "sources" / "chat" / "parts"
    found = {path: PartManifest.read(folder, path.stem) for path in folder.glob("*.json")}
    names = {path.stem: manifest.part for path, manifest in found.items() if manifest is not None}
    stamps = {}
    for path in found:
        part, _, tokens = path.stem.partition(".")
        stamps[names[part] + (" tokens" if tokens else "")] = path.stat().st_mtime_ns
    return stamps


def changed(config: Config) -> tuple[str, set[str]]:
    """What `open_prepared` says of the inputs, and the parts that preparing again makes."""
    said = ""
    try:
        open_prepared(config, inputs=True)
    except ConfigError as error:
        said = str(error)
    open_prepared(config)  # without a look at the inputs
    before = times(config)
    prepare(config)
    open_prepared(config, inputs=True)
    after = times(config)
    return said, {name for name in after if before.get(name) != after[name]}


def answers(config: Config) -> list[str]:
    source = open_prepared(config).sources["chat"]
    return [source.read(number).turns[1].content[0] for number in range(len(source))]


def test_nothing_has_changed(made):
    assert changed(made) == ("", set())


def test_a_line_is_added(made, tmp_path):
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write(line(RECORDS, "It is new."))
    said, parts = changed(made)
    assert "source 'chat': " in said
    assert "chat.jsonl has changed since it was prepared; run: solo prepare CONFIG" in said
    assert parts == {"chat.jsonl:21-24", "chat.jsonl:21-24 tokens"}
    assert answers(made)[-2:] == ["It is number 22.", "It is new."]


def test_a_line_is_corrected(made, tmp_path):
    """To one of the same length, at another time."""
    lines = (tmp_path / "chat.jsonl").read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace("number 7", "number 1")
    (tmp_path / "chat.jsonl").write_text("".join(lines))
    said, parts = changed(made)
    assert "chat.jsonl has changed" in said
    assert parts == {"chat.jsonl:6-10", "chat.jsonl:6-10 tokens"}
    assert answers(made)[7] == "It is number 1."


def test_an_image_is_replaced(made, tmp_path):
    replacement = picture(100)
    (tmp_path / "images" / "12.png").write_bytes(replacement)
    said, parts = changed(made)
    assert "12.png has changed" in said
    assert parts == {"chat.jsonl:11-15", "chat.jsonl:11-15 tokens"}
    (image,) = open_prepared(made).sources["chat"].read(12).images()
    assert image.data == replacement


def test_an_image_is_removed(made, tmp_path):
    (tmp_path / "images" / "12.png").unlink()
    said, parts = changed(made)
    assert "12.png is gone" in said
    assert parts == {"chat.jsonl:11-15", "chat.jsonl:11-15 tokens"}
    source = open_prepared(made).sources["chat"]
    assert (len(source), source.description.quarantined) == (22, 1)


@pytest.mark.parametrize("before", [None, b"", b"not a picture"])
def test_an_image_that_could_not_be_read_is_repaired(made, tmp_path, before):
    """It was missing, or damaged."""
    path = tmp_path / "images" / "12.png"
    path.unlink()
    if before is not None:
        path.write_bytes(before)
    assert prepare(made).quarantined == 1
    path.write_bytes(picture(12))
    said, parts = changed(made)
    assert "12.png has changed" in said
    assert parts == {"chat.jsonl:11-15", "chat.jsonl:11-15 tokens"}
    assert prepare(made).quarantined == 0


def test_the_tokenizer_is_replaced(made, tmp_path):
    """Its records and images are kept."""
    before = open_prepared(made).tokenizer.fingerprint
    train_tokenizer([topics["class"], topics["for"]], TokenizerConfig(vocab_size=350)).save(tmp_path)
    said, parts = changed(made)
    assert "the tokenizer: " in said
    assert "tokenizer.model has changed" in said
    assert len(parts) == 5
    assert all(name.endswith(" tokens") for name in parts)
    assert open_prepared(made).tokenizer.fingerprint != before


def test_a_file_is_added_to_a_glob(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.jsonl").write_text(line(number).replace(f'"image": "{number}.png", ', ""))
    sources = {
        "chat": {"reader": "llava", "options": {"path": str(tmp_path / "*.jsonl")}},
        "topics": {"reader": "topics", "limit": 20},
    }
    made = config(tmp_path / "made", sources, tokenizer={"vocab_size": 360, "train_on": ["topics"]})
    prepare(made)
    assert changed(made) == ("", set())
    assert grown(made) == []
    (tmp_path / "2.jsonl").write_text(line(2).replace('"image": "2.png", ', ""))
    note = "source chat: 1 new files, {} missing since it was prepared; run solo prepare to take them up"
    assert grown(made) == [note.format(0)]
    (tmp_path / "1.jsonl").rename(tmp_path / "elsewhere")
    assert grown(made) == [note.format(1)]
    (tmp_path / "elsewhere").rename(tmp_path / "1.jsonl")
    said, parts = changed(made)
    assert "files were added, removed or renamed" in said
    assert parts == {"2.jsonl:1-1", "2.jsonl:1-1 tokens"}
    assert grown(made) == []
    for number in range(3):
        (tmp_path / f"{number}.jsonl").unlink()
    assert grown(made) == []  # prepared elsewhere


def test_an_image_is_added_to_a_folder_of_images(tmp_path):
    for number in range(3):
        place = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    sources = {
        "images": {"reader": "folder", "options": {"path": str(tmp_path / "images")}},
        "topics": {"reader": "topics", "limit": 20},
    }
    made = config(tmp_path / "made", sources, tokenizer={"vocab_size": 360, "train_on": ["topics"]})
    prepare(made)
    assert grown(made) == []
    (tmp_path / "images/class1/9.png").write_bytes(picture(9))
    why = "files were added, removed or renamed since it was prepared"
    assert grown(made) == [f"source images: {why}; run solo prepare to take them up"]
    with pytest.raises(ConfigError, match=why):
        open_prepared(made, inputs=True)
    assert len(prepare(made).sources["images"]) == 4
    assert grown(made) == []


def test_inputs_that_are_absent_were_prepared_elsewhere(made, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("chat.jsonl", "images", "tokenizer.model"):
        (tmp_path / name).rename(moved / name)
    assert len(open_prepared(made, inputs=True).sources["chat"]) == RECORDS
    assert len(prepare(made).sources["chat"]) == RECORDS


def test_a_copy_with_other_times_is_the_same_by_its_hash(made, tmp_path):
    hashed = made.model_copy(update={"data": made.data.model_copy(update={"input_check": "hash"})})
    prepare(hashed)
    for path in [tmp_path / "chat.jsonl", *(tmp_path / "images").iterdir()]:
        os.utime(path, (1, 1))
    assert changed(hashed) == ("", set())
    (tmp_path / "images" / "3.png").write_bytes(picture(101))
    said, parts = changed(hashed)
    assert "3.png has changed" in said
    assert parts == {"chat.jsonl:1-5", "chat.jsonl:1-5 tokens"}


def test_inputs_may_go_unchecked(made, tmp_path):
    trusted = made.model_copy(update={"data": made.data.model_copy(update={"input_check": "none"})})
    (tmp_path / "chat.jsonl").write_text(line(1))
    assert len(prepare(trusted).sources["chat"]) == RECORDS


def test_another_size_of_parts_makes_nothing_again(made, tmp_path):
    other = made.model_copy(update={"data": made.data.model_copy(update={"records_per_shard": 4})})
    (tmp_path / "unrelated").touch()  # so that the folder is listed again
    assert changed(other) == ("", set())
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write(line(RECORDS))
    assert changed(other)[1] == {
        f"chat.jsonl:{first}-{first + 3}{kind}" for first in range(1, 24, 4) for kind in ("", " tokens")
    }
    assert len(open_prepared(other).sources["chat"]) == RECORDS + 1


def test_an_update_gives_the_bytes_of_a_fresh_preparation(made, tmp_path):
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write(line(RECORDS))
    (tmp_path / "images" / "12.png").write_bytes(picture(100))
    prepare(made)
    data = Path(made.data.folder)
    updated = state(data)
    shutil.rmtree(data)
    prepare(made)
    assert updated == state(data)


def test_a_trained_tokenizer_follows_the_text_that_it_was_trained_on(tmp_path):
    path = tmp_path / "text.jsonl"
    turns = [{"from": "gpt", "value": topics["if"]}, {"from": "gpt", "value": topics["for"]}]
    text = "".join(json.dumps({"id": str(number), "conversations": [turn]}) + "\n" for number, turn in enumerate(turns))
    path.write_text(text * 10)
    sources = {"text": {"reader": "llava", "options": {"path": str(path)}}}
    made = config(tmp_path, sources, tokenizer={"vocab_size": 340, "max_characters": 3000})
    before = prepare(made).tokenizer.fingerprint
    path.write_text(text * 10 + text.replace("if", "while"))
    assert prepare(made).tokenizer.fingerprint == before  # only the first parts were read
    path.write_text(text.replace("if", "while") * 10)
    assert prepare(made).tokenizer.fingerprint != before


def test_a_trained_tokenizer_follows_records_that_an_image_brings_back(made, tmp_path):
    """The annotations, and so the names of the parts, stay the same."""
    tokenizer = TokenizerConfig(vocab_size=296)
    trained = made.model_copy(update={"data": made.data.model_copy(update={"tokenizer": tokenizer})})
    (tmp_path / "images" / "12.png").unlink()
    prepare(trained)
    (tmp_path / "images" / "12.png").write_bytes(picture(12))
    prepare(trained)
    updated = state(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    prepare(trained)
    assert updated == state(tmp_path / "data")

"""Nothing is removed or written over that solo did not make."""

import errno
import json
import os
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from PIL import Image as PillowImage

from solo.cli import main
from solo.config import ConfigError, TokenizerConfig, dump_config
from solo.data.record import encode_png
from solo.data.store.prepare import open_prepared, prepare
from solo.data.store.safety import MARKER, check_place, claim, replace_files, writing
from solo.data.text import train_tokenizer
from tests.data.store.test_prepare import LINES, TOPICS, config, state


def pictures(folder: Path) -> None:
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(encode_png(PillowImage.new("RGB", (30, 20))).data)


def reads(path: Path) -> dict:
    return {"reader": "folder", "options": {"path": str(path)}}


@pytest.mark.parametrize("source", ["pics", "other"])
@pytest.mark.parametrize("spelling", ["plain", "link", "relative"])
def test_inputs_in_the_place_of_prepared_sources_are_refused(tmp_path, monkeypatch, source, spelling):
    own = tmp_path / "data" / "sources" / "pics"
    pictures(own)
    (tmp_path / "link").symlink_to(own.parent)
    monkeypatch.chdir(tmp_path)
    path = {"plain": own, "link": tmp_path / "link" / "pics", "relative": Path("other/../data/sources/pics")}[spelling]
    before = state(tmp_path)
    with pytest.raises(ConfigError, match=rf"data\.sources\.{source}\.options: .*pics is in .*data/sources, which"):
        prepare(config(tmp_path, {source: reads(path), "topics": TOPICS}))
    assert state(tmp_path) == before


def test_a_tokenizer_in_the_place_of_the_prepared_one_is_refused(tmp_path, capsys):
    own = tmp_path / "data" / "tokenizer"
    own.mkdir(parents=True)
    train_tokenizer([topics["if"], topics["for"]], TokenizerConfig(vocab_size=350)).save(own)
    before = state(tmp_path / "data")
    made = config(tmp_path, {"lines": LINES}, tokenizer={"path": str(own)})
    (tmp_path / "config.yaml").write_text(dump_config(made))
    assert main(["prepare", str(tmp_path / "config.yaml")]) == 2
    assert "data.tokenizer.path: " in capsys.readouterr().err
    trained = config(tmp_path, {"lines": LINES})
    with pytest.raises(ConfigError, match=r"the tokenizer: .*data/tokenizer is in the way.*holds tokenizer\.model"):
        prepare(trained)
    assert state(tmp_path / "data") == before


def test_folders_and_files_of_the_users_are_in_the_way(tmp_path):
    made = config(tmp_path, {"lines": LINES, "topics": TOPICS})
    foreign = tmp_path / "data" / "sources" / "lines"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"source 'lines': .*is in the way: .*holds notes\.txt; move it"):
        prepare(made)
    (foreign / "notes.txt").unlink()  # an empty folder is nobody's
    (tmp_path / "data" / "quarantine.jsonl").write_text("my notes\n")
    with pytest.raises(ConfigError, match=r"quarantine\.jsonl is in the way"):
        prepare(made)
    (tmp_path / "data" / "quarantine.jsonl").unlink()
    foreign.rmdir()
    foreign.write_text("a file")
    with pytest.raises(ConfigError, match=r"lines is in the way: a file that solo did not make"):
        prepare(made)
    assert foreign.read_text() == "a file"
    with pytest.raises(ConfigError, match=r"data\.folder: .*lines is not a folder; move it"):
        prepare(made.model_copy(update={"data": made.data.model_copy(update={"folder": str(foreign)})}))


def test_names_that_differ_in_case_alone_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sources \['lines', 'Lines'\]"):
        prepare(config(tmp_path, {"lines": LINES, "Lines": LINES}))


def test_folders_may_be_links(tmp_path):
    """Someone moved a source to another disk."""
    elsewhere = tmp_path / "disk" / "lines"
    elsewhere.mkdir(parents=True)
    (tmp_path / "data" / "sources").mkdir(parents=True)
    link = tmp_path / "data" / "sources" / "lines"
    link.symlink_to(elsewhere)
    made = config(tmp_path, {"lines": LINES, "topics": TOPICS})
    prepare(made)
    assert link.is_symlink()
    assert (elsewhere / "source.json").exists()
    again = config(tmp_path, {"lines": LINES | {"limit": 13}, "topics": TOPICS})
    assert len(prepare(again).sources["lines"]) == 13
    assert len(open_prepared(again).sources["lines"]) == 13
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"source 'lines': .* is a link to .*nowhere, which does not exist"):
        prepare(made)


def test_replaced_files_are_the_recorded_ones(tmp_path):
    folder = tmp_path / "tokenizer"

    def writes(*names: str):
        return lambda place: [(place / name).write_text(name) for name in names]

    replace_files(folder, "made.json", writes("a", "b"), {"fingerprint": "1"}, "the tokenizer")
    (folder / "mine").write_text("mine")
    with pytest.raises(ConfigError, match=r"the tokenizer: .*/mine is in the way"):
        replace_files(folder, "made.json", writes("mine"), {}, "the tokenizer")
    replace_files(folder, "made.json", writes("b", "c"), {"fingerprint": "2"}, "the tokenizer")
    assert sorted(os.listdir(folder)) == [MARKER, "b", "c", "made.json", "mine"]
    assert json.loads((folder / "made.json").read_text()) == {"fingerprint": "2", "files": ["b", "c"]}
    assert (folder / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EROFS, "a read-only disk"), (errno.ENOSPC, "the disk is full"), (errno.EACCES, "may not")],
)
def test_a_disk_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys, code, words):
    """Root may write anywhere, so the disk is played by the call that creates folders."""
    original = Path.mkdir

    def refuse(self: Path, *args, **kwargs) -> None:
        if "data" in self.parts:
            raise OSError(code, os.strerror(code), str(self))
        original(self, *args, **kwargs)

    (tmp_path / "config.yaml").write_text(dump_config(config(tmp_path, {"lines": LINES})))
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["prepare", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"solo: {tmp_path / 'data'} cannot be written: ")
    assert words in said


def test_an_input_that_cannot_be_read_is_no_full_disk(tmp_path):
    with pytest.raises(PermissionError), writing(tmp_path / "data"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "input.jsonl"))


def test_a_folder_that_another_process_claims_during_the_check(tmp_path, monkeypatch):
    place, list_folder = tmp_path / "tokenizer", os.listdir
    place.mkdir()

    def listed_late(path):
        monkeypatch.setattr(os, "listdir", list_folder)
        claim(place, "the tokenizer")
        (place / ".new-1").mkdir()
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", listed_late)
    check_place(place, "the tokenizer")
    (place / MARKER).unlink()
    with pytest.raises(ConfigError, match=r"it holds \.new-1; move it"):
        check_place(place, "the tokenizer")

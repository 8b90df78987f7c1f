"""A preparation that is killed at any time, and run again, gives the bytes of one that was not. Finished parts stay."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from solo.config import Config, ConfigError, dump_config
from solo.data.store.prepare import open_prepared, prepare
from tests.data.store.test_inputs import line, picture
from tests.data.store.test_prepare import config, state
from tests.data.store.test_workers import is_running

COMMAND = [sys.executable, "-m", "solo.cli", "prepare", "--workers", "2"]


def made(folder: Path, **data: object) -> Config:
    """Two sources of twelve parts each, one of images that they share; by default the tokenizer is trained in between.

    The inputs are those of all tests, so that the same data is made in any folder.
    """
    inputs = folder.parent / "inputs"
    if not inputs.exists():
        (inputs / "images").mkdir(parents=True)
        for number in range(20):
            (inputs / "images" / f"{number}.png").write_bytes(picture(number))
        (inputs / "chat.jsonl").write_text("".join(line(number % 20, f"This is {number}.") for number in range(60)))
        words = topics["if"].split()
        said = [" ".join(words[number:] + words[:number]) for number in range(60)]
        turns = [{"conversations": [{"from": "gpt", "value": text}]} for text in said]
        (inputs / "text.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    chat = {"path": str(inputs / "chat.jsonl"), "images": str(inputs / "images")}
    sources = {
        "chat": {"reader": "llava", "options": chat},
        "text": {"reader": "llava", "options": {"path": str(inputs / "text.jsonl")}},
    }
    return config(folder, sources, **{"tokenizer": {"vocab_size": 350, "train_on": ["text"]}, **data})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    prepare(made(folder), workers=1)
    return state(folder / "data")


def manifests(folder: Path) -> list[Path]:
    return list(folder.glob("data/sources/*/parts/*.json"))


def finished(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of records and tokens whose manifests are there. Files of images may lose copies at the end."""
    found = {}
    for manifest in manifests(folder):
        part, _, tokens = manifest.stem.partition(".")
        path = manifest.with_name(f"{part}.{tokens}.tokens" if tokens else f"{part}.records")
        status = path.stat()
        found[path] = status.st_ino, status.st_mtime_ns
    return found


def test_the_number_of_processes_does_not_matter(tmp_path, whole):
    prepare(made(tmp_path), workers=3)
    assert state(tmp_path / "data") == whole


@pytest.mark.parametrize("parts", [1, 9, 24, 30, 48])
def test_a_killed_preparation_is_continued(tmp_path, whole, parts):
    """Killed once so many layers of parts are there: while records, then while tokens are made, then at the end."""
    (tmp_path / "config.yaml").write_text(dump_config(made(tmp_path)))
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path / "config.yaml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children: set[int] = set()
    end = time.monotonic() + 60
    while len(manifests(tmp_path)) < parts and process.poll() is None:
        assert time.monotonic() < end
        children |= set(children_of(process.pid))
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(map(is_running, children)):
        assert time.monotonic() < end
        time.sleep(0.01)
    kept = finished(tmp_path)
    assert kept
    if not (tmp_path / "data" / "sources" / "chat" / "inputs.json").exists():
        with pytest.raises(ConfigError, match="is not in"):
            open_prepared(made(tmp_path))
    prepare(made(tmp_path), workers=1)
    assert state(tmp_path / "data") == whole
    after = finished(tmp_path)
    assert {path: after[path] for path in kept} == kept


def test_files_that_a_killed_process_left_unfinished_are_removed(tmp_path, whole):
    """Whatever it was writing: a part, its manifest, the index or what describes the source. Other files stay."""
    prepare(made(tmp_path), workers=1)
    source = tmp_path / "data" / "sources" / "chat"
    manifest = next((source / "parts").glob("*.json"))
    manifest.unlink()  # what was being written when the process was killed
    (source / "source.json").unlink()
    for name in ("source.json.7-0123abcd", f"parts/{manifest.name}.7-0123abcd", "parts/a.records.7-0123abcd.partial"):
        path = source / name
        path.with_name(f".{path.name}").write_bytes(b"{")
    index = source / "index" / ".a.7-0123abcd.partial"
    index.mkdir()
    (index / "rows.npy").touch()
    (source / "parts" / ".of the user.json").touch()
    prepare(made(tmp_path), workers=1)
    assert state(tmp_path / "data") == {**whole, "sources/chat/parts/.of the user.json": b""}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 3)], ids=["lost", "cut"])
@pytest.mark.parametrize("end", ["records", "images", "table.npz", "tokens", "runs.npz", "json"])
def test_files_that_are_lost_or_cut_are_made_again(tmp_path, whole, end, damage):
    """Damages files of the first part, and of the last part, which shares images with it."""
    prepare(made(tmp_path), workers=1)
    parts = json.loads((tmp_path / "data" / "sources" / "chat" / "source.json").read_text())["parts"]
    names = {parts[0]["name"], parts[-1]["name"]}
    found = [path for path in (tmp_path / "data" / "sources" / "chat" / "parts").glob(f"*.{end}")]
    for path in found:
        if path.name.partition(".")[0] in names:
            damage(path)
    prepare(made(tmp_path), workers=1)
    assert state(tmp_path / "data") == whole


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []


PLUGIN = '''
import os, signal
def deadly(path: str):
    """Dies, or fails, as the file says."""
    from solo.data.record import Record, Turn
    what = open(path).read()
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "once" and not os.path.exists(path + ".died"):
        open(path + ".died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail":
        raise KeyError("a bug of this reader")
    yield Record("0", (Turn("text", ("a text",)),))
'''


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("die", 1, "source 'deadly', part all: its process was killed, as systems do that run out of memory"),
        ("once", 0, "source 'deadly', part all: its process died; it is tried again, alone"),
        ("fail", 1, "solo: source 'deadly', part all: KeyError: 'a bug of this reader'"),
    ],
)
def test_a_process_that_dies_is_named_and_the_rest_is_kept(tmp_path, what, status, said):
    """With a reader of another package."""
    site, info = tmp_path / "site", tmp_path / "site" / "deadly-1.dist-info"
    info.mkdir(parents=True)
    (site / "deadly.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[solo.readers]\ndeadly = deadly:deadly\n")
    (tmp_path / "input").write_text(what)
    sources = {
        "deadly": {"reader": "deadly", "options": {"path": str(tmp_path / "input")}},
        "text": made(tmp_path).model_dump(mode="json")["data"]["sources"]["text"],
    }
    settings = config(tmp_path, sources, tokenizer={"vocab_size": 350, "train_on": ["text"]})
    (tmp_path / "config.yaml").write_text(dump_config(settings))
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '.')}:{site}"}
    done = subprocess.run(
        [*COMMAND, str(tmp_path / "config.yaml")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert said in (done.stderr + done.stdout).replace("\n", " ")
    assert "Traceback" not in done.stderr
    parts = list((tmp_path / "data" / "sources" / "text" / "parts").glob("*.records"))
    assert len(parts) == 12


def test_a_full_disk_is_named(tmp_path):
    """Played by a limit on the size of files, which workers inherit."""
    (tmp_path / "config.yaml").write_text(dump_config(made(tmp_path)))
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
    limited += "from solo.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", limited, "prepare", str(tmp_path / "config.yaml")]
    for workers in ("1", "2"):
        done = subprocess.run([*command, "--workers", workers], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert ".partial cannot be written: the file would be larger than your limit" in done.stderr
        assert "Traceback" not in done.stderr

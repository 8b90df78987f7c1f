import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from PIL import Image as PillowImage

from solo.config import Config, ConfigError, ImageConfig, SequenceConfig, TokenizerConfig, parse_config
from solo.data.readers import read
from solo.data.record import encode_png
from solo.data.store.description import Description
from solo.data.store.prepare import open_prepared, prepare
from solo.data.store.tokenizer import Texts, TrainingPart
from solo.data.text import train_tokenizer
from tests.data.readers.pictures import BLUE, RED, write
from tests.data.vocabularies import byte_level_json, write_repository

LINES = {"reader": "lines", "limit": 12}
TOPICS = {"reader": "topics", "limit": 20}


def config(folder: Path, sources: dict, **data) -> Config:
    data = {"folder": str(folder / "data"), "tokenizer": {"vocab_size": 360}, "records_per_shard": 5} | data
    stage = {"name": "a", "mixture": dict.fromkeys(sources, 1), "steps": 1, "batch_rows": 1}
    return parse_config(
        {
            "name": "test",
            "data": data | {"sources": sources},
            "model": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32},
            "stages": [stage | {"optimizer": {"learning_rate": 0.1}}],
        }
    )


def state(folder: Path) -> dict[str, bytes]:
    """The files of a folder. `inputs.json` holds the times of folders, among them that of the prepared data."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "inputs.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {
        name.removeprefix("sources/").split("/")[0]
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and "/" in name
    }


@pytest.fixture
def conversations(tmp_path):
    """Six examples, of which two are usable."""
    good = encode_png(PillowImage.effect_noise((30, 20), 50)).data
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "cut.png").write_bytes(good[:-100])
    (tmp_path / "none.png").write_bytes(b"<html>404</html>")

    def example(name: str, image: str | None, answer: str = "a kite") -> str:
        turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": answer}]
        return json.dumps({"id": name, "conversations": turns} | ({"image": image} if image else {}))

    lines = [
        example("good", "good.png"),
        example("cut", "cut.png"),
        example("none", "none.png"),
        example("gone", "gone.png"),
        example("surrogate", None, "a \ud83d"),
        example("text", None),
        json.dumps({"id": "silent", "conversations": [{"from": "human", "value": "Hello?"}]}),
        "{not json",
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    return {"reader": "llava", "options": {"path": str(tmp_path / "all.jsonl"), "images": str(tmp_path)}}


def test_prepare_and_open(tmp_path):
    made, lines = config(tmp_path, {"lines": LINES, "topics": TOPICS}), []
    prepared = prepare(made, lines.append)
    assert [line.split(":")[0] for line in lines] == ["tokenizer", "lines", "topics"]
    assert prepared.tokenizer.vocab_size == 360
    assert prepared.quarantined == 0
    for opened in (prepared, open_prepared(made)):
        assert list(opened.sources) == ["lines", "topics"]
        source = opened.sources["lines"]
        assert [source.read(i) for i in range(len(source))] == list(read("lines", {}, 12))
        assert source.description.images == 12
        assert len(opened.sources["topics"].index) == 20


def test_the_same_settings_give_the_same_bytes(tmp_path):
    sources = {"lines": LINES, "topics": TOPICS}
    prepare(config(tmp_path / "a", sources))
    prepare(config(tmp_path / "b", sources))
    assert state(tmp_path / "a" / "data") == state(tmp_path / "b" / "data")


def test_only_changed_parts_are_made_again(tmp_path):
    def made(tokenizer: dict | None = None, lines: dict | None = None, **data) -> dict[str, bytes]:
        sources = {"lines": LINES | (lines or {}), "topics": TOPICS}
        tokenizer = {"vocab_size": 360, "train_on": ["topics"]} | (tokenizer or {})
        prepare(config(tmp_path, sources, tokenizer=tokenizer, **data))
        return state(tmp_path / "data")

    before = made()
    assert made() == before
    after = made(lines={"limit": 13})
    assert changed(before, after) == {"lines"}
    before, after = after, made(lines={"limit": 13, "options": {"seed": 1}})
    assert changed(before, after) == {"lines"}
    before, after = after, made(lines={"limit": 13, "options": {"seed": 1}}, tokenizer={"vocab_size": 370})
    assert changed(before, after) == {"lines", "topics", "tokenizer"}
    assert before["tokenizer/tokenizer.model"] != after["tokenizer/tokenizer.model"]


def test_quarantine(tmp_path, conversations):
    made, lines = config(tmp_path, {"chat": conversations, "topics": TOPICS}), []
    prepared = prepare(made, lines.append)
    source = prepared.sources["chat"]
    assert [source.read(i).id for i in range(len(source))] == ["good", "text"]
    assert prepared.quarantined == source.description.quarantined == 6
    found = [json.loads(line) for line in (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["id"]) for entry in found] == [
        ("chat", name) for name in ("cut", "none", "gone", "surrogate", "silent", "all.jsonl:8")
    ]
    reasons = [entry["reason"] for entry in found]
    assert "image 1 cannot be read" in reasons[0]
    assert "it is an HTML page" in reasons[1]
    assert "gone.png" in reasons[2]
    assert "not valid Unicode" in reasons[3]
    assert "no assistant or text turn" in reasons[4]
    assert "6 quarantined" in lines[1]
    prepare(made)
    again = (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in again] == found


def test_without_verifying_only_headers_are_read(tmp_path, conversations):
    made = config(tmp_path, {"chat": conversations, "topics": TOPICS}, verify_images=False)
    source = prepare(made).sources["chat"]
    assert [source.read(i).id for i in range(len(source))] == ["good", "cut", "text"]


def test_a_source_without_a_usable_record(tmp_path, conversations):
    (tmp_path / "all.jsonl").write_text("{not json\n[]\n")
    with pytest.raises(ConfigError, match=r"(?s)source 'chat': no usable record; 2 quarantined.*all\.jsonl:1: .*:2: "):
        prepare(config(tmp_path, {"topics": TOPICS, "chat": conversations}))
    (tmp_path / "all.jsonl").write_text("")
    with pytest.raises(
        ConfigError, match=r"source 'chat': no usable record; 1 quarantined\s+all\.jsonl: the file is empty"
    ):
        prepare(config(tmp_path / "empty", {"topics": TOPICS, "chat": conversations}))
    # Also if there is no text of other sources to train a tokenizer on.
    with pytest.raises(ConfigError, match=r"source 'chat': no usable record; 1 quarantined\s+all\.jsonl: the file is"):
        prepare(config(tmp_path / "alone", {"chat": conversations}))
    filtered = TOPICS | {"filters": {"must_match": ["no text has this"]}}
    with pytest.raises(
        ConfigError, match=r"source 'topics': no usable record; 0 quarantined, 20 filtered by must_match"
    ):
        prepare(config(tmp_path / "filtered", {"topics": filtered}))
    # Parts that were made before the fault stay; nothing of the source itself does.
    assert not (tmp_path / "data" / "sources" / "chat" / "source.json").exists()
    assert (tmp_path / "data" / "sources" / "topics" / "source.json").exists()


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("a", {"reader": "lines"}, "source 'a': reader 'lines' never ends: set `limit`"),
        ("a", {"reader": "line", "limit": 3}, "source 'a': no reader 'line'; did you mean 'lines'"),
        ("a", {"reader": "lines", "limit": 3, "options": {"see": 1}}, "source 'a': reader 'lines': unknown option"),
        ("a", {"reader": "folder", "options": {"path": "/nowhere"}}, "source 'a': reader 'folder': /nowhere does not"),
        ("../a", {"reader": "lines", "limit": 3}, "source '../a': its name becomes a folder"),
    ],
)
def test_faults_name_the_source(tmp_path, name, source, message):
    with pytest.raises(ConfigError, match=message):
        prepare(config(tmp_path, {"topics": TOPICS, name: source}))
    assert not list(tmp_path.rglob("a/source.json"))


def test_a_tokenizer_that_cannot_be_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.tokenizer: too little text for a vocabulary of 9999.*at most \d+"):
        prepare(config(tmp_path, {"lines": LINES}, tokenizer={"vocab_size": 9999}))


def test_training_text_comes_evenly_from_the_sources(tmp_path):
    sources = {"lines": LINES | {"limit": 400}, "topics": TOPICS}
    made = config(tmp_path, sources, tokenizer={"max_characters": 8000})
    prepare(config(tmp_path, sources, verify_images=False))
    folders = {name: tmp_path / "data" / "sources" / name for name in ("lines", "topics")}
    parts = {
        name: [TrainingPart(part.name, part.files[f"{part.name}.records"]) for part in Description.read(folder).parts]
        for name, folder in folders.items()
    }
    texts = list(Texts(made, parts))
    assert sum(map(len, texts)) == 8000
    long = [len(text) for text in texts if len(text) > 20]
    assert 3000 < sum(long) < 5000


def test_too_many_unreadable_examples_stop_the_source(tmp_path):
    good = json.dumps({"conversations": [{"from": "gpt", "value": "a"}]})
    (tmp_path / "all.jsonl").write_text(f"{good}\n" * 800 + "{broken\n" * 101)
    sources = {"chat": {"reader": "llava", "options": {"path": str(tmp_path / "all.jsonl")}}, "topics": TOPICS}
    settings = {"records_per_shard": 100}
    with pytest.raises(
        ConfigError, match=r"'chat': 101 of the 901 examples .* share of 0\.1 that data\.max_quarantined"
    ):
        prepare(config(tmp_path, sources, **settings))
    allowed = prepare(config(tmp_path, sources, **settings, max_quarantined=0.2))
    assert len(allowed.sources["chat"]) == 800


def test_a_limit_takes_the_first_examples_whatever_the_parts(tmp_path):
    """Short files, so that parts hold fewer examples than `records_per_shard`, and the limit lies within one."""
    count = 0
    for number, length in enumerate([3, 5, 1, 5, 5, 2, 5, 5]):
        text = "".join(f'{{"conversations": [{{"from": "gpt", "value": "{count + n}"}}]}}\n' for n in range(length))
        (tmp_path / f"{number}.jsonl").write_text(text + ("" if number else "{broken\n"))
        count += length
    source = {"reader": "llava", "options": {"path": str(tmp_path / "*.jsonl")}}
    for limit in (1, 4, 5, 13, 31, 32, 1000):
        made = prepare(config(tmp_path, {"chat": source | {"limit": limit}, "topics": TOPICS})).sources["chat"]
        said = [made.read(number).turns[0].content[0] for number in range(len(made))]
        assert said == [str(number) for number in range(min(limit, 32))][: len(said)]
        assert made.description.quarantined == (limit > 3)
        assert len(made) + made.description.quarantined == min(limit, 32)


def test_what_was_left_out_is_summarised(tmp_path, conversations):
    said: list[str] = []
    prepare(config(tmp_path, {"chat": conversations, "topics": TOPICS}), said.append)
    (line,) = (line for line in said if line.startswith("chat: "))
    assert "2 records" in line
    assert "6 quarantined of 8 read" in line
    reasons = [line for line in said if line.startswith("  1 left out, such as ")]
    assert len(reasons) == 5
    assert any("gone: " in line and "gone.png" in line and "all.jsonl:4)" in line for line in reasons)
    assert "  1 left out for other reasons; see " in said[-2]
    made = Description.read(tmp_path / "data" / "sources" / "chat")
    assert (made.examples, made.records, made.quarantined, made.filtered) == (8, 2, 6, {})
    assert sum(made.reasons.values()) == 6
    assert made.reasons["it has no assistant or text turn to learn from"] == 1


def test_an_own_tokenizer(tmp_path):
    own = train_tokenizer([topics["if"], topics["for"]], TokenizerConfig(vocab_size=350))
    own.save(tmp_path)
    path = tmp_path / "tokenizer.model"
    made = config(tmp_path, {"lines": LINES}, tokenizer={"path": str(path)})
    assert prepare(made).tokenizer.fingerprint == own.fingerprint
    path.unlink()
    assert open_prepared(made).tokenizer.fingerprint == own.fingerprint
    missing = config(tmp_path, {"lines": LINES}, tokenizer={"path": str(tmp_path / "no.model")})
    with pytest.raises(ConfigError, match=r"data\.tokenizer: .*no\.model"):
        prepare(missing)


def test_a_published_tokenizer(tmp_path):
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    folder = write_repository(tmp_path / "qwen", names, tokenizer_json=byte_level_json())

    def made(added: list[str]) -> Config:
        image = {"begin_token": "<img>", "end_token": "</img>", "row_token": None}
        tokenizer = {"path": str(folder), "add_tokens": added}
        return config(tmp_path, {"lines": LINES}, tokenizer=tokenizer).model_copy(
            update={"sequence": SequenceConfig(template="chatml"), "image": ImageConfig(**image)}
        )

    with pytest.raises(ConfigError, match=r"image\.begin_token needs the token '<img>'.*add_tokens"):
        prepare(made([]))
    with pytest.raises(ConfigError, match=r"image\.end_token needs the token '</img>'.*add_tokens"):
        prepare(made(["<img>"]))
    prepared = prepare(made(["<img>", "</img>"]))
    assert [prepared.tokenizer.id(token) for token in ("<|im_start|>", "<img>", "</img>")] == [401, 404, 405]
    opened = open_prepared(made(["<img>", "</img>"]))
    assert opened.tokenizer.fingerprint == prepared.tokenizer.fingerprint
    with pytest.raises(ConfigError, match="the tokenizer is not in"):
        open_prepared(made(["<img>", "</img>", "<box>"]))


def test_a_template_needs_its_tokens(tmp_path):
    sequence = SequenceConfig(template="internlm2_chat")
    made = config(tmp_path, {"lines": LINES, "topics": TOPICS}).model_copy(update={"sequence": sequence})
    with pytest.raises(ConfigError, match=r"sequence\.template internlm2_chat needs the token '<\|im_start\|>'"):
        prepare(made)


def test_another_template_makes_only_the_tokens_again(tmp_path):
    made = config(tmp_path, {"lines": LINES, "topics": TOPICS})
    prepare(made)
    before = state(tmp_path / "data" / "sources")
    changes = [{"sequence": SequenceConfig(system="Be brief.")}, {"sequence": SequenceConfig(template="solo_chat")}]
    for change in changes:
        other = made.model_copy(update=change)
        with pytest.raises(ConfigError, match="source 'lines' is not in"):
            open_prepared(other)
        prepare(other)
        after = state(tmp_path / "data" / "sources")
        new = {name.rpartition(".")[2] for name in after.keys() - before.keys() if "/parts/" in name}
        assert new == {"json", "tokens", "npz"}
        for name, content in before.items():
            if name.endswith((".records", ".images", ".table.npz")):
                assert after[name] == content
    other = {"sequence": SequenceConfig(sliding_window=5), "image": ImageConfig(max_side=64, exif="ignore")}
    prepare(made)
    assert open_prepared(made.model_copy(update=other))


def test_rotated_and_thin_images_are_counted(tmp_path):
    for number, size in enumerate([(2000, 1), (40, 90), (1, 5000)]):
        turned = encode_png(PillowImage.new("RGB", size), orientation=6)
        (tmp_path / "pictures" / "thing").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / "thing" / f"{number}.png").write_bytes(turned.data)
    sources = {"pictures": {"reader": "folder", "options": {"path": str(tmp_path / "pictures")}}, "topics": TOPICS}
    lines: list[str] = []
    made = config(tmp_path, sources)
    index = prepare(made, lines.append).sources["pictures"].index
    assert index.image_sizes("apply").tolist() == [[1, 2000], [90, 40], [5000, 1]]
    assert index.image_sizes("ignore").tolist() == [[2000, 1], [40, 90], [1, 5000]]
    assert [line.split(":")[0] for line in lines if "; 2 images are so thin" in line] == ["pictures"]
    lines.clear()
    prepare(made, lines.append)
    assert "already prepared; 2 images are so thin" in lines[1]


def test_records_that_a_template_has_no_place_for_are_quarantined(tmp_path):
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    lines = [json.dumps({"id": str(start), "conversations": turns[start:]}) for start in (0, 1)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    source = {"reader": "llava", "options": {"path": str(tmp_path / "all.jsonl")}}
    sequence = SequenceConfig(template="solo_chat")
    made = config(tmp_path, {"chat": source, "topics": TOPICS}).model_copy(update={"sequence": sequence})
    chat = prepare(made).sources["chat"]
    assert [chat.read(number).id for number in range(len(chat))] == ["1"]
    (line,) = (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "source": "chat",
        "id": "0",
        "reason": "the template has no place for a system turn",
        "file": str(tmp_path / "all.jsonl"),
        "line": 1,
    }


def test_opening_unprepared_data(tmp_path):
    made = config(tmp_path, {"lines": LINES, "topics": TOPICS})
    with pytest.raises(ConfigError, match=r"the tokenizer is not in .*data, .*run: solo prepare CONFIG"):
        open_prepared(made)
    prepare(made)
    trained = {"vocab_size": 360, "train_on": ["topics"]}
    prepare(config(tmp_path, {"lines": LINES, "topics": TOPICS}, tokenizer=trained))
    other = config(tmp_path, {"lines": LINES | {"limit": 3}, "topics": TOPICS}, tokenizer=trained)
    with pytest.raises(ConfigError, match=r"source 'lines' is not in .* or was made from other settings"):
        open_prepared(other)
    prepare(made)
    (tmp_path / "data" / "sources" / "topics" / "source.json").unlink()
    with pytest.raises(ConfigError, match=r"source 'topics' is not in .*run: solo prepare CONFIG"):
        open_prepared(made)


def test_a_source_given_by_its_path_alone(tmp_path):
    """The reader is chosen and named, stays chosen when its inputs are gone, and decides the parts."""
    pictures = write(tmp_path / "pictures", {"cat/1.png": RED, "dog/1.png": BLUE, "dog/broken.png": "?"})
    settings = config(tmp_path, {"pets": str(pictures), "topics": TOPICS})
    assert settings.data.sources["pets"].options == {"path": str(pictures)}
    lines: list[str] = []
    prepared = prepare(settings, lines.append)
    assert f"pets: read by 'folder', because {pictures}: it holds 2 folders of images, such as cat" in lines
    assert lines.count("pets: 2 classes: cat, dog") == 1
    assert [prepared.sources["pets"].read(number).id for number in range(2)] == ["cat/1.png", "dog/1.png"]
    assert prepared.quarantined == 1
    folder = {"reader": "folder", "options": {"path": str(pictures)}}
    named = prepare(config(tmp_path / "named", {"pets": folder, "topics": TOPICS}))
    parts = [{part.name for part in found.sources["pets"].description.parts} for found in (prepared, named)]
    assert parts[0] == parts[1]
    pictures.rename(tmp_path / "elsewhere")
    lines.clear()
    prepare(settings, lines.append)
    assert any(line.startswith("pets: 2 records, already prepared") for line in lines)


def test_a_path_that_no_reader_reads(tmp_path):
    with pytest.raises(ConfigError, match=r"source 'a': reader 'auto': .*nowhere does not exist"):
        prepare(config(tmp_path, {"a": f"{tmp_path}/nowhere"}))

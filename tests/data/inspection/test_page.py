"""The page of `solo inspect`."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.cli import main
from solo.config import ImageConfig, load_config
from solo.data.images.patches import decode_patches
from solo.data.inspection.page import render
from solo.data.inspection.samples import unpatched, visible
from solo.data.record import encode_png
from solo.data.store.prepare import prepare

CONFIG = """
name: small
data:
  folder: {folder}/prepared
  tokenizer: {{vocab_size: 286}}
  sources:
    chats: {{reader: llava, options: {{path: {folder}/chats.json, images: {folder}}}}}
image: {{patch_size: 8, max_side: 64}}
model: {{width: 16, layers: 1, heads: 2, kv_heads: 2, ffn_width: 16}}
stages:
  - {{name: only, mixture: {{chats: 1.0}}, steps: 4, batch_rows: 2, patch_slots: 64, text_slots: 96, target_slots: 48,
     optimizer: {{learning_rate: 0.001}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    PillowImage.new("RGB", (32, 24), (200, 30, 30)).save(folder / "red.png")
    chats = [
        {
            "id": f"chat-{number}",
            "image": "red.png" if number != 3 else "lost.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhich <b>colour</b>?"},
                {"from": "gpt", "value": "A deep red."},
            ],
        }
        for number in range(6)
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    (folder / "small.yaml").write_text(CONFIG.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    config = load_config(folder / "small.yaml")
    return render(config, prepare(config), samples=2)


def tokens(page: str, section: str) -> list[tuple[str, str]]:
    """Returns (class, text) of every token after a heading."""
    found = re.findall(r'<span class="([^"]*)">([^<]*)</span>', page[page.index(section) :])
    return [(kind, unescape(text)) for kind, text in found]


def test_learned_tokens_are_marked_and_users_text_is_text(page: str) -> None:
    shown = tokens(page, "<h3>Samples</h3>")
    first = shown[: next(place for place, (_, text) in enumerate(shown) if text == "</s>") + 1]
    assert "".join(text for kind, text in first if "learned" in kind) == "A deep red.</s>"
    assert "Which <b>colour</b>?" in "".join(text for _, text in first), "markup of a caption is shown, not used"


def test_a_packed_row_shows_every_target(page: str, folder: Path) -> None:
    row = page[page.index("One packed row") :]
    count = int(re.search(r"([\d,]+) of 48 target slots", row).group(1))  # type: ignore[union-attr]
    shown = tokens(page[: page.index('aria-labelledby="source-1"')], "One packed row")
    assert sum("learned" in kind.split() for kind, _ in shown) == count > 0


def test_what_was_left_out_is_told(page: str) -> None:
    assert "<td>5</td>" in page, "records"
    assert "chat-3" in page
    assert "lost.png" in page


def test_weights_that_change_and_filtered_records_are_shown(folder: Path) -> None:
    settings = [
        "stages.0.mixture_schedule={2: {chats: 3.0}}",
        "data.packing_window=2",
        "data.tokenizer.vocab_size=279",
        "data.sources.chats.filters.max_characters=60",
        f"data.folder={folder}/filtered",
    ]
    turns = [[{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "A deep red. " * n}] for n in range(1, 9)]
    lines = [{"id": f"c{n}", "conversations": conversation} for n, conversation in enumerate(turns, 1)]
    (folder / "lengths.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    config = load_config(folder / "small.yaml", [*settings, f"data.sources.chats.options.path={folder}/lengths.jsonl"])
    page = render(config, prepare(config), samples=1)
    assert "1 → 3 at step 2" in page
    told = page[page.index("Filtered</h3>") :]
    assert '<td class="words">max_characters</td><td>4</td><td class="words"><ul><li>c5 (' in told
    assert "Quarantined</h3>" not in page


def test_characters_that_turn_others_round_are_shown_as_numbers() -> None:
    assert visible("a\u202eb\u200b\n") == "a<U+202E>b<U+200B>\n"


def test_a_picture_is_put_together_from_its_patches() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    image = ImageConfig(patch_size=8, max_side=40)
    cut = decode_patches(encode_png(PillowImage.fromarray(pixels)).data, image)
    whole = unpatched(cut.pixels, cut.places, 3, 5, image, across=1)
    assert np.array_equal(np.asarray(whole), pixels)


def test_the_command_refuses_unprepared_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "pages" / "inspect.html"
    assert main(["inspect", str(folder / "small.yaml"), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert main(["inspect", str(folder / "small.yaml"), f"data.folder={folder}/elsewhere"]) == 2
    assert "solo prepare" in capsys.readouterr().err


def test_a_source_is_looked_at_without_a_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "source.html"
    images = f"data.sources.source.options.images={folder}"
    assert main(["inspect", str(folder / "chats.json"), images, "--out", str(out), "--samples", "1"]) == 0
    shown = tokens(out.read_text(), "<h3>Samples</h3>")
    assert "A deep red." in "".join(text for kind, text in shown if "learned" in kind)
    assert main(["inspect", str(folder / "nothing.tar")]) == 2
    assert "nothing.tar does not exist" in capsys.readouterr().err

"""Readers that need no files: digits, pictograms, scenes, lines and topics."""

import random
import re
import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from solo.data.readers import read
from solo.data.readers.generated import pictograms, scenes
from solo.data.readers.generated.digits import WORDS
from solo.data.readers.generated.pictogram_names import KINDS
from solo.data.readers.generated.pictograms import names_of
from solo.data.readers.generated.topics import documents
from solo.data.record import Image, Turn
from tests.data.fakes import read_records

# -------------------------------------------------------------------------------------------- digits


def test_digits():
    held_out = read_records("digits", split="held_out")
    train = read_records("digits", copies=2, sizes=[16, 24])
    assert len(held_out) == 359
    assert len(train) == 2 * (1797 - 359)
    assert {r.id.split("/")[1] for r in held_out}.isdisjoint(r.id.split("/")[1] for r in train)
    assert len({r.id for r in train}) == len(train)
    assert {r.images()[0].size() for r in train} == {(16, 16), (24, 24)}
    assert {r.images()[0].size() for r in held_out} == {(32, 32)}
    assert {r.turns[0].content[1] for r in held_out} == set(WORDS)
    assert held_out == read_records("digits", split="held_out", seed=5, copies=7)
    assert train[:50] == read_records("digits", 50, copies=2, sizes=[16, 24])
    assert train[0] != read_records("digits", 1, copies=2, sizes=[16, 24], seed=1)[0]


def test_a_held_out_digit_is_the_original_enlarged():
    from sklearn.datasets import load_digits

    found = load_digits()
    for record in read_records("digits", 20, split="held_out", form="question"):
        number = int(record.id.split("/")[1])
        user, assistant = record.turns
        pixels = np.asarray(record.images()[0].decode())[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(pixels.ravel(), found.images[number].ravel())[0, 1] > 0.95
        assert user.content[1] == "Which digit is this?"
        assert assistant == Turn("assistant", (WORDS[found.target[number]],))


# ---------------------------------------------------------------------------------------- pictograms


def test_no_drawing_of_the_unseen_pictograms_is_in_another_split():
    train, unseen = names_of("train"), names_of("unseen")
    assert names_of("held_out") == train
    assert not {*train} & {*unseen}
    assert len(train) + len(unseen) == sum(map(len, KINDS.values())) == 333
    for names in KINDS.values():
        assert len({*names} & {*unseen}) == len(names) // 6


def test_every_pictogram_has_a_drawing():
    drawings = [pictograms._drawing(name) for name in names_of("train") + names_of("unseen")]
    assert all(max(drawing.size) > 60 for drawing in drawings)
    assert len({drawing.tobytes() for drawing in drawings}) == len(drawings)


def test_a_pictogram_is_asked_for_its_name_and_kind_in_either_order():
    first_asked = Counter()
    for split in ("train", "unseen"):
        for record in read_records("pictograms", 40, split=split):
            (first, *questions), *answers = (turn.content for turn in record.turns)
            assert isinstance(first, Image)
            asked = dict(zip([*questions, *answers[1]], [*answers[0], *answers[2]], strict=True))
            name, kind = asked["What is this?"], asked["What kind of thing is this?"]
            first_asked[questions[0]] += 1
            (named,) = [each for each in KINDS[kind] if each.replace("’", "'") == name]
            assert named in names_of(split)
            assert record.images()[0].size() == (40, 40)
    assert min(first_asked.values()) > 25
    for form, question in (("name", "What is this?"), ("kind", "What kind of thing is this?")):
        ((_, only), _) = (turn.content for turn in read_records("pictograms", 1, form=form)[0].turns)
        assert only == question
    assert read_records("pictograms", 5) == read_records("pictograms", 9)[:5]
    placed = [{r.images()[0] for r in read_records("pictograms", 60, split=s)} for s in ("train", "held_out")]
    assert not placed[0] & placed[1]


def test_a_pictogram_keeps_its_colours():
    """A ripe tomato is red wherever it stands."""
    found = [r for r in read_records("pictograms", 2500, form="name") if r.turns[1].content == ("tomato",)]
    assert len(found) >= 3
    for record in found:
        pixels = np.asarray(record.images()[0].decode()).astype(int)
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 120) & (pixels[..., 2] < 100)
        assert red.mean() > 0.1


# -------------------------------------------------------------------------------------------- scenes


def test_scenes_are_a_function_of_seed_split_and_place():
    assert read_records("scenes", 30) == read_records("scenes", 40)[:30]
    assert read_records("scenes", 5) != read_records("scenes", 5, seed=1)
    train, held_out = read_records("scenes", 300), read_records("scenes", 300, split="held_out")
    assert not {r.images()[0] for r in train} & {r.images()[0] for r in held_out}
    forms = Counter(r.turns[0].role for r in train)
    assert min(forms["text"], forms["user"]) > 110


def test_scene_sizes():
    sizes = [r.images()[0].size() for r in read_records("scenes", 300, min_side=24, max_side=50)]
    assert min(map(min, sizes)) == 24
    assert max(map(max, sizes)) == 50
    assert all(max(size) >= 1.25 * min(size) for size in sizes)
    assert len(set(sizes)) > 100
    assert 100 < sum(width > height for width, height in sizes) < 200


def seen(image: Image) -> list[tuple[str, str]]:
    """Returns shapes along the longer side, recognised from the pixels: colour by distance, kind by area."""
    pixels = np.asarray(image.decode()).astype(int)
    if pixels.shape[0] > pixels.shape[1]:
        pixels = pixels.transpose(1, 0, 2)
    colours = np.array(list(scenes.COLOURS.values()))
    distance = np.abs(pixels[:, :, None] - colours).sum(-1)
    nearest = np.where(distance.min(-1) <= 36, distance.argmin(-1), -1)
    occupied = np.flatnonzero((nearest >= 0).any(0))
    found = []
    for columns in np.split(occupied, np.flatnonzero(np.diff(occupied) > 1) + 1):
        part = nearest[:, columns]
        (colour,) = set(part[part >= 0].tolist())
        shape = part[(part >= 0).any(1)]
        full = (shape >= 0).mean()
        kind = "square" if full > 0.95 else "circle" if full > 0.65 else "triangle"
        found.append((list(scenes.COLOURS)[colour], kind))
    return found


def test_the_pixels_show_what_the_caption_says():
    for record in read_records("scenes", 100, form="caption", min_side=60, max_side=120):
        image, caption = record.turns[0].content
        relation = " left of " if image.size()[0] > image.size()[1] else " above "
        said = [tuple(shape.removeprefix("a ").split()) for shape in caption.split(relation)]
        assert seen(image) == said


def answers(question: str, scene: scenes.Scene) -> list[str]:
    """Returns every true answer, read from the scene."""
    shapes = scene.shapes
    if found := re.fullmatch(r"What colour is the (\w+)\?", question):
        return [s.colour for s in shapes if s.kind == found[1]]
    if found := re.fullmatch(r"What shape is the (\w+) one\?", question):
        return [s.kind for s in shapes if s.colour == found[1]]
    if question == "How many shapes are there?":
        return [scenes.NUMBERS[len(shapes)]]
    if found := re.fullmatch(r"How many (\w+?)(s| shapes) are there\?", question):
        return [scenes.NUMBERS[sum(found[1] in (s.colour, s.kind) for s in shapes)]]
    found = re.fullmatch(r"What is (left of|right of|above|below) the (\w+ \w+)\?", question)
    place = [str(s) for s in shapes].index(found[2])
    assert scene.wide == (found[1] in ("left of", "right of"))
    return [str(s) for s in (shapes[:place] if found[1] in ("left of", "above") else shapes[place + 1 :])]


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_every_question_has_one_answer(most):
    draw = random.Random(0)
    for _ in range(1500):
        question, answer, scene = scenes.ask(draw, draw.random() < 0.5, most)
        assert answers(question, scene) == [answer]
        assert 1 <= len(scene.shapes) <= most
        assert len(set(scene.shapes)) == len(scene.shapes)


def test_every_further_question_has_one_answer():
    draw = random.Random(0)
    for _ in range(300):
        scene = scenes.Scene(tuple(draw.sample(scenes.SHAPES, draw.randint(1, 4))), draw.random() < 0.5)
        found = list(scenes._further(scene, scenes.TOTAL_QUESTION, 100, draw))
        assert scenes.TOTAL_QUESTION not in dict(found)
        assert len({question for question, _ in found}) == len(found) >= 3
        for question, answer in found:
            assert answers(question, scene) == [answer]
    first, more = (read_records("scenes", 50, form="question", questions=n) for n in (1, 3))
    assert all(r.turns[1:2] == s.turns[1:2] and len(s.turns) == 6 for r, s in zip(first, more, strict=True))


def test_rare_numbers_are_asked_for_too():
    numbers, others = Counter(), 0
    for record in read_records("scenes", 1000, form="question", questions=4):
        for (question,), (answer,) in zip(*([t.content for t in record.turns[n::2]] for n in (2, 3)), strict=True):
            if question != scenes.TOTAL_QUESTION and question.startswith("How many"):
                numbers[answer] += 1
            else:
                others += 1
    assert 0.2 < numbers.total() / (numbers.total() + others) < 0.4
    assert max(numbers.values()) < 0.5 * numbers.total()
    assert numbers["two"] + numbers["three"] > 0.15 * numbers.total()


def test_guessing_without_the_image_does_not_pay():
    given = defaultdict(Counter)
    draw = random.Random(0)
    for _ in range(10_000):
        question, answer, _ = scenes.ask(draw, draw.random() < 0.5, most=3)
        given[question][answer] += 1
    # Only frequent questions tell something about guessing.
    often = [found for found in given.values() if found.total() >= 50]
    assert sum(found.total() for found in often) > 7500
    assert max(max(found.values()) / found.total() for found in often) < 0.5
    assert sum(max(found.values()) for found in often) / sum(found.total() for found in often) < 0.35


def test_scenes_are_fast():
    list(read("scenes", {}, 10))
    started = time.process_time()
    list(read("scenes", {}, 300))
    assert (time.process_time() - started) / 300 < 1e-3


# ------------------------------------------------------------------------------------ lines and topics


def test_lines():
    found = read_records("lines", 300, min_characters=3, max_characters=12)
    texts = [r.turns[1].content[0] for r in found]
    assert {len(text) for text in texts} == set(range(3, 13))
    assert all(re.fullmatch(r"[a-z]{2,8}( [a-z]{2,8})*", text) for text in texts)
    assert len(set(texts)) > 250
    for record, text in zip(found, texts, strict=True):
        width, height = record.images()[0].size()
        assert 6 * len(text) + 4 <= width <= 6 * len(text) + 12
        assert 15 <= height <= 23
        pixels = np.asarray(record.images()[0].decode())
        assert pixels.min() <= 60
        assert pixels.max() >= 220
    assert found[:9] == read_records("lines", 9, min_characters=3, max_characters=12)
    assert read_records("lines", 1)[0].turns != read_records("lines", 1, split="held_out")[0].turns
    assert read_records("lines", 1)[0].turns != read_records("lines", 1, seed=1)[0].turns
    (turn,) = read_records("lines", 1, form="caption")[0].turns
    assert turn.role == "text"


def test_in_cells_a_character_fills_a_column_of_patches():
    for record in read_records("lines", 50, cell=8):
        text, pixels = record.turns[1].content[0], np.asarray(record.images()[0].decode())
        assert pixels.shape[:2] == (16, 8 * len(text))
        grey = pixels[..., 0].astype(int)
        cells = np.percentile(grey, 90) - grey.reshape(16, len(text), 8).swapaxes(0, 1)
        ink = cells[:, :, 3:-3].mean(
            (1, 2)
        )  # of the middle of every character; a neighbour's serifs reach into a space
        assert [letter == " " for letter in text] == (ink < 25).tolist(), text


def test_different_lines_look_different():
    drawn = {r.images()[0] for r in read_records("lines", 100, min_characters=8, max_characters=8)}
    assert len(drawn) == 100


def test_topics():
    train, held_out = read_records("topics"), read_records("topics", split="held_out")
    assert len(train) == pytest.approx(9 * len(held_out), abs=9)
    assert not {r.id for r in train} & {r.id for r in held_out}
    texts = [r.turns[0].content[0] for r in train + held_out]
    assert max(map(len, texts)) <= 1000
    assert all(text.strip() for text in texts)
    assert sum(map(len, texts)) > 200_000


@pytest.mark.parametrize("most", [3, 7, 12, 40, 1000])
def test_documents_lose_nothing(most):
    text = "one\n\ntwo three four\nfive six\n\nseven\n\n\n\neightnineteneleven\n\nx"
    found = list(documents(text, most))
    assert max(map(len, found)) <= most
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(found)


def test_documents_keep_paragraphs_together():
    assert list(documents("aa\n\nbb\n\ncccc\ncc\n\ndd", 6)) == ["aa\n\nbb", "cccc", "cc\n\ndd"]

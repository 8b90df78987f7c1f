"""The report stands alone, shows what it is given, and lets nothing in an answer pass for HTML."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from solo.config import dump_config
from solo.data.record import Image, Turn, encode_png
from solo.evaluation.chart import draw_losses, held_out_chart, held_out_curves, loss_chart
from solo.evaluation.report import duration, enlargement, held_out_rows, render, run_facts, short, write_report
from solo.evaluation.tasks import Example, TaskResult
from solo.model.count import active_parameters
from solo.model.parameters import ModelDefinition
from tests.tiny import picture, tiny_config

CONFIG = tiny_config()
DEFINITION = ModelDefinition(CONFIG.model, CONFIG.image, 310)
PNG = encode_png(picture(16, 10, 0))
NASTY = '<script>alert("1")</script>'


def example(answer: str, blanked: str | None = None, image: Image = PNG, reference: str = "a cat") -> Example:
    prompt = (Turn("user", (image, f"what? {NASTY}")), Turn("assistant", ()))
    return Example("r1", prompt, reference, answer, blanked)


def result(*examples: Example, metric: str = "exact_match", blank: float | None = None) -> TaskResult:
    return TaskResult("scene_questions", metric, 62.5, blank, 300, 3.0, examples)


def lines(stages=(("one", 30), ("two", 20))) -> list[dict]:
    found = [{"kind": "evaluation", "step": 1, "task": "early", "score": 1.0}]
    for stage, count in stages:
        for _ in range(count):
            step = len(found)
            found.append(
                {
                    "kind": "train",
                    "step": step,
                    "stage": stage,
                    "loss": 6.0 / step**0.5,
                    "tokens": 900,
                    "visual_tokens": 600,
                    "useful_share": 0.9,
                    "timing": {"step_seconds": 1.5},
                }
            )
    return found


class Page(HTMLParser):
    """Elements and text of a page; unclosed elements are a fault."""

    VOID = ("meta", "img", "line")

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += "" if self._open[-1:] == ["style"] else data

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(*results: TaskResult, metrics=None) -> Page:
    return Page(render(CONFIG, DEFINITION, results, lines() if metrics is None else metrics))


def test_the_page_needs_nothing_else() -> None:
    html = render(CONFIG, DEFINITION, [result(example("a dog"))], lines())
    found = Page(html)
    assert not found.of("script")
    assert not found.of("link")
    for _, attributes in found.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    own = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import", own)


def test_what_people_and_models_write_stays_text() -> None:
    shown = page(result(example(NASTY, blanked=NASTY, reference=NASTY + "!")))
    assert not shown.of("script")
    assert shown.text.count(NASTY) == 4


def test_images_are_embedded_and_enlarged_by_a_whole_factor() -> None:
    (shown,) = page(result(example("a dog"))).of("img")
    kind, data = shown["src"].split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == PNG.data
    factor = int(shown["width"]) // 16
    assert (int(shown["width"]), int(shown["height"])) == (16 * factor, 10 * factor)
    assert factor > 4
    assert shown["class"] == "enlarged"
    assert shown["alt"]


def test_images_that_browsers_do_not_know_are_converted() -> None:
    import io

    buffer = io.BytesIO()
    picture(700, 20, 0).save(buffer, format="TIFF")
    (shown,) = page(result(example("a dog", image=Image(buffer.getvalue())))).of("img")
    assert shown["src"].startswith("data:image/png;")
    assert (shown["width"], shown["height"]) == ("400", "11")
    assert "class" not in shown


@pytest.mark.parametrize(
    ("size", "factor"), [((32, 32), 6), ((130, 23), 3), ((64, 64), 3), ((250, 150), 1), ((800, 200), 0.5)]
)
def test_enlargement(size, factor) -> None:
    assert enlargement(*size) == factor


def test_right_and_wrong_are_told_apart_by_more_than_colour() -> None:
    shown = page(result(example(" a  cat ", blanked="a dog"), example("a dog", blanked="a cat"), example("")))
    verdicts = [attributes["class"] for attributes in shown.of("span") if "verdict" in attributes.get("class", "")]
    assert verdicts == [f"verdict {name}" for name in ("right", "wrong", "wrong", "right", "wrong")]
    assert shown.text.count("✓") == shown.text.count("right: ") == 2
    assert shown.text.count("✗") == shown.text.count("wrong: ") == 3
    # The right answer is shown where the model's is another.
    assert shown.text.count("Correct") == 2
    assert "nothing" in shown.text


def test_errors_are_counted_where_characters_are() -> None:
    assert "2 edits" in page(result(example("a rag"), metric="character_error_rate")).text
    assert "edits" not in page(result(example("a cat"), metric="character_error_rate")).text


def test_the_table_says_what_was_measured() -> None:
    text = " ".join(page(result(example("a dog"), blank=20.0)).text.split())
    assert "Scene questions 300 62.5% right 20.0% +42.5 points" in text
    assert "The first 1 of 300 examples, not selected." in text
    assert "blanked" not in page(result(example("a dog"))).text


def test_turns_of_a_dialogue_name_their_speakers() -> None:
    prompt = (
        Turn("user", (PNG, "what?")),
        Turn("assistant", ("a cat",)),
        Turn("user", ("sure?",)),
        Turn("assistant", ()),
    )
    shown = page(result(Example("r", prompt, "yes", "yes")))
    assert [shown.text.count(name) for name in ("User", "Assistant", "sure?")] == [2, 1, 1]


def test_facts_add_up() -> None:
    facts = {fact.name: fact.value for fact in run_facts(DEFINITION, lines())}
    assert facts["steps"] == "50"
    assert facts["tokens"] == "45.0 k"
    assert facts["visual tokens"] == "67%"
    assert facts["slots in use"] == "90.0%"
    assert facts["time in steps"] == "1 min 15 s"
    active = active_parameters(DEFINITION)
    assert facts["active for a patch"] == short(active.patches)
    assert facts["active for a text token"] == short(active.text)


def test_a_run_without_tasks_or_steps_has_a_report_too() -> None:
    shown = page(metrics=[])
    assert not shown.of("svg")
    assert not shown.of("table")
    assert dump_config(CONFIG).splitlines()[0] in shown.text


def test_the_file_appears_whole(tmp_path) -> None:
    write_report(tmp_path / "report.html", CONFIG, DEFINITION, [result(example("ü"))], lines())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text == render(CONFIG, DEFINITION, [result(example("ü"))], lines())
    assert text.startswith("<!doctype html>")


# ------------------------------------------------------------------------------------------ chart


def curves(steps: list[dict]) -> tuple[Axes, list[np.ndarray]]:
    """The axes, and the points [N, 2] of its curves."""
    axes = Figure().subplots()
    draw_losses(axes, [line for line in steps if line["kind"] == "train" and line["loss"] is not None])
    return axes, [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 2]


def test_the_chart_has_every_step_and_a_mean_for_each_stage() -> None:
    axes, (first, first_mean, second, second_mean) = curves(lines())
    assert [len(curve) for curve in (first, first_mean, second, second_mean)] == [30, 30, 20, 20]
    steps = [(line["step"], line["loss"]) for line in lines() if line["kind"] == "train"]
    np.testing.assert_array_equal(np.concatenate([first, second]), steps)
    np.testing.assert_array_equal(first_mean[:2], [first[0], [2, (0.9 * first[0, 1] + first[1, 1]) / 1.9]])
    assert [text.get_text() for text in axes.texts] == ["one", "two"]


def test_the_chart_cuts_off_a_loss_that_towers_above_the_mean_and_survives_odd_ones() -> None:
    odd = lines()
    odd[10]["loss"], odd[20]["loss"] = None, 1e6
    axes, found = curves(odd)
    assert axes.get_ylim()[1] < 0.5e6
    assert sum(map(len, found)) == 2 * 49
    flat = [{**line, "loss": 2.0} if line["kind"] == "train" else line for line in lines()]
    low, high = curves(flat)[0].get_ylim()
    assert low < 2 < high
    assert loss_chart(lines(stages=(("one", 1),))) == ""


def test_the_chart_takes_the_colours_of_the_page_and_is_labelled() -> None:
    chart = loss_chart(lines(stages=(("a$b$", 30),)))
    assert "var(--accent)" in chart
    assert 'role="img" aria-label="Loss from ' in chart
    assert "<script" not in chart


# ---------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (12_345, "12.3 k"),
        (999_600, "1.00 M"),
        (7.24e9, "7.24 B"),
        (2e14, "200 T"),
    ],
)
def test_short_numbers(number, text) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min"), (75, "1 min 15 s"), (3600, "1 h"), (7384, "2 h 3 min"), (180_000, "2 d 2 h")],
)
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text


def held_out(step: int, loss: float | None, task: str = "text", **more: object) -> dict:
    contexts = {"text_only": loss} if loss else {}
    fixed = {"kind": "held_out", "step": step, "task": task, "source": "s", "targets": 1234}
    return {**fixed, "loss": loss, "loss_by_context": contexts, **more}


def test_held_out_losses_are_shown_with_their_lowest_and_the_best_checkpoint() -> None:
    losses = {10: 3.0, 20: 2.0, 30: None, 40: 2.5}
    metrics = [*lines(), *(held_out(step, loss) for step, loss in losses.items())]
    metrics += [held_out(step, loss and loss + 1, weights="ema") for step, loss in losses.items()]
    metrics.append(held_out(40, 9.5, "a$b"))
    assert held_out_curves(metrics)["text"] == [(10, 3.0), (20, 2.0), (40, 2.5)]
    rows = {row["name"]: row for row in held_out_rows(metrics)}
    assert list(rows) == ["text", "text (ema)", "a$b"]
    assert (rows["text"]["loss"], rows["text"]["lowest"], rows["text"]["step"]) == ("2.500", "2.000", "20")
    assert (rows["text"]["text_only"], rows["text"]["with_image"]) == ("2.500", "–")
    evaluation = {"every_steps": 10, "losses": {"text": {"source": "digits"}}}
    config = tiny_config(evaluation=evaluation, checkpoint={"best": {"metric": "held_out/text"}})
    shown = Page(render(config, DEFINITION, [], metrics))
    assert "best held_out/text, at step 20 (@best)" in shown.text
    assert "Held-out losses over the steps of the run: text, text (ema)" in [
        attributes.get("aria-label") for attributes in shown.of("svg")
    ]
    # Measured once: a table, and no chart.
    assert not held_out_chart([held_out(40, 9.5)])
    assert held_out_rows([held_out(40, None)])[0]["lowest"] == "–"

"""Visual question answering: VQA v2, OK-VQA, GQA, TextVQA, DocVQA, VizWiz, A-OKVQA and Visual Genome."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from solo.config import ConfigError
from solo.data.readers.annotations import BLANK, Annotated, AnnotationReader, Keys, mappings, read_json
from solo.data.readers.examples import record_id
from solo.data.readers.paths import Paths, expand
from solo.data.readers.registry import Examples, Unreadable, reader
from solo.data.readers.wording import kind, shown
from solo.data.record import Image, Place, Record, Turn

_QUESTION_IDS = ("question_id", "questionId", "qa_id", "id")
_NO_ANSWER = "it has no answer"
_IMAGES = ("image", "image_id", "imageId", "file_name")
# Keys of known datasets that do not affect questions and answers.
_UNUSED = (
    *("question", "question_type", "question_types", "answer_type", "answerable", "confidence", "dataset"),
    *("set_name", "split", "data_split", "image_width", "image_height", "image_classes", "flickr_original_url"),
    *("flickr_300k_url", "question_tokens", "ocr_tokens", "ucsf_document_id", "ucsf_document_page_no", "docId"),
    *("fullAnswer", "isBalanced", "groups", "entailed", "equivalent", "types", "annotations", "semantic"),
    *("semanticStr", "choices", "correct_choice_idx", "difficult_direct_answer", "rationales", "a_objects"),
    *("q_objects"),
)
_ANSWERS = ("multiple_choice_answer", "answers", "direct_answers", "answer")


@reader("vqa")
@dataclass(frozen=True)
class VisualQuestions(AnnotationReader):
    """Questions about images, with answers.

    path         the questions: a list, one per line, `{"questions": [...]}`, `{"data": [...]}`, or a mapping from ids
                 to questions. A question has `question`, an image (`image`, `image_id` or `imageId`) and, unless they
                 are in `annotations`, `answers` or `answer`
    annotations  a file of answers by `question_id`: `{"annotations": [{"question_id", "answers": [{"answer"}]}]}`
    images       the folder of the images
    image_name   template of image file names, such as `COCO_train2014_{image_id:012d}.jpg`. By default, the names of
                 VQA v2 for its files, and otherwise `{image_id}.jpg` or the file name in the question
    answers      most_common: the answer that most annotators gave; all: the distinct answers, separated by commas
    per          question: one record per question; image: one record per image with its questions as turns, so that
                 the image's patches are computed only once
    instruction  text appended to every question, such as " Answer with a word or a phrase."
    """

    path: Paths
    annotations: Paths | None = None
    images: str = "."
    image_name: str | None = None
    answers: Literal["most_common", "all"] = "most_common"
    per: Literal["question", "image"] = "question"
    instruction: str = ""

    what = "reader 'vqa'"
    known = frozenset((*_QUESTION_IDS, *_IMAGES, *_ANSWERS, *_UNUSED))

    def examples(self, path: str, content: Any, keys: Keys) -> Iterator[Annotated]:
        """Yields the questions, then the answers that have no question."""
        questions = self._questions(path, content)
        answers = self._answers_by_question()
        found = list(self._examples(path, content, questions, answers, keys))
        if found and not any(example.texts for example in found) and any(e.fault == _NO_ANSWER for e in found):
            raise ConfigError(
                f"{self.what}: {path} has questions without answers; set annotations to the file of the answers"
                " (test splits have none)"
            )
        return _by_image(found) if self.per == "image" else iter(found)

    def records(self, example: Annotated, image: Image, place: Place) -> Examples:
        """Yields one record of alternating questions and answers, with the image in the first question."""
        turns: list[Turn] = []
        for question, answer in example.texts:
            first = () if turns else (image, "\n")
            turns += [Turn("user", (*first, question + self.instruction)), Turn("assistant", (answer,))]
        yield Record(example.id, tuple(turns), place)

    def other_files(self) -> Sequence[str]:
        """Returns the answer files."""
        return () if self.annotations is None else expand(self.annotations, self.what)

    def _questions(self, path: str, content: Any) -> list[Any]:
        """Returns the questions of a file. Raises ConfigError if it has none."""
        if isinstance(content, dict):
            for key in ("questions", "data"):
                if key in content:
                    return mappings(content, key, path, self.what)
            if "annotations" in content:
                raise ConfigError(
                    f"{self.what}: {path} holds answers: set annotations to it, and path to the questions"
                )
            content = [{"question_id": key, **value} for key, value in content.items() if isinstance(value, dict)]
        if not isinstance(content, list):
            raise ConfigError(f"{self.what}: {path} holds no list of questions")
        if content and isinstance(content[0], dict) and "qas" in content[0]:
            content = [question for image in content for question in _of_image(image)]
        if not any(isinstance(question, dict) and "question" in question for question in content[:10]):
            raise ConfigError(f"{self.what}: {path} holds no list of questions")
        return list(content)

    def _answers_by_question(self) -> dict[Any, Any] | None:
        if self.annotations is None:
            return None
        found: dict[Any, Any] = {}
        for path in expand(self.annotations, self.what):
            content = read_json(path, self.what)
            if not isinstance(content, dict):
                raise ConfigError(f"{self.what}: annotations: {path} has no 'annotations'")
            for annotation in mappings(content, "annotations", path, self.what):
                if isinstance(annotation, dict) and isinstance(annotation.get("question_id"), int | str):
                    found[annotation["question_id"]] = annotation
        return found

    def _examples(
        self, path: str, content: Any, questions: list[Any], answers: dict[Any, Any] | None, keys: Keys
    ) -> Iterator[Annotated]:
        subset = content.get("data_subtype") if isinstance(content, dict) else None
        unused = dict.fromkeys(answers or ())
        for line, question in enumerate(questions, start=1):
            name = f"{os.path.basename(path)}:{line}"
            if question is BLANK:
                continue
            try:
                if isinstance(question, Unreadable):
                    raise ValueError(question.reason)
                if not isinstance(question, dict):
                    raise ValueError(f"a question must be a mapping, not {kind(question)}")
                keys.check(question, line)
                found = next((question[key] for key in _QUESTION_IDS if isinstance(question.get(key), int | str)), None)
                name = record_id(found, name)
                unused.pop(found, None)
                annotation = question if answers is None else answers.get(found, {})
                text = question.get("question")
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"'question' must be a text, not {shown(text)}")
                answer = self._answer(annotation)
                yield Annotated(name, line, self._files(question, subset), ((text, answer),))
            except ConfigError:
                raise
            except ValueError as error:
                yield Annotated(name, line, fault=str(error))
        # With several question files, the question of an answer may be in another one.
        if unused and isinstance(self.path, str) and len(expand(self.path, self.what)) == 1:
            for found in unused:
                yield Annotated(str(found), max(1, len(questions)), fault="no question has the id of this answer")

    def _answer(self, annotation: dict[str, Any]) -> str:
        for key in _ANSWERS:
            if (key == "multiple_choice_answer") > (self.answers == "most_common"):
                continue
            given = annotation.get(key)
            texts = [_text(answer) for answer in (given if isinstance(given, list) else [given])]
            counts = Counter(text for text in texts if text)
            if counts:
                ordered = [text for text, _ in counts.most_common()]
                return ordered[0] if self.answers == "most_common" else ", ".join(ordered)
        raise ValueError(_NO_ANSWER)

    def _files(self, question: dict[str, Any], subset: Any) -> tuple[str, ...]:
        image = next((question[key] for key in _IMAGES if isinstance(question.get(key), int | str)), None)
        if image is None or image == "":
            raise ValueError(f"it names no image; one of {', '.join(_IMAGES)} must")
        return tuple(os.path.join(self.images, name) for name in _file_names(image, self.image_name, subset))


def _of_image(image: Any) -> list[Any]:
    """Returns the questions of a Visual Genome image. Without a list of questions, returns the value in a list."""
    questions = image.get("qas") if isinstance(image, dict) else None
    return questions if isinstance(questions, list) else [image]


def _file_names(image: int | str, template: str | None, subset: Any) -> tuple[str, ...]:
    """Returns the possible file names of an image."""
    if template is not None:
        try:
            return (template.format(image_id=image),)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise ConfigError(f"reader 'vqa': image_name {template!r} cannot name image {image!r}: {error}") from None
    if isinstance(image, str):
        return (image,) if os.path.splitext(image)[1] else (f"{image}.jpg", f"{image}.png")
    # The file names of COCO 2017 consist of the image id alone, without the prefix of COCO 2014.
    names = (f"{image:012d}.jpg", f"{image}.jpg")
    return (f"COCO_{subset}_{image:012d}.jpg", *names) if isinstance(subset, str) else names


def _by_image(examples: list[Annotated]) -> Iterator[Annotated]:
    """Joins the questions of each image, in the order of each image's first question."""
    joined: dict[Any, list[Annotated]] = {}
    for number, example in enumerate(examples):
        joined.setdefault(number if example.fault else example.images, []).append(example)
    for group in joined.values():
        first = group[0]
        texts = tuple(text for example in group for text in example.texts)
        yield Annotated(first.id, first.line, first.images, texts, first.fault)


def _text(answer: Any) -> str:
    if isinstance(answer, dict):
        answer = answer.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    return answer.strip() if isinstance(answer, str) else ""

"""Our model in lmms-eval, held to a stub of the interface that its chat models have (0.7.3)."""

import abc
import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from solo.evaluation.scoring.fitting import fitted
from solo.harnesses.answering import Settings
from solo.inference.monolith import Monolith, parse
from solo.inference.prompt import prompt_needs
from tests.harnesses.questions import conversation, question
from tests.tiny import tiny_monolith


class Lmms(abc.ABC):
    """`lmms_eval.api.model.lmms`, as far as models see it."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cached = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *given: self.cached.append(given))
        self.task_dict = {}

    rank = property(lambda self: self._rank)

    @staticmethod
    def _resolve_system_prompt(value):
        return value

    def _apply_system_prompt(self, messages, system_prompt):
        if system_prompt:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
        return messages

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@pytest.fixture(scope="module")
def monolith(tiny_tokenizer):
    return tiny_monolith(tiny_tokenizer)


@pytest.fixture
def make(monkeypatch, monolith):
    """Returns a function that makes our model as lmms-eval does."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model")
    modules = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.model"].lmms = Lmms
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "solo.harnesses.lmms", raising=False)
    monkeypatch.setattr("solo.load", lambda path, weights: monolith)
    module = importlib.import_module("solo.harnesses.lmms")

    def made(**arguments):
        return module.Solo(**{"pretrained": "runs/x", "max_batch_size": None, "device": None} | arguments)

    yield made
    sys.modules.pop("solo.harnesses.lmms")


def requests_of(model, settings):
    """Returns a task's requests; the documents are numbers of questions."""
    model.task_dict = {"task": {"test": list(range(len(settings)))}}

    def messages(number):
        image, words = conversation(number)[0]["content"]
        return [
            {"role": "user", "content": [{"type": "image", "url": image["image"]}, {"type": "text", "text": words}]}
        ]

    return [
        SimpleNamespace(args=(question(number), messages, given, number, "task", "test"))
        for number, given in enumerate(settings)
    ]


GREEDY = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "num_beams": 1, "top_p": None}
SHORT = {"max_gen_toks": 3, "until": ["\n\n"]}


def test_answers_are_ours_in_the_order_of_the_requests(make, monolith):
    model = make(batch_size="2")
    settings = [GREEDY, SHORT, GREEDY, GREEDY, SHORT]
    found = model.generate_until(requests_of(model, settings))
    # The same calls as the model's, so that they compile once.
    longer = monolith.generate([conversation(number) for number in (0, 2, 3)], 6, batch_rows=2)
    shorter = monolith.generate([conversation(number) for number in (1, 4)], 3, batch_rows=2)
    written = [longer[0], shorter[0], longer[1], longer[2], shorter[1]]
    assert found == [text.strip() for text in written] != written
    assert len(set(found)) == len(found)
    assert model.cached == [("generate_until", (question(n), settings[n]), text) for n, text in enumerate(found)]
    assert not model.is_simple


def test_prompts_are_made_to_fit_as_solo_evaluate_makes_them(make, monolith, capsys):
    """Five pictures of several sizes: some prompts fit, some fit with a smaller picture, and no prompt of 8 does."""
    prompts = [monolith.runs(turns, open_turn=True) for turns in parse([conversation(number) for number in range(5)])]
    whole = prompt_needs(prompts, monolith.config.image).sum(axis=1)
    context = int(np.median(whole)) + 6
    fit = fitted(prompts, monolith.config.image, context, 6)
    assert 0 < len(fit.smaller) < 5
    assert not fit.too_long

    def answers(count, **arguments):
        model = make(batch_size="2", **arguments)
        return model.generate_until(requests_of(model, [GREEDY] * count))

    found = answers(5, context=context)
    for number, text in enumerate(found):
        image = fit.smaller.get(number, monolith.config.image)
        alone = Monolith(
            monolith.config.model_copy(update={"image": image}), monolith.tokenizer, monolith.parameters, monolith.mesh
        )
        assert text == alone.generate([conversation(number)], 6)[0].strip()
    assert f"solo: {len(fit.smaller)} of 5 prompts do not fit" in capsys.readouterr().err
    assert answers(2, context=8) == ["", ""]


def test_the_separator_of_examples_does_not_end_an_answer(make):
    model = make()
    for until, wanted in ((["\n\n"], ()), (["</answer>"], ("</answer>",)), (["\n\n", "Q:"], ("\n\n", "Q:"))):
        (request,) = requests_of(model, [{"max_new_tokens": 4, "until": until}])
        assert model._request(*request.args)[1] == Settings(4, until=wanted)


def test_a_system_prompt_begins_every_conversation(make, monolith):
    model = make(system_prompt="of")
    found = model.generate_until(requests_of(model, [GREEDY]))
    prompted, plain = monolith.generate([[{"role": "system", "content": "of"}, *conversation(0)], conversation(0)], 6)
    assert found == [prompted.strip()] != [plain.strip()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 3}, "task task: solo has no beam search"),
        ({"max_new_tokens": 4, "best_of": 2}, "does not know the generation settings best_of"),
    ],
)
def test_what_a_task_asks_for_and_cannot_have(make, given, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        model.generate_until(requests_of(model, [given]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": ""}, "pretrained=PATH is missing"),
        ({"modle": "x"}, "does not know modle"),
        ({"batch_size": "auto"}, "--batch_size must be a number"),
    ],
)
def test_arguments_are_checked(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_several_processes_are_refused(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start one process"):
        make()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Settings(9)),
        ({"do_sample": True}, Settings(9, 1.0)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, Settings(9)),
        ({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 4}, Settings(4, 0.7, 0.9)),
        ({"until": "\n", "use_cache": True}, Settings(9, until=("\n",))),
    ],
)
def test_generation_settings(given, wanted):
    assert Settings.of(given, 9) == wanted


@pytest.mark.parametrize(
    ("until", "wanted"), [((), "a b\nc d"), (("\n",), "a b"), (("d", " b"), "a"), (("z",), "a b\nc d"), (("a",), "")]
)
def test_an_answer_ends_before_the_first_text_of_until(until, wanted):
    assert Settings(9, until=until).cut(" a b\nc d\n") == wanted

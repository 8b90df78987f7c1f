"""Our model in VLMEvalKit, held to a stub of the interface that its models have."""

import importlib
import json
import sys
from types import ModuleType

import pytest

from tests.harnesses.questions import conversation, question, size
from tests.tiny import picture, tiny_monolith


class BaseModel:
    """`vlmeval.vlm.base.BaseModel`, as far as models see it."""

    INTERLEAVE = False
    allowed_types = ("text", "image", "video")

    def __init__(self):
        self.dump_image_func = None

    def use_custom_prompt(self, dataset):
        return False

    def generate(self, message, dataset=None):
        for item in message:
            assert item["type"] in self.allowed_types, f"Invalid input type: {item['type']}"
        return self.generate_inner(message, dataset)


@pytest.fixture(scope="module")
def monolith(tiny_tokenizer):
    return tiny_monolith(tiny_tokenizer)


@pytest.fixture
def module(monkeypatch, monolith):
    modules = {name: ModuleType(name) for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base")}
    modules["vlmeval.vlm.base"].BaseModel = BaseModel
    modules["vlmeval"].vlm = modules["vlmeval.vlm"]
    for name, stub in modules.items():
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.delitem(sys.modules, "solo.harnesses.vlmevalkit", raising=False)
    monkeypatch.setattr("solo.load", lambda path, weights: monolith)
    yield importlib.import_module("solo.harnesses.vlmevalkit")
    sys.modules.pop("solo.harnesses.vlmevalkit")


def test_an_answer_is_ours(module, monolith, tmp_path):
    picture(*size(3), 3).save(tmp_path / "3.png")
    message = [{"type": "image", "value": str(tmp_path / "3.png")}, {"type": "text", "value": question(3)}]
    model = module.Solo("runs/x", max_new_tokens=6)
    answer = model.generate(message, dataset="MMStar")
    assert answer == monolith.generate([conversation(3)], 6)[0].strip()
    turns = [
        {"role": "user", "content": message},
        {"role": "assistant", "content": [{"type": "text", "value": answer}]},
    ]
    again = model.chat_inner([*turns, {"role": "user", "content": [{"type": "text", "value": "how"}]}])
    asked = [*conversation(3), {"role": "assistant", "content": answer}, {"role": "user", "content": "how"}]
    assert again == monolith.generate([asked], 6)[0].strip()


def test_videos_are_refused(module):
    with pytest.raises(AssertionError, match="Invalid input type: video"):
        module.Solo("runs/x").generate([{"type": "video", "value": "a.mp4"}])


def test_run_py_finds_the_class_and_its_arguments(module, tmp_path, monkeypatch):
    """VLMEvalKit looks its classes up in `vlmeval.vlm`."""
    file = tmp_path / "run.py"
    file.write_text(
        "import json, sys, vlmeval.vlm, beside\n"
        "assert __name__ == '__main__'\n"
        "json.dump([sys.argv[1:], vlmeval.vlm.Solo.__name__], open(beside.OUT, 'w'))\n"
    )
    (tmp_path / "beside.py").write_text(f"OUT = {str(tmp_path / 'out.json')!r}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["vlmevalkit.py", str(file), "--data", "MMStar"])
    module.main()
    sys.modules.pop("beside")
    assert json.loads((tmp_path / "out.json").read_text()) == [["--data", "MMStar"], "Solo"]


def test_usage(module, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vlmevalkit.py", "nothing.py"])
    with pytest.raises(SystemExit, match="usage"):
        module.main()

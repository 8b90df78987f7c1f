"""An exported native repository is used with transformers alone, in a process without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from solo.interop.export import export
from tests.interop.runs import SECTIONS, saved_run

pytest.importorskip("torch")
pytest.importorskip("transformers")

USE = """
import socket, sys

def refuse(*arguments, **options):
    raise OSError("there is no network")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse

import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor,
    AutoTokenizer,
)

folder, again = sys.argv[1:]
trusted = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trusted)
assert config.hidden_size == 32 and config.num_hidden_layers == 2, config
tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
assert len(tokenizer) == config.vocab_size == 311
AutoImageProcessor.from_pretrained(folder, **trusted)
base = AutoModel.from_pretrained(folder, **trusted).eval()
causal = AutoModelForCausalLM.from_pretrained(folder, **trusted).eval()
model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", **trusted).eval()
processor = AutoProcessor.from_pretrained(folder, **trusted)
assert model.config._attn_implementation == "eager" and causal.config._attn_implementation == "sdpa"
assert processor.image_token == "<image>" and processor.image_token_id == config.image_token_id == 310

picture = Image.new("RGB", (20, 9), (200, 30, 90))
first = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is this?"}]}
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
inputs = processor.apply_chat_template([first], processor_kwargs={"return_mm_token_type_ids": True}, **options)
types = inputs.pop("mm_token_type_ids")[0]
visual = inputs["input_ids"][0] == config.image_token_id
# 2 rows of 3 patches; begin, row and end token count as the image's
assert int(visual.sum()) == 6 == len(inputs["pixel_values"]) and int(types.sum()) == 9, (visual, types)
(count,) = processor._get_num_multimodal_tokens([(9, 20)]).num_image_tokens
assert count == 6

with torch.no_grad():
    logits = model(**inputs).logits
    torch.testing.assert_close(causal(**inputs).logits, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(causal.head(base(**inputs).last_hidden_state), logits, atol=1e-4, rtol=1e-4)
ids = model.generate(**inputs, max_new_tokens=8)
answer = processor.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)

# A batch: two texts of different lengths, three images.
messages = [[first], [{"role": "user", "content": [{"type": "image", "image": picture}] * 2}]]
batch = processor.apply_chat_template(messages, processor_kwargs={"padding": True}, **options)
written = model.generate(**batch, max_new_tokens=8)
assert torch.equal(written[0, batch["input_ids"].shape[1]:][: ids.shape[1]], ids[0, inputs["input_ids"].shape[1]:][:8])

# Two turns in text, the last message left open.
turns = [first, {"role": "assistant", "content": [{"type": "text", "text": "a red"}]}]
open_turn = processor.apply_chat_template([turns], continue_final_message=True, tokenize=False)[0]
assert open_turn.endswith("<|assistant|>a red"), open_turn

model.save_pretrained(again)
processor.save_pretrained(again)
reloaded = AutoModelForImageTextToText.from_pretrained(again, **trusted).eval()
rereader = AutoProcessor.from_pretrained(again, **trusted)
with torch.no_grad():
    found = reloaded(**rereader.apply_chat_template([first], **options)).logits
torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
print("answer:", answer.encode())
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("native")
    run = saved_run(folder / "run", tiny_tokenizer, **SECTIONS["native"])
    export(run, folder / "repository", verified=False)
    return folder / "repository"


def test_auto_classes_load_it_without_a_network(repository, tmp_path):
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": "",  # nothing of this package
    }
    command = [sys.executable, "-c", USE, str(repository), str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "answer: b" in done.stdout


def test_exported_code_does_not_import_this_package(repository):
    for file in repository.glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert lines
        assert not [line for line in lines if line.split()[1].split(".")[0] == "solo"]

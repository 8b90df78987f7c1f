"""Questions on images, and a run with random weights that answers them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from solo.config import TokenizerConfig
from solo.data.text import Tokenizer, train_tokenizer
from tests.tiny import image, picture, save_run, tiny_monolith, user

WORDS = "a the red green blue circle square triangle left right above of is what which colour shape digit this how"
MAX_NEW_TOKENS = 8


def tokenizer() -> Tokenizer:
    words = f"{WORDS} yes no".split()
    texts = [" ".join(words[number:] + words[:number]) + "?" for number in range(len(words))]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=310))


def make_run(folder: Path) -> Path:
    """Saves a model with random weights that writes yes and no only, and sometimes one of them alone."""
    model = tiny_monolith(tokenizer())
    drawn = np.asarray(model.parameters["head"])
    head, (yes, no) = np.zeros_like(drawn), (model.tokenizer.find(f"\u2581{word}") for word in ("yes", "no"))
    head[:, yes], head[:, no] = drawn[:, yes], -drawn[:, yes]
    head[:, model.template.stops[0]] = 3 * drawn[:, no]
    return save_run(model.with_parameters(model.parameters | {"head": head}), folder, 1)


def size(number: int) -> tuple[int, int]:
    return 16 + 5 * (number % 7), 16 + 11 * (number % 4)


def question(number: int) -> str:
    words = WORDS.split()
    return f"which {words[number % 20]} is {words[(3 * number + 1) % 20]}?"


def conversation(number: int, prompt: str = "{}") -> list[dict]:
    return [user(image(*size(number), number), prompt.format(question(number)))]


def write_parquet(file: Path, answers: list[str], **columns: list[str]) -> Path:
    """Writes a table in the form of Hugging Face datasets: `image` is {"bytes", "path"}."""

    def png(number: int) -> bytes:
        buffer = io.BytesIO()
        picture(*size(number), number).save(buffer, "PNG")
        return buffer.getvalue()

    numbers = range(len(answers))
    texts = {"question": [question(number) for number in numbers], "answer": answers, **columns}
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": png(number), "path": None} for number in numbers], stored)
    table = pa.table({"image": images, **texts})
    text = {"dtype": "string", "_type": "Value"}
    features = {"image": {"_type": "Image"}, **dict.fromkeys(texts, text)}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file

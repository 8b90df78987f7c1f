"""Generation on a mesh: sharded in several ways, and over two processes, it equals that on one device."""

import re
import subprocess
import sys
from functools import cache
from math import prod

import jax
import numpy as np
import pytest

from solo.config import MeshConfig
from solo.inference.decoding import Decoding, row_keys
from solo.inference.monolith import Monolith
from solo.launch.supervisor import _free_port
from solo.model.generate import generate
from solo.model.transformer import padded_vocab
from solo.sharding.generation import make_cache
from solo.sharding.mesh import make_mesh
from tests.inference.test_monolith import CONVERSATIONS, Spelled, random_parameters
from tests.launch.tiny_run import REPOSITORY, environment, outputs
from tests.reference import NEO
from tests.tiny import MODEL, assistant, image, tiny_config, user

MESHES = [
    {"fsdp": 8},
    {"replica": 2, "data": 2, "fsdp": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"fsdp": 1, "context": 8},
]
IDS = [" ".join(f"{axis} {size}" for axis, size in sizes.items()) for sizes in MESHES]


@pytest.fixture(scope="module")
def spelled(tiny_tokenizer, tmp_path_factory) -> Spelled:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save(folder)
    return Spelled((folder / "tokenizer.model").read_bytes())


@cache
def make(spelled, kind: str, **sizes) -> Monolith:
    kinds = {
        "moe": {"experts": {"ffn": "moe"}, "moe": {"count": 4, "top_k": 2}},
        "wide": {"ffn_width": 512},
        "parts": NEO,
    }
    changes = kinds.get(kind, {})
    sequence = {"positions": "separate"} if kind == "parts" else {}
    config = tiny_config("bidirectional", model={**MODEL, "attention_block": 16, **changes}, sequence=sequence)
    devices = jax.devices() if sizes else jax.devices()[:1]
    return Monolith(config, spelled, random_parameters(config, spelled), make_mesh(MeshConfig(**sizes), devices))


CASES = [*(("experts", sizes) for sizes in MESHES), ("parts", MESHES[2])]


@pytest.mark.parametrize(("kind", "sizes"), CASES, ids=[*IDS, "heads in parts"])
def test_answers_are_those_of_one_device(spelled, kind, sizes) -> None:
    alone, spread = make(spelled, kind), make(spelled, kind, **sizes)
    expected = alone.generate(CONVERSATIONS, 6)
    assert spread.generate(CONVERSATIONS, 6) == expected
    assert spread.generate(CONVERSATIONS, 6, prefill_chunk_size=24) == expected
    assert len(set(expected)) > 3


def test_drawn_answers_are_those_of_one_device(spelled) -> None:
    alone, spread = make(spelled, "experts"), make(spelled, "experts", **MESHES[2])
    drawn = {"max_new_tokens": 4, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    texts = [[user("which")], [user("what is this?")]]
    assert spread.generate(texts, **drawn) == alone.generate(texts, **drawn)


def test_a_router_on_a_mesh_answers_as_on_one_device(spelled) -> None:
    alone, spread = make(spelled, "moe"), make(spelled, "moe", **MESHES[2])
    assert spread.generate(CONVERSATIONS, 4) == alone.generate(CONVERSATIONS, 4)


def test_a_session_is_that_of_one_device(spelled) -> None:
    sessions = [make(spelled, "experts", **each).session() for each in ({}, MESHES[2])]
    for content in ([image(20, 30, 0), "which"], [image(9, 9, 2), "what"]):
        alone, spread = (session.say(content, 4) for session in sessions)
        assert alone == spread


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=IDS)
def test_losses_and_gradients_are_those_of_one_device(spelled, sizes) -> None:
    alone, spread = make(spelled, "experts"), make(spelled, "experts", **sizes)
    batch = alone.batch([[*CONVERSATIONS[0], assistant("a circle")], CONVERSATIONS[4]])
    (loss, grads), (other, spread_grads) = alone.loss_and_grads(batch), spread.loss_and_grads(batch)
    assert other == pytest.approx(loss, rel=1e-5)
    for path, value in grads.items():
        np.testing.assert_allclose(spread_grads[path], value, atol=1e-4 * max(1, abs(value).max()), err_msg=path)
    np.testing.assert_allclose(spread.logits(batch), alone.logits(batch), atol=1e-3)


def test_decoding_moves_no_weight(spelled) -> None:
    """The largest array that a collective returns is a hidden state of all rows, in the decoding loop and before it."""
    model, rows = make(spelled, "wide", fsdp=8), 8
    config, keys = model.config, row_keys(model.mesh, 0, np.arange(rows))
    vocab = padded_vocab(model.definition.vocab_size, config.model)
    text = (
        generate.lower(
            model.definition,
            model.generation.decode,
            model.parameters,
            make_cache(model.mesh, config.model, rows, 48, 72),
            jax.ShapeDtypeStruct((rows, vocab), np.float32, sharding=keys.sharding),
            keys,
            Decoding(8).sampling(model),
            np.int32(8),
            slots=8,
            greedy=True,
        )
        .compile()
        .as_text()
    )
    found = re.findall(r" = (.*?) (all-gather|all-to-all|reduce-scatter)(?:-start)?\(", text)
    assert {opcode for _, opcode in found} == {"all-gather", "all-to-all", "reduce-scatter"}
    received = [
        prod(map(int, shape.split(","))) for shapes, _ in found for shape in re.findall(r"\[([\d,]+)\]", shapes)
    ]
    assert max(received) <= rows * max(config.model.ffn_width, config.model.width, vocab)


_TWO = """
import sys
import jax
import numpy as np
from solo.training.distributed import join, leave
join()
me = jax.process_index()
from solo.config import MeshConfig
from solo.data.record import Image
from solo.inference.monolith import Monolith
from solo.sharding.mesh import make_mesh
from tests.inference.test_mesh import MESHES
from tests.inference.test_monolith import CONVERSATIONS, Spelled, random_parameters
from tests.tiny import MODEL, picture, tiny_config, user
spelled = Spelled(open(sys.argv[1], "rb").read())
config = tiny_config("bidirectional", model={**MODEL, "attention_block": 16})
weights = random_parameters(config, spelled)
alone = Monolith(config, spelled, weights, make_mesh(MeshConfig(), jax.local_devices()[:1]))
for sizes in MESHES[::2]:
    spread = Monolith(config, spelled, weights, make_mesh(MeshConfig(**sizes)))
    assert not spread.parameters["layers/ffn/text/up"].is_fully_addressable
    assert spread.generate(CONVERSATIONS, 6) == alone.generate(CONVERSATIONS, 6), sizes
    assert spread.generate(CONVERSATIONS, 6, prefill_chunk_size=12) == alone.generate(CONVERSATIONS, 6), sizes
    batch = alone.batch(CONVERSATIONS[3:])
    np.testing.assert_allclose(spread.loss_and_grads(batch)[0], alone.loss_and_grads(batch)[0], rtol=1e-5)
sessions = [each.session() for each in (alone, spread)]
assert len({session.say("what", 4) for session in sessions}) == 1
# An image that only the second process decodes.
import io
good = io.BytesIO(); picture(16, 16, 0).save(good, "png")
broken = bytearray(good.getvalue()); broken[60:90] = bytes(30)
spread = Monolith(config, spelled, weights, make_mesh(MeshConfig()))
try:
    spread.generate([[user("what")]] * 7 + [[user({"type": "image", "image": bytes(broken)})]], 2)
    sys.exit("not refused")
except ValueError as error:
    assert "conversation 7: an image cannot be decoded" in str(error), error
leave()
print("fine")
"""


@pytest.mark.slow
def test_two_processes_answer_as_one(spelled, tmp_path) -> None:
    spelled.save(tmp_path)
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO, str(tmp_path / "tokenizer.model")],
            env={**environment(), **variables, "JAX_NUM_CPU_DEVICES": "4", "JAX_PROCESS_ID": str(number)},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert all("fine" in out for out, _ in said)

"""The public API against the reference model (tests/reference.py)."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import solo
from solo.config import Config, MeshConfig, dump_config
from solo.data.planning.row_shape import RowShape
from solo.data.readers.conversations import parse_conversation
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import PATCH, TextRun, encode, runs
from solo.data.text import Tokenizer, extend_tokenizer
from solo.data.text.sentencepiece_model import SentencePieceTokenizer
from solo.data.text.templates import InternLM2Chat
from solo.inference.decoding import Decoding, allowed_tokens
from solo.inference.monolith import Monolith
from solo.inference.prompt import by_length, in_order, parse, prompt_needs
from solo.model import by_layer
from solo.model.generate import generate
from solo.model.parameters import define
from solo.model.transformer import padded_vocab
from solo.sharding.mesh import make_mesh
from solo.training.checkpoint import CheckpointError
from tests.reference import forward, loss_sum
from tests.tiny import MODEL, assistant, image, picture, save_run, tiny_config, tiny_monolith, user

LONGEST = 120

CONVERSATIONS = [
    [user(image(20, 30, 0), "what is this?")],
    [user("which")],
    [{"role": "text", "content": [image(64, 30, 1), "a red"]}],
    [
        {"role": "system", "content": "of"},
        user(image(20, 30, 0), "what is this?"),
        assistant("a circle"),
        user("how", image(16, 16, 2), "this", image(8, 40, 3)),
    ],
    [user(image(20, 30, 0), "what is this?"), assistant("a ")],
]


class Spelled(SentencePieceTokenizer):
    """Decodes to the ids, because different answers of an untrained model often decode to the same text."""

    def extended(self, tokens) -> "Spelled":
        return Spelled(super().extended(tokens)._model)

    def decode(self, ids) -> str:
        return " ".join(str(int(token)) for token in ids)


@pytest.fixture(scope="module")
def spelled(tiny_tokenizer, tmp_path_factory) -> Spelled:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save(folder)
    return Spelled((folder / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def model(spelled) -> Monolith:
    return tiny_monolith(spelled)


@pytest.fixture(scope="module")
def answers(model) -> list[str]:
    return model.generate(CONVERSATIONS, 6)


def reference_logits(model: Monolith, document) -> np.ndarray:
    """The reference model's logits [N, V]. The document is padded with text, so that one length is compiled."""
    ids = model.tokenizer.special
    filler = encode(
        [TextRun((ids.bos,) * (LONGEST - len(document.tokens)), False)], model.tokenizer, model.config.image
    )
    padded = type(document)(
        np.concatenate([document.tokens, filler.tokens]),
        np.concatenate([document.supervised, filler.supervised]),
        np.concatenate([document.image, filler.image]),
        document.patches,
        document.patch_grid,
    )
    parameters = jax.device_get(model.parameters)
    return np.asarray(forward(parameters, model.config.model, model.config.image, padded))[: len(document.tokens)]


def reference_continuation(model: Monolith, parts: list, count: int) -> list[int]:
    """Greedy decoding with the reference model, without a cache."""
    tokenizer, stops = model.tokenizer, model.template.stops
    allowed = allowed_tokens(tokenizer, padded_vocab(tokenizer.vocab_size, model.config.model), stops)
    found: list[int] = []
    while len(found) < count and not set(stops) & set(found):
        document = encode([*parts, TextRun(tuple(found), False)], tokenizer, model.config.image)
        found.append(int(np.where(allowed, reference_logits(model, document)[-1], -np.inf).argmax()))
    return found


# ----------------------------------------------------------------------------------------- generation


def test_answers_are_those_of_full_recomputation(model, answers) -> None:
    for conversation, answer in zip(CONVERSATIONS, answers, strict=True):
        parts = runs(parse_conversation(conversation), model.tokenizer, open_turn=True)
        assert answer == model.tokenizer.decode(reference_continuation(model, parts, 6))
    assert len(set(answers)) > 3


@pytest.mark.parametrize(
    ("attention", "sequence", "model_changes"),
    [
        ("causal", {"sliding_window": 10}, {}),
        ("prefix", {"positions": "grid"}, {"rope_sections": [0, 2, 2]}),
        ("causal", {}, {"experts": {"ffn": "moe"}, "moe": {"count": 4, "top_k": 2}}),
    ],
    ids=["window", "grid positions", "moe"],
)
def test_decoding_with_a_cache_equals_decoding_without(spelled, attention, sequence, model_changes) -> None:
    config = tiny_config(attention, sequence=sequence, model={**MODEL, **model_changes})
    other = Monolith(config, spelled, random_parameters(config, spelled), one_device())
    answers = other.generate(CONVERSATIONS[:4], 6)
    for conversation, answer in zip(CONVERSATIONS[:4], answers, strict=True):
        parts = other.template.runs(parse_conversation(conversation), open_turn=True)
        assert answer == other.tokenizer.decode(read_anew(other, parts, 6))
    assert len(set(answers)) > 2


def random_parameters(config: Config, tokenizer: Tokenizer) -> dict:
    rng = np.random.default_rng(0)
    specs = define(config, tokenizer.vocab_size).specs
    return {path: np.float32(("norm" in path) + 0.3 * rng.normal(size=spec.shape)) for path, spec in specs.items()}


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def read_anew(model: Monolith, parts: list, count: int) -> list[int]:
    """Greedy decoding with the model itself, without a cache."""
    stops, image = set(model.template.stops), model.config.image
    allowed = allowed_tokens(model.tokenizer, model.tokenizer.vocab_size, model.template.stops)
    found: list[int] = []
    while len(found) < count and not stops & set(found):
        document = encode([*parts, TextRun(tuple(found), False)], model.tokenizer, image)
        # One shape for all lengths; the slots after the document are empty.
        shape = RowShape(40, 100, 32)
        batch = stack([assemble_row([(document, 0)], shape, image, 0, model.config.sequence)])
        last = shape.patch_slots + int((document.tokens != PATCH).sum()) - 1
        found.append(int(np.where(allowed, model.logits(batch)[0, last], -np.inf).argmax()))
    return found


@pytest.mark.parametrize(
    ("attention", "sequence"), [("causal", {"sliding_window": 10}), ("prefix", {}), ("bidirectional", {})]
)
def test_prompts_read_in_chunks_get_the_same_answers(spelled, attention, sequence) -> None:
    config = tiny_config(attention, sequence=sequence)
    model = Monolith(config, spelled, random_parameters(config, spelled), one_device())
    expected = model.generate(CONVERSATIONS, 6)
    for size in (1, 12):
        assert model.generate(CONVERSATIONS, 6, prefill_chunk_size=size) == expected
    assert model.session(12).say("what is this?") == model.generate([[user("what is this?")]])[0]
    assert len(set(expected)) > 3


def test_similar_lengths_share_a_compilation(model) -> None:
    def asked(words: int, width: int, new_tokens: int) -> list[int]:
        model.generate([[user(image(width, 24, 0), "what " * words)]], new_tokens)
        return [each._cache_size() for each in (generate, by_layer._embed, by_layer._layer, by_layer._last_layer)]

    # Buckets: 33 to 48 text tokens, 9 to 12 patches, and 25 to 32 tokens of an answer.
    before = asked(22, 24, 25)
    assert asked(37, 24, 32) == before
    assert asked(30, 32, 29) == before
    assert asked(30, 24, 33) == [before[0] + 1, *before[1:]]
    assert asked(38, 24, 32) != before


def test_an_answer_does_not_depend_on_the_others(model, answers) -> None:
    assert model.generate(CONVERSATIONS[::-1], 6) == answers[::-1]


def test_batches_by_length_give_the_same_answers_and_say_which_were_cut(model, answers) -> None:
    prompts = [model.runs(turns, open_turn=True) for turns in parse(CONVERSATIONS)]
    plan = by_length(prompt_needs(prompts, model.config.image), rows=2)
    assert [number for batch in plan for number in batch.numbers] != list(range(len(prompts)))
    found = {
        number: answer
        for batch, written in model.answer(prompts, plan, 2, Decoding(6))
        for number, answer in zip(batch.numbers, written, strict=True)
    }
    assert [found[number].text for number in range(len(prompts))] == answers
    stops = {str(stop) for stop in model.template.stops}
    for answer in found.values():
        assert answer.tokens == len(answer.text.split()) <= 6
        assert answer.cut == (answer.text.split()[-1] not in stops)
    # An image that is made smaller is another prompt.
    smaller = model.config.image.model_copy(update={"max_side": 16})
    plan = in_order(prompt_needs(prompts[2:3], smaller), 1)
    ((_, (other,)),) = model.answer(prompts[2:3], plan, 1, Decoding(6), smaller={0: smaller})
    assert other.text != answers[2]


def test_log_probabilities_are_those_of_the_logits(model) -> None:
    batch = model.batch([[*CONVERSATIONS[0], assistant("a circle")], [{"role": "text", "content": "a red square"}]])
    found = model.log_probabilities(batch)
    logits = model.logits(batch).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    rows, places = np.nonzero(batch.target_weights)
    chosen = expected[rows, batch.target_slots[rows, places], batch.target_ids[rows, places]]
    np.testing.assert_allclose(found[rows, places], chosen, atol=1e-4)
    assert (found[batch.target_weights == 0] == 0).all()
    assert len(rows) > 5


def test_draws_depend_on_the_seed_and_not_on_the_batch(model) -> None:
    conversations = CONVERSATIONS + [CONVERSATIONS[3]] * 3
    settings = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9}
    done = []
    once = model.generate(conversations, **settings, seed=3)
    in_batches = model.generate(
        conversations[:7], **settings, seed=3, batch_rows=4, progress=lambda *counts: done.append(counts)
    )
    assert in_batches == once[:7]
    assert done == [(4, 7), (7, 7)]
    assert model.generate(conversations, **settings, seed=4) != once
    assert len(set(once[5:])) > 1


class Brief(InternLM2Chat):
    """Has many stop tokens, so that most answers end at one at which decoding itself does not stop."""

    @property
    def stops(self) -> tuple[int, ...]:
        return (*super().stops, *range(40, 300, 2))


@pytest.mark.parametrize(
    ("attention", "name"),
    [("causal", "roles"), ("causal", "solo_chat"), ("bidirectional", "internlm2_chat"), ("causal", "brief")],
)
def test_a_session_is_one_long_conversation(spelled, attention, name) -> None:
    tokenizer = extend_tokenizer(spelled, ["<|im_start|>", "<|im_end|>"]) if "i" in name else spelled
    config = tiny_config(attention, sequence={"template": "internlm2_chat" if name == "brief" else name})
    model = tiny_monolith(tokenizer, config)
    if name == "brief":
        model.template = Brief(tokenizer)
    session, template = model.session(None if name == "brief" else 9), model.template
    contents = (
        [image(20, 30, 0), "which"],
        [image(20, 30, 1), "what", image(9, 9, 2), "is"],
        ["how", image(8, 8, 3)],
    )
    # Longer than the next turn, so that tokens decoded after an answer's end would get in its way.
    count = 40 if name == "brief" else 5
    parts: list = []
    ended = []
    for number, content in enumerate(contents):
        # A turn that cannot be read changes nothing.
        with pytest.raises(ValueError, match="cannot be decoded"):
            session.say(["how", {"type": "image", "image": b"no image"}], 5)
        with pytest.raises(ValueError, match="temperature"):
            session.say("how", 5, temperature=-1)
        answer = session.say(content, count)
        parts += template.runs(parse_conversation([user(*content)]), open_turn=True, continued=number > 0)
        expected = reference_continuation(model, parts, count)
        assert answer == tokenizer.decode(expected)
        ended.append(expected[-1] in template.stops)
        parts.append(TextRun((*expected, *template.closing[ended[-1] :]), False))
    assert any(ended) or name != "brief"


def test_answers_contain_no_special_tokens(model, tiny_tokenizer) -> None:
    found = tiny_monolith(tiny_tokenizer).generate(CONVERSATIONS, 6, temperature=20.0)
    assert any(found)
    assert not any(token in text for text in found for token in ("<s>", "<vision>", "<|user|>", "<pad>"))
    allowed = allowed_tokens(model.tokenizer, 384, model.template.stops)
    assert allowed[model.tokenizer.special.eos]
    special = [model.tokenizer.id(token) for token in ("<s>", "<unk>", "<|user|>", "<vision>", "<pad>")]
    assert not allowed[[*special, 310, 383]].any()


def test_no_conversation_gives_no_answer(model) -> None:
    assert model.generate([]) == []


# --------------------------------------------------------------------------------- logits, loss, grads


def test_logits_are_in_slot_order(model) -> None:
    batch = model.batch(CONVERSATIONS)
    logits = model.logits(batch)
    num_patches = batch.patches.shape[1]
    assert logits.shape == (5, num_patches + batch.text.shape[1], model.tokenizer.vocab_size)
    assert logits.dtype == np.float32
    for row, conversation in enumerate(CONVERSATIONS):
        document = encode(runs(parse_conversation(conversation), model.tokenizer), model.tokenizer, model.config.image)
        expected, is_patch = reference_logits(model, document), document.tokens == PATCH
        slot = np.where(is_patch, np.cumsum(is_patch) - 1, num_patches + np.cumsum(~is_patch) - 1)
        np.testing.assert_allclose(logits[row, slot], expected[:, : model.tokenizer.vocab_size], atol=1e-4)


def test_loss_and_grads_equal_those_of_the_reference_model(model) -> None:
    conversations = CONVERSATIONS[3:4]
    documents = [
        encode(runs(parse_conversation(conversation), model.tokenizer), model.tokenizer, model.config.image)
        for conversation in conversations
    ]

    def plain(parameters):
        sums = [
            loss_sum(parameters, model.config.model, model.config.image, document, model.tokenizer.vocab_size)
            for document in documents
        ]
        return sum(total for total, _ in sums) / sum(count for _, count in sums)

    expected, expected_grads = jax.jit(jax.value_and_grad(plain))(jax.device_get(model.parameters))
    loss, grads = model.loss_and_grads(model.batch(conversations))
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert grads.keys() == expected_grads.keys() == model.parameters.keys()
    for path, grad in grads.items():
        scale = np.abs(expected_grads[path]).max() + 1e-6
        np.testing.assert_allclose(grad / scale, expected_grads[path] / scale, atol=1e-5, err_msg=path)


def test_several_devices_agree_with_one(model, answers, spelled) -> None:
    spread = tiny_monolith(spelled, devices=2)
    assert any(not value.is_fully_replicated for value in spread.parameters.values())
    assert spread.generate(CONVERSATIONS, 6) == answers
    batch = model.batch(CONVERSATIONS)
    np.testing.assert_allclose(spread.logits(batch), model.logits(batch), atol=1e-4)


# ---------------------------------------------------------------------------------------------- load


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    return save_run(model, tmp_path_factory.mktemp("runs") / "tiny", 1, 9, 10)


def test_load_takes_the_newest_checkpoint(run, model) -> None:
    (run / "checkpoints" / "11").mkdir(exist_ok=True)  # one that is being written
    loaded = solo.load(run)
    assert loaded.config == model.config
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    for path, value in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[path], value * 10, err_msg=path)
    assert (run / "checkpoints" / "11").is_dir()


def test_load_takes_the_checkpoint_it_is_given(run, model) -> None:
    loaded = solo.load(str(run / "checkpoints" / "9"))
    for path, value in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[path], value * 9, err_msg=path)


def test_load_says_what_is_wrong(run, model, tmp_path) -> None:
    with pytest.raises(ValueError, match="no_such_run is not a folder; expected a run"):
        solo.load(tmp_path / "no_such_run")
    with pytest.raises(ValueError, match=r"is not a run of solo: it has no config\.yaml"):
        solo.load(tmp_path)
    with pytest.raises(ValueError, match="has no complete checkpoint yet"):
        solo.load(save_run(model, tmp_path / "new"))
    (run / "checkpoints" / "12").mkdir()
    with pytest.raises(ValueError, match="12 is not a complete checkpoint"):
        solo.load(run / "checkpoints" / "12")


def test_load_refuses_another_models_weights(run, model, tmp_path) -> None:
    other = save_run(model, tmp_path / "other", 1)
    config = tiny_config(model={**model.config.model.model_dump(mode="json"), "ffn_width": 64})
    (other / "config.yaml").write_text(dump_config(config))
    with pytest.raises(CheckpointError, match=r"layers/ffn/text/up.*48.*64"):
        solo.load(other)


# -------------------------------------------------------------------------------------------- errors


def test_bad_input_is_reported_with_its_place(model, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"conversation 0 is a dict; .*single conversation into a list"):
        model.generate([user("what")][0:1])
    with pytest.raises(ValueError, match=r"conversation 1: message 1: the file does not exist: .*gone\.png"):
        model.generate([[user("what")], [user({"type": "image", "image": str(tmp_path / "gone.png")})]])
    with pytest.raises(ValueError, match="conversation 1: an image cannot be read"):
        model.generate([[user("what")], [user({"type": "image", "image": b"GIF89a but no more"})]])
    broken = bytearray(_png())
    broken[60:90] = bytes(30)
    with pytest.raises(ValueError, match="conversation 0: an image cannot be decoded"):
        model.generate([[user({"type": "image", "image": bytes(broken)})]])
    with pytest.raises(ValueError, match="conversation 0: a turn is a mapping"):
        model.batch([["what"]])
    with pytest.raises(ValueError, match="no conversation"):
        model.batch([])


def _png() -> bytes:
    from solo.data.record import encode_png

    return encode_png(picture(16, 16, 0)).data


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"batch_rows": 0},
        {"prefill_chunk_size": 0},
        {"max_new_tokens": 1.5},
        {"batch_rows": True},
        {"prefill_chunk_size": "8"},
    ],
)
def test_settings_out_of_range_are_refused(model, setting) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        model.generate([[user("what")]], **setting)
    if "prefill_chunk_size" in setting:
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            model.session(**setting)


def test_importing_solo_imports_no_jax() -> None:
    check = "import sys, solo; assert 'jax' not in sys.modules and 'load' in solo.__all__; solo.nothing"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert "AttributeError: module 'solo' has no attribute 'nothing'" in found.stderr

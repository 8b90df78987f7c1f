"""Loads a SOLO repository like the published one, with its tokenizer, and generates."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from sentencepiece import sentencepiece_model_pb2

import solo
from solo.inference.monolith import Monolith
from tests.data.vocabularies import foreign_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = [
    "<vision>",
    "<vpatch>",
    "<vrow_sep>",
    "<vframe_sep>",
    "</vision>",
    *(f"<loc_{n}>" for n in range(1, 9)),
]
NEW_TOKENS = 8


def published_tokenizer() -> tuple[bytes, dict[str, int]]:
    """The authors append tokens of type NORMAL at the end."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(foreign_model())
    ids = {}
    for name in TOKENS:
        ids[name] = len(proto.pieces)
        proto.pieces.add(piece=name, score=0.0, type=proto.SentencePiece.NORMAL)
    return bytes(proto.SerializeToString()), ids


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Returns (folder, stock Mistral with the same weights, projection, ids of the tokens)."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("solo")
    tokenizer, ids = published_tokenizer()
    (folder / "tokenizer.model").write_bytes(tokenizer)
    torch.manual_seed(1)
    vocab = ids["<loc_8>"] + 1
    config = transformers.MistralConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        sliding_window=4097,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    mistral = transformers.MistralForCausalLM(config).eval()
    projection = torch.randn(32, 3072) * 0.02
    tensors = {**mistral.state_dict(), "model.embed_vision_patch.weight": projection}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    published = config.to_dict() | {
        "architectures": ["SoloForCausalLM"],
        "vision_patch_size": 32,
        "sliding_window": 4096,
    }
    (folder / "config.json").write_text(json.dumps(published))
    return folder, mistral, projection, ids


@pytest.fixture(scope="module")
def model(published) -> Monolith:
    return solo.load(published[0])


def test_published_ids_are_kept_and_text_never_produces_them(published, model) -> None:
    ids = published[3]
    assert [model.tokenizer.id(token) for token in ("<vision>", "<vrow_sep>")] == [ids["<vision>"], ids["<vrow_sep>"]]
    assert model.placeholder_id == ids["<vpatch>"] == model.config.model.patch_embed.token_id
    assert ids["<vision>"] not in model.tokenizer.encode("a <vision> of")


def picture(width: int, height: int) -> PillowImage.Image:
    return PillowImage.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8))


def embedded_prompt(published, question: str, image: PillowImage.Image, rows: int, columns: int):
    """Builds the authors' prompt: image, `<s>`, `[INST] question [/INST]`; the image also ends with <vision>."""
    _, mistral, projection, ids = published
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=foreign_model())
    span = [ids["<vision>"]]
    for row in range(rows):
        span += [ids["<vrow_sep>"]] * (row > 0) + [ids["<vpatch>"]] * columns
    span += [ids["<vision>"], processor.bos_id(), *processor.EncodeAsIds(f"[INST] {question} [/INST]")]
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255
    pixels = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    pixels = pixels.astype(np.float16).astype(np.float32)
    patches = [
        pixels[32 * r : 32 * r + 32, 32 * c : 32 * c + 32].transpose(2, 0, 1).reshape(-1)
        for r in range(rows)
        for c in range(columns)
    ]
    embeds = mistral.get_input_embeddings()(torch.tensor([span])).detach().clone()
    embeds[0, torch.tensor(span) == ids["<vpatch>"]] += torch.tensor(np.stack(patches)) @ projection.T
    return embeds


def greedy(published, embeds) -> list[int]:
    """Decodes without a cache; the published ids from <vision> on are suppressed."""
    _, mistral, _, ids = published
    found: list[int] = []
    while len(found) < NEW_TOKENS and 2 not in found:
        with torch.no_grad():
            logits = mistral(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        logits[[0, 1, *range(ids["<vision>"], len(logits))]] = -torch.inf
        found.append(int(logits.argmax()))
        token = mistral.get_input_embeddings()(torch.tensor([[found[-1]]])).detach()
        embeds = torch.cat([embeds, token], dim=1)
    return found


def test_answers_are_those_of_mistral_on_the_authors_prompt(published, model) -> None:
    questions = ["What is this?", "Explain the figure in detail."]
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": picture(96, 64)}, question]}] for question in questions
    ]
    answers = model.generate(conversations, NEW_TOKENS)
    for question, answer in zip(questions, answers, strict=True):
        tokens = greedy(published, embedded_prompt(published, question, picture(96, 64), 2, 3))
        assert answer == model.tokenizer.decode(tokens)
    assert answers[0] != answers[1]


def test_loading_leaves_the_folder_unchanged(published) -> None:
    assert sorted(path.name for path in Path(published[0]).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]

"""The processors of exports in published layouts return what the published code takes, with the values of training."""

import numpy as np
import pytest

import solo
from solo.interop.export import export
from tests.interop.runs import SECTIONS, saved_run
from tests.tiny import assistant, image, user

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = {"type": "text", "text": "what is this?"}
CONVERSATIONS = [
    [user(image(20, 9, 0), TEXT), assistant({"type": "text", "text": "a red"})],
    [user(TEXT), assistant({"type": "text", "text": "the blue square"})],
    [user(image(16, 16, 1), image(8, 24, 2), TEXT), assistant({"type": "text", "text": "left"})],
]
PLACEHOLDERS = {"mono_internvl": "<IMG_CONTEXT>"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_tokenizer, code_cache):
    """Returns a function from a layout to a run, its export, the export's processor, and what that returns."""

    def make(name, **options):
        folder, layout = tmp_path_factory.mktemp("processors"), name.split()[0]
        sections = dict(SECTIONS[name])
        if layout in PLACEHOLDERS:
            sections["image"] = sections["image"] | {"placeholder_token": PLACEHOLDERS[layout]}
        run = saved_run(folder / "run", tiny_tokenizer, **sections)
        export(run, folder / "out", layout, verified=False)
        processor = transformers.AutoProcessor.from_pretrained(folder / "out", trust_remote_code=True)
        found = processor.apply_chat_template(
            CONVERSATIONS,
            processor_kwargs={"padding": True},
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **options,
        )
        return solo.load(run), folder / "out", processor, found

    return make


def text_logits(model):
    """Returns the logits at the text tokens of each conversation, in order."""
    batch = model.batch(CONVERSATIONS)
    return model.logits(batch)[:, batch.patches.shape[1] :]


def same_at_text(found, ids, mask, placeholder, wanted):
    for row in range(len(ids)):
        is_text = (ids[row] != placeholder) & (mask[row] == 1)
        mine = found[row][is_text]
        np.testing.assert_allclose(mine, wanted[row][: len(mine), : mine.shape[1]], atol=5e-4)
        assert len(mine) > 8


@pytest.mark.parametrize("name", ["solo", "mono_internvl"])
def test_published_tensors_give_the_logits_of_the_conversations(name, made):
    """`batch` takes the names of the published forward passes."""
    run, folder, processor, inputs = made(name)
    names = {"solo": {"vision_patches", "vision_patch_indices"}, "mono_internvl": {"pixel_values", "image_flags"}}
    assert set(inputs) == {"input_ids", "attention_mask"} | names[name]
    model = solo.load(folder)
    assert processor.image_token_id == model.placeholder_id
    found = model.logits(model.batch(**inputs))
    ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
    same_at_text(found, ids, mask, model.placeholder_id, text_logits(run))
    listed = processor(text=["a <vpatch>" if name == "solo" else "a <IMG_CONTEXT>"], images=[image(9, 9, 0)["image"]])
    if name == "solo":
        numbers = np.array(listed["vision_patch_indices"][0])
        assert list(numbers[numbers >= 0]) == list(range(len(listed["vision_patches"])))


def test_fuyus_tensors_are_those_of_transformers_class(made):
    run, folder, processor, inputs = made("fuyu llama")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    fuyu = transformers.FuyuForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found = fuyu(**inputs).logits.numpy()
    ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
    rows = run.definition.vocab_size
    same_at_text(found[..., :rows], ids, mask, processor.image_token_id, text_logits(run))


def test_eves_images_are_whole_and_stand_in_the_ids(made):
    """Cut into patches, they are those of training; -200 is the number that EVE's code replaces by an image."""
    run, _, processor, inputs = made("evev2")
    assert [int((row == -200).sum()) for row in inputs["input_ids"]] == [1, 0, 2]
    assert processor.image_token_id not in inputs["input_ids"]
    batch, config = run.batch(CONVERSATIONS), run.config.image
    side = config.patch_size
    whole = iter(inputs["images"])
    for row in range(3):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row] == 1]
        text = ids[ids != -200].numpy()
        np.testing.assert_array_equal(text, batch.text[row, : len(text)])
        raw = batch.patches[row][batch.patch_grid[row].min(-1) >= 0]
        cut = [
            each.reshape(3, each.shape[1] // side, side, each.shape[2] // side, side)
            for each in (next(whole) for _ in range(int((ids == -200).sum())))
        ]
        found = [each.permute(1, 3, 0, 2, 4).reshape(-1, 3 * side * side).numpy() for each in cut]
        if found:
            patches = np.concatenate(found)
            values = patches * np.repeat(config.std, side * side) + np.repeat(config.mean, side * side)
            np.testing.assert_allclose(values * 255, raw[: len(patches)], atol=1e-3)
    assert next(whole, None) is None

"""An exported native repository as users of transformers use it, offline: loading, batches, caches, fine-tuning.

Logits and answers are compared with those of the run, before a placeholder was appended to its vocabulary.
"""

import contextlib
import socket
from pathlib import Path

import numpy as np
import pytest

import solo
from solo.interop.export import export
from solo.interop.model_card import OLDEST_TRANSFORMERS
from tests.interop.runs import SECTIONS, saved_run
from tests.tiny import assistant, image, user

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TRUSTED = {"trust_remote_code": True}
TOKENS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
TEXT = {"type": "text", "text": "what is this?"}
# Of different lengths, with one image, none and two.
CONVERSATIONS = [
    [user(image(20, 9, 0), TEXT), assistant({"type": "text", "text": "a red"})],
    [user(TEXT), assistant({"type": "text", "text": "the blue square"})],
    [user(image(16, 16, 1), image(8, 24, 2), TEXT), assistant({"type": "text", "text": "left"})],
]
QUESTIONS = [turns[:1] for turns in CONVERSATIONS]
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_tokenizer) -> Path:
    return saved_run(tmp_path_factory.mktemp("native") / "run", tiny_tokenizer, **SECTIONS["native"])


@pytest.fixture(scope="module")
def repository(run, tmp_path_factory, code_cache):
    """The export's folder. Nothing connects to a network."""

    def refuse(*arguments, **options):
        raise OSError("there is no network")

    folder = tmp_path_factory.mktemp("export") / "repository"
    export(run, folder, verified=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        yield folder


@pytest.fixture(scope="module")
def ours(run):
    return solo.load(run)


@pytest.fixture(scope="module")
def model(repository):
    return transformers.AutoModelForImageTextToText.from_pretrained(repository, **TRUSTED).eval()


@pytest.fixture(scope="module")
def processor(repository):
    return transformers.AutoProcessor.from_pretrained(repository, **TRUSTED)


def fresh(repository, **options):
    """A model that a test may change."""
    return transformers.AutoModelForCausalLM.from_pretrained(repository, **TRUSTED, **options)


def inputs_of(processor, conversations, **options):
    return processor.apply_chat_template(conversations, processor_kwargs={"padding": True}, **TOKENS | options)


@pytest.fixture(scope="module")
def batch(processor):
    return inputs_of(processor, CONVERSATIONS)


@pytest.fixture(scope="module")
def questions(processor):
    return inputs_of(processor, QUESTIONS, add_generation_prompt=True)


@pytest.fixture(scope="module")
def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.fixture(scope="module")
def answers(model, questions):
    """New tokens [3, n] on the plain path."""
    return new_tokens(model, questions)


def new_tokens(model, questions, **options):
    with torch.no_grad():
        written = model.generate(**questions, max_new_tokens=NEW_TOKENS, **options)
    return written[:, questions["input_ids"].shape[1] :]


def same(found, wanted, tolerance=5e-5):
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def real(values, batch):
    """Returns the values at all tokens but padding, of the rows that were trained."""
    return values[batch["attention_mask"].bool()][:, :-1]


def test_logits_are_those_of_the_run_and_the_appended_row_is_never_predicted(ours, model, batch, logits, repository):
    rows = ours.definition.vocab_size
    assert list(model.config.appended_ids) == [rows] == [model.config.image_token_id]
    plain = ours.batch(CONVERSATIONS)
    by_slot = ours.logits(plain)
    log_p = torch.log_softmax(logits, dim=-1)
    assert log_p[..., rows].exp().max() == 0
    for row, ids in enumerate(batch["input_ids"]):
        is_patch, real = ids == rows, batch["attention_mask"][row].bool()
        found, count = log_p[row, real & ~is_patch, :rows].numpy(), int((real & ~is_patch).sum())
        wanted = by_slot[row, plain.patches.shape[1] :][:count]
        wanted = wanted - np.log(np.exp(wanted.astype(np.float64)).sum(-1, keepdims=True))
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    again = solo.load(repository)
    assert again.definition.vocab_size == rows + 1
    assert again.loss_and_grads(again.batch(CONVERSATIONS))[0] == pytest.approx(ours.loss_and_grads(plain)[0], abs=1e-6)
    # Its weights are the mean of the others, so that it could not win without the mask either.
    same(model.head.weight[rows], model.head.weight[:rows].mean(0))


def test_auto_classes_and_the_files_they_save(repository, model, processor, batch, logits, tmp_path):
    """The base model under the head, other attention, and what `save_pretrained` wrote."""
    base = transformers.AutoModel.from_pretrained(repository, **TRUSTED).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", **TRUSTED).eval()
    assert again.config._attn_implementation == "eager"
    inputs = inputs_of(transformers.AutoProcessor.from_pretrained(tmp_path, **TRUSTED), CONVERSATIONS)
    assert inputs.keys() == batch.keys()
    with torch.no_grad():
        same(real(again(**inputs).logits, batch), real(logits, batch))
        same(real(model.head(base(**batch).last_hidden_state), batch), real(logits, batch))
    tokenizer = transformers.AutoTokenizer.from_pretrained(repository, **TRUSTED)
    assert len(tokenizer) == model.config.vocab_size == processor.image_token_id + 1
    transformers.AutoImageProcessor.from_pretrained(repository, **TRUSTED)


def test_answers_to_a_padded_batch_are_those_of_the_run(ours, questions, answers):
    assert int(questions["attention_mask"][1, 0]) == 0, "the shorter rows are padded on the left"
    # By our tokenizer: the two libraries decode invalid UTF-8 differently.
    assert [ours.tokenizer.decode(row) for row in answers.tolist()] == ours.generate(QUESTIONS, NEW_TOKENS)


def test_the_pipeline(repository, processor, answers):
    pipe = transformers.pipeline("image-text-to-text", model=str(repository), **TRUSTED)
    found = pipe(text=QUESTIONS[2], max_new_tokens=NEW_TOKENS, return_full_text=False)
    assert found[0]["generated_text"] == processor.decode(answers[2], skip_special_tokens=True)


def test_bfloat16(repository, batch, logits):
    found = fresh(repository, dtype=torch.bfloat16).eval()
    assert {each.dtype for each in found.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        rounded = found(**batch).logits
    wanted = real(logits, batch)
    assert (real(rounded.float(), batch) - wanted).pow(2).mean().sqrt() < 0.05 * wanted.std()


def test_device_map_with_layers_on_the_disk(repository, batch, logits, tmp_path):
    pytest.importorskip("accelerate")
    places = {"model": "cpu", "head": "cpu", "model.layers.1": "disk"}
    places |= {
        "model.text_embed": "cpu",
        "model.patch_embed": "cpu",
        "model.layers.0": "cpu",
        "model.final_norm": "cpu",
    }
    del places["model"]
    found = fresh(repository, device_map=places, offload_folder=str(tmp_path)).eval()
    assert next(found.model.layers[1].parameters()).device.type == "meta"
    with torch.no_grad():
        same(real(found(**batch).logits, batch), real(logits, batch))


def test_embeddings_in_place_of_ids(model, questions, answers):
    """Ids beside embeddings only mark the patches; images among them may be embedded already."""
    ids, embed = questions["input_ids"], model.get_input_embeddings()
    is_patch = ids == model.config.image_token_id
    embeds = embed(ids.masked_fill(is_patch, 0))
    features = model.get_image_features(questions["pixel_values"], questions["patches_grid"]).pooler_output
    mask = {"attention_mask": questions["attention_mask"], "max_new_tokens": NEW_TOKENS}
    with torch.no_grad():
        complete = embeds.masked_scatter(is_patch[..., None], features)
        found = model.generate(input_ids=ids, inputs_embeds=complete, **mask)
        assert torch.equal(found[:, ids.shape[1] :], answers)
        pixels = {name: questions[name] for name in ("pixel_values", "patches_grid")}
        found = model.generate(input_ids=ids, inputs_embeds=embeds, **pixels, **mask)
        assert torch.equal(found[:, ids.shape[1] :], answers)
        with pytest.raises(ValueError, match="give input_ids with inputs_embeds"):
            model.generate(inputs_embeds=complete, **mask)


def test_hidden_states_are_the_inputs_of_the_layers(model, batch):
    seen = []
    with contextlib.ExitStack() as stack:
        for layer in model.model.layers:
            stack.enter_context(layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])))
        with torch.no_grad():
            found = model(**batch, output_hidden_states=True).hidden_states
    assert len(found) == len(seen) + 1
    for state, wanted in zip(found, seen, strict=False):
        assert torch.equal(state, wanted)
    same(model.head(found[-1])[..., :-1], model(**batch).logits[..., :-1])


def test_patches_without_pixels_and_labels_of_patches_are_refused(model, batch):
    ids = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    count = int((batch["input_ids"] == model.config.image_token_id).sum())
    with pytest.raises(ValueError, match=rf"{count} placeholders .* pixel_values is missing"):
        model(**ids, pixel_values=None)
    with pytest.raises(ValueError, match="labels contain the placeholder"):
        model(**batch, labels=batch["input_ids"])
    text = {name: value[1:2] for name, value in ids.items()}
    plain = new_tokens(model, text)
    assert torch.equal(new_tokens(model, text | {"pixel_values": None, "patches_grid": None}), plain)


# What users hand to the processor


def test_limits_reach_the_images_by_every_way(repository, processor):
    """A third of the pixels: in a call, in the keyword arguments of images, and when loading."""
    few = {"max_pixels": 256}
    question = [user(image(32, 24, 0), TEXT)]
    loaded = transformers.AutoProcessor.from_pretrained(repository, **few, **TRUSTED)
    options = TOKENS | {"add_generation_prompt": True}
    found = [
        processor.apply_chat_template(question, **options, processor_kwargs=dict(few)),
        loaded.apply_chat_template(question, **options),
    ]
    by_name = processor(text="<image>", images=question[0]["content"][0]["image"], images_kwargs=few)
    np.testing.assert_array_equal(by_name["pixel_values"], found[0]["pixel_values"])
    plain = processor.apply_chat_template(question, **options)
    assert len(plain["pixel_values"]) == 12
    for each in found:
        assert len(each["pixel_values"]) == 2 == int((each["input_ids"] == processor.image_token_id).sum())
        assert torch.equal(each["pixel_values"], found[0]["pixel_values"])
    (counts,) = {
        tuple(p._get_num_multimodal_tokens([(24, 32)], **k).num_image_tokens)
        for p, k in ((processor, few), (loaded, {}))
    }
    assert counts == (2,)


def test_images_belong_to_the_texts_of_their_placeholders(processor):
    one, two, three = (image(8 * n, 8, n)["image"] for n in (1, 2, 3))
    texts = ["<image><image> what", "<image>", "this"]
    options = {"return_tensors": "pt", "padding": True}
    nested = processor(text=texts, images=[[one, two], [three], []], **options)
    flat = processor(text=texts, images=[one, two, three], **options)
    assert torch.equal(nested["pixel_values"], flat["pixel_values"])
    assert [int((row == processor.image_token_id).sum()) for row in nested["input_ids"]] == [3, 3, 0]
    with pytest.raises(ValueError, match=r"\[2, 1, 0\] placeholders <image>, but \[1, 2, 0\] images"):
        processor(text=texts, images=[[one], [two, three], []], **options)
    with pytest.raises(ValueError, match="images"):
        processor(text=texts, images=[one, two], **options)
    for nothing in (None, [], [[]]):
        assert "pixel_values" not in processor(text=["this"], images=nothing, **options)
    for given in ({"videos": [one]}, {"audio": [np.zeros(8)]}):
        with pytest.raises(ValueError, match="this model reads text and images, no"):
            processor(text=["this"], **given)


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([user({"type": "video", "path": "a.mp4"})], {}, "no parts of type video"),
        ([user(TEXT)], {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools and documents"),
        ([{"role": "developer", "content": "be brief"}, user(TEXT)], {}, "no place for the role developer"),
        ([user(TEXT), {"role": "tool", "content": "4"}], {}, "no place for the role tool"),
        ([user(TEXT), {"role": "assistant", "tool_calls": [{"name": "f"}]}], {}, "no place for tool_calls"),
        ([user(TEXT), {"role": "assistant"}], {}, "a message has no content"),
    ],
)
@pytest.mark.parametrize("template", ["roles", "solo_chat", "chatml"])
def test_what_a_template_cannot_say_is_refused(processor, template, messages, options, message):
    from jinja2 import TemplateError

    from solo.config import SequenceConfig
    from solo.interop.chat_template import chat_template

    text = chat_template(SequenceConfig(template=template), "<image>", True, False)
    with pytest.raises(TemplateError, match=message):
        processor.apply_chat_template(messages, chat_template=text, tokenize=False, **options)


# Fine-tuning


def labels_of(inputs, model):
    """All tokens but patches, padding and BOS, which in a row padded on the left would be predicted from padding."""
    ids = inputs["input_ids"]
    unlabelled = (ids == model.config.image_token_id) | (ids == model.config.bos_token_id)
    return ids.masked_fill(unlabelled | (inputs["attention_mask"] == 0), -100)


def gradients(model):
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_in_a_loop_of_ones_own(repository, batch, reentrant):
    model = fresh(repository).train()
    labels = labels_of(batch, model)
    model(**batch, labels=labels).loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    cache = transformers.DynamicCache(config=model.config)
    runs = []
    model.model.layers[0].attention_norm.register_forward_hook(lambda *_: runs.append(1))
    loss = model(**batch, labels=labels, past_key_values=cache).loss
    loss.backward()
    assert len(runs) == 2, "the layer was not computed again"
    assert cache.get_seq_length() == 0
    for name, value in gradients(model).items():
        same(value, wanted[name], tolerance=1e-5 * float(wanted[name].abs().max()) + 1e-9)
    assert wanted.keys() == gradients(model).keys()
    text = {"input_ids": batch["input_ids"][1:2]}
    assert torch.equal(new_tokens(model, text), new_tokens(model.eval(), text)), "no cache in between"
    cache.update(torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8), 0)
    with pytest.raises(ValueError, match="filled cache"):
        model.train()(**batch, past_key_values=cache)


class Examples(torch.utils.data.Dataset):
    """Conversations with 0, 1 or 2 images and answers of different lengths."""

    def __init__(self):
        words = ("a red", "the blue square", "left", "a green circle right of the square")
        self.all = []
        for number in range(8):
            pictures = [image(16, 8 + 8 * each, number + each) for each in range(number % 3)]
            self.all.append([user(*pictures, TEXT), assistant({"type": "text", "text": words[number % 4]})])

    def __len__(self):
        return len(self.all)

    def __getitem__(self, number):
        return {"messages": self.all[number]}


@pytest.fixture(scope="module")
def train(repository, processor, tmp_path_factory):
    """Returns a function that makes a Trainer for one step of plain gradient descent on eight examples."""
    pytest.importorskip("accelerate")

    def make(model, **options):
        def collate(examples):
            inputs = dict(inputs_of(processor, [example["messages"] for example in examples]))
            return inputs | {"labels": labels_of(inputs, model)}

        settings = {
            "output_dir": str(tmp_path_factory.mktemp("trainer")),
            "max_steps": 1,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "remove_unused_columns": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        arguments = transformers.TrainingArguments(**settings | options)
        examples = Examples()
        return transformers.Trainer(
            model=model, args=arguments, data_collator=collate, train_dataset=examples, eval_dataset=examples
        )

    return make


def test_trainer_accumulates_the_gradient_of_one_batch(repository, train):
    """The step is the gradient, as the learning rate is 1."""
    found = {}
    for rows in (8, 4, 1):
        model = fresh(repository)
        trainer = train(model, per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows)
        trainer.train()
        found[rows] = (
            trainer.state.log_history[0]["loss"],
            {name: each.detach() for name, each in model.named_parameters()},
        )
    before = fresh(repository).state_dict()
    loss, wanted = found[8]
    for rows in (4, 1):
        assert found[rows][0] == pytest.approx(loss, abs=2e-4)
        for name, value in found[rows][1].items():
            step = float((wanted[name] - before[name]).abs().max())
            assert step > 0, name
            same(value, wanted[name], tolerance=1e-4 * step + 1e-6)


def test_trainer_evaluates_and_predicts(repository, train, model):
    trainer = train(fresh(repository), per_device_eval_batch_size=3)
    losses = trainer.evaluate()["eval_loss"]
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.metrics["test_loss"] == pytest.approx(losses)
    assert predicted.predictions.shape[0] == 8
    assert predicted.predictions.shape[2] == model.config.vocab_size
    # Shorter rows are padded with -100.
    assert set(np.unique(predicted.predictions[..., -1])) == {np.float32(-100), np.finfo(np.float32).min}


def test_lora(repository, processor, train, batch, questions, tmp_path):
    """A step changes the adapter alone; merged and loaded again, it gives the same logits and answers."""
    peft = pytest.importorskip("peft")
    base = fresh(repository)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q", "v", "up"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, settings)
    train(model, per_device_train_batch_size=4, gradient_accumulation_steps=2, gradient_checkpointing=True).train()
    model.eval()
    with torch.no_grad():
        found = model(**batch).logits
        with model.disable_adapter():
            plain = model(**batch).logits
        written = new_tokens(model, questions)
    assert (found - plain).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(fresh(repository), tmp_path).eval()
    merged = again.merge_and_unload()
    with torch.no_grad():
        same(merged(**batch).logits, found, tolerance=1e-4)
    assert torch.equal(new_tokens(merged, questions), written)
    unmerged = model.unload().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in unmerged.items())


# Versions


def test_an_older_transformers_is_refused_by_name(repository, monkeypatch):
    import runpy

    file = str(repository / "versions_solo.py")
    assert runpy.run_path(file)["OLDEST"] == OLDEST_TRANSFORMERS
    assert f"needs transformers {OLDEST_TRANSFORMERS} or newer" in (repository / "README.md").read_text()
    for older in ("5.15.0", "4.57.6", "5.9.0rc1"):
        monkeypatch.setattr("transformers.__version__", older)
        with pytest.raises(ImportError, match=rf"needs transformers {OLDEST_TRANSFORMERS} or newer, and {older}"):
            runpy.run_path(file)
    monkeypatch.setattr("transformers.__version__", "6.0.0.dev0")
    runpy.run_path(file)


def test_exported_code_imports_neither_this_package_nor_anything_before_the_version(repository):
    for file in repository.glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in lines if line.split()[1].split(".")[0] == "solo"]
        if file.stem in ("configuration_solo", "modeling_solo", "processing_solo", "image_processing_solo"):
            first = next(line for line in lines if "__future__" not in line)
            assert first.startswith("from .versions_solo import")

"""lm-evaluation-harness on an export: a text task made here has the log-likelihoods and the score of `solo.load`."""

import json
from pathlib import Path

import numpy as np
from scipy.special import log_softmax
from tokenizers import Tokenizer

import solo
from solo.inference.monolith import Monolith
from solo.interop.export import export
from tests.harnesses.environment import environment, started
from tests.harnesses.questions import WORDS, tokenizer
from tests.interop.runs import SECTIONS, saved_run

VERSION = "0.4.13"
_TASK = """\
task: solo_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def run(folder: Path) -> None:
    """Raises AssertionError if a log-likelihood differs by more than rounding, or the score at all."""
    programs = environment(folder / "lm_eval", [f"lm-eval[hf]=={VERSION}"])
    files = folder / "lm_eval_files"
    files.mkdir(exist_ok=True)
    repository = files / "repository"
    export(saved_run(files / "run", tokenizer(), **SECTIONS["native"]), repository, verified=False)
    words = WORDS.split()
    documents = [
        {"question": f"which {words[number]} is", "choices": words[number + 1 : number + 4], "answer": number % 3}
        for number in range(16)
    ]
    (files / "test.jsonl").write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    (files / "solo_words.yaml").write_text(_TASK.format(file=files / "test.jsonl"))
    command = [programs / "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "4"]
    command += ["--model_args", f"pretrained={repository},trust_remote_code=True,dtype=float32,add_bos_token=True"]
    command += ["--tasks", "solo_words", "--include_path", files, "--output_path", files / "out", "--log_samples"]
    started(command)
    (results,) = (files / "out").rglob("results_*.json")
    accuracy = json.loads(results.read_text())["results"]["solo_words"]["acc,none"]
    (samples,) = (files / "out").rglob("samples_*.jsonl")
    logged = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    theirs = np.array([[float(response[0][0]) for response in sample["resps"]] for sample in logged])
    model = solo.load(repository)
    ours = np.array([_likelihoods(model, repository, document) for document in documents])
    score = float((ours.argmax(1) == [document["answer"] for document in documents]).mean())
    difference = np.abs(ours - theirs).max()
    print(f"lm-eval {VERSION}: accuracy {accuracy}; solo: {score}; log-likelihoods {difference:.1e} apart")
    assert difference < 1e-4
    assert accuracy == score


def _likelihoods(model: Monolith, repository: Path, document: dict) -> list[float]:
    """Returns our log-likelihoods of a question's choices."""
    encoder = Tokenizer.from_file(str(repository / "tokenizer.json"))
    found = []
    for choice in document["choices"]:
        ids = encoder.encode(f"{document['question']} {choice}").ids
        asked = len(encoder.encode(document["question"]).ids)
        logits = model.logits(model.batch(input_ids=np.array([ids])))[0].astype(np.float64)
        scores = log_softmax(logits, axis=-1)
        found.append(sum(scores[place - 1, ids[place]] for place in range(asked, len(ids))))
    return found

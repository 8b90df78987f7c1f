"""lmms-eval on a task made here, and POPE as it has it: it finds our model, gets our answers, computes our scores."""

import json
from pathlib import Path

import solo
from solo.evaluation.benchmarks.definitions import BENCHMARKS
from solo.evaluation.benchmarks.item import Judged
from solo.evaluation.metrics import exact_match
from solo.inference.monolith import Monolith
from tests.harnesses.environment import SOLO, environment, started
from tests.harnesses.questions import MAX_NEW_TOKENS, conversation, make_run, write_parquet

VERSION = "0.7.3"
COUNT = 24
_TASK = """\
task: solo_tiny
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.images
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {limit}, temperature: 0, do_sample: false, num_beams: 1}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
_UTILS = """\
def images(doc):
    return [doc["image"].convert("RGB")]
"""


def run(folder: Path) -> None:
    """Raises AssertionError if an answer or a score differs."""
    packages = [f"lmms-eval=={VERSION}", "-e", f"{SOLO}[lmms_eval]"]
    programs = environment(folder / "lmms_eval", packages, without=["torchvision"])
    listed = started([programs / "python", "-c", "from lmms_eval.models import list_available_models as f; print(f())"])
    assert "'solo'" in listed, f"lmms-eval has not loaded the model: {listed}"
    files, tasks = folder / "lmms_eval_files", folder / "lmms_eval_files" / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    trained = make_run(files / "run")
    model = solo.load(trained)
    written = model.generate([conversation(number) for number in range(COUNT)], MAX_NEW_TOKENS)
    ours = [text.strip() for text in written]
    references = [text if number % 3 else "other" for number, text in enumerate(ours)]
    table = write_parquet(files / "test.parquet", references)
    (tasks / "solo_tiny.yaml").write_text(_TASK.format(file=table, limit=MAX_NEW_TOKENS))
    (tasks / "utils.py").write_text(_UTILS)
    pope = make_pope(programs, files, tasks)
    command = [programs / "lmms-eval", "--model", "solo", "--model_args", f"pretrained={trained}", "--batch_size", "4"]
    command += ["--tasks", "solo_tiny,pope_here", "--include_path", tasks]
    printed = started([*command, "--output_path", files / "out", "--log_samples"])
    # lmms-eval ends with status 0 after an error, too.
    (results,) = list((files / "out").rglob("*results.json")) or [AssertionError(printed)]
    assert isinstance(results, Path), results
    found = json.loads(results.read_text())["results"]
    assert answers_of(files, "solo_tiny") == ours
    theirs, score = 100 * found["solo_tiny"]["exact_match,none"], exact_match(ours, references)
    print(f"lmms-eval {VERSION}, exact match: {theirs}; solo: {score}")
    assert abs(theirs - score) < 1e-9
    compare_pope(model, pope, answers_of(files, "pope_here"), found["pope_here"])


def make_pope(programs: Path, files: Path, tasks: Path) -> Path:
    """Copies lmms-eval's own POPE, which then reads a table made here. Returns the table."""
    where = [programs / "python", "-c", "import lmms_eval.tasks as tasks; print(tasks.__path__[0])"]
    theirs = Path(started(where).splitlines()[-1]) / "pope"
    table = write_parquet(
        files / "pope.parquet",
        ["yes" if number % 2 else "no" for number in range(COUNT)],
        question_id=[str(number) for number in range(COUNT)],
        category=[("adversarial", "popular", "random")[number % 3] for number in range(COUNT)],
    )
    text = (theirs / "pope.yaml").read_text()
    for old, new in [
        ("dataset_path: lmms-lab-encoder/POPE", "dataset_path: parquet"),
        ("token: True", f"data_files: {{test: {table}}}"),
        ('task: "pope"', 'task: "pope_here"'),
        ("utils.", "pope_utils."),
    ]:
        assert old in text, f"{old} is not in {text}"
        text = text.replace(old, new)
    (tasks / "pope_here.yaml").write_text(text)
    (tasks / "pope_utils.py").write_text((theirs / "utils.py").read_text())
    return table


def compare_pope(model: Monolith, table: Path, theirs: list[str], scores: dict[str, float]) -> None:
    benchmark = BENCHMARKS["pope"]
    questions = [question for item in benchmark.read([str(table)]) for question in benchmark.questions(item)]
    # Its definition allows 128 tokens for an answer.
    ours = model.generate([question.prompt for question in questions], 128)
    assert theirs == [text.strip() for text in ours]
    judged = benchmark.judge(list(zip(questions, ours, strict=True)))
    summary = benchmark.summary(
        [Judged(question.item, (one,)) for question, one in zip(questions, judged, strict=True)]
    )
    mine = {"accuracy": sum(one.score for one in judged) / len(judged)} | {
        name: summary[name] / 100 for name in ("f1", "precision", "recall")
    }
    # lmms-eval's yes_ratio is that of the references.
    names = {"accuracy": "accuracy", "f1": "f1_score", "precision": "precision", "recall": "recall"}
    for name, other in names.items():
        found = scores[f"pope_{other},none"]
        print(f"lmms-eval {VERSION}, POPE, {name}: {found:.4f}; solo: {mine[name]:.4f}")
        assert abs(mine[name] - found) < 1e-9, name
    assert 0 < mine["accuracy"] < 1


def answers_of(files: Path, task: str) -> list[str]:
    """Returns the answers that lmms-eval wrote down, in the order of the documents."""
    (samples,) = (files / "out").rglob(f"*samples_{task}.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    return [line["filtered_resps"] for line in lines]

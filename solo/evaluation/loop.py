"""The evaluators in a run's config. They run on the training mesh and leave the parameters sharded.

The training loop calls each of them at its cadence, and `solo evaluate` calls them for one checkpoint. Every evaluator
yields one line of `metrics.jsonl`. They draw no random numbers and change neither the training state nor its data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from jax.sharding import Mesh

from solo.config import Config
from solo.data.store.prepare import Prepared
from solo.evaluation.integration_rate import integration_rate
from solo.evaluation.losses import HeldOutLosses
from solo.evaluation.results import task_fields, titled
from solo.evaluation.samples import picture, sample_answers, sample_examples
from solo.evaluation.tasks import evaluate_task, questions
from solo.inference.monolith import Monolith
from solo.model.parameters import ModelDefinition, Parameters
from solo.training.distributed import from_first
from solo.training.evaluators import TRAINED, EvaluationStopped, without_replaced
from solo.training.metrics import read_metrics
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder

Key = tuple[str, str, str]
Note = Callable[[int, int], None]


class RunEvaluators:
    """Implements `solo.training.evaluators.Evaluators` for a config.

    The constructor checks the data of all evaluators, so errors are found before the first step. If an evaluator fails
    later, for example because of a damaged image, the failure is reported and leaves a line of kind
    `failed_evaluation`. It ends the run only at the last step.

    Args:
        config: the config of the run.
        prepared: the prepared data.
        definition: the definition of the model.
        mesh: the mesh that the parameters are sharded over.
        observer: shows the current evaluation.
        run: the run whose `metrics.jsonl` lists earlier measurements. None: everything is measured again.

    Raises:
        ConfigError: a source has no record that fits a row, or a record of a task has no answer.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        definition: ModelDefinition,
        mesh: Mesh,
        observer: Observer,
        run: RunFolder | None = None,
    ):
        self._config, self._prepared, self._mesh, self._observer, self._run = config, prepared, mesh, observer, run
        self._losses = HeldOutLosses(config, prepared, definition, mesh)
        for name, task in config.evaluation.tasks.items():
            questions(name, task, prepared.sources)
        for name, samples in config.evaluation.samples.items():
            sample_examples(name, samples, prepared.sources)
        self._known: set[Key] | None = None
        self._model: Monolith | None = None
        self._stopping = False

    def due(self, step: int, last: bool) -> bool:
        """See `Evaluators`."""
        evaluation = self._config.evaluation
        return any(evaluation.runs_at(section, step, last) for _, _, section in evaluation.evaluators())

    def run(
        self, weights: Mapping[str, Parameters], step: int, last: bool, stop: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """See `Evaluators`."""
        evaluation, known = self._config.evaluation, self._measured_at(step)
        for named in evaluation.weights:
            model = self._with(weights[named])
            for kind, name, section in evaluation.evaluators():
                if not evaluation.runs_at(section, step, last) or (kind, name, named) in known:
                    continue
                if self._stopping:
                    raise EvaluationStopped
                began = time.perf_counter()
                self._observer.note(f"evaluating {titled(name, named)}")
                try:
                    fields = self._measure(kind, name, model, partial(self._note, titled(name, named), stop))
                except ValueError as error:  # the same in all processes
                    if last:
                        raise
                    self._observer.warn(f"step {step}: evaluation {titled(name, named)} failed: {error}")
                    yield {"kind": "failed_evaluation", "step": step, "task": name, "of": kind, "reason": str(error)}
                    continue
                timing = {"timing": {"seconds": time.perf_counter() - began}}
                own = {} if named == TRAINED else {"weights": named}
                yield {"kind": kind, "step": step, "task": name, **own, **fields, **timing}
        if self._stopping and not last:
            raise EvaluationStopped

    def pictures(self, line: Mapping[str, Any]) -> list[bytes | None]:
        """See `Evaluators`."""
        settings = self._config.evaluation.samples.get(line["task"])
        if settings is None:  # an earlier attempt had other evaluators
            return []
        examples = sample_examples(line["task"], settings, self._prepared.sources)
        by_id = {example.id: example for example in examples}
        shown = [by_id.get(each["id"]) for each in line["examples"]]
        return [None if example is None else picture(example.prompt) for example in shown]

    def _measure(self, kind: str, name: str, model: Monolith, note: Note) -> dict[str, Any]:
        if kind == "held_out":
            return self._losses.measure(name, model.parameters, note)._asdict()
        evaluation, sources = self._config.evaluation, self._prepared.sources
        if kind == "samples":
            return sample_answers(model, name, evaluation.samples[name], sources, note)
        if kind == "integration_rate":
            settings = evaluation.integration_rate[name]
            return integration_rate(model, name, settings, self._config, sources, note)._asdict()
        result = evaluate_task(
            model,
            name,
            evaluation.tasks[name],
            sources,
            evaluation.report_examples,
            lambda _, done, total: note(done, total),
        )
        return task_fields(result)

    def _note(self, name: str, stop: Callable[[], bool], done: int, total: int) -> None:
        self._observer.note(f"evaluating {name}: {done} of {total}")
        # With several processes, `stop` returns True only once.
        self._stopping |= stop()
        if self._stopping and done < total:
            raise EvaluationStopped

    def _measured_at(self, step: int) -> set[Key]:
        """Returns the measurements of a step in `metrics.jsonl`. Only the step that a run resumes from can have any."""
        if self._known is None:
            run = self._run
            found = (
                []
                if run is None
                else from_first(lambda: _measured(without_replaced(read_metrics(run.metrics_file)), step))
            )
            self._known = {(kind, name, named) for kind, name, named in found}
            return self._known
        return set()

    def _with(self, parameters: Parameters) -> Monolith:
        """Returns the model with these parameters, to which no reference is kept: the next step donates them."""
        if self._model is None:
            model = Monolith(self._config, self._prepared.tokenizer, parameters, self._mesh)
            self._model = model.with_parameters({})
        return self._model.with_parameters(parameters)


def _measured(lines: list[Mapping[str, Any]], step: int) -> list[Key]:
    return [
        (line["kind"], line["task"], line.get("weights", TRAINED))
        for line in lines
        if line["step"] == step and isinstance(line.get("task"), str)
    ]

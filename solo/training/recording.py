"""Records finished steps in `metrics.jsonl`, and ends the run after a bad step or bad data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from solo.chips import peak_flops
from solo.config import Config
from solo.files import append_json_line
from solo.model.flops import step_flops
from solo.model.parameters import ModelDefinition
from solo.training.activations import activations_line
from solo.training.data_guard import DataGuard
from solo.training.feeding import Feeder, StepInfo
from solo.training.groups import trainable_paths
from solo.training.ledger import Ledger
from solo.training.losses import Measured, means
from solo.training.metrics import Metrics
from solo.training.mixture import MixtureMeter, changed_weights
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder


class BadStepError(RuntimeError):
    """The loss was not finite or spiked, and the config says to stop."""


class Recorder:
    """Records the steps of a run.

    Args:
        config: config of the run.
        definition: definition of the model.
        feeder: the source of the batches.
        run: folder of the run.
        metrics: stream of the lines.
        observer: shows every step.
        ledger: records how time is spent.
        totals: sums over the previous steps, by name.

    Attributes:
        totals: sums over all steps so far.
        notes: messages for the user.
    """

    def __init__(
        self,
        config: Config,
        definition: ModelDefinition,
        feeder: Feeder,
        run: RunFolder,
        metrics: Metrics,
        observer: Observer,
        ledger: Ledger,
        totals: Mapping[str, int],
    ):
        self.totals: dict[str, int] = {"tokens": 0, "flops": 0, **totals}
        self.notes: list[str] = []
        self._config, self._definition, self._feeder, self._run = config, definition, feeder, run
        self._metrics, self._observer, self._ledger = metrics, observer, ledger
        self._guard = DataGuard(config.data.max_unreadable, run.quarantine_file)
        self._meter = MixtureMeter(feeder.plans)
        self._trained = [frozenset(trainable_paths(definition.specs, stage)) for stage in config.stages]

    def finish(self, info: StepInfo, measured: Measured) -> None:
        """Waits for a step, writes its line, and stops the run if the step or its data was bad."""
        where = f"step {info.step} of stage {self._config.stages[info.stage].name!r}"
        self._guard.check(where, info.planned, info.stats())
        measured = dict(jax.device_get(measured))
        activations = measured.pop("activations", None)
        if self._feeder.learner is not None:
            self._feeder.learner.add(measured["loss_by_source"])
        values = means(measured)
        # Time since the last reading of the ledger, at the end of the previous step, save or compilation.
        seconds = self._ledger.spent("step", info.step)
        bad_run = values.pop("bad_run")
        if (every := self._config.watch.norms_every_steps) and info.stage_step % every:
            del values["norms"]  # they were not computed
        if weights := changed_weights(self._feeder.plans[info.stage], info.stage_step):
            self._tell_of_weights(info, weights)
        line = self._line(info, values, seconds)
        self._metrics.write(line)
        if activations is not None:
            stage = self._config.stages[info.stage].name
            self._metrics.write(activations_line(info.step, stage, activations))
        self._observer.step(line, self._feeder.steps_before(len(self._feeder.plans)))
        if not values["applied"]:
            self._quarantine(info, values, bad_run)

    def _tell_of_weights(self, info: StepInfo, weights: Mapping[str, float]) -> None:
        stage = self._config.stages[info.stage]
        line = {"kind": "mixture", "step": info.step, "stage": stage.name, "stage_step": info.stage_step}
        self._metrics.write({**line, "weights": weights})
        if stage.mixture_learning is None:
            shown = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            self.notes.append(f"stage {stage.name}: from step {info.step} on the weights are {shown}")
            self._observer.say(self.notes[-1])

    def _line(self, info: StepInfo, values: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Returns the line of a step in `metrics.jsonl`, with device measurements and host counts."""
        stats = info.stats()
        flops = sum(step_flops(self._definition, stats, self._trained[info.stage]).values())
        tokens = stats.patches + stats.text
        summed_up = {"tokens": self.totals["tokens"] + tokens, "flops": self.totals["flops"] + flops}
        self.totals = {**self.totals, **summed_up}
        mixture = self._meter.fields(info.stage, info.planned, self.totals)
        peak = peak_flops(jax.devices()[0].device_kind)
        return {
            "kind": "train",
            "step": info.step,
            "stage": self._config.stages[info.stage].name,
            "stage_step": info.stage_step,
            "loss": values["loss"],
            **values,
            "tokens": tokens,
            "visual_tokens": stats.patches,
            "targets": stats.targets,
            "useful_share": tokens / info.slots,
            **mixture,
            "flops": flops,
            "total_tokens": self.totals["tokens"],
            "total_flops": self.totals["flops"],
            "timing": {
                "step_seconds": seconds,
                "data_wait_seconds": info.wait_seconds,
                "tokens_per_second": tokens / seconds,
                "mfu": flops / seconds / (peak * jax.device_count()) if peak else None,
            },
        }

    def _quarantine(self, info: StepInfo, values: Mapping[str, Any], bad_run: int) -> None:
        """Records the documents of a bad step; stops the run if the config says so."""
        stage = self._config.stages[info.stage]
        records = self._feeder.record_ids(info)
        what = f"step {info.step} of stage {stage.name!r}: loss {values['loss']}, gradient norm {values['grad_norm']}"
        if jax.process_index() == 0:
            line = {"kind": "bad_step", "step": info.step, "reason": what, "records": records}
            append_json_line(self._run.quarantine_file, line)
        if self._config.safety.policy == "stop" or bad_run >= self._config.safety.max_skips:
            raise BadStepError(
                f"{what}. The update was not applied ({bad_run} in a row); the ids of the batch's {len(records)}"
                f" documents are in {self._run.quarantine_file}. Set safety.policy=skip to continue after such steps."
            )

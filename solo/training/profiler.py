"""Traces of training steps, and the memory of the devices, for TensorBoard's profile plugin, XProf and pprof.

<run>/profile/step-10/plugins/profile/<time>/<host>.xplane.pb   the trace: tensorboard --logdir <run>/profile
<run>/profile/step-10/memory.prof                               memory of the devices after it: pprof -web memory.prof
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from solo.config import ProfileConfig

_ON_REQUEST = 3  # steps


class Profiler:
    """Traces the steps that the config names, and steps on request. If a trace fails, the run continues.

    Args:
        config: the steps to trace.
        folder: folder of the traces.
        say: called with every message for the user.
    """

    def __init__(self, config: ProfileConfig, folder: Path, say: Callable[[str], None]):
        wanted = config.steps if config.processes == "all" or jax.process_index() == 0 else None
        self._first, self._last = wanted or (0, -1)
        self._config, self._folder, self._say = config, folder, say
        self._until: int | None = None
        self._place = folder

    def step(self, step: int, requested: bool = False) -> AbstractContextManager[Any]:
        """Returns the context of a compiled step, and starts a trace before it if one is due.

        Args:
            step: step of the run.
            requested: whether to trace the next steps regardless of the config.
        """
        if self._until is None and (requested or self._first <= step <= self._last):
            self._start(step, self._last if step <= self._last and not requested else step + _ON_REQUEST - 1)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def done(self, step: int, result: jax.Array) -> None:
        """Waits for the step and ends the trace, if this was its last step."""
        if self._until is not None and step >= self._until:
            result.block_until_ready()
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one, and stores the memory profile of the devices next to it."""
        if self._until is None:
            return
        self._until = None
        try:
            jax.profiler.stop_trace()
            jax.profiler.save_device_memory_profile(str(self._place / "memory.prof"))
        except Exception as error:
            self._say(f"the trace could not be stored: {error}")
        else:
            self._say(f"the trace is in {self._place}; open it with: tensorboard --logdir {self._folder}")

    def _start(self, step: int, until: int) -> None:
        number = jax.process_index()
        self._place = self._folder / (f"step-{step}-process-{number}" if number else f"step-{step}")
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = int(self._config.python)
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._place), profiler_options=options)
        except Exception as error:  # another profiler is running, or the disk is full
            self._first, self._last = 0, -1
            self._say(f"steps {step} to {until} are not traced: {error}")
            return
        self._until = until
        self._say(f"tracing steps {step} to {until}")

"""Weights & Biases, from the lines of `metrics.jsonl`. Needs the extra `wandb`.

The id of the W&B run is stored in the run's folder, so that a resumed run continues it. W&B only accepts increasing
steps, so steps that it already has are not sent again. The key comes from `wandb login` or $WANDB_API_KEY, and is not
stored in any file of the run.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from solo.config import Config, ConfigError, WandbConfig
from solo.files import json_text, write_whole
from solo.training.run_folder import RunFolder
from solo.training.tensorboard import scalars

_FILE = "wandb.json"


def check_wandb(config: Config) -> None:
    """Raises ConfigError if the config wants W&B, and its library is missing."""
    if config.watch.wandb is not None and find_spec("wandb") is None:
        raise ConfigError("watch.wandb needs the library wandb: pip install 'solo-vlm[wandb]'")


class WandbBoard:
    """Sends lines to a run of W&B. See `solo.training.boards.Board`."""

    name = "Weights & Biases"

    def __init__(self, run: RunFolder, config: Config, wanted: WandbConfig):
        self._folder, self._config, self._wanted = run, config, wanted
        self._file = run.work / _FILE
        self._newest = -1
        self._run: Any = None

    def begin(self, resume_step: int) -> int:
        """Starts or continues the run. Returns the last step that W&B has; -1 if there is none."""
        # These are read when the library is imported. Otherwise it would print to the terminal and ask for a login.
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        known = self._known()
        if self._wanted.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no key is set: run `wandb login`, or set WANDB_API_KEY")
        self._run = wandb.init(
            project=self._wanted.project,
            entity=self._wanted.entity,
            id=known["id"],
            name=self._config.name,
            group=self._wanted.group,
            tags=list(self._wanted.tags) or None,
            mode=self._wanted.mode,
            resume="allow",
            dir=str(self._folder.work),
            config=self._config.model_dump(mode="json"),
            allow_val_change=True,
            save_code=False,
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )
        self._newest = max(known["step"], int(self._run.step) - 1)
        write_whole(self._file, json_text({"id": known["id"], "step": self._newest}) + "\n")
        return min(self._newest, resume_step)

    def show(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line, unless W&B has its step."""
        step = line["step"]
        if step < self._newest or (step == self._newest and line["kind"] == "train"):
            return
        self._newest = step
        self._run.log(dict(scalars(line)), step=step)

    def flush(self) -> None:
        """Records which steps W&B has. More lines of the newest step may follow."""
        write_whole(self._file, json_text({"id": self._run.id, "step": self._newest}) + "\n")

    def close(self) -> None:
        """Ends the run after everything is sent or stored."""
        self.flush()
        self._run.finish()

    def _known(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {"id": str(found["id"]), "step": int(found["step"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"id": uuid.uuid4().hex[:12], "step": -1}

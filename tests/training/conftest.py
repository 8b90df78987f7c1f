"""A run that is whole, for tests of runs that are not, and compiled steps that runs in one process share."""

from collections.abc import Iterator

import pytest

from solo.training.trainer import Trainer
from tests.training.test_resume import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    """With a run `whole`."""
    runs = Runs(tmp_path_factory.mktemp("resume"))
    runs.finish("whole")
    return runs


@pytest.fixture(scope="module")
def shared_programs() -> Iterator[None]:
    """Trainers of the same model, mesh and averages share the compiled steps that a trainer shares between its stages.

    Tracing and compiling a tiny model takes most of the time of its training.
    """
    create, program = Trainer.__init__, Trainer._program
    stages, compiled = {}, {}
    others = {"name", "folder", "stages", "branch", "checkpoint"}

    def init(self, *arguments, **options) -> None:
        create(self, *arguments, **options)
        self._stages, self._compiled = stages, compiled

    def keyed(self, number: int) -> str:
        return f"{program(self, number)} {self.mesh.shape} {self.config.model_dump_json(exclude=others)}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", init)
        patch.setattr(Trainer, "_program", keyed)
        yield

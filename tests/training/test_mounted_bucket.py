"""A file system that does not rename folders, as buckets mounted with Cloud Storage FUSE by default."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solo.config import CheckpointConfig
from solo.files import is_complete
from solo.training.checkpoint import Checkpoints, Progress
from solo.training.orbax_paths import renames_folders
from tests.training.test_bucket_run import abstract, state
from tests.training.test_resume import Runs

# What gcsfuse answers unless it is mounted with --rename-dir-limit. Empty folders can be renamed.
SHIM = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static int refuses(int at, const char *path) {
  int folder = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (folder < 0) return 0;
  DIR *entries = fdopendir(folder);
  int count = 0;
  while (readdir(entries)) count++;
  closedir(entries);
  return count > 2;
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  static int (*real)(int, const char *, int, const char *, unsigned);
  if (!real) real = dlsym(RTLD_NEXT, "renameat2");
  if (!refuses(from, old)) return real(from, old, to, new, flags);
  errno = EMFILE;
  return -1;
}

int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"], cwd=folder, check=True)
    return str(folder / "shim.so")


def test_what_the_file_system_refuses_is_found_out(shim, tmp_path):
    command = (
        "import sys, pathlib; from solo.training.orbax_paths import renames_folders;"
        "print(renames_folders(pathlib.Path(sys.argv[1])))"
    )
    for preload, expected in (("", "True"), (shim, "False")):
        done = subprocess.run(
            [sys.executable, "-c", command, str(tmp_path)],
            env={**os.environ, "LD_PRELOAD": preload},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
    assert renames_folders(tmp_path / "new" / "folder")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new", tmp_path / "new" / "folder"]


def test_checkpoints_are_written_in_place_where_folders_cannot_be_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr("solo.training.orbax_paths.renames_folders", lambda folder: False)
    monkeypatch.setattr(Path, "rename", refuse)
    (tmp_path / "of the user").mkdir()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_latest=2))
    for step in (1, 2, 3):
        checkpoints.save(state(step), Progress(step, 0, step, {}))
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "of the user"]
    (tmp_path / "3" / "_CHECKPOINT_METADATA").unlink()
    again = Checkpoints(tmp_path, CheckpointConfig(keep_latest=2))
    progress, _ = again.resume(lambda progress: abstract(state(progress.step)))
    assert progress.step == 2
    again.save(state(3), Progress(3, 0, 3, {}))  # over the damaged one, which could not be renamed
    again.close()
    assert is_complete(tmp_path / "3")
    assert (tmp_path / "3" / "_CHECKPOINT_METADATA").exists()


def refuse(self, target):
    raise OSError(24, "Too many open files", str(self))


@pytest.mark.slow
def test_a_killed_run_resumes(runs: Runs, shim, tmp_path, monkeypatch):
    """Preparing, training, kill -9 in the middle of a save, and resuming, without a single rename of a folder."""
    monkeypatch.setenv("LD_PRELOAD", shim)
    place = (f"data.folder={tmp_path / 'data'}",)
    folder = runs.path("mounted") / "checkpoints"

    def saving() -> bool:
        found = list(folder.glob("[0-9]*"))
        begun = [path for path in found if not is_complete(path) and any(path.rglob("*.ocdbt"))]
        return len(begun) > 0 and any(map(is_complete, found))

    process = runs.start("mounted", *place)
    while process.poll() is None:
        if saving():
            process.send_signal(signal.SIGKILL)
        time.sleep(0.002)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    runs.finish("mounted", *place)
    assert runs.lines("mounted") == runs.lines("whole")
    assert [path.name for path in folder.iterdir() if not is_complete(path)] == []

"""Which runs are restarted, and when restarts end."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solo.launch.restarts import Restarts, main, newest_of, newest_step
from solo.statuses import may_be_retried
from solo.storage import Bucket
from tests.data.buckets import _gs, _s3, bucket, gs, s3  # noqa: F401


@pytest.mark.parametrize(
    ("status", "again"), [(0, False), (1, False), (2, False), (41, False), (42, True), (43, False), (126, False)]
)
def test_a_fault_is_never_retried(status: int, again: bool) -> None:
    assert may_be_retried(status) == again


@pytest.mark.parametrize("status", [127, 134, 137, 143, 255])
def test_death_by_a_signal_is_retried(status: int) -> None:
    assert may_be_retried(status)


def test_restarts_without_a_new_checkpoint_end() -> None:
    restarts = Restarts(max_idle=3)
    assert [restarts.start(10) for _ in range(3)] == [None] * 3
    assert restarts.start(10) == "it was restarted 3 times in a row without a checkpoint after step 10"


def test_a_checkpoint_that_is_damaged_again_and_again_is_no_progress() -> None:
    """Each attempt falls back to step 9, and saves step 12 again."""
    restarts = Restarts(max_idle=3)
    assert [restarts.start(step) for step in (12, 9, 12)] == [None] * 3
    assert restarts.start(9) == "it was restarted 3 times in a row without a checkpoint after step 12"


def test_progress_resets_the_count_and_the_wait() -> None:
    restarts = Restarts(max_idle=3)
    waits = []
    for step in (None, None, None, 5, 5):
        assert restarts.start(step) is None
        waits.append(restarts.wait)
    assert waits == [5, 10, 20, 5, 10]


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=40), st.integers(0, 10), st.integers(1, 4))
def test_the_number_of_restarts_is_limited(steps: list[int | None], maximum: int, max_idle: int) -> None:
    restarts, made = Restarts(maximum, max_idle), 0
    for step in steps:
        if restarts.start(step):
            break
        made += 1
    assert made <= maximum + 1
    assert restarts.wait <= 300


def test_a_scheduler_that_restarts_is_told_to_stop(tmp_path: Path, capsys) -> None:
    def start(*saved: int) -> int:
        for step in saved:
            (tmp_path / f"run/checkpoints/{step}").mkdir(parents=True)
            (tmp_path / f"run/checkpoints/{step}/commit_success.txt").touch()
        state = tmp_path / "deep" / "state.json"
        return main([f"--state={state}", f"--run-folder={tmp_path}/run", "--max-idle-restarts=2"])

    assert [start(), start(), start(3), start(), start()] == [0, 0, 0, 0, 1]
    assert "not restarted: it was restarted 2 times in a row without a checkpoint after step 3" in (
        capsys.readouterr().err
    )


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    assert newest_step(tmp_path) is None
    for step in (3, 12):
        (tmp_path / f"checkpoints/{step}").mkdir(parents=True)
    (tmp_path / "checkpoints/3/commit_success.txt").touch()
    assert newest_step(tmp_path) == 3
    listing = [
        "gs://b/runs/r/checkpoints/3/commit_success.txt",
        "gs://b/runs/r/checkpoints/20/commit_success.txt\n",
        "",
    ]
    assert newest_of(listing) == 20


def test_starts_of_a_run_in_a_bucket_are_counted_there(bucket: str, capsys) -> None:  # noqa: F811
    files = Bucket(f"{bucket}/runs/a")

    def start() -> int:
        return main(
            [f"--state={bucket}/runs/a/restarts.json", f"--run-folder={bucket}/runs/a", "--max-idle-restarts=2"]
        )

    assert start() == 0
    files.write("checkpoints/7/commit_success.txt", b"")
    files.write("checkpoints/9/other", b"")
    assert [start(), start(), start()] == [0, 0, 1]
    assert "without a checkpoint after step 7" in capsys.readouterr().err
    files.write("restarts.json", b'{"starts": ')  # cut short
    assert start() == 0


def test_a_bucket_that_does_not_answer_ends_no_run(gs: str, capsys) -> None:  # noqa: F811
    missing = "gs://there-is-no-such-bucket/runs/a"
    assert main([f"--state={missing}/restarts.json", f"--run-folder={missing}"]) == 0
    assert "this start is not counted" in capsys.readouterr().err

"""What becomes of failed jobs, in this process and in others."""

import errno
import pickle
from pathlib import Path

import pytest

from ldmlab.errors import Interrupted, UserError, for_the_user
from ldmlab.jobs import Jobs


def elsewhere(jobs):
    """A copy of it in another process."""
    copy = pickle.loads(pickle.dumps(jobs))
    copy.process = ("another machine", 1)
    return copy


def test_no_failure_is_success():
    assert Jobs().exit_code == 0


def test_what_happened_in_other_processes_is_gathered(tmp_path):
    jobs = Jobs(folder=tmp_path)
    jobs.begin(Path("runs/a"))
    jobs.fail("job 1", UserError("here"))
    assert list(tmp_path.iterdir()) == []  # nothing has to be left where it is known already
    for number, study in ((2, "b"), (3, "a")):
        copy = elsewhere(jobs)
        copy.begin(Path("runs") / study)
        copy.fail(f"job {number}", ValueError("there"))
    elsewhere(Jobs(folder=tmp_path)).fail("job of another sweep", UserError("not ours"))
    jobs.gather()
    assert [job for job, _ in jobs.failed] == ["job 1", "job 2", "job 3"]
    assert [str(failure) for _, failure in jobs.failed[1:]] == ["there", "there"]
    assert list(jobs.studies) == [Path("runs/a"), Path("runs/b")]
    jobs.gather()
    assert len(jobs.failed) == 3


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([UserError("x")], 2),
        ([UserError("x"), ValueError("y")], 1),
        ([UserError("x"), Interrupted("y", 130)], 130),
        ([Interrupted("y", 130), UserError("x")], 130),
    ],
)
def test_the_exit_code_is_the_worst(errors, code):
    jobs = Jobs()
    for error in errors:
        jobs.fail("job", error)
    assert jobs.exit_code == code
    assert jobs.interrupted == any(isinstance(error, Interrupted) for error in errors)


@pytest.mark.parametrize(
    ("failure", "code"), [(UserError("x"), 2), (ValueError("fault"), 1), (Interrupted("stopped", 143), 143)]
)
def test_codes_travel(tmp_path, failure, code):
    jobs = Jobs(folder=tmp_path)
    elsewhere(jobs).fail("job", failure)
    jobs.gather()
    assert jobs.exit_code == code
    assert jobs.interrupted == isinstance(failure, Interrupted)


def test_a_note_that_cannot_be_left_hides_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    copy = elsewhere(Jobs(folder=tmp_path / "file"))
    copy.fail("job", UserError("the disk is full"))
    assert [str(failure) for _, failure in copy.failed] == ["the disk is full"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "the disk is full (a/b): free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied: change its permissions"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: Read-only file system: change its permissions"),
    ],
)
def test_what_a_disk_refuses_is_for_the_user(error, said):
    told = for_the_user(error)
    assert isinstance(told, UserError)
    assert str(told).startswith(said)
    assert for_the_user(ValueError("ours")).args == ("ours",)

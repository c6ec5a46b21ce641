"""What becomes of failed jobs, in this process and in others."""

import pickle

import pytest

from ldmlab.errors import Interrupted, UserError
from ldmlab.failures import Failures


def elsewhere(failures):
    """A copy of it in another process."""
    copy = pickle.loads(pickle.dumps(failures))
    copy.process = ("another machine", 1)
    return copy


def test_no_failure_is_success():
    assert Failures().exit_code == 0


def test_failures_in_other_processes_are_gathered(tmp_path):
    failures = Failures()
    failures.add("job 1", UserError("here"), tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing has to be left where it is known already
    for number in (2, 3):
        elsewhere(failures).add(f"job {number}", ValueError("there"), tmp_path)
    elsewhere(Failures()).add("job of another sweep", UserError("not ours"), tmp_path)
    failures.gather(tmp_path)
    assert sorted(job for job, _ in failures.found) == ["job 1", "job 2", "job 3"]
    assert [str(failure) for _, failure in failures.found[1:]] == ["there", "there"]
    failures.gather(tmp_path)
    assert len(failures.found) == 3


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([UserError("x")], 2),
        ([UserError("x"), ValueError("y")], 1),
        ([UserError("x"), Interrupted("y", 130)], 130),
    ],
)
def test_the_exit_code_is_the_worst(tmp_path, errors, code):
    failures = Failures()
    for error in errors:
        failures.add("job", error, tmp_path)
    assert failures.exit_code == code
    assert failures.interrupted == isinstance(errors[-1], Interrupted)


def test_codes_travel(tmp_path):
    failures = Failures()
    elsewhere(failures).add("job", ValueError("fault"), tmp_path)
    failures.gather(tmp_path)
    assert failures.exit_code == 1

"""The exceptions that users are meant to read, and how they are said."""

from __future__ import annotations

import errno
import sys
import traceback

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


class UserError(Exception):
    """What was wrong, where, and what to do, in one line. The command line prints it and exits with code 2."""


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; `exit_code` is the shell's for that signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def for_the_user(error: Exception) -> Exception:
    """A full disk or somebody else's folder, whichever line met it, as a UserError; any other error as it is."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        place = error.filename or "while writing"
        return UserError(f"the disk is full ({place}): free some space and start the same command again")
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED and error.filename:
        return UserError(f"{error.filename}: {error.strerror}: change its permissions, or choose another place")
    return error


def traced(error: Exception) -> Exception:
    """The same of an error that is being handled; one that is our own fault has its traceback printed."""
    failure = for_the_user(error)
    if not isinstance(failure, (UserError, Interrupted)):
        traceback.print_exc()
    return failure


def as_it_was(message: str, exit_code: int) -> Exception:
    """The failure of another process, from what it said and its exit code."""
    if exit_code == 2:
        return UserError(message)
    return Interrupted(message, exit_code) if exit_code > 128 else RuntimeError(message)


def fail(message: str, code: int = 2) -> int:
    """Says in one line what was wrong."""
    print(f"ldmlab: {' '.join(message.split())}", file=sys.stderr)
    return code

"""The exceptions that users are meant to read."""

from __future__ import annotations


class UserError(Exception):
    """What was wrong, where, and what to do, in one line. The command line prints it and exits with code 2."""


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; `exit_code` is the shell's for that signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code

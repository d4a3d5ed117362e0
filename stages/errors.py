"""Errors that a user can mend are one line that says what was expected, what came and what to do; anything else is a defect and shows its traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

OK, MENDABLE, DEFECT = 0, 1, 2  # exit codes
DEBUG = "ASSAY_DEBUG"  # set in the environment, mendable errors show their traceback too


class UserError(Exception):
    """Something that the user can mend. Subclasses also derive from the built-in class that fits."""


class Missing(UserError, FileNotFoundError):
    """A file is not where it should be."""


MENDED_BY_USERS = (UserError, OSError)


def told(error: Exception) -> str:
    """A mendable error as its user is told of it: one line, or all of it when debugging."""
    return "".join(traceback.format_exception(error)) if os.environ.get(DEBUG) else f"{type(error).__name__}: {error}"


def guarded(call: Callable[[], int | None]) -> int:
    """Run a verb or a command: its exit code, with mendable errors printed to stderr without a traceback."""
    try:
        return call() or OK
    except MENDED_BY_USERS as error:
        print(told(error), file=sys.stderr)
        return MENDABLE

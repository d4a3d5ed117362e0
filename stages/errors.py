"""Errors that a user can mend are one line that says what was expected, what came and what to do; anything else is a defect and shows its traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

OK, MENDABLE, DEFECT = 0, 1, 2  # exit codes
DEBUG = "ASSAY_DEBUG"  # set in the environment, mendable errors show their traceback too


class UserError(Exception):
    """Something that the user can mend. Subclasses also derive from the built-in class that fits."""


class Missing(UserError, FileNotFoundError):
    """A file is not where it should be."""


def guarded(call: Callable[[], int | None]) -> int:
    """Run a verb or a command: its exit code, with mendable errors printed to stderr without a traceback."""
    try:
        return call() or OK
    except (UserError, OSError) as error:
        if os.environ.get(DEBUG):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return MENDABLE

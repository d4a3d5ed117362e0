"""What can be wrong with a file of stored tokens: named by file and key, with what was expected and what to do.

E103 no plain file of tensors, E301 NaN or infinity, E303 no label, E321 no modality, E322 rank, E323 empty, E324 width, E325 no array of numbers,
E326 label, E327 parts that do not fit together, E328 files or list missing, E329 too many bad files, E330 a place that is not free.
"""

from __future__ import annotations

from typing import NamedTuple

from stages.errors import UserError


class RecordError(UserError, ValueError):
    """code: see above. path: the file, key: where in it, "" where it is not about one key. what: expected and found. fix: what to do."""

    def __init__(self, code: str, path: object, key: str, what: str, fix: str) -> None:
        super().__init__(f"{code} {path}: {f'{key} {what}' if key else what}. {fix}")
        self.code, self.path, self.key, self.what, self.fix = code, str(path), key, what, fix

    def __reduce__(self) -> tuple:
        return RecordError, (self.code, self.path, self.key, self.what, self.fix)


class Rejected(NamedTuple):
    """A file that could not be used, as rejected.json lists it."""

    path: str
    key: str
    code: str
    reason: str

    @classmethod
    def of(cls, error: RecordError, path: str) -> Rejected:
        return cls(path, error.key, error.code, f"{error.what}. {error.fix}")


def some(names: list[str], shown: int = 10) -> str:
    """The first few of many names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")

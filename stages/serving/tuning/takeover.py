"""What is done with the answer: the command that tries it without an edit, and the edit of params.yaml that leaves every other byte alone."""

from __future__ import annotations

import re
from typing import Any

from stages import io, params
from stages.params import ParamsError
from stages.serving.tuning.space import Options


def command(model: str, changes: Options) -> str:
    """`dvc exp run` with one -S for each change; a key that the entry does not have yet takes a plus."""
    entry = _entry(params.PATH.read_text(encoding="utf-8"), model)
    settings = [f"{'' if name in entry else '+'}models.{model}.{name}={_inline(value)}" for name, value in changes.items()]
    return " ".join(["dvc exp run", *(f"-S '{setting}'" for setting in settings)])


def apply(model: str, changes: Options) -> None:
    """Write the changes into models.<model> of params.yaml; comments and order stay. Raises ParamsError where the file could not be kept so."""
    text = params.PATH.read_text(encoding="utf-8")
    wanted = _plain(_entry(text, model)) | changes
    for name, value in changes.items():
        text = _with_option(text, model, name, value)
    if _plain(_entry(text, model)) != wanted:
        raise ParamsError(f"{params.PATH}: models.{model} is written in a way that cannot be edited here; take the values over by hand")
    io.write_text(params.PATH, text)


def _with_option(text: str, model: str, name: str, value: Any) -> str:
    """The text with one option set: in its own lines where it has any, else in a new line behind `detector`."""
    entry, lines = _entry(text, model), text.splitlines(keepends=True)
    row, column = entry.lc.key(name if name in entry else "detector")
    indent = " " * column
    if name not in entry:
        return "".join([*lines[: row + 1], *_block(indent, name, value), *lines[row + 1 :]])
    old = entry[name]
    if isinstance(old, list) and old and old.lc.item(0)[0] > row:  # in block style
        first, last = old.lc.item(0)[0], old.lc.item(len(old) - 1)[0]
        known = {item: lines[old.lc.item(place)[0]] for place, item in enumerate(old)}  # with their comments
        dash = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        items = [known.get(item, f"{dash}- {_scalar(item)}\n") for item in value]
        return "".join([*lines[:first], *items, *lines[last + 1 :]])
    found = re.fullmatch(r"(.*?)(\s+#.*)?(\n?)", lines[row], re.DOTALL)
    comment, written = found[2] or "", f"{indent}{name}: {_inline(value)}"
    if comment:  # where it stood, if there is room
        written, comment = written.ljust(len(found[1]) + len(comment) - len(comment.lstrip())), comment.lstrip()
        written += "" if written.endswith(" ") else "  "
    return "".join([*lines[:row], written + comment + found[3], *lines[row + 1 :]])


def _block(indent: str, name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"{indent}{name}:\n", *(f"{indent}  - {_scalar(item)}\n" for item in value)]
    return [f"{indent}{name}: {_scalar(value)}\n"]


def _inline(value: Any) -> str:
    return f"[{','.join(map(_scalar, value))}]" if isinstance(value, list) else _scalar(value)


def _scalar(value: Any) -> str:
    """A plain scalar as YAML 1.1 and 1.2 both read it: 1e-05 would be a text to one of them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and "e" in repr(value):
        return f"{value:.12f}".rstrip("0")
    return str(value)


def _plain(entry: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in entry.items()}


def _entry(text: str, model: str) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="rt").load(text)["models"][model]

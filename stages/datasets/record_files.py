"""One `.pt` file of embeddings to one record and back. The three schemas of the field and a general one; a file may hold any part of any of them.

    audio-video   audio_tokens (T, 1, D) or (T, D), video_tokens (T, ...)   labels: number, or {"binary": number}
    series        embeddings (T, D)                                         labels: number, (T,), None
    image-text    img_feat, text_feat: (D,) or (T, D)                       label: number
    general       modalities: {name: {"tokens": (T, D), "time": (T,), "mask": (T,)}}, label, id, group, fault, split

Any of them may have `facts`, a dict of what is known beside the media (setpoints, material): numbers and texts, held against what a model has seen.
Values are tensors or arrays of 1 to 4 axes: (D,) is one token, and all axes after the first are laid out flat. The id is `id`, else `filename`, else
the file's name. A vector label is kept for the steps of the series, and the record is anomalous where any step is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages import io
from stages.datasets.record_errors import RecordError
from stages.datasets.records import UNKNOWN, Record, Tokens

KEYS = {"audio_tokens": "audio", "video_tokens": "video", "embeddings": "series", "img_feat": "image", "text_feat": "text"}
SCHEMAS = {"general": None, "audio-video": ("audio_tokens", "video_tokens"), "series": ("embeddings",), "image-text": ("img_feat", "text_feat")}
NAMED = ("id", "filename", "labels", "label", "group", "fault", "split", "modalities", "facts")
# Columns beside which tables of results have one for each modality, and what stands for all of them.
RESERVED = ("record_id", "label", "step_label", "fault", "group", "split", "seed", "score", "probability", "present", "missing", "stored")
PARTS = ("tokens", "time", "mask")
UNORDERED = ("image",)  # modalities whose tokens have no order in time unless the file gives one
AGAIN = "Write these features again"
SPLITS = ("train", "val", "test")


class _Given(NamedTuple):
    """One modality of a file: its tokens, and which of the `count` that the file has they are."""

    tokens: Tokens
    rows: Tensor  # (T,) int64
    count: int


class Read(NamedTuple):
    record: Record
    named: bool  # whether the file itself says its id
    unknown: list[str]  # keys that mean nothing here
    facts: dict[str, str | float]  # what the file says of it beside its media


def read_record(path: Path, *, name: str = "", as_tokens: bool = False) -> Read:
    """The record of one file. name: what errors call the file. as_tokens: video (T, K, D) as T * K tokens of width D, not T of width K * D.

    Raises RecordError; whatever the file holds, no code of it is run.
    """
    shown = name or path.as_posix()
    try:
        content = io.load_foreign(path)
    except io.NotNumbers as error:
        code = "E301" if isinstance(error, io.NotFinite) else "E325"
        raise RecordError(code, shown, error.key, error.what, AGAIN) from None
    except io.UnsafeFile as error:
        what = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        raise RecordError("E103", shown, "", what, "Save a dict of tensors with torch.save from the program that made it") from None
    except OSError as error:
        raise RecordError("E328", shown, "", f"cannot be read: {error.strerror or error}", "Look at the path and its permissions") from error
    return parsed(content, shown, Path(shown).stem, as_tokens=as_tokens)


def parsed(content: Any, path: str, stem: str, *, as_tokens: bool = False) -> Read:
    """content: what the file held. stem: its id where it says none."""
    if not isinstance(content, dict):
        raise RecordError("E321", path, "", f"holds a {type(content).__name__}, expected a dict with {', '.join(KEYS)} or modalities", AGAIN)
    modalities = _modalities(content, path, as_tokens)
    if not modalities:
        keys = ", ".join(map(str, content)) or "none"
        raise RecordError("E321", path, "", f"no modality is present; expected one of {', '.join(KEYS)} or modalities, found the keys {keys}", AGAIN)
    label, steps = _label(content, path, modalities.get("series"))
    given = next((_name(content, key, path) for key in ("id", "filename") if content.get(key) is not None), "")
    group, fault, split = (_name(content, key, path) for key in ("group", "fault", "split"))
    if split and split not in SPLITS:
        raise RecordError("E327", path, "split", f"is {split!r}, expected one of {', '.join(SPLITS)}", AGAIN)
    unknown = [str(key) for key in content if key not in KEYS and key not in NAMED]
    unknown += [f"modalities.*.{part}" for one in _general(content, path).values() if isinstance(one, dict) for part in one if part not in PARTS]
    unknown += [f"labels.{key}" for key in content.get("labels") or () if key != "binary"] if isinstance(content.get("labels"), dict) else []
    record = Record(given or stem, {name: one.tokens for name, one in modalities.items()}, label, group, fault, split or None, steps)
    return Read(record, bool(given), unknown, _facts(content, path))


def written(record: Record, schema: str = "general") -> dict[str, Any]:
    """What `read_record` reads the same record from. Raises RecordError for a modality that the schema has no key for."""
    keys = SCHEMAS.get(schema, ())
    label = None if record.label == UNKNOWN else record.label
    if keys is None:
        parts = {name: {"tokens": one.values.clone(), "time": one.time.clone()} for name, one in record.modalities.items()}
        told = {"group": record.group, "fault": record.fault, "split": record.split}
        steps = label if record.step_label is None else _step_targets(record.step_label)
        return {"modalities": parts, "labels": steps, "id": record.record_id, **{key: value for key, value in told.items() if value}}
    of = {KEYS[key]: key for key in keys}
    if unsaid := [name for name in record.modalities if name not in of]:
        what = f"the schema {schema} has no place for {', '.join(unsaid)}; it holds {', '.join(of) or 'nothing'}"
        raise RecordError("E321", record.record_id, "", what, f"Choose another schema: {', '.join(SCHEMAS)}")
    content: dict[str, Any] = {of[name]: one.values.clone() for name, one in record.modalities.items()}
    if schema == "image-text":
        return {**content, "label": label, "id": record.record_id}
    if schema == "audio-video":
        return {**content, "labels": None if label is None else {"binary": label}, "id": record.record_id}
    return {**content, "labels": label if record.step_label is None else _step_targets(record.step_label), "filename": record.record_id}


def write_record(path: Path, record: Record, schema: str = "general") -> None:
    """The same record gives the same bytes."""
    content = written(record, schema)
    with io.writing(path) as file:
        torch.save(content, file)


def _step_targets(steps: Tensor) -> Tensor:
    return steps.clone().to(torch.int8)


def _modalities(content: dict, path: str, as_tokens: bool) -> dict[str, _Given]:
    found: dict[str, _Given] = {}
    for key, name in KEYS.items():
        if content.get(key) is not None:
            found[name] = _whole(_tokens(content[key], path, key, name, as_tokens and name == "video"))
    for name, parts in _general(content, path).items():
        key = f"modalities.{name}"
        if name in found:
            raise RecordError("E327", path, key, f"and another key both hold {name}", "Keep one of them")
        if parts is not None:
            given = _parts(parts, path, key, name) if isinstance(parts, dict) else _whole(_tokens(parts, path, key, name, False))
            found |= {name: given} if len(given.rows) else {}
    return found


def _whole(tokens: Tokens) -> _Given:
    return _Given(tokens, torch.arange(len(tokens.values)), len(tokens.values))


def _general(content: dict, path: str) -> dict[str, Any]:
    general = content.get("modalities")
    if general is None:
        return {}
    if not isinstance(general, dict) or not all(isinstance(name, str) and name.replace("_", "").replace("-", "").isalnum() for name in general):
        raise RecordError("E321", path, "modalities", "is no dict of names (letters, digits, - and _) to tokens", AGAIN)
    if taken := [name for name in general if name in RESERVED]:
        raise RecordError("E321", path, f"modalities.{taken[0]}", "has a name that tables of records use for something else", "Give it another name")
    return general


def _parts(parts: dict, path: str, key: str, name: str) -> _Given:
    """Tokens in order of time and without those that the mask hides."""
    if parts.get("tokens") is None:
        raise RecordError("E321", path, key, "has no tokens", AGAIN)
    tokens = _tokens(parts["tokens"], path, f"{key}.tokens", name, False)
    count, time, rows = len(tokens.values), tokens.time, torch.arange(len(tokens.values))
    if parts.get("time") is not None:
        exact = _per_token(parts["time"], count, path, f"{key}.time")
        if exact.min() < 0 or exact.max() > 1:
            exact = (exact - exact.min()) / (exact.max() - exact.min()).clamp(min=torch.finfo(exact.dtype).tiny)
        time, rows = exact.float(), exact.argsort(stable=True)
    if parts.get("mask") is not None:
        rows = rows[(_per_token(parts["mask"], count, path, f"{key}.mask") != 0)[rows]]
    return _Given(Tokens(tokens.values[rows], time[rows]), rows, count)


def _tokens(value: Any, path: str, key: str, name: str, split_axes: bool) -> Tokens:
    array = _array(value, path, key)
    if not 1 <= array.ndim <= 4:
        raise RecordError("E322", path, key, f"has {array.ndim} axes {tuple(array.shape)}, expected 1 to 4: (D,), (T, D) or (T, ..., D)", AGAIN)
    if array.numel() == 0:
        raise RecordError("E323", path, key, f"is empty, {tuple(array.shape)}", "Leave the key out where the modality is missing")
    array = array[None] if array.ndim == 1 else array
    steps = len(array)
    values = array.reshape(-1, array.shape[-1]) if split_axes and array.ndim > 2 else array.reshape(steps, -1)
    wide, values = values.dtype == torch.float64, values.to(torch.float32).contiguous()
    if wide and not values.isfinite().all():
        raise RecordError("E301", path, key, "holds values beyond float32", "Scale these features")
    time = torch.zeros(steps) if name in UNORDERED else torch.linspace(0, 1, steps) if steps > 1 else torch.zeros(1)
    return Tokens(values, time.repeat_interleave(len(values) // steps))


def _array(value: Any, path: str, key: str) -> Tensor:
    """A tensor of its own memory. Arrays of any byte order are taken too, lists are not."""
    import numpy

    if isinstance(value, numpy.ndarray):
        value = torch.from_numpy(numpy.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")).copy()) if value.dtype.kind in "biuf" else value
    if not isinstance(value, Tensor) or value.is_complex():
        kind = f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
        raise RecordError("E325", path, key, f"is a {kind}, expected a tensor or an array of numbers", AGAIN)
    return value.detach()


def _per_token(value: Any, count: int, path: str, key: str) -> Tensor:
    """(T,) float64."""
    array = _array(value, path, key).double().flatten()
    if len(array) != count:
        raise RecordError("E327", path, key, f"has {len(array)} values for {count} tokens", "Give one value for each token")
    return array


def _label(content: dict, path: str, series: _Given | None) -> tuple[int, Tensor | None]:
    """The record's label, and those of the steps of its series where the file has them."""
    found: list[tuple[int, Tensor | None]] = []
    for key in ("labels", "label"):
        value = content.get(key)
        if isinstance(value, dict):
            if "binary" not in value:
                raise RecordError("E326", path, key, f"is a dict without the key binary (its keys: {', '.join(map(str, value))})", "Add it: 0 or 1")
            key, value = f"{key}.binary", value["binary"]
        if value is not None:
            found.append(_one_label(value, path, key, series))
    if len({label for label, _ in found}) > 1:
        raise RecordError("E326", path, "label", f"is {found[1][0]} and labels say {found[0][0]}", "Keep one of them")
    return (found[0][0], next((steps for _, steps in found if steps is not None), None)) if found else (UNKNOWN, None)


def _one_label(value: Any, path: str, key: str, series: _Given | None) -> tuple[int, Tensor | None]:
    import numpy

    if isinstance(value, bool | int | float | numpy.generic):
        value = torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, list | tuple) and all(isinstance(one, bool | int | float) for one in value):
        value = torch.tensor([float(one) for one in value], dtype=torch.float64)
    array = _array(value, path, key).double().flatten()
    if array.numel() == 0 or not ((array == 0) | (array == 1)).all():
        shown = array.unique()[:5].tolist()
        raise RecordError("E326", path, key, f"holds {shown}, expected 0 (normal) or 1 (anomalous), or None where nobody knows", "Correct it")
    if array.numel() == 1:
        return int(array[0]), None
    if series is None or series.count != array.numel():
        steps = f"{series.count} steps" if series else "no series"
        what = f"has {array.numel()} values, and there are {steps} in the file; a vector has one for each step of `embeddings`"
        raise RecordError("E326", path, key, what, "Give one label for the record, or one for each step")
    steps = array[series.rows].to(torch.int8)
    return int(steps.any()), steps


def _facts(content: dict, path: str) -> dict[str, str | float]:
    given = content.get("facts")
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise RecordError("E325", path, "facts", "is no dict of names to numbers and texts", AGAIN)
    found = {}
    for name, value in given.items():
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
            raise RecordError("E325", path, f"facts.{name}", f"is a {type(value).__name__}, expected a number or text", AGAIN)
        found |= {} if value is None else {name: value if isinstance(value, str) else float(value)}
    return found


def _name(content: dict, key: str, path: str) -> str:
    """Text, or a whole number as text; "" where there is none."""
    value = content.get(key)
    if (value.numel() if isinstance(value, Tensor) else getattr(value, "size", 0)) == 1:
        value = value.item()
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    raise RecordError("E325", path, key, f"is a {type(value).__name__}, expected text or a whole number", AGAIN)

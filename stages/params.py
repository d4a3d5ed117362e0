"""params.yaml, checked: one pydantic model per section, unknown keys refused with the nearest known one and the line.

The options of an adapter, an encoder or a detector are not listed here: their schema is the signature of the function or class that takes them,
so that a new one touches no shared file.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, create_model, model_validator

from stages.errors import UserError

PATH = Path("params.yaml")
ENSEMBLE = "ensemble"  # the row that is a mean of others; its results lie in metrics/ensemble/, for it reads the folders of the data sets
TAGS = ("<model>", "<group>")  # of the two shapes of an entry under models; they stand in pydantic's error paths, not in the file


class ParamsError(UserError, ValueError):
    """params.yaml asks for something that does not exist or does not fit."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(BaseModel):
    """A named entry whose remaining keys are the options of what it names."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DatasetEntry(Entry):
    adapter: str
    source: str
    categories: list[str] | None = Field(default=None, min_length=1)  # all by default


class EncoderEntry(Entry):
    kind: str
    image_size: int = Field(ge=16, le=4096)


class ModelEntry(Entry):
    detector: str = Field(pattern=r"^[a-z_0-9]+\.[a-z_0-9]+$")
    label: str = ""
    shots: int | None = Field(default=None, ge=0)  # normal images of a category to learn from, drawn by seed; 0: none, None: all there are


class ModelGroup(Section):
    """Several models that one stage fits and judges, each a row of its own."""

    rows: dict[str, ModelEntry] = Field(min_length=1)


class SeriesModel(Entry):
    """A detector of signals. regime: what its fit may know of the anomalies in the training data; results of different regimes are never ranked together."""

    detector: str = Field(pattern=r"^([a-z_0-9]+\.)?[a-z_0-9]+$")
    label: str = ""
    regime: Literal["unsup-clean", "unsup-contaminated", "weak", "synth-erase"] = "unsup-contaminated"


class SeriesGroup(Section):
    """Several detectors of signals that one stage fits and judges, each a row of its own."""

    rows: dict[str, SeriesModel] = Field(min_length=1)


def _shape(entry: Any) -> str:
    return TAGS["rows" in entry] if isinstance(entry, dict) else TAGS[isinstance(entry, ModelGroup | SeriesGroup | RecordGroup)]


class Extract(Section):
    """One encoder entry run over one data set. `code` is the file of the encoder's kind, for DVC to watch."""

    dataset: str
    encoder: str
    reads: str
    code: str


class RunEntry(Section):
    """One model on one data set.

    pixels: the encoder of kind pixels that `encoder` reads, or is. code, maths: the files of the model (the same path twice where there is
    one). All three are there for DVC to watch.
    """

    dataset: str
    model: str
    encoder: str
    pixels: str = "pixels"
    code: str
    maths: str
    seeds: list[int] | None = Field(default=None, min_length=1)  # those of the protocol by default


class SeriesRun(Section):
    """One detector of signals, or a group of them, on one data set. code: its file or folder, maths: what lies beside it; for DVC to watch."""

    dataset: str
    model: str
    code: str
    maths: str
    seeds: list[int] | None = Field(default=None, min_length=1)  # those of the protocol by default


class SeriesProtocol(Section):
    """How every detector of signals is judged. The fractions are of the steps of a recording, in order of time, where the data set fixes no split."""

    seeds: list[int] = Field(min_length=1)
    train_fraction: float = Field(gt=0, lt=1)
    val_fraction: float = Field(gt=0, lt=0.5)  # of the whole after train; where the data set fixes train: of train, its last part
    false_alarm_quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1)  # thresholds exceed all but this share of normal held-out steps
    vus_buffer: int = Field(ge=1)  # L, in steps
    disturbed_steps: int = Field(ge=0)  # so long after an anomaly a normal step counts as disturbed
    bootstrap_resamples: int = Field(ge=100)


class SearchStage(Section):
    """One stage of the search: a signal cut into what is learnt from, chosen by and reported, in order of time."""

    steps: int = Field(ge=1000)
    train: float = Field(gt=0, lt=1)  # share of the steps
    val: float = Field(gt=0, lt=1)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)


class SeriesSearch(Section):
    """The slice of the two-stage search that the pipeline runs; see docs/series_search.md."""

    grid: Literal["seed", "improved"]
    regime: Literal["unsup-clean", "unsup-contaminated", "weak", "synth-erase"]
    gain: float = Field(gt=0)  # strength of the anomalies: 1, .3 and .15 are easy, medium and hard
    seed: int
    data_seed: int  # of its own signals, which are not those of a data set
    interval_scale: float = Field(gt=0)  # stretches the gaps between anomalies
    judged: list[Annotated[int, Field(ge=1)]] = Field(min_length=3, max_length=3)  # windows of a block: pure normal, disturbing normal, anomaly
    combinations: int | None = Field(ge=2)  # drawn from the grid; null: all
    keep: list[Annotated[int, Field(ge=1)]] = Field(min_length=2, max_length=2)  # the fewest and the most that go on to the full stage
    quick: SearchStage
    full: SearchStage


class Series(Section):
    """The task of signals: its data sets, detectors and protocol, as the sections of the same names are for images."""

    datasets: dict[str, DatasetEntry]
    models: dict[str, Annotated[Annotated[SeriesModel, Tag(TAGS[0])] | Annotated[SeriesGroup, Tag(TAGS[1])], Discriminator(_shape)]]
    runs: dict[str, SeriesRun]
    protocol: SeriesProtocol
    search: SeriesSearch | None = None

    def entry(self, section: str, name: str) -> Any:
        """The entry `name` of a section, or an error that names the nearest one."""
        return _entry(getattr(self, section), name, f"series.{section}")

    def seeds(self, run: SeriesRun) -> list[int]:
        """The training seeds of a run, the first of which is the model that is shipped."""
        return run.seeds or self.protocol.seeds

    def rows(self, model: str) -> dict[str, SeriesModel]:
        """The detectors behind one entry: itself, or the rows of a group."""
        entry = self.entry("models", model)
        return entry.rows if isinstance(entry, SeriesGroup) else {model: entry}


class RecordEncoder(Entry):
    """A frozen network that turns one kind of media into tokens. kind: its file in stages/encoders/media/."""

    kind: str = Field(pattern=r"^[a-z_0-9]+$")


class RecordExtract(Section):
    """One encoder run over one modality of one data set, into features/<dataset>/<modality>/. code: the file of the encoder's kind, for DVC to watch.

    modality: a column of the sample table, or "stored", where the tokens of all modalities lie in `.pt` files already.
    """

    dataset: str
    modality: str
    encoder: str
    code: str
    control: bool = False  # shown only to detectors that name the modality


class RecordModel(Entry):
    """A detector of records. modalities: those that it is shown; by default all that are no control."""

    detector: str = Field(pattern=r"^([a-z_0-9]+\.)?[a-z_0-9]+$")
    label: str = ""
    modalities: list[str] | None = Field(default=None, min_length=1)


class RecordGroup(Section):
    """Several detectors of records that one stage fits and judges, each a row of its own."""

    rows: dict[str, RecordModel] = Field(min_length=1)


class RecordRun(Section):
    """One detector of records, or a group of them, on one data set. code: its file or folder, maths: what lies beside it; for DVC to watch."""

    dataset: str
    model: str
    code: str
    maths: str
    seeds: list[int] | None = Field(default=None, min_length=1)  # those of the protocol by default


class RecordProtocol(Section):
    """How every detector of records is judged. The fractions are of the groups, where the data set fixes no split."""

    seeds: list[int] = Field(min_length=1)
    split_seed: int
    val_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(gt=0, lt=0.9)
    target_false_alarm_rate: float = Field(gt=0, lt=1)
    bootstrap_resamples: int = Field(ge=100)

    @model_validator(mode="after")
    def _train_is_left(self) -> RecordProtocol:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to learn from: their sum must be below 1")
        return self


class RecordTask(Section):
    """The task of records: its data sets, encoders, detectors and protocol, as the sections of the same names are for images."""

    datasets: dict[str, DatasetEntry]
    encoders: dict[str, RecordEncoder]
    extracts: dict[str, RecordExtract]
    models: dict[str, Annotated[Annotated[RecordModel, Tag(TAGS[0])] | Annotated[RecordGroup, Tag(TAGS[1])], Discriminator(_shape)]]
    runs: dict[str, RecordRun]
    protocol: RecordProtocol

    def entry(self, section: str, name: str) -> Any:
        """The entry `name` of a section, or an error that names the nearest one."""
        return _entry(getattr(self, section), name, f"records.{section}")

    def seeds(self, run: RecordRun) -> list[int]:
        """The training seeds of a run, the first of which is the model that is shipped."""
        return run.seeds or self.protocol.seeds

    def rows(self, model: str) -> dict[str, RecordModel]:
        """The detectors behind one entry: itself, or the rows of a group."""
        entry = self.entry("models", model)
        return entry.rows if isinstance(entry, RecordGroup) else {model: entry}


class Protocol(Section):
    """How every model of a data set is judged."""

    seeds: list[int] = Field(min_length=1)
    split_seed: int
    val_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(gt=0, lt=1)
    folds: int = Field(ge=2)
    map_size: int = Field(ge=16)
    fpr_limits: list[float]
    target_false_alarm_rate: float = Field(gt=0, lt=1)
    bootstrap_resamples: int = Field(ge=100)
    pixel_bins_above: int = Field(ge=0)


class FeatureStore(Section):
    budget_gb: float = Field(gt=0)
    form: Literal["float32", "float16", "streamed"]
    shard_mb: int = Field(ge=1)
    batch_size: int = Field(ge=1)


class Auxiliary(Section):
    """Folders of images that some models learn from beside the user's own; none takes what is built in."""

    textures: str | None = None
    penalty: str | None = None


class Report(Section):
    title: str
    worst_cases: int = Field(ge=0)
    overlays: int = Field(ge=0)


class Compute(Section):
    device: str
    threads: int = Field(ge=1)
    processes: int = Field(ge=1)


class Bench(Section):
    warmup: int = Field(ge=0)
    repeats: int = Field(ge=1)
    seconds: float = Field(gt=0)


class Tracking(Section):
    """Where finished runs are mirrored; the files stay the truth."""

    enabled: bool
    uri: str
    experiment: str


class Params(Section):
    datasets: dict[str, DatasetEntry]
    encoders: dict[str, EncoderEntry]
    extracts: dict[str, Extract]
    models: dict[str, Annotated[Annotated[ModelEntry, Tag(TAGS[0])] | Annotated[ModelGroup, Tag(TAGS[1])], Discriminator(_shape)]]
    runs: dict[str, RunEntry]
    protocol: Protocol
    features: FeatureStore
    auxiliary: Auxiliary = Auxiliary()
    report: Report
    bench: Bench
    compute: Compute
    tracking: Tracking
    backbones: str
    series: Series | None = None
    records: RecordTask | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> Params:
        """Folders bear the names of data sets, and commands those of runs: one of a kind over all tasks."""
        tasks = {"": self, "series.": self.series, "records.": self.records}
        for section in ("datasets", "runs"):
            named: dict[str, str] = {}
            for task, content in tasks.items():
                for name in getattr(content, section) if content else ():
                    if name in named:
                        raise ValueError(f"{named[name]}{section} and {task}{section} both have {name}: rename one")
                    named[name] = task
        return self

    def entry(self, section: str, name: str) -> Any:
        """The entry `name` of a section, or an error that names the nearest one."""
        return _entry(getattr(self, section), name, section)

    @property
    def signals(self) -> Series:
        """The section `series`, or an error where the file has none."""
        if self.series is None:
            raise ParamsError(f"{PATH} has no section series, which says what signals there are and how they are judged; see docs/series.md")
        return self.series

    @property
    def record_task(self) -> RecordTask:
        """The section `records`, or an error where the file has none."""
        if self.records is None:
            raise ParamsError(f"{PATH} has no section records, which says what records there are and how they are judged; see docs/records.md")
        return self.records

    @property
    def backbones_folder(self) -> Path:
        """The local folder of weights. git does not keep it, so in the copies that `dvc exp run --temp` works in it is still the project's own."""
        return Path(os.environ.get("DVC_ROOT", "")) / self.backbones

    def seeds(self, run: RunEntry) -> list[int]:
        """The training seeds of a run, the first of which is the model that is shipped."""
        return run.seeds or self.protocol.seeds

    def rows(self, model: str) -> dict[str, ModelEntry]:
        """The models behind one entry: itself, or the rows of a group."""
        entry = self.entry("models", model)
        return entry.rows if isinstance(entry, ModelGroup) else {model: entry}


def _entry(table: dict[str, Any], name: str, section: str) -> Any:
    if name not in table:
        raise ParamsError(f"{PATH}: {section} has no entry {name!r}{nearest(name, table)}")
    return table[name]


def load(path: Path = PATH) -> Params:
    """Read and check the whole file. Raises ParamsError with the line, what is wrong and the nearest known key."""
    if not path.is_file():
        raise ParamsError(f"{path} is not here. Run from the project's root, where dvc.yaml lies.")
    return validate(Params, read_yaml(path), path)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, plain values only. Raises ParamsError where it is no YAML, or has a key twice."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(path)
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: bytes that are no text, numbers that are none
        raise ParamsError(f"{path} is not valid YAML: {error}") from error


def options(factory: Callable[..., Any], given: dict[str, Any], at: tuple[str, ...], path: Path = PATH) -> dict[str, Any]:
    """`given` checked against the keyword parameters of `factory`, with its defaults filled in.

    `at` is where the entry stands in params.yaml, e.g. ("models", "patchcore"). Positional parameters of `factory` are not options.
    """
    fields = fields_of(factory)
    schema = create_model("Options", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)
    checked = validate(schema, given, path, at=at)
    return {name: getattr(checked, name) for name in fields}


def fields_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """The keyword parameters of a function or class as fields of a pydantic model: {name: (type, default)}."""
    function = factory.__init__ if inspect.isclass(factory) else factory
    hints = get_type_hints(function, include_extras=True)
    return {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def validate(schema: type[BaseModel], raw: Any, *paths: Path, at: tuple[str, ...] = ()) -> Any:
    """`raw` as the model `schema`. paths: the files that it was read from, the one that wins first; at: where it stands in them.

    Raises ParamsError with one line for each mistake: file, line, key, what is wrong.
    """
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(schema, paths, at, problem) for problem in error.errors())) from None


def _explain(schema: type[BaseModel], paths: Sequence[Path], at: tuple[str, ...], problem: Any) -> str:
    loc = tuple(str(part) for part in problem["loc"] if part not in TAGS)
    keys = (*at, *loc)
    where = place(paths, keys)
    if problem["type"] == "extra_forbidden":
        return f"E701 {where} is not a known key{nearest(keys[-1], _siblings(schema, problem['loc']))}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _siblings(schema: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The known keys beside the unknown one at `loc`, following nested models and tables of models."""
    current: Any = schema
    for part in loc[:-1]:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue  # a key of a table: the model of its values is already current
        arguments = getattr(field.annotation, "__args__", (field.annotation,))
        current = arguments[-1]
    return list(getattr(current, "model_fields", {}))


def nearest(name: str, known: Any) -> str:
    """The end of an error about an unknown name: the known one that is most like it, and all known ones."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(sorted(known))}"


def place(paths: Sequence[Path], keys: tuple[str, ...]) -> str:
    """`file:line key.key` of the first of the files that holds the most of `keys`; line 1 where none holds any."""
    found = [_depth_and_line(path, keys) for path in paths]
    best = max(range(len(found)), key=lambda number: found[number][0])
    return f"{paths[best]}:{found[best][1]} {'.'.join(keys)}"


def _depth_and_line(path: Path, keys: tuple[str, ...]) -> tuple[int, int]:
    """How many of `keys`, from the first, stand in the file, and the 1-based line of the last of them."""
    from ruamel.yaml import YAML

    node, line = YAML(typ="rt").load(path) if path.is_file() else None, 0
    for depth, key in enumerate(keys):
        if not hasattr(node, "lc") or not isinstance(node, dict) or key not in node:
            return depth, line + 1
        line = node.lc.key(key)[0]
        node = node[key]
    return len(keys), line + 1

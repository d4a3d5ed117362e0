"""One experiment as a YAML file: which data, which method, what to measure, what to draw; `base.yaml` beside it says what several files share.

`base.yaml` in the same folder is read first and the keys of the file that is named win, section by section; lists are replaced whole. Unknown keys are
errors with their line, wherever they stand. The options of a method are keys of the section `model`: their schema is its detector's signature.
docs/configurations.md lists all keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, create_model

from stages import detectors, params
from stages.errors import Missing
from stages.params import ParamsError, Section, nearest

BASE = "base.yaml"


class Experiment(Section):
    """output_root: folder of the result tree, in which the experiment's own folder bears its name."""

    name: str = Field(pattern=r"^[^/\\.][^/\\]*$")
    seed: int = 2025
    output_root: str


class Data(Section):
    """batch_size: images that go through the encoder together. k_shot: normal images of a category to learn from; 0 none, null all."""

    dataset: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    root: str
    categories: list[str] | None = Field(default=None, min_length=1)
    batch_size: int = Field(default=4, ge=1)
    k_shot: int | None = Field(default=0, ge=0)


class Model(Section):
    """resolution: pixels of a side. weights: a name of `assay weights list`, or random; the lock's for the backbone by default."""

    name: str
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    backbone: str | None = None
    weights: str | None = None
    resolution: int | None = Field(default=None, ge=16, le=4096)


class Metrics(Section):
    """False: the columns are left out."""

    compute_image_auroc: bool = True
    compute_image_ap: bool = True
    compute_image_f1: bool = True
    compute_pixel_auroc: bool = True
    compute_pixel_ap: bool = True
    compute_pixel_f1: bool = True
    compute_pro: bool = True


class Latency(Section):
    """max_seconds: at most so long for the warm-up, and as long again for the measurement, of each batch size."""

    warmup_iters: int = Field(default=1000, ge=0)
    measure_iters: int = Field(default=1000, ge=1)
    max_seconds: float = Field(default=30.0, gt=0)


class Evaluation(Section):
    metrics: Metrics = Metrics()
    latency: Latency = Latency()


class Visualization(Section):
    """num_examples: pictures of each category."""

    num_examples: int = Field(default=12, ge=0)
    save_overlay: bool = True


class Training(Section):
    """Of the weights that AF-CLIP brings along: with this section, a run trains them on the data set instead of judging it. None: the method's own."""

    checkpoint: str
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)


class Configuration(Section):
    experiment: Experiment
    data: Data
    model: Model
    evaluation: Evaluation = Evaluation()
    visualization: Visualization = Visualization()
    training: Training | None = None


class Read(NamedTuple):
    """A configuration and where it stands: the file that was named, then base.yaml where there is one."""

    content: Configuration
    options: dict[str, Any]  # of the detector, as they are written
    files: list[Path]

    def at(self, *keys: str) -> str:
        """`file:line` of a key, and the key: how an error about it begins."""
        return params.place(self.files, keys)


def read(path: Path, known: Mapping[str, str]) -> Read:
    """The configuration with all defaults. known: the detectors behind the names that model.name may have, e.g. "memory_bank.patchcore".

    Raises ParamsError with file and line of every mistake, Missing where the file is not there.
    """
    if not path.is_file():
        here = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise Missing(f"{path} is not here{nearest(path.stem, here)}")
    files = [path, *([path.with_name(BASE)] if path.name != BASE and path.with_name(BASE).is_file() else [])]
    raw: Any = {}
    for file in reversed(files):
        raw = merged(raw, params.read_yaml(file))
    name = raw["model"].get("name") if isinstance(raw, dict) and isinstance(raw.get("model"), dict) else None
    if isinstance(name, str) and name not in known:
        raise ParamsError(f"{params.place(files, ('model', 'name'))}: no model {name!r}{nearest(name, known)}")
    options = params.fields_of(detectors.load(known[name])) if isinstance(name, str) else {}
    schema = create_model("Model", __base__=Model, **options)
    content = params.validate(create_model("Configuration", __base__=Configuration, model=(schema, ...)), raw, *files)
    return Read(content, {key: value for key, value in raw["model"].items() if key in options}, files)


def merged(under: Any, over: Any) -> Any:
    """`over` on `under`: mappings key by key, anything else as it stands in `over`."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return under | {key: merged(under.get(key), value) for key, value in over.items()}

"""The folder tree is the architecture: imports point down, and dvc.yaml names every module that a stage really imports."""

import ast
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import params

ROOT = Path(__file__).parent.parent
IMAGE_VERBS = ("prepare", "extract", "manifest", "train", "evaluate", "ensemble", "bench")
SERIES_VERBS = ("prepare_series", "manifest_series", "train_series", "evaluate_series", "bench_series", "search_series")
RECORD_VERBS = ("prepare_records", "extract_records", "manifest_records", "train_records", "evaluate_records", "bench_records")
VERBS = (*IMAGE_VERBS, *SERIES_VERBS, *RECORD_VERBS, "report", "track")
GROUND = ("types", "params", "io", "seed", "errors", "progress", "engine", "training", "registry")
NOUNS = ("datasets", "encoders", "detectors", "timeseries", "fusion", "metrics", "plots")
SOURCES = sorted((ROOT / "stages").rglob("*.py"))


def _typing_only(tree: ast.AST) -> set[ast.AST]:
    """Nodes under `if TYPE_CHECKING`: they are never imported."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for inner in ast.walk(block)}


def _file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


@cache
def imported(source: Path) -> frozenset[Path]:
    """Files of this project that `source` imports, at its top or inside a function."""
    tree = ast.parse(source.read_text())
    names: set[str] = set()
    hidden = _typing_only(tree)
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {_file_of(name) for name in names if name == "stages" or name.startswith("stages.")}
    return frozenset(file for file in files if file and file != source and _does_something(file))


def _does_something(source: Path) -> bool:
    """Not only a docstring, as most `__init__.py` are."""
    return len(ast.parse(source.read_text()).body) > 1


def closure(*sources: Path) -> set[Path]:
    seen: set[Path] = set()
    waiting = list(sources)
    while waiting:
        source = waiting.pop()
        if source not in seen:
            seen.add(source)
            waiting += imported(source)
    return seen


def stages() -> dict[str, dict]:
    """Every stage of the three dvc.yaml with its tables unfolded: {"train@solar-patchcore": {...}}."""
    from dvc.repo import Repo

    found = {}
    for stage in Repo(str(ROOT)).index.stages:
        found[stage.addressing.rpartition(":")[2]] = {
            "cmd": stage.cmd,
            "deps": [dep.def_path for dep in stage.deps if dep.hash_name != "params" and not hasattr(dep, "params")],
            "outs": [out.def_path for out in stage.outs],
        }
    return found


@pytest.fixture(scope="module")
def unfolded() -> dict[str, dict]:
    return stages()


def test_every_stage_runs_the_module_of_its_name(unfolded):
    for name, stage in unfolded.items():
        verb = name.split("@")[0]
        assert verb in VERBS and stage["cmd"].split()[:3] == ["python", "-m", f"stages.{verb}"], name


def test_deps_cover_every_module_that_a_stage_imports(unfolded):
    settings = params.load(ROOT / "params.yaml")
    for name, stage in unfolded.items():
        verb, _, key = name.partition("@")
        sources = [ROOT / "stages" / f"{verb}.py"]
        if verb == "prepare":
            sources.append(ROOT / "stages/datasets" / f"{settings.datasets[key].adapter}.py")
        if verb == "prepare_series":
            sources.append(ROOT / "stages/datasets" / f"{settings.signals.datasets[key].adapter}.py")
        if verb == "prepare_records":
            sources.append(ROOT / "stages/datasets" / f"{settings.record_task.datasets[key].adapter}.py")
        if verb == "extract_records":
            sources += [ROOT / extract.code for extract in settings.record_task.extracts.values() if extract.dataset == key]
        if verb.split("_")[0] in ("train", "evaluate"):
            task = {"series": settings.signals, "records": settings.record_task}.get(verb.rpartition("_")[2], settings)
            code = ROOT / task.runs[key].code
            sources += sorted(code.glob("*.py")) if code.is_dir() else [code]
        watched = [ROOT / dep for dep in stage["deps"]]
        missing = [source for source in closure(*sources) if not any(source == path or path in source.parents for path in watched)]
        assert not missing, f"{name} imports {[str(path.relative_to(ROOT)) for path in missing]}, which its deps do not name"


def test_every_dep_in_the_code_exists(unfolded):
    for name, stage in unfolded.items():
        for dep in stage["deps"]:
            assert not dep.startswith("stages") or (ROOT / dep).exists(), f"{name}: {dep}"


def test_a_run_names_the_file_of_its_detector():
    settings = params.load(ROOT / "params.yaml")
    for name, run in settings.runs.items():
        for entry in settings.rows(run.model).values():
            file = ROOT / "stages/detectors" / f"{entry.detector.replace('.', '/')}.py"
            assert file.is_file() and (ROOT / run.code in (file, file.parent)), f"{name}: {run.code} does not hold {entry.detector}"
    for task, room in ((settings.signals, "timeseries"), (settings.record_task, "fusion")):
        for name, run in task.runs.items():
            for entry in task.rows(run.model).values():
                file = ROOT / "stages" / room / f"{entry.detector.replace('.', '/')}.py"
                assert file.is_file() and (ROOT / run.code in (file, file.parent)), f"{name}: {run.code} does not hold {entry.detector}"


def test_an_extract_of_records_names_the_file_of_its_encoder_and_each_data_set_is_extracted_whole():
    task = params.load(ROOT / "params.yaml").record_task
    for name, extract in task.extracts.items():
        assert extract.code == f"stages/encoders/media/{task.entry('encoders', extract.encoder).kind}.py" and (ROOT / extract.code).is_file(), name
        assert extract.dataset in task.datasets, name
    together = {(extract.dataset, extract.modality) for extract in task.extracts.values()}
    assert len(together) == len(task.extracts), "two extracts write into one folder"


def test_the_report_and_the_tracker_see_every_data_set(unfolded):
    settings = params.load(ROOT / "params.yaml")
    for dataset in (*settings.datasets, *settings.signals.datasets, *settings.record_task.datasets):
        for stage in ("report", "track"):
            assert f"metrics/{dataset}" in unfolded[stage]["deps"], f"add metrics/{dataset} to the deps of {stage} in dvc.yaml"


def _layer(path: Path) -> str:
    room = path.relative_to(ROOT / "stages").parts[0].removesuffix(".py")
    return "verb" if room in (*VERBS, "serving") else "ground" if room in GROUND else "tracking" if room == "tracking" else "noun"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(source):
    allowed = {"verb": {"verb", "noun", "ground", "tracking"}, "noun": {"noun", "ground"}, "ground": {"ground"}, "tracking": {"ground"}}
    if source == ROOT / "stages/__init__.py":
        return
    for target in imported(source):
        assert _layer(target) in allowed[_layer(source)], f"{source.name} imports {target.relative_to(ROOT)}"


def test_detectors_do_not_import_each_other():
    for source in (ROOT / "stages/detectors").rglob("*.py"):
        family = source.parent
        for target in imported(source):
            inside = (ROOT / "stages/detectors") in target.parents
            shared = target.parent == family / "maths" or target.name == "__init__.py" or target.parent == ROOT / "stages/detectors"
            assert not inside or shared or family.name == "maths", f"{source.name} imports {target.relative_to(ROOT)}"


def test_only_tracking_imports_mlflow_and_only_datasets_open_images():
    for source in SOURCES:
        text = source.read_text()
        names = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
        assert "mlflow" not in {name.split(".")[0] for name in names} or source.name == "tracking.py", source
        assert "Image.open" not in text or ROOT / "stages/datasets" in source.parents, source


def test_no_pickle_no_eval_and_torch_load_only_in_io():
    banned = {"pickle.load", "pickle.loads", "joblib.load", "yaml.load", "eval", "exec", "torch.load", "torch.jit.load"}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in banned:
                assert source.name == "io.py" and "weights_only=True" in ast.unparse(node), f"{source}:{node.lineno}"


def test_no_room_has_a_name_that_says_nothing():
    for path in (ROOT / "stages").rglob("*"):
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}, path


def test_every_dvc_yaml_is_small_enough_for_its_lock(unfolded):
    files = {"dvc.yaml": (*IMAGE_VERBS, "search_series", "report", "track")}
    files |= {"pipelines/series/dvc.yaml": SERIES_VERBS, "pipelines/records/dvc.yaml": RECORD_VERBS}
    for file, verbs in files.items():
        written = YAML(typ="safe").load(ROOT / file)["stages"]
        assert set(written) == set(verbs) - ({"search_series"} if file.startswith("pipelines") else set()), file
        assert sum(name.split("@")[0] in written for name in unfolded) <= 50, file
    assert len(unfolded) <= 75


def test_a_bare_repro_in_the_root_runs_the_stages_of_all_three_files(unfolded):
    """What report and track ask for, directly or not, and what stands in the root's own dvc.yaml."""
    from dvc.repo import Repo

    repo = Repo(str(ROOT))
    reached = {stage.addressing for stage in repo.index.stages if ":" not in stage.addressing}
    graph, waiting = repo.index.graph, [stage for stage in repo.index.stages if stage.addressing in reached]
    while waiting:
        new = [stage for stage in graph.successors(waiting.pop()) if stage.addressing not in reached]
        reached |= {stage.addressing for stage in new}
        waiting += new
    assert {name.rpartition(":")[2] for name in reached} == set(unfolded)

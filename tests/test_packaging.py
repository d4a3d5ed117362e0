"""What is installed, licensed and kept out of git: the files around the code say what is true."""

import ast
import configparser
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from stages import detectors, fusion, timeseries

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
WINDOWS = {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"}
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # sha256 of apache.org's LICENSE-2.0.txt

# Core packages that no file here imports, and why they are core.
UNSEEN = {
    "ruamel-yaml-clib": "the C parser inside ruamel.yaml",
    "torchvision": "timm needs the one that fits torch",
}


def lock() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    rows = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(row.name): row for row in rows}


def core() -> list[Requirement]:
    return [Requirement(line) for line in PROJECT["dependencies"]]


def extras() -> list[Requirement]:
    found = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return [row for row in found if row.name != PROJECT["name"]]


def version_of(row: Requirement) -> str:
    (pin,) = row.specifier
    return pin.version


@cache
def needed() -> dict[str, list[Requirement]]:
    """Everything that the declared packages ask for on this platform, as the installed ones say of themselves: name -> what is asked."""
    asked: dict[str, list[Requirement]] = {}
    waiting, seen = core() + extras(), set()
    while waiting:
        row = waiting.pop()
        name = canonicalize_name(row.name)
        asked.setdefault(name, []).append(row)
        for extra in {"", *row.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            below = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            waiting += [r for r in below if r.marker is None or r.marker.evaluate({"extra": extra})]
    return asked


def test_every_row_of_the_lock_is_one_exact_version():
    for row in lock().values():
        assert [pin.operator for pin in row.specifier] == ["=="] and "*" not in str(row.specifier), str(row)


def test_lock_holds_every_package_that_the_declared_ones_need_and_no_conflict():
    rows = lock()
    for name, asked in needed().items():
        assert name in rows, f"{name} is needed by what pyproject.toml declares and has no pin: run `make lock`"
        for requirement in asked:
            assert requirement.specifier.contains(version_of(rows[name]), prereleases=True), f"{rows[name]} does not satisfy {requirement}"


def test_lock_holds_nothing_that_nobody_needs():
    here = {name for name, row in lock().items() if row.marker is None}
    assert here - set(needed()) == set()


@pytest.mark.parametrize("elsewhere", [WINDOWS, MACOS], ids=["windows", "macos"])
def test_cuda_and_triton_are_asked_for_on_linux_alone(elsewhere):
    cuda = {name: row for name, row in lock().items() if re.match(r"nvidia-|cuda-|triton$", name)}
    assert len(cuda) > 10
    for row in cuda.values():
        assert row.marker and row.marker.evaluate(LINUX) and not row.marker.evaluate(elsewhere), str(row)


def test_windows_gets_what_its_packages_need_there():
    rows = lock()
    for name in ("pywin32", "tzdata", "colorama"):
        assert rows[name].marker is None or rows[name].marker.evaluate(WINDOWS)
    assert not rows["gunicorn"].marker.evaluate(WINDOWS)


def test_yaml_is_parsed_in_c_on_every_platform():
    """ruamel.yaml no longer installs its C parser by itself, and DVC reads params.yaml once per stage."""
    assert lock()["ruamel-yaml-clib"].marker is None
    assert "ruamel-yaml-clib" in {canonicalize_name(row.name) for row in core()}


@cache
def third_party_imports() -> dict[str, str]:
    """Package -> a file under stages/ that imports it."""
    of_module = importlib.metadata.packages_distributions()
    found: dict[str, str] = {}
    for file in sorted((ROOT / "stages").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                top = name.split(".")[0]
                if top == "ruamel":
                    found["ruamel-yaml"] = file.name
                elif top != "stages" and top not in sys.stdlib_module_names:
                    found.update(dict.fromkeys((canonicalize_name(d) for d in of_module.get(top, [top])), str(file.relative_to(ROOT))))
    return found


def test_every_imported_package_is_declared():
    declared = {canonicalize_name(row.name) for row in core() + extras()}
    undeclared = {name: file for name, file in third_party_imports().items() if name not in declared}
    assert undeclared.keys() - {"mlflow-skinny", "mlflow-tracing"} == set(), undeclared  # both are parts of mlflow


def test_every_core_package_is_imported():
    names = {canonicalize_name(row.name) for row in core()}
    assert names - set(third_party_imports()) == set(UNSEEN)


def test_dvc_neither_reports_home_nor_touches_the_index():
    config = configparser.ConfigParser()
    config.read_string((ROOT / ".dvc" / "config").read_text().replace("    ", ""))
    for key in ("analytics", "check_update", "autostage"):
        assert not config.getboolean("core", key)
    assert config["cache"]["type"].strip('"') == "reflink,hardlink,copy"  # never symlink: Windows refuses them


ARTEFACTS = (
    ".assay/resume/0a1b/state.pt",
    ".venv/bin/python",
    "backbones/resnet18.tv_in1k.safetensors",
    "data/solar/images/a.png",
    "features/solar/lite0/index.parquet",
    "metrics/report/index.html",
    "metrics/solar/patchcore/thresholds.json",
    "mlflow.db",
    "mlflow.db-journal",
    "models/solar/patchcore/mono/seed0/model.safetensors",
    "stages/detectors/__pycache__/maps.cpython-311.pyc",
)
SOURCES = (
    ".dvc/config",
    "dvc.lock",
    "metrics/bench/solar.json",
    "metrics/solar/patchcore.json",
    "pipelines/mvtec/dvc.lock",
    "requirements.lock",
    "stages/data/rows.py",
    "stages/encoders/weights.lock.yaml",
    "tests/features/test_models.py",
    "tests/models/test_data.py",
)


@pytest.fixture(scope="module")
def empty_repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    for name in (".gitignore", ".gitattributes", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    return folder


def test_git_ignores_artefacts_and_no_source(empty_repository):
    paths = "\n".join((*ARTEFACTS, *SOURCES))
    ignored = subprocess.run(["git", "check-ignore", "--stdin"], cwd=empty_repository, input=paths, capture_output=True, text=True)
    assert set(ignored.stdout.split()) == set(ARTEFACTS)


def test_text_has_the_same_bytes_in_every_clone(empty_repository):
    """DVC hashes code and parameters: CRLF in one clone would make every stage look changed."""
    names = ["params.yaml", "stages/train.py", "metrics/solar/patchcore.json", "docs/picture.png"]
    command = ["git", "check-attr", "eol", "binary", "--", *names]
    said = subprocess.run(command, cwd=empty_repository, capture_output=True, text=True, check=True)
    for name in names[:3]:
        assert f"{name}: eol: lf" in said.stdout
    assert "docs/picture.png: binary: set" in said.stdout


def test_importing_code_changes_no_stage(empty_repository):
    """A stage that depends on a folder of code must not see the caches that Python, pytest and ruff leave in it."""
    names = [".venv/x", "stages/encoders/__pycache__/x.pyc", "tests/.pytest_cache/x", ".ruff_cache/x", "assay.egg-info/x"]
    command = [sys.executable, "-m", "dvc", "check-ignore", *names, "stages/encoders/cnn.py"]
    said = subprocess.run(command, cwd=empty_repository, capture_output=True, text=True)
    assert said.stdout.split() == names


def test_licence_is_apache_2_to_the_letter():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert PROJECT["license"] == "Apache-2.0"


@pytest.mark.parametrize("detector", detectors.known())
def test_notice_names_each_detector_and_its_paper(detector):
    family, name = detector.split(".")
    notice = (ROOT / "NOTICE").read_text()
    own = f"stages/detectors/{family}/{name}.py"
    named = own in notice or f"stages/detectors/{family}/\n" in notice
    assert named, f"add {own}, its paper and the licence of its reference code to NOTICE"
    for paper in re.findall(r"arXiv:\d{4}\.\d{4,5}", ast.get_docstring(ast.parse((ROOT / own).read_text())) or ""):
        assert paper in notice


@pytest.mark.parametrize("detector", timeseries.known())
def test_notice_names_each_detector_of_signals_and_its_paper(detector):
    notice, own = (ROOT / "NOTICE").read_text(), f"stages/timeseries/{detector.replace('.', '/')}.py"
    assert own in notice or f"{Path(own).parent.as_posix()}/\n" in notice
    for paper in re.findall(r"arXiv:\d{4}\.\d{4,5}", ast.get_docstring(ast.parse((ROOT / own).read_text())) or ""):
        assert paper in notice


@pytest.mark.parametrize("detector", fusion.known())
def test_notice_names_each_detector_of_records(detector):
    notice, own = (ROOT / "NOTICE").read_text(), f"stages/fusion/{detector.replace('.', '/')}.py"
    assert own in notice or f"{Path(own).parent.as_posix()}/\n" in notice


def test_notice_names_every_paper_of_detectors_of_records_and_of_their_parts():
    notice = (ROOT / "NOTICE").read_text()
    heads = [ast.get_docstring(ast.parse(file.read_text())) or "" for file in (ROOT / "stages/fusion").rglob("*.py")]
    papers = {paper for head in heads for paper in re.findall(r"arXiv:\d{4}\.\d{4,5}", head)}
    assert len(papers) >= 7 and [paper for paper in papers if paper not in notice] == []


def test_notice_names_the_built_in_weights_and_data():
    notice = (ROOT / "NOTICE").read_text()
    parameters = YAML(typ="safe").load(ROOT / "params.yaml")
    for encoder in parameters["encoders"].values():
        assert encoder.get("weights", "efficientnet-lite0") in notice
    for dataset in parameters["datasets"]:
        assert re.search(rf"\b{dataset}\b", notice)


def test_one_version_everywhere():
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert str(citation["version"]) == PROJECT["version"] and citation["license"] == PROJECT["license"]


@pytest.mark.slow
def test_a_built_package_holds_every_file_of_the_code(tmp_path):
    """Pages, weights lists and pictures too, not only Python files; and the command that pyproject.toml promises."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {file.relative_to(tmp_path).as_posix() for file in (tmp_path / "stages").rglob("*") if file.is_file()} - packed == set()
    info = f"assay-{PROJECT['version']}.dist-info"
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= packed
    assert b"assay = stages.serving.cli:main" in zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt")

"""Whatever is broken on purpose is a line of its own with its mend, and the exit code says so."""

import json
import shutil
from pathlib import Path

import pytest

from stages.serving import doctor


@pytest.fixture
def project(root, tmp_path, monkeypatch):
    shutil.copy(root / "params.yaml", tmp_path)
    for source in ("requirements.lock", "stages/datasets/scenes"):
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).symlink_to(root / source)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def edit(old: str, new: str) -> None:
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new))


def test_a_whole_project_has_nothing_to_mend_but_what_this_machine_lacks(project):
    found = examined()
    bad = {name for name, finding in found.items() if not finding.ok and finding.matters} - {"memory", "disk"}
    assert not bad, [found[name] for name in bad]
    assert found["weights"].found.startswith("1/1 ") and found["data sets"].found.startswith("sources of 2/2 ")
    assert found["network"].found.startswith("not needed")


def test_absent_and_altered_weights_are_counted_and_named(project):
    edit("    weights: efficientnet-lite0\n", "    weights: resnet18.tv_in1k\n")
    weights = examined()["weights"]
    assert not weights.ok and weights.found.startswith("0/1 ") and "E101" in weights.mend and "assay weights pack resnet18.tv_in1k" in weights.mend


def test_a_source_that_is_gone_is_named(project):
    edit("source: stages/datasets/scenes", "source: photos/gone")
    sources = examined()["data sets"]
    assert not sources.ok and "1/2" in sources.found and "parts (photos/gone)" in sources.found


def test_a_device_that_is_not_here_is_a_line_to_mend(project, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    edit("device: cpu", "device: cuda")
    torch_line = examined()["torch"]
    assert not torch_line.ok and "no CUDA device" in torch_line.found and "cpu or auto" in torch_line.mend


def test_a_params_file_that_is_wrong_leaves_the_machine_to_be_examined(project):
    edit("coreset_ratio", "coreset_ratoi")
    edit("val_fraction", "val_fractoin")
    found = examined()
    assert not found["project"].ok and "val_fractoin" in found["project"].found and "\n" not in found["project"].found
    assert found["python"].ok and "weights" not in found


@pytest.mark.parametrize(
    ("requirement", "wrong"),
    [
        ("numpy>=2.2", None),
        ("numpy<2,>=1.0", "wanted <2,>=1.0"),
        ("numpy>=99.1", "wanted >=99.1"),
        ("no-such-package>=1", "no-such-package is not installed"),
        ("huggingface_hub>=1.0", None),
    ],
)
def test_a_package_is_held_to_its_bounds(requirement, wrong):
    said = doctor._unmet(requirement)
    assert said is None if wrong is None else wrong in said


def test_the_requirements_are_those_of_pyproject(root):
    names = [line.split(">")[0] for line in doctor._requirements()]
    assert {"torch", "typer", "ruamel.yaml"} <= set(names) and "mlflow" not in names and "pytest" not in names


def test_little_memory_and_a_full_disk_are_said(project, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2e9, "total": 4e9}))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Disk", (), {"free": 3e9}))
    found = examined()
    assert not found["memory"].ok and "2.0 GB free of 4.0" in found["memory"].found
    assert not found["disk"].ok and "features.budget_gb = 8" in found["disk"].found


def test_what_one_can_do_without_is_a_note_and_no_failure(project, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    git = examined()["git"]
    assert not git.ok and not git.matters
    assert doctor.render([git]).startswith("note  git  not installed. Mend: install git") and "everything will run here" in doctor.render([git])


def test_the_command_prints_a_line_each_and_exits_1_where_something_must_be_mended(project, assay, monkeypatch):
    good, bad = doctor.Finding("python", True, "3.11"), doctor.Finding("weights", False, "0/1", "unpack them")
    monkeypatch.setattr(doctor, "examine", lambda: [good])
    assert assay("doctor") == (0, "ok    python  3.11\n\neverything will run here\n", "")
    monkeypatch.setattr(doctor, "examine", lambda: [good, bad])
    code, out, _ = assay("doctor")
    assert code == 1 and out.splitlines() == ["ok    python   3.11", "MEND  weights  0/1. Mend: unpack them", "", "1 of 2 lines need mending"]
    code, out, _ = assay("doctor", "--json")
    assert code == 1 and [line["ok"] for line in json.loads(out)] == [True, False]


@pytest.mark.parametrize("content", ["", "schema: '2.0'\nstages:\n", "stages:\n  prepare@solar:\n    cmd: x\n  train@so", "\x00" * 9, "a: [", "- b"])
def test_a_lock_that_dvc_would_refuse_is_a_line_to_mend(project, content):
    Path("dvc.lock").write_text(content)
    lock = examined()["dvc project"]
    assert not lock.ok and "not whole" in lock.found and "rm dvc.lock" in lock.mend


def test_a_whole_lock_is_fine(project, root):
    shutil.copy(root / "dvc.lock", ".")
    assert examined()["dvc project"].ok


def test_what_reads_media_of_records_is_a_line_of_its_own_and_absent_weights_are_a_note(project):
    found = examined()
    assert found["media"].ok and "torchaudio" in found["media"].found and found["media weights"].found.startswith("5/5 ")
    edit("      kind: sentences\n", "      kind: sentences\n      weights: gone-model\n")
    weights = examined()["media weights"]
    assert not weights.ok and not weights.matters and weights.found.startswith("4/5 ") and "E101 gone-model" in weights.mend


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("      kind: sentences\n", "      kind: sentence\n", "has the kind 'sentence'; did you mean 'sentences'"),
        ("      encoder: notes\n", "      encoder: note\n", "there is no encoder 'note' in records.encoders; did you mean 'notes'"),
    ],
)
def test_an_encoder_of_records_that_is_none_is_a_line_to_mend(project, old, new, said):
    edit(old, new)
    found = examined()
    assert not found["media encoders"].ok and found["media encoders"].matters and said in found["media encoders"].found
    assert found["media weights"].ok


def test_a_package_that_reads_media_and_is_not_installed_is_named_with_its_extra(project, monkeypatch):
    from importlib import metadata

    known = metadata.distributions
    monkeypatch.setattr(metadata, "distributions", lambda **asked: () if asked.get("name") == "av" else known(**asked))
    media = examined()["media"]
    assert not media.ok and media.matters and media.found == "not installed: av" and "assay[records]" in media.mend
    assert "media weights" not in examined()

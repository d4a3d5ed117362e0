"""What is taken over: the same values by `dvc exp run` and by --apply, and no other byte of params.yaml."""

import difflib
import re
import shutil

import pytest
from ruamel.yaml import YAML

from stages import params
from stages.serving.tuning import takeover

CHANGES = {
    "patchcore": {"coreset_ratio": 0.0213, "layers": ["layer1", "layer2"], "reweighting": 5},
    "supersimplenet": {"noise_std": 2.5, "score_from": "head", "weight_decay": 3e-06, "adapted_classification": True},
    "dfm": {"variance": 0.99, "layer": "layer2"},
}


@pytest.fixture
def project(root, tmp_path, monkeypatch):
    shutil.copy(root / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


@pytest.mark.parametrize("model", CHANGES)
def test_apply_changes_these_values_and_keeps_every_comment(project, model):
    before, entries = project.read_text(), YAML(typ="safe").load(project)
    takeover.apply(model, CHANGES[model])
    after = project.read_text()
    entries["models"][model] |= CHANGES[model]
    assert YAML(typ="safe").load(project) == entries and params.load().models[model].options == {
        name: value for name, value in entries["models"][model].items() if name not in ("detector", "label")
    }
    assert re.findall("#.*", after) == re.findall("#.*", before)
    changed = [line[2:].strip() for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    names = tuple(f"{name}:" for name in CHANGES[model])
    assert changed and all(line.startswith(names) or line in ("- layer1", "- layer3", "- layer2") for line in changed), changed


@pytest.mark.parametrize("model", CHANGES)
def test_the_command_is_one_that_dvc_takes_and_means_the_same(project, model, tmp_path):
    from dvc.utils.hydra import apply_overrides

    command = takeover.command(model, CHANGES[model])
    assert command.startswith("dvc exp run -S '")
    apply_overrides(project, re.findall("-S '([^']+)'", command))
    by_dvc = YAML(typ="safe").load(project)
    shutil.copy(params.__file__.replace("stages/params.py", "params.yaml"), project)
    takeover.apply(model, CHANGES[model])
    assert YAML(typ="safe").load(project) == by_dvc


def test_a_list_in_one_line_stays_in_one_and_comments_keep_their_column(project):
    project.write_text("models:\n  m:\n    detector: a.b   # which\n    layers: [x, y]  # both\n    rate: 1.0 # of learning\n")
    takeover.apply("m", {"layers": ["y"], "rate": 0.125, "new": None})
    assert project.read_text() == (
        "models:\n  m:\n    detector: a.b   # which\n    new: null\n    layers: [y]     # both\n    rate: 0.125  # of learning\n"
    )

"""The commands that run verbs: what a name stands for, whose exit code comes back, what is removed first."""

import json
import shutil
from pathlib import Path

import pytest

from stages import params
from stages.params import ParamsError
from stages.serving import verbs


def test_a_data_set_stands_for_all_its_runs_and_nothing_runs_twice(root):
    settings = params.load(root / "params.yaml")
    of_parts = [name for name in settings.runs if name.startswith("parts-")]
    assert verbs.jobs(settings, "train", ["parts"], False) == of_parts
    assert verbs.jobs(settings, "evaluate", ["parts-padim", "parts"], False) == ["parts-padim", *(run for run in of_parts if run != "parts-padim")]
    assert verbs.jobs(settings, "train", ["server"], False) == [name for name in settings.signals.runs if name.startswith("server-")]
    assert verbs.jobs(settings, "train", [], True) == [*settings.runs, *settings.signals.runs, *settings.records.runs]
    assert verbs.jobs(settings, "bench", [], True) == ["solar", "parts", "server", "station", "weld"]
    assert verbs.jobs(settings, "ensemble", [], True) == ["solar", "parts"]  # of images alone


@pytest.mark.parametrize(
    ("verb", "names", "said"),
    [("train", ["part"], "did you mean 'parts'"), ("bench", ["parts-padim"], "did you mean 'parts'"), ("train", [], "say --all")],
)
def test_a_name_that_is_none_is_refused_before_anything_runs(root, verb, names, said):
    with pytest.raises(ParamsError, match=said):
        verbs.jobs(params.load(root / "params.yaml"), verb, names, False)


def test_a_verb_runs_as_a_stage_does_and_its_lines_are_passed_on(trained, tmp_path, monkeypatch, assay):
    folder = shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(folder)
    stale = folder / "models/tiny/trivial/mean-image/gone/seed0/refused.json"
    stale.parent.mkdir(parents=True)
    stale.write_text('{"reason": "an earlier one"}')
    before = (folder / "models/tiny/trivial/mean-image/photos/seed0/model.safetensors").read_bytes()
    code, out, _ = assay("train", "tiny-trivial", "--json")
    assert code == 0 and json.loads(out) == {"tiny-trivial": 0}
    assert not stale.exists() and (folder / "models/tiny/trivial/mean-image/photos/seed0/model.safetensors").read_bytes() == before


def test_the_worst_exit_code_of_several_comes_back_and_the_others_still_run(trained, tmp_path, monkeypatch, assay):
    folder = shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(folder)
    shutil.rmtree("models/tiny/patchcore")
    code, out, _ = assay("evaluate", "tiny-patchcore", "tiny-trivial", "--json")
    assert code == 1 and json.loads(out) == {"tiny-patchcore": 1, "tiny-trivial": 0}
    assert Path("metrics/tiny/trivial.json").is_file() and not Path("metrics/tiny/patchcore.json").exists()

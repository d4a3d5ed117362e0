"""params.yaml: every mistake is named with its line and the nearest key that exists."""

from pathlib import Path

import pytest

from stages import params


@pytest.fixture
def edited(tmp_path, root):
    """The committed params.yaml with one text replaced."""

    def edit(old: str, new: str) -> Path:
        text = (root / "params.yaml").read_text()
        assert old in text
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return edit


def test_unknown_key_is_refused_with_its_line_and_the_nearest_key(edited):
    path = edited("  folds:", "  fold:")
    line = 1 + path.read_text().splitlines().index(next(text for text in path.read_text().splitlines() if text.startswith("  fold:")))
    with pytest.raises(params.ParamsError, match=rf"params.yaml:{line} protocol.fold is not a known key; did you mean 'folds'\?"):
        params.load(path)


def test_unknown_option_of_a_detector_is_checked_against_its_signature(edited):
    def detector(*, coreset_ratio: float = 0.1) -> None: ...

    path = edited("    coreset_ratio:", "    coreset_ration:")
    given = params.load(path).rows("patchcore")["patchcore"].options
    with pytest.raises(params.ParamsError, match=r"models.patchcore.coreset_ration is not a known key; did you mean 'coreset_ratio'\?"):
        params.options(detector, {"coreset_ration": given["coreset_ration"]}, ("models", "patchcore"), path)


def test_options_take_the_defaults_of_the_signature():
    def detector(*, coreset_ratio: float = 0.1, layers: list[str] = ["layer2"]) -> None: ...  # noqa: B006

    assert params.options(detector, {"coreset_ratio": 1}, ("models", "x")) == {"coreset_ratio": 1.0, "layers": ["layer2"]}


def test_wrong_type_says_what_came(edited):
    with pytest.raises(params.ParamsError, match="protocol.folds: .* got 'five'"):
        params.load(edited("folds: 5", "folds: five"))


def test_a_key_given_twice_is_refused(edited):
    with pytest.raises(params.ParamsError, match="not valid YAML"):
        params.load(edited("  folds: 5", "  folds: 5\n  folds: 6"))


def test_yaml_cannot_construct_objects(edited):
    with pytest.raises(params.ParamsError):
        params.load(edited("backbones: backbones", "backbones: !!python/object/apply:os.getcwd []"))


def test_unknown_entry_names_the_nearest(root):
    with pytest.raises(params.ParamsError, match="did you mean 'patchcore'"):
        params.load(root / "params.yaml").entry("models", "pachcore")


def test_lists_are_in_block_style_since_dvc_exp_run_would_rewrite_them(root):
    assert not [line for line in (root / "params.yaml").read_text().splitlines() if line.split("#")[0].rstrip().endswith("]")]


def test_weights_are_looked_for_in_the_project_also_from_the_copy_that_an_experiment_runs_in(root, monkeypatch, tmp_path):
    settings = params.load(root / "params.yaml")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert settings.backbones_folder == tmp_path / "backbones"
    assert settings.model_copy(update={"backbones": "/srv/weights"}).backbones_folder == Path("/srv/weights")
    monkeypatch.delenv("DVC_ROOT")
    assert settings.backbones_folder == Path("backbones")


def test_fractions_of_records_leave_something_to_learn_from(edited):
    path = edited("    test_fraction: 0.25\n    target_false_alarm_rate: 0.05", "    test_fraction: 0.85\n    target_false_alarm_rate: 0.05")
    with pytest.raises(params.ParamsError, match="leave nothing to learn from: their sum must be below 1"):
        params.load(path)

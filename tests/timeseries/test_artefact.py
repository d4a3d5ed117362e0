"""A detector of signals written to disk and read back."""

import json

import pytest
import torch

from stages import io
from stages.timeseries import artefact, build
from stages.training import Run
from tests.timeseries.series import segment, values

CONFIG = {"model": "luck", "detector": "classical.random_score", "options": {}, "seed": 3, "regime": "unsup-clean", "data": "0f"}


@pytest.fixture
def place(tmp_path):
    detector = build("classical.random_score", {}, at=()).fit([segment(values(40))], [], Run(seed=3, quiet=True))
    artefact.save(tmp_path, detector, CONFIG, [{"step": 1}])
    return tmp_path


def test_what_is_loaded_scores_as_what_was_saved(place):
    fitted = build("classical.random_score", {}, at=()).fit([segment(values(40))], [], Run(seed=3, quiet=True))
    assert torch.equal(artefact.load(place).score(torch.zeros(9, 3)), fitted.score(torch.zeros(9, 3)))


def test_the_configuration_says_what_was_given_and_the_libraries(place):
    config = io.read_json(place / "config.json")
    assert {key: config[key] for key in CONFIG} == CONFIG and set(config["libraries"]) == set(artefact.LIBRARIES)
    assert io.read_json(place / "history.json") == [{"step": 1}]


def test_tensors_of_another_model_are_said_to_be_damage(place):
    io.write_model(place / "model.safetensors", {"other": torch.zeros(2)}, {})
    with pytest.raises(io.DamagedFile, match="other"):
        artefact.load(place)


def test_a_detector_that_is_gone_is_said_to_be_damage(place):
    (place / "config.json").write_text(json.dumps(CONFIG | {"detector": "classical.gone"}))
    with pytest.raises(io.DamagedFile, match=r"classical\.gone"):
        artefact.load(place)


def test_a_refusal_is_kept_with_its_reason(tmp_path):
    assert artefact.refusal(tmp_path) is None
    artefact.refuse(tmp_path, "too short")
    assert artefact.refusal(tmp_path) == "too short"


def test_a_model_lies_in_the_folder_of_its_data_set_category_and_seed():
    assert artefact.folder("server", "pca", "pca", "hard", 2).as_posix() == "models/server/pca/hard/seed2"

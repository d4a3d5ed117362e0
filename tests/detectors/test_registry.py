import subprocess
import sys

import pytest

from stages import detectors
from stages.params import ParamsError


def test_every_detector_of_the_tree_is_known_without_a_list():
    three = {"memory_bank.patchcore", "density.padim", "distillation.stfpm"}
    trivial = {"trivial.mean_image", "trivial.brightness", "trivial.local_contrast", "trivial.random_score"}
    assert three | trivial <= set(detectors.known()) and not any("maths" in name or "coreset" in name for name in detectors.known())


def test_an_unknown_name_is_answered_with_the_nearest_one():
    expected = r"no detector 'memory_bank.pachcore'; did you mean 'memory_bank.patchcore'\? Known: .*density.padim"
    with pytest.raises(ParamsError, match=expected):
        detectors.load("memory_bank.pachcore")


def test_a_name_cannot_leave_the_folder_of_detectors():
    with pytest.raises(ParamsError, match="no detector"):
        detectors.load("..serving.cli")


def test_a_misspelt_option_is_refused_with_the_nearest_one():
    with pytest.raises(ParamsError, match="coreset_ration is not a known key; did you mean 'coreset_ratio'"):
        detectors.build("memory_bank.patchcore", {"coreset_ration": 0.1}, at=("models", "patchcore"))


def test_options_reach_the_detector_and_what_is_not_given_is_the_papers():
    detector = detectors.build("memory_bank.patchcore", {"coreset_ratio": 0.25, "layers": ["layer1"]}, at=("models", "patchcore"))
    assert (detector.coreset_ratio, detector.needs.layers, detector.projection, detector.reweighting) == (0.25, ("layer1",), 128, 9)


def test_one_family_is_imported_without_the_others_and_without_heavy_libraries():
    heavy = ("faiss", "timm", "torchvision", "sklearn", "mlflow", "matplotlib", "stages.detectors.memory_bank")
    load = "import sys; from stages import detectors; detectors.load('density.padim')"
    code = f"{load}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

"""The student's network is a tiny one here, so that no test of the detectors waits for timm."""

import pytest

from stages.encoders import clip_stem, cnn  # the former takes CNN from the latter when it is imported: before any test replaces it
from stages.training import Run
from tests.arrays import TinyCNN


@pytest.fixture
def tiny_cnn(monkeypatch):
    """`stages.encoders.cnn.CNN` is TinyCNN for the length of a test."""
    assert clip_stem.CNN is cnn.CNN
    monkeypatch.setattr(cnn, "CNN", TinyCNN)


@pytest.fixture
def run() -> Run:
    return Run(seed=0, quiet=True)

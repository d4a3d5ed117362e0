"""The student's network is a tiny one here, so that no test of the detectors waits for timm."""

import sys
import types

import pytest

from stages.training import Run
from tests.arrays import TinyCNN


@pytest.fixture
def tiny_cnn(monkeypatch):
    """`stages.encoders.cnn.CNN` is TinyCNN for the length of a test."""
    module = types.ModuleType("stages.encoders.cnn")
    module.CNN = TinyCNN
    monkeypatch.setitem(sys.modules, "stages.encoders.cnn", module)


@pytest.fixture
def run() -> Run:
    return Run(seed=0, quiet=True)

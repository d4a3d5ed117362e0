"""One small project that has been through the verbs, shared by the tests of what is served from it; they only read it."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.projects import tiny_project


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    folder = tiny_project(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in (
            ["prepare", "tiny"], ["extract", "tiny", "pixels"], ["extract", "tiny", "net"], ["manifest", "tiny"],
            ["train", "tiny-patchcore"], ["train", "tiny-trivial"], ["evaluate", "tiny-patchcore"], ["evaluate", "tiny-trivial"],
        ):  # fmt: skip
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    return folder


@pytest.fixture
def assay(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder, or wherever the test has gone; returns (exit code, stdout, stderr)."""
    from stages.serving import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASSAY_DEBUG", "")  # --debug sets it in this process; set here, it is restored

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return command

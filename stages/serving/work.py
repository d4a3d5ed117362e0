"""Working off a workspace (workspace.py): the verbs that its models share, where they are not done yet, then those of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from stages import errors, io
from stages.serving import verbs
from stages.serving.workspace import Workspace

DONE = {"prepare": "data/{}/dataset.json", "extract": "features/{}/{}/encoder.json", "manifest": "data/{}/manifest.json"}  # written last


class StageFailed(errors.UserError, RuntimeError):
    """A verb ended with an error, which it has printed. `trained`: what the same call has finished all the same."""

    trained: list[Any] = []


class Work:
    """One workspace and how its verbs are run. out: where what they print goes, stdout by default. environment: what they see beside the caller's."""

    def __init__(self, space: Workspace, out: TextIO | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.space, self._out, self._environment = space, out, environment or {}

    def prepare(self) -> None:
        """prepare, extract and manifest, where an earlier call has not run them to the end. Raises StageFailed."""
        dataset = self.space.dataset
        jobs = [("prepare", dataset), *(("extract", dataset, encoder) for encoder in self.space.extracts), ("manifest", dataset)]
        for verb, *names in jobs:
            path = self.space.folder / DONE[verb].format(*names)
            if not path.is_file() or "refused" in io.read_json(path):  # what was missing then may be here now
                self.run(verb, *names)

    def fit(self, run: str) -> dict[str, Any]:
        """train and evaluate; the result of the run's model as metrics/<dataset>/<model>.json has it. Raises StageFailed."""
        for verb in verbs.OF_RUNS:
            self.run(verb, run)
        return io.read_json(self.space.folder / "metrics" / self.space.dataset / f"{self.space.runs[run]}.json")

    def run(self, verb: str, *names: str) -> None:
        code = verbs.run(verb, *names, project=self.space.folder, out=self._out, environment=self._environment)
        if code:
            said = f"{verb} {' '.join(names)} ended with exit code {code}; what it said stands above"
            raise StageFailed(f"{said}. Its folder is {self.space.folder}")

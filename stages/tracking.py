"""A mirror of finished results in MLflow, and the only file that imports it. The files under metrics/ are the truth; all of this may fail.

Each result is one run, known by its content hash: written once, in one batch, and marked finished last, so that a run that is not
finished was cut off and is replaced. With sqlite, the database and the pictures lie in the project's own folder, also for experiments
that DVC runs in a copy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
LOCK_SECONDS = 20  # how long to wait for a database that another process writes to
METRICS, PARAMS = 900, 100  # most that one batch may hold
SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # a tracker that is down must not hold up a stage


class Point(NamedTuple):
    """One value of a training history."""

    name: str
    step: int
    value: float


class Result(NamedTuple):
    """What one run shows. `hash` identifies it; `files` are (file, folder within the run's artifacts)."""

    name: str
    hash: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    history: list[Point]
    files: list[tuple[Path, str]]


def project_root(folder: Path) -> Path:
    """The repository that `folder` belongs to: `dvc exp run --temp` and `--queue` work in copies below its .dvc/tmp/exps."""
    path = Path(os.environ.get("DVC_ROOT") or folder).resolve()
    copies = [parent for parent in path.parents if parent.parts[-3:] == (".dvc", "tmp", "exps")]
    return copies[-1].parents[2] if copies else path


def absolute_uri(uri: str, root: Path) -> str:
    """sqlite paths that are relative are relative to `root`; every other address is left as it is."""
    if not uri.startswith(SQLITE) or uri == f"{SQLITE}:memory:":
        return uri
    return SQLITE + (root / uri.removeprefix(SQLITE)).as_posix()


def mirror(results: list[Result], uri: str, experiment: str) -> int:
    """Log each result that the tracker does not have yet, and say how many those were. Raises whatever the tracker raises."""
    client = _client(uri)
    experiment_id = _experiment_id(client, uri, experiment)
    return sum(_log_once(client, experiment_id, result) for result in results)


def _client(uri: str) -> MlflowClient:
    os.environ.update(SETTINGS)  # before the import, which is when telemetry would start
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if uri.startswith(SQLITE):
        _make_database(Path(uri.removeprefix(SQLITE)), MlflowClient)
    return MlflowClient(tracking_uri=uri)


def _make_database(path: Path, client: type[MlflowClient]) -> None:
    """A new database takes MLflow many seconds. It is made aside and linked into place, so that no kill leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return _check_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _check_writable(partial)
        client(tracking_uri=SQLITE + partial.as_posix()).search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another process was faster: its database may hold runs by now
            os.link(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _check_writable(path: Path) -> None:
    """Fails within seconds, and with the plain reason, where MLflow would try again for two minutes."""
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        beside = (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None
        try:
            return client.create_experiment(name, artifact_location=beside)  # or pictures would go to the working folder
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    return found.experiment_id


def _log_once(client: MlflowClient, experiment_id: str, result: Result) -> bool:
    known = client.search_runs([experiment_id], f"tags.result_hash = '{result.hash}'")
    if any(run.info.status == "FINISHED" for run in known):
        return False
    for run in known:
        client.delete_run(run.info.run_id)
    tags = {**result.tags, "result_hash": result.hash}
    run_id = client.create_run(experiment_id, run_name=result.name, tags=tags).info.run_id
    _log_numbers(client, run_id, result)
    for path, folder in result.files:
        client.log_artifact(run_id, str(path), folder)
    client.set_terminated(run_id, "FINISHED")
    return True


def _log_numbers(client: MlflowClient, run_id: str, result: Result) -> None:
    """One batch, or as few as MLflow's limits allow."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    metrics = [Metric(allowed(name), value, now, 0) for name, value in result.metrics.items()]
    metrics += [Metric(allowed(point.name), point.value, now, point.step) for point in result.history]
    params = [Param(allowed(name), value) for name, value in result.params.items()]
    for batch in range(max(-(-len(metrics) // METRICS), -(-len(params) // PARAMS))):
        client.log_batch(run_id, metrics[batch * METRICS :][:METRICS], params[batch * PARAMS :][:PARAMS])


def allowed(name: str) -> str:
    """`name` with what MLflow refuses in names written as its code in hex, so that two names stay two."""
    return re.sub(r"[^\w.\- /]", lambda found: f"_x{ord(found[0]):x}_", name)


def warning(error: Exception, uri: str) -> str:
    """What a user reads when the mirror could not be written."""
    if isinstance(error, ModuleNotFoundError):
        cure = "Install it with `pip install 'assay[track]'`"
    else:
        cure = f"Check that {uri} (tracking.uri in params.yaml) can be written to and is in use by nobody else"
    reason = (str(error).splitlines() or [""])[0]
    return (
        f"WARNING: MLflow was not updated: {type(error).__name__}: {reason}\n"
        f"The results are safe in metrics/. {cure}, then run `python -m stages.track`; or set tracking.enabled: false."
    )

"""The two commands, CI and the gate on pull requests: what they run exists, and they refuse what they should."""

import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(workflow: Path) -> dict:
    return YAML(typ="safe").load(workflow)


def steps(workflow: Path) -> list[dict]:
    return [step for job in load(workflow)["jobs"].values() for step in job["steps"]]


def commands(program: str) -> list[list[str]]:
    """Every call of `program` in a workflow, split into arguments."""
    scripts = [step["run"] for workflow in WORKFLOWS for step in steps(workflow) if "run" in step]
    lines = [line.split("|")[0] for script in scripts for line in script.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith(f"{program} ")]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def gate() -> str:
    """The script of the step that compares dvc.lock with code and parameters."""
    (script,) = [step["run"] for step in steps(ROOT / ".github/workflows/pull-request.yml") if "--allow-missing" in step.get("run", "")]
    return script


def test_workflows_call_make_targets_that_exist():
    called = {target for arguments in commands("make") for target in arguments}
    assert {"test", "test-slow"} <= called <= make_targets()


def test_workflows_call_dvc_as_dvc_understands_it():
    from dvc.cli.parser import get_main_parser

    called = commands("dvc")
    for arguments in called:
        get_main_parser().parse_args(arguments)  # an unknown command or flag raises DvcParserError
    assert {tuple(arguments[:2]) for arguments in called} == {("repro", "--allow-missing"), ("params", "diff"), ("metrics", "diff")}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read_but_for_the_comment(workflow):
    content = load(workflow)
    assert content["permissions"] == {"contents": "read"}
    extra = {scope for job in content["jobs"].values() for scope, may in job.get("permissions", {}).items() if may == "write"}
    assert extra == ({"pull-requests"} if workflow.stem == "pull-request" else set())
    for step in steps(workflow):
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v0"))
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


def test_the_comment_is_left_out_for_forks():
    """Their token may not write: the step would fail the job."""
    (comment,) = [step for step in steps(ROOT / ".github/workflows/pull-request.yml") if "gh pr comment" in step.get("run", "")]
    assert "head.repo.full_name == github.repository" in comment["if"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_a_stranger_can_write_is_pasted_into_a_script(workflow):
    """A title or a branch name inside ${{ }} would be run by the shell; values go through env instead."""
    assert not [step["run"] for step in steps(workflow) if "${{" in step.get("run", "")]


@pytest.fixture
def stub_make(tmp_path) -> Path:
    """A folder whose `make` writes down its arguments, and fails if they name what FAIL says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    make = folder / "make"
    make.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\ncase "$*" in *"${FAIL:-nothing}"*) exit 2;; esac\n')
    make.chmod(make.stat().st_mode | stat.S_IEXEC)
    shutil.copy(make, folder / "chromium")  # a browser is here, so none is installed
    return folder


def run_ci(clone: Path, stub_make: Path, **more: str) -> tuple[int, list[str], Path]:
    """Exit code, what make was asked for, and the cache folder."""
    calls, cache = stub_make / "calls", stub_make / "cache"
    calls.write_text("")
    (cache / "assay").mkdir(parents=True, exist_ok=True)
    env = os.environ | {"PATH": f"{stub_make}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache), "CALLS": str(calls)} | more
    done = subprocess.run(["bash", ".ci/run"], cwd=clone, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    return done.returncode, calls.read_text().splitlines(), cache / "assay"


@pytest.fixture
def clone(tmp_path) -> Path:
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("requirements.lock", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_ci_runs_both_suites_in_an_environment_outside_the_clone_keyed_by_the_lock(clone, stub_make):
    code, calls, cache = run_ci(clone, stub_make)
    key = hashlib.sha256((clone / "requirements.lock").read_bytes()).hexdigest()[:12]
    venv = f"VENV={cache}/venv-{key}"
    assert code == 0 and calls == [f"venv {venv}", f"test test-slow {venv}"]

    (clone / "requirements.lock").write_text("numpy==2.4.6\n")
    assert run_ci(clone, stub_make)[1][0] != f"venv {venv}"


@pytest.mark.skipif(os.name == "nt", reason="packages of Debian")
@pytest.mark.parametrize("user", [0, 1000])
def test_ci_installs_a_browser_where_there_is_none_and_it_may(clone, stub_make, user):
    (stub_make / "chromium").unlink()
    shutil.copy(stub_make / "make", stub_make / "apt-get")
    (stub_make / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (stub_make / "id").chmod(0o755)
    for tool in ("bash", "sh", "python3", "find", "touch", "mkdir", "dirname", "rm"):
        (stub_make / tool).symlink_to(shutil.which(tool))
    code, calls, _ = run_ci(clone, stub_make, PATH=str(stub_make))
    assert code == 0 and [call for call in calls if "chromium" in call] == ([] if user else ["-qq install -y --no-install-recommends chromium"])


@pytest.mark.parametrize("failing", ["venv VENV", "test test-slow"])
def test_ci_is_red_when_the_environment_or_a_test_fails(clone, stub_make, failing):
    assert run_ci(clone, stub_make, FAIL=failing)[0] != 0


def test_ci_removes_environments_of_old_locks_and_nothing_else(clone, stub_make):
    cache = run_ci(clone, stub_make)[2]
    for name in ("venv-0123456789ab", "venv-ba9876543210", "mine"):
        (cache / name).mkdir()
    for name in ("venv-0123456789ab", "mine"):
        os.utime(cache / name, (0, 0))
    run_ci(clone, stub_make)
    left = {path.name for path in cache.iterdir()}
    assert "venv-0123456789ab" not in left and {"venv-ba9876543210", "mine"} < left


# Stands for python: `-m venv --clear FOLDER` makes an environment whose own python writes down what it is asked to do.
PYTHON = """#!/bin/sh
[ "$1" = -m ] || exit 0
[ "$3" != --clear ] || rm -rf "$4"
mkdir -p "$4/bin" && touch "$4/pyvenv.cfg"
printf '#!/bin/sh\\necho "$@" >> "$CALLS"\\n! grep -q unknown requirements.lock\\n' > "$4/bin/python"
chmod +x "$4/bin/python"
"""


@pytest.fixture
def python(clone) -> Path:
    script = clone / "python"
    script.write_text(PYTHON)
    script.chmod(0o755)
    return script


def make(clone: Path, target: str, **variables: str) -> subprocess.CompletedProcess:
    words = ["make", target, *(f"{name}={value}" for name, value in variables.items())]
    env = os.environ | {"CALLS": str(clone / "calls")}
    return subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True, timeout=60)


def installs(clone: Path, python: Path, venv: str) -> list[str]:
    """What `make venv` asks pip to install, "-r requirements.lock" or "-e ."."""
    (clone / "calls").write_text("")
    make(clone, "venv", PYTHON=str(python).replace(" ", "\\ "), VENV=venv)
    return [" ".join(line.split()[-2:]) for line in (clone / "calls").read_text().splitlines()]


def test_make_says_which_python_it_needs(clone):
    (clone / "python3.10").write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo Python 3.10.1\nexit 1\n")
    (clone / "python3.10").chmod(0o755)
    refused = make(clone, "venv", PYTHON="./python3.10")
    assert refused.returncode != 0 and "Python 3.11 or newer" in refused.stdout and "Python 3.10.1" in refused.stdout


def test_make_never_empties_a_folder_that_is_no_environment(clone):
    (clone / "results").mkdir()
    (clone / "results" / "precious").write_text("")
    refused = make(clone, "venv", VENV="results")
    assert refused.returncode != 0 and "not a virtual environment" in refused.stdout
    assert (clone / "results" / "precious").exists()


def test_make_never_empties_what_a_link_points_to(clone):
    (clone / "elsewhere").mkdir()
    (clone / "elsewhere" / "pyvenv.cfg").write_text("")
    (clone / "link").symlink_to("elsewhere")
    refused = make(clone, "venv", VENV="link")
    assert refused.returncode != 0 and "symbolic link" in refused.stdout and (clone / "elsewhere" / "pyvenv.cfg").exists()


def test_environment_is_made_once_per_lock_and_anew_when_half_made(clone, python, tmp_path):
    venv = tmp_path / "venv"
    lock = ["-r requirements.lock"]
    assert installs(clone, python, str(venv)) == lock
    assert installs(clone, python, str(venv)) == []

    (venv / "requirements.lock").unlink()  # what a killed install leaves
    (venv / "half").touch()
    assert installs(clone, python, str(venv)) == lock and not (venv / "half").exists()

    (clone / "requirements.lock").write_text("unknown==1.0\n")
    assert installs(clone, python, str(venv)) == lock
    assert not (venv / "requirements.lock").exists()  # the install failed: the next make tries again


def test_command_goes_into_an_environment_of_this_clone_alone(clone, python, tmp_path):
    """An editable install points at one clone; a shared environment must point at none."""
    assert installs(clone, python, ".venv") == ["-r requirements.lock", "-e ."]
    assert installs(clone, python, ".venv") == []
    (clone / "pyproject.toml").write_text("# changed\n")
    assert installs(clone, python, ".venv") == ["-e ."]
    assert installs(clone, python, str(tmp_path / "shared")) == ["-r requirements.lock"]


@pytest.fixture
def pipeline(tmp_path) -> Path:
    """A repository with a stage for each that the gate names, run and committed."""
    named = re.search(r"--dry ([a-z_/. ]+) \|", gate()).group(1).split()
    files = [name for name in named if name.endswith("dvc.yaml")]
    (tmp_path / "params.yaml").write_text("model:\n  k: 1\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  prepare: {cmd: echo 1 > rows.txt, outs: [rows.txt]}\n"
        "  train: {cmd: cp rows.txt model.txt, params: [model], deps: [rows.txt], outs: [model.txt]}\n"
        + "".join(f"  {name}: {{cmd: echo 1 > {name}.txt, outs: [{name}.txt]}}\n" for name in named if name not in ("prepare", "train", *files))
    )
    for number, file in enumerate(files):
        (tmp_path / file).parent.mkdir(parents=True)
        stage = f"{{wdir: ../.., cmd: cp rows.txt task{number}.txt, deps: [rows.txt], outs: [task{number}.txt]}}"
        (tmp_path / file).write_text(f"stages:\n  task{number}: {stage}\n")
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["git", "init", "-q"], ["dvc", "repro", "-q", "-P"], ["git", "add", "-A"], [*git, "commit", "-qm", "one"]):
        subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    return tmp_path


def passes(repository: Path) -> bool:
    """Whether the gate lets it through. `bash -eo pipefail` is how a workflow runs `shell: bash`."""
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", gate()]
    return subprocess.run(script, cwd=repository, capture_output=True, timeout=120).returncode == 0


@pytest.mark.slow
def test_gate_passes_a_fresh_clone_without_data_and_stops_a_stale_lock(pipeline, tmp_path_factory):
    bare = tmp_path_factory.mktemp("clones") / "bare"
    subprocess.run(["git", "clone", "-q", pipeline, bare], check=True)
    assert passes(bare)
    for repository in (pipeline, bare):  # with data DVC plans to run the stage; without, it fails to plan
        (repository / "params.yaml").write_text("model:\n  k: 2\n")
        assert not passes(repository)

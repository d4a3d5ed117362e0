"""`assay tune`: val decides, test is never read, luck is not called better, and a search that was stopped is the search that was not."""

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages import detectors, io, params
from stages.errors import UserError
from stages.params import ParamsError
from stages.serving import tune as tuning
from stages.serving.tuning import search as searching
from stages.serving.tuning import task as tasks
from stages.types import Detector, Need, Prediction
from tests.projects import photograph, tiny_project

TOY = """\
  toy:
    detector: toy.bump            # finds nothing as it is
    look: nowhere                 # at the corner
runs:
  tiny-toy:
    dataset: tiny
    model: toy
    encoder: pixels
    code: stages/detectors/maps.py
    maths: stages/detectors/maps.py
"""


class Bump(Detector):
    """Scores one pixel, or the strongest blurred deviation from the mean image: the second is obviously better."""

    needs = Need()

    def __init__(self, *, look: Literal["nowhere", "around"] = "nowhere", gain: float = 1.0, idle: float = 0.0) -> None:
        super().__init__()
        if gain > 3:
            raise ValueError(f"gain must be at most 3, got {gain}")
        self.look, self.gain, self.idle = look, gain, idle
        self.register_buffer("mean", torch.empty(0))

    def fit(self, train, val, run):
        if self.idle:
            raise RuntimeError("out of luck")
        self.mean = torch.cat([batch.features["pixels"] for batch in train]).float().mean(0)
        return self

    def score(self, features):
        change = (features["pixels"].float() - self.mean).mean(1)  # (B, H, W)
        if self.look == "nowhere":
            return Prediction(self.gain * change[:, 0, 0], None)
        return Prediction(self.gain * F.avg_pool2d(change[:, None], 3, 1).abs().flatten(1).amax(1), None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project with features and a dozen val images, of which nothing has been fitted."""
    from stages import extract, manifest, prepare

    folder = tiny_project(tmp_path_factory.mktemp("tune"))
    photograph(folder / "photos", normal=80)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("runs:\n", TOY, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (
            not prepare.main("tiny")
            and not extract.main("tiny", "pixels")
            and not extract.main("tiny", "net")
            and not manifest.main("tiny")
        )
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch) -> Path:
    """A copy, with the detector `toy.bump`."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("stages"))
    monkeypatch.chdir(tmp_path)
    known = detectors.load
    monkeypatch.setattr(detectors, "load", lambda name: Bump if name == "toy.bump" else known(name))
    return tmp_path


def tune(model: str = "toy", **more) -> tuning.Tuned:
    return tuning.tune(model, **{"budget_s": 600, "say": lambda text: None, **more})


def timeless(trials) -> list:
    return [trial._replace(seconds=0.0) for trial in trials]


def split_of(project: Path) -> dict[str, str]:
    return {row["sample_id"]: row["split"] for row in io.read_json(project / "data/tiny/manifest.json")["samples"]}


def test_what_is_obviously_better_is_found_and_called_so(project):
    tuned = tune(trials=8)
    assert tuned.trials[0].changes == {} and tuned.trials[0].auroc == 0.5
    assert tuned.decision.better and tuned.decision.best.changes == {"look": "around"} and tuned.decision.best.auroc > 0.75
    assert tuned.command == "dvc exp run -S 'models.toy.look=around'"


def test_test_images_are_never_read(project, monkeypatch):
    """Only rows of train and val are asked for; with every test row destroyed, and the photos gone, the search is the same bit for bit."""
    from stages.encoders.shards import Store

    asked, read, splits = set(), Store.read, split_of(project)
    monkeypatch.setattr(Store, "read", lambda self, ids, names: asked.update(ids) or read(self, ids, names))
    known = tune("padim", trials=3)
    originals = {name for name in asked if "/planted-" not in name}
    assert {splits[name] for name in originals} == {"train", "val"} and len(asked) > len(originals) > 70
    for encoder in ("pixels", "net"):
        folder = Path("features/tiny", encoder)
        for shard in folder.glob("*.pt"):
            tensors = {name: value.clone() for name, value in io.open_tensors(shard).items()}
            for row in io.read_table(folder / "index.parquet"):
                if splits[row["sample_id"]] == "test" and row["shard"] == shard.name:
                    for value in tensors.values():
                        value[row["row"]] = float("nan") if value.is_floating_point() else 255
            io.write_tensors(shard, tensors)
    shutil.rmtree("photos")
    shutil.rmtree(".assay")
    assert timeless(tune("padim", trials=3).trials) == timeless(known.trials)


def test_a_killed_search_goes_on_and_ends_as_one_that_was_not(project, monkeypatch):
    whole = tune(trials=6)
    shutil.rmtree(".assay")
    real, calls = searching.run_trial, []

    def dies_in_the_fourth(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(searching, "run_trial", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        tune(trials=6)
    assert len(io.read_json(next(Path(".assay/tune").glob("tiny-toy-*/trials.json")))) == 3
    monkeypatch.setattr(searching, "run_trial", real)
    said = []
    again = tune(trials=6, say=said.append)
    assert again.continued == 3 and "continuing after 3 trials" in said[0]
    assert timeless(again.trials) == timeless(whole.trials) and again.decision == whole.decision._replace(best=again.decision.best)


def test_restart_forgets_and_another_seed_or_value_is_another_search(project):
    first = tune(trials=3)
    assert tune(trials=3).continued == 3
    again = tune(trials=3, restart=True)
    assert again.continued == 0 and timeless(again.trials) == timeless(first.trials)
    assert tune(trials=2, seed=1).continued == 0
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("look: nowhere", "look: around"))
    assert tune(trials=2).continued == 0


def test_a_value_that_cannot_be_is_recorded_with_its_reason_and_the_search_goes_on(project):
    Path("space.yaml").write_text("gain: [1.0, 5.0]\nlook: [nowhere, around, elsewhere]\nidle: [0.0, 1.0]\n")
    tuned = tune(space=Path("space.yaml"))
    reasons = {json.dumps(trial.changes): trial.refused for trial in tuned.trials}
    assert len(reasons) == 12 and reasons["{}"] is None and reasons['{"look": "around"}'] is None
    assert reasons['{"gain": 5.0}'] == "photos: models.toy: gain must be at most 3, got 5.0"
    assert "crashed" in reasons['{"idle": 1.0}'] and "out of luck" in reasons['{"idle": 1.0}']
    assert "models.toy.look" in reasons['{"look": "elsewhere"}']
    assert tuned.decision.best.changes == {"look": "around"} and "of them refused" in tuning.render(tuned)


def test_where_what_is_in_use_cannot_be_fitted_there_is_nothing_to_improve(project):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("    look: nowhere", "    gain: 5.0"))
    with pytest.raises(UserError) as error:
        tune(trials=3)
    assert "cannot be fitted as it is now" in str(error.value) and "got 5.0" in str(error.value)
    assert not list(Path(".assay/tune").glob("tiny-toy-*"))


@pytest.mark.parametrize(("budget_s", "trials"), [(45, 4), (40, 4), (39, 3), (1, 2)])
def test_no_trial_begins_that_would_not_end_in_time(project, monkeypatch, budget_s, trials):
    """Each takes ten seconds of a clock that only they move; what is in use and one other always run."""
    now, real = [0.0], searching.run_trial

    def ten_seconds(*arguments):
        now[0] += 10
        return real(*arguments)

    monkeypatch.setattr(searching, "run_trial", ten_seconds)
    tuned = tune(budget_s=budget_s, clock=lambda: now[0])
    assert len(tuned.trials) == trials and {trial.seconds for trial in tuned.trials} == {10.0}


def test_copies_belong_to_the_group_of_their_image_and_are_planted_once(project, monkeypatch):
    task = tasks.task_of(params.load(), "tiny-patchcore", [], 0)
    good = {row["group"] for row in task.val}
    assert len(task.val) == 12 and len(task.copies) == 72 and {row["group"] for row in task.copies} == good
    stores = sorted(path.read_bytes() for path in Path(".assay/tune/planted").rglob("*.pt"))
    shutil.rmtree(".assay")
    tasks.task_of(params.load(), "tiny-patchcore", [], 0)
    assert stores == sorted(path.read_bytes() for path in Path(".assay/tune/planted").rglob("*.pt")) != []
    from stages.encoders import extraction

    monkeypatch.setattr(extraction, "fill", lambda *_: pytest.fail("planted twice"))
    tasks.task_of(params.load(), "tiny-padim", [], 0)  # another model of the same encoder


def test_a_copy_reads_as_its_image_but_for_the_defect(project):
    settings = params.load()
    task = tasks.task_of(settings, "tiny-patchcore", [], 0)
    batch = tasks.copies_of(settings, task, "photos", ("layer1",)).take(list(range(72)))
    from stages.encoders.batches import open_batches

    for place, name in enumerate(batch.sample_id):
        [row] = [row for row in task.val if name.startswith(f"{row['sample_id']}/planted-")]
        own = open_batches("tiny", "net", [row], ("layer1",), settings).take([0])
        changed = (own.features["pixels"][0] != batch.features["pixels"][place]).any(dim=0)
        assert torch.equal(changed, batch.mask[place]) and changed.any() and batch.label[place] == 1
        features = own.features["layer1"][0], batch.features["layer1"][place]
        assert not torch.equal(*features) and np.isclose(*(one.mean() for one in features), rtol=0.2)


def test_real_bad_images_in_val_are_used_instead_of_planted_ones(project):
    manifest = io.read_json(Path("data/tiny/manifest.json"))
    for row in manifest["samples"]:
        row["split"] = "val" if row["label"] == 1 else row["split"]
    io.write_json(Path("data/tiny/manifest.json"), manifest)
    tuned = tune(trials=4)
    assert tuned.search.task.planted is None and tuned.search.task.objective == "AUROC of the held-out (val) images"
    assert not Path(".assay/tune/planted").exists() and "planted" not in tuning.head(tuned.search, 0)
    assert [len(scores) for scores in tuned.trials[0].scores.values()] == [16] and tuned.trials[2].auroc is not None


def test_apply_writes_what_is_better_and_keeps_every_comment(project):
    before = Path("params.yaml").read_text()
    tuned = tune(trials=8, apply=True)
    assert tuned.applied and "written to params.yaml" in tuning.render(tuned)
    assert Path("params.yaml").read_text() == before.replace("look: nowhere                 # at", "look: around                  # at")
    again = tune(trials=4, apply=True)
    assert not again.applied and again.continued == 0


def test_what_is_not_better_is_not_applied(project, monkeypatch):
    before = Path("params.yaml").read_text()
    monkeypatch.setattr("stages.serving.tuning.decision.FEWEST", 13)
    tuned = tune(trials=8, apply=True)
    assert not tuned.applied and Path("params.yaml").read_text() == before
    assert "12 held-out good images are too few" in tuning.verdict(tuned) and "look at it all the same" in tuning.render(tuned)


def test_where_nothing_is_better_that_is_what_is_said(project):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("look: nowhere", "look: around"))
    Path("space.yaml").write_text("look: [nowhere]\n")
    tuned = tune(space=Path("space.yaml"))
    assert "Nothing that was tried (1 other) is better than what you have" in tuning.render(tuned) and tuned.command is None


def test_the_command_says_what_it_is_judged_by_and_how_to_take_it_over(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    before = Path("params.yaml").read_text()
    code, out, _ = assay("tune", "toy", "--trials", "8")
    assert code == 0 and Path("params.yaml").read_text() == before
    assert (
        "AUROC against planted defects, not real ones" in out and "12 held-out good images and 72 copies" in out and "no test image" in out
    )
    assert (
        "Better than what you have: AUROC against planted defects +" in out
        and "  dvc exp run -S 'models.toy.look=around'" in out
        and "--apply" in out
    )
    assert "left as it is: idle" in out
    code, out, err = assay("tune", "toy", "--trials", "8", "--json")
    told = json.loads(out)
    assert code == 0 and "continuing after 8 trials" in err and told["continued_after"] == 8 and len(told["trials"]) == 8
    assert told["better"] and told["best"]["changes"] == {"look": "around"} and told["planted"] and not told["applied"]
    assert told["difference"]["low"] > 0 and Path(told["trials_file"]).is_file() and "scores" not in told["trials"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("patchcor",), "did you mean 'patchcore'?"),
        (("trivial",), "trivial is a group of models"),
        (("stfpm",), "no run uses the model 'stfpm'"),
        (("toy", "--dataset", "tinny"), "did you mean 'tiny'?"),
        (("toy", "--category", "photo"), "did you mean 'photos'?"),
        (("toy", "--budget-minutes", "0"), "needs a budget above 0"),
        (("toy", "--trials", "1"), "at least 2 trials"),
        (("toy", "--space", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_a_mistake_is_answered_in_one_line(project, assay, monkeypatch, arguments, said):
    monkeypatch.chdir(project)
    code, _, err = assay("tune", *arguments)
    assert code == 1 and said in err and "Traceback" not in err and len(err.strip().splitlines()) == 1


def test_of_several_data_sets_one_must_be_named(root):
    settings = params.load(root / "params.yaml")
    with pytest.raises(ParamsError, match="patchcore is run on solar, parts: say which with --dataset"):
        tuning.run_of(settings, "patchcore", None)
    assert tuning.run_of(settings, "patchcore", "parts") == "parts-patchcore"


def test_without_features_the_stage_to_run_is_named(project):
    shutil.rmtree("features/tiny/net")
    with pytest.raises(FileNotFoundError, match="Run `dvc repro extract`"):
        tune("patchcore")


def test_images_in_tiles_are_refused_where_defects_would_have_to_be_planted(project):
    path = Path("features/tiny/pixels/encoder.json")
    io.write_json(path, io.read_json(path) | {"tiles": {"height": 64, "width": 64, "tile": 32, "overlap": 0}})
    with pytest.raises(UserError, match="cut into tiles.*bad images of each category must be held out"):
        tuning.tune("toy", "tiny", budget_s=60, trials=2)

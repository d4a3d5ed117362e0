"""A checkpoint of AF-CLIP is made from one data set through the command line, and judges another through the verbs."""

import importlib
import json
from pathlib import Path

import pytest

from stages import io, params
from stages.datasets.shots import references
from stages.detectors import artefact
from stages.detectors.zero_shot.maths.afclip_training import Learner
from stages.encoders import pretraining, weights
from stages.encoders.encoder import EncoderChanged
from stages.params import ParamsError
from stages.serving import train_afclip
from stages.types import Refusal
from tests.projects import photograph, tiny_project

FAST = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu"}
ENCODER = """\
  seen:
    kind: clip
    image_size: 128
    backbone: test-clip
    weights: random
    layers:
"""
EXTRACT = """\
  {dataset}-{encoder}:
    dataset: {dataset}
    encoder: {encoder}
    reads: {reads}
    code: stages/encoders/clip.py
"""
MODEL = """\
  afclip-{shots}:
    detector: zero_shot.afclip
    label: {shots}-shot
    shots: {shots}
    checkpoint: afclip-others
    layers:
      - block0
      - block1
      - block2
      - block3
"""
RUN = """\
  {dataset}-{shots}:
    dataset: {dataset}
    model: afclip-{shots}
    encoder: seen
    code: stages/detectors/zero_shot/afclip.py
    maths: stages/detectors/zero_shot/maths
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two data sets, tiny and others, whose features are stored; nothing is trained yet."""
    folder = tiny_project(tmp_path_factory.mktemp("afclip"))
    photograph(folder / "elsewhere", normal=12, anomalous=6)
    layers = "".join(f"      - block{block}{kind}\n" for block in range(4) for kind in ("", "_extra"))
    runs = "".join(RUN.format(dataset=dataset, shots=shots) for dataset, shots in (("tiny", 0), ("tiny", 2), ("others", 0)))
    extracts = EXTRACT.format(dataset="others", encoder="pixels", reads="data/others/samples.parquet")
    extracts += "".join(EXTRACT.format(dataset=name, encoder="seen", reads=f"features/{name}/pixels") for name in ("tiny", "others"))
    text = (folder / "params.yaml").read_text().replace("kind: pixels\n    image_size: 64", "kind: pixels\n    image_size: 128")
    for before, more in (
        ("encoders:\n", "  others:\n    adapter: folder\n    source: elsewhere\n"),
        ("extracts:\n", ENCODER + layers),
        ("models:\n", extracts),
        ("runs:\n", MODEL.format(shots=0) + MODEL.format(shots=2)),
        ("protocol:\n", runs),
    ):
        assert text.count(f"\n{before}") == 1
        text = text.replace(f"\n{before}", f"\n{more}{before}")
    (folder / "params.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for dataset in ("tiny", "others"):
            verb("prepare", dataset), verb("extract", dataset, "pixels"), verb("extract", dataset, "seen"), verb("manifest", dataset)
    return folder


def verb(name, *arguments):
    assert not importlib.import_module(f"stages.{name}").main(*arguments), (name, arguments)


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return Path()


@pytest.fixture(scope="module")
def judged(project):
    """The checkpoint made as a person makes it, and every run that names it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        train_afclip.train("others", "seen", "afclip-others", params.load().backbones_folder, **FAST)
        for run in ("tiny-0", "tiny-2", "others-0"):
            verb("train", run), verb("evaluate", run)
    return project


def test_the_command_says_what_is_learnt_from_and_writes_a_checkpoint_that_the_lock_knows(here, assay, project, monkeypatch):
    monkeypatch.chdir(project)
    code, out, _ = assay("train-afclip", "others", "--encoder", "seen", "--epochs", "1", "--backbones", "own", "--device", "cpu")
    assert code == 0 and "learns from the 10 test images of others, 6 of them anomalous, and from their masks" in out
    assert "Nothing that is made from it may be judged on others" in out and (project / "own/afclip-others.safetensors").is_file()
    code, out, _ = assay("weights", "verify", "--backbones", "own", "--json")
    assert {row["name"]: row["status"] for row in json.loads(out)}["afclip-others"] == "ok"


def test_afclip_e_the_checkpoint_says_that_it_is_of_the_test_split_of_another_data_set(judged, monkeypatch):
    monkeypatch.chdir(judged)
    about = weights.described(weights.resolve("afclip-others", params.load().backbones_folder))
    rows = [row for row in io.read_json(Path("data/others/manifest.json"))["samples"] if row["split"] == "test"]
    assert about["auxiliary"] == {"dataset": "others", "split": "test", "samples": io.content_hash(rows)}
    assert "learns from the 10 test images of others" in about["protocol"] and about["training"]["seed"] == 122
    assert about["encoder"]["backbone"] == "test-clip" and str(judged) not in json.dumps(about)
    assert io.read_json(Path("metrics/others/afclip-0.json"))["refused"].startswith(
        "afclip-others was trained on the test images of others"
    )


def test_the_result_names_the_checkpoint_and_the_data_set_that_it_is_from(judged):
    for model, label in (("afclip-0", "0-shot"), ("afclip-2", "2-shot")):
        result = io.read_json(judged / f"metrics/tiny/{model}.json")
        sha256 = io.file_hash(judged / "backbones/afclip-others.safetensors")
        assert result["label"] == label
        assert result["auxiliary"] == {"afclip": f"the test images and masks of others (checkpoint afclip-others, sha256 {sha256[:12]})"}


def test_afclip_f_the_pro_score_is_the_projects_own_up_to_its_limit(judged):
    """AF-CLIP brings no metric: its maps are judged as everybody's, to the false-positive rate that params.yaml states."""
    limits = params.load(judged / "params.yaml").protocol.fpr_limits
    mean = io.read_json(judged / "metrics/tiny/afclip-0.json")["mean"]
    mine, others = ({key for key in cells if key.startswith("aupro")} for cells in (mean, judged_otherwise(judged)))
    assert mine == others and len(mine) == len(limits)


def judged_otherwise(folder):
    """The metrics of a model that has nothing to do with CLIP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        verb("train", "tiny-trivial"), verb("evaluate", "tiny-trivial")
    return io.read_json(folder / "metrics/tiny/trivial.json")["rows"]["mean-image"]["mean"]


def test_afclip_g_references_are_the_projects_draw_by_seed(judged, monkeypatch):
    monkeypatch.chdir(judged)
    from stages.encoders.shards import Store

    train = [row for row in io.read_json(Path("data/tiny/manifest.json"))["samples"] if row["split"] == "train"]
    for seed in params.load().protocol.seeds:
        drawn = [row["sample_id"] for row in references(train, 2, seed)]
        state = io.read_model(artefact.folder("tiny", "afclip-2", "afclip-2", "photos", seed) / "model.safetensors")
        stored = Store(Path("features/tiny/seen")).read(drawn, ["block3"])["block3"]
        assert len(drawn) == 2 and (state["references_block3"] == stored).all()


def test_zero_shot_models_of_all_seeds_are_one_and_hold_no_image(judged):
    states = [
        io.read_model(judged / artefact.folder("tiny", "afclip-0", "afclip-0", "photos", seed) / "model.safetensors") for seed in (0, 1)
    ]
    assert all((states[0][name] == value).all() for name, value in states[1].items()) and len(states[0]["references_block3"]) == 0


def test_a_training_that_is_stopped_goes_on_to_the_same_bytes(here, monkeypatch, tmp_path):
    whole = train_afclip.train("others", "seen", "afclip-x", tmp_path / "whole", **FAST)
    real, run_of, taken = Learner.loss, pretraining.run_of, []

    def killed(self, batch, generator):
        taken.append(0)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return real(self, batch, generator)

    def saving_often(*given):
        run = run_of(*given)
        run.checkpoint_s = 0
        return run

    monkeypatch.setattr(pretraining, "run_of", saving_often)
    monkeypatch.setattr(Learner, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train_afclip.train("others", "seen", "afclip-x", tmp_path / "resumed", **FAST)
    assert not (tmp_path / "resumed").exists() and list(pretraining.RESUME.glob("afclip-x-*"))
    resumed = train_afclip.train("others", "seen", "afclip-x", tmp_path / "resumed", **FAST)
    assert resumed == whole._replace(file=resumed.file) and whole.steps == 6
    assert len(taken) == 4 + 3 and not list(pretraining.RESUME.glob("afclip-x-*"))


def test_another_seed_is_another_checkpoint(here, tmp_path):
    one, other = (
        train_afclip.train("others", "seen", "afclip-x", tmp_path / str(seed), **{**FAST, "epochs": 1}, seed=seed) for seed in (1, 2)
    )
    assert one.sha256 != other.sha256 and one.first_loss == one.last_loss


# --- what is refused ---


def test_a_data_set_without_masks_is_refused(here, monkeypatch):
    rows = [row | {"mask": False} for row in train_afclip.manifest_samples("others")]
    monkeypatch.setattr(train_afclip, "manifest_samples", lambda dataset: rows)
    with pytest.raises(Refusal, match="others has no anomalous test image with a mask, and AF-CLIP learns from masks"):
        train_afclip.train("others", "seen", "afclip-x", Path("unused"), **FAST)


def test_only_test_images_whose_every_pixel_is_known_are_learnt_from(monkeypatch):
    rows = [
        {"sample_id": f"{split}/{label}/{mask}", "split": split, "label": label, "mask": mask}
        for split in ("train", "val", "test")
        for label, mask in ((0, False), (1, True), (1, False), (None, False))
    ]
    monkeypatch.setattr(train_afclip, "manifest_samples", lambda dataset: rows)
    assert [row["sample_id"] for row in train_afclip.marked_rows("any")] == ["test/0/False", "test/1/True"]


def test_names_encoders_and_weights_that_cannot_be_are_said(here, tmp_path, monkeypatch):
    for name in ("visa", "afclip-", "afclip-../visa"):
        with pytest.raises(ParamsError, match="a checkpoint's name is afclip- and letters"):
            train_afclip.train("others", "seen", name, tmp_path, **FAST)
    about = io.read_json(Path("features/others/seen/encoder.json"))
    with pytest.raises(EncoderChanged, match="features were made with weights .*'seed': 5"):
        train_afclip._network(about | {"weights": weights.random_identity(5)}, "seen", tmp_path)
    with pytest.raises(ParamsError, match="encoders.net is of kind cnn, and AF-CLIP needs one of kind clip"):
        train_afclip._network({"entry": {"kind": "cnn"}}, "net", tmp_path)
    with pytest.raises(Refusal, match="E101 absent"):
        train_afclip._network({"refused": "E101 absent"}, "seen", tmp_path)
    assert not list(tmp_path.iterdir())

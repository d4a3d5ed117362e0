"""`assay weld finetune` and `assay weld score` on a small folder of welds: the files score as the training said, and errors are one line."""

import csv
import io as text_io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from stages import io, params, prepare_records
from stages.datasets.intel_welding import PHOTOS
from stages.datasets.records import UNKNOWN
from stages.fusion import finetuned, finetuning
from stages.fusion.finetuned import ADAPTS, read_config
from stages.fusion.raw_media import extracted
from stages.metrics.bootstrap import bootstrap_interval
from stages.metrics.ranking import IMAGE_METRICS, auroc
from stages.metrics.thresholds import conformal
from stages.serving import weld_finetune, weld_looked_at
from stages.serving.weld_raw import split_of
from tests.datasets.weld_trees import write_tree
from tests.encoders.media import networks
from tests.fusion.raw_welds import config, welds
from tests.record_results import settings

RECORDS = """\
records:
  datasets:
    weld:
      adapter: intel_welding
      source: welds
  encoders:
    bead:
      kind: views
      crop: [0.0, 0.2, 0.0, 0.0]
    arc:
      kind: arc_film
      clock_s: 2.0
      frames: 4
    steps:
      kind: sensor_steps
      steps: 16
      rate_hz: 8.0
      clock_s: 2.0
      relative: true
      arc_above: 4.0
  extracts:
    weld-image:
      dataset: weld
      modality: image
      encoder: bead
      code: stages/encoders/media/views.py
    weld-video:
      dataset: weld
      modality: video
      encoder: arc
      code: stages/encoders/media/arc_film.py
    weld-series:
      dataset: weld
      modality: series
      encoder: steps
      code: stages/encoders/media/sensor_steps.py
  models:
    quick:
      rows:
        cross-attention:
          detector: deep.cross_attention
          queries: 2
          layers: 1
          heads: 2
          ffn: 32
          features: 16
          encoding:
            width: 16
            heads: 2
            sensor_layers: 1
            sensor_ffn: 32
          learning:
            epochs: 2
            classes_per_batch: 2
            learning_rate: 0.01
        knn:
          detector: classical.knn
  runs:
    weld-quick:
      dataset: weld
      model: quick
      code: stages/fusion/classical
      maths: stages/fusion/classical
  protocol:
    seeds:
      - 0
    split_seed: 0
    val_fraction: 0.2
    test_fraction: 0.3
    target_false_alarm_rate: 0.1
    bootstrap_resamples: 100
"""
LISTS = ("train", "train", "val", "val", "test", "test", "test", "test")  # of the sessions, by turns good and not
SIZES = weld_finetune.Sizes(16, 32, 4, 1)


def asked(**changes):
    given = {"dataset": "weld", "model": "cross-attention", "adapt": ADAPTS, "backbones": dict.fromkeys(("video", "image", "audio"), "twin"), "sizes": SIZES}
    return weld_finetune.Asked(**given | changes)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """16 welds in 8 sessions, prepared and fine-tuned in all three ways; photographs without loss, so that a stroke of paint stays where it is."""
    folder = tmp_path_factory.mktemp("finetuned")
    write_tree(folder / "welds", [("Good", "00"), ("Undercut", "03")] * 4)
    for path in sorted((folder / "welds").rglob("*.jpg")):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    settings(folder, RECORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert prepare_records.main("weld") == 0
        rows = [{name: row[name] for name in ("record_id", "label", "group", "fault")} for row in io.read_table(folder / "data/weld/samples.parquet")]
        samples = [row | {"split": LISTS[int(row["group"][-2:])], "fault": row["fault"] or None} for row in rows]
        io.write_json(folder / "data/weld/manifest.json", {"dataset": "weld", "samples": samples})
        weld_finetune.finetune(params.load(), asked())
    return folder


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def of(name, column="score"):
    return {row["record_id"]: row[column] for row in io.read_table(weld_finetune.Path("outputs/finetune/weld", name, "test.parquet"))}


@pytest.mark.parametrize("adapt", ADAPTS)
def test_a_model_scores_from_its_files_as_it_did_when_it_was_trained(assay, here, tmp_path, adapt):
    """A list of the data set, and the same welds as a folder of the release."""
    place, expected = f"outputs/finetune/weld/{adapt}", of(adapt)
    assert len(expected) == 8 and len(set(expected.values())) == 8
    code, out, err = assay("weld", "score", place, "--split", "test", "-o", str(tmp_path / "list.csv"))
    assert code == 0 and f"8 welds by {adapt}" in out, err
    found = {row["record_id"]: row for row in csv.DictReader(text_io.StringIO((tmp_path / "list.csv").read_text()))}
    assert {one: float(row["score"]) for one, row in found.items()} == pytest.approx(expected, abs=1e-5)
    assert {one: row["told"] for one, row in found.items()} == of(adapt, "told") and {one: row["class"] for one, row in found.items()} == of(adapt, "class")
    limit = read_config(here / place).threshold
    assert {row["verdict"] for row in found.values()} <= {"accept", "reject"} and limit is not None
    assert all((row["verdict"] == "reject") == (float(row["score"]) > limit) for row in found.values())
    code, out, _ = assay("weld", "score", place, "welds", "-o", str(tmp_path / "folder.json"), "--json")
    rows = {row["record_id"]: row["score"] for row in json.loads(out)["welds"]}
    assert code == 0 and len(rows) == 16 and {one: rows[one] for one in expected} == pytest.approx(expected, abs=1e-5)
    assert json.loads((tmp_path / "folder.json").read_text()) == json.loads(out)["welds"]


def test_the_table_says_what_the_files_hold(assay, here):
    code, out, err = assay("weld", "finetune", "--film-size", "16", "--photo-size", "32", "--rank", "4", "--json")
    assert code == 0 and err.count("it is not trained again") == 3
    found = json.loads(out)
    assert found == io.read_json(here / "outputs/finetune/weld/finetune.json") and [row["adapt"] for row in found["variants"]] == list(ADAPTS)
    frozen, lora, last = found["variants"]
    label = of("frozen", "label")
    session = {row["record_id"]: row["group"] for row in io.read_json(here / "data/weld/manifest.json")["samples"]}
    for row in (frozen, lora, last):
        own = of(row["adapt"])
        area = auroc(list(own.values()), [label[one] for one in own])
        assert row["auroc"]["value"] == pytest.approx(area) and row["auroc"]["low"] <= area <= row["auroc"]["high"] and 0 <= row["macro_f1"] <= 1
        interval = bootstrap_interval(list(own.values()), [label[one] for one in own], [session[one] for one in own], IMAGE_METRICS["image_auroc"], 100)
        assert row["auroc"] == interval._asdict(), "over sessions, not over welds"
        assert row["share"] == pytest.approx(row["trainable"] / row["parameters"])
        assert row["file_bytes"] == (here / "outputs/finetune/weld" / row["adapt"] / "model.safetensors").stat().st_size
        assert row["encoder_bytes"] == 4 * row["trainable_of_encoders"] and row["trainable"] - row["trainable_of_encoders"] == frozen["trainable"]
    assert frozen["difference"] is None and frozen["encoder_bytes"] == 0
    assert lora["difference"]["value"] == pytest.approx(lora["auroc"]["value"] - frozen["auroc"]["value"])
    assert lora["trainable_of_encoders"] == 2 * 4 * 2 * 4 * (192 + 192), "film and pictures, four layers, query and value, rank 4"
    assert last["trainable_of_encoders"] > lora["trainable_of_encoders"] and not (here / "outputs/finetune/weld/.resume").exists()
    text = weld_finetune.render(found)
    assert "twins are random networks that have learnt nothing" in text and "the twin of sound is convolutions alone" in err


def test_the_threshold_is_of_good_validation_welds(assay, here, tmp_path):
    code, out, _ = assay("weld", "score", "outputs/finetune/weld/lora", "--split", "val", "--json", "-o", str(tmp_path / "val.csv"))
    good = [row["score"] for row in json.loads(out)["welds"] if row["class"] == "normal"]
    assert code == 0 and len(good) == 2 and read_config(here / "outputs/finetune/weld/lora").threshold == pytest.approx(conformal(good, 0.1).value, abs=1e-5)


def test_killed_between_two_variants_only_the_second_is_trained_again(here, tmp_path, monkeypatch):
    fit, trained = finetuning.fit, []

    def killed(model, *rest):
        trained.append(finetuning.learns(model))
        if trained == [False, True]:
            raise KeyboardInterrupt
        return fit(model, *rest)

    monkeypatch.setattr(finetuning, "fit", killed)
    wanted = asked(adapt=("lora", "frozen"), out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        weld_finetune.finetune(params.load(), wanted)
    assert (tmp_path / "frozen/result.json").is_file() and not (tmp_path / "lora/result.json").exists()
    monkeypatch.setattr(weld_finetune, "extracted", lambda model, *rest: extracted(model, *rest) if finetuning.learns(model) else pytest.fail("read again"))
    weld_finetune.finetune(params.load(), wanted)
    assert trained == [False, True, True]
    for name in ("frozen", "lora"):
        for file in ("model.safetensors", "config.json", "history.json", "test.parquet"):
            assert (tmp_path / name / file).read_bytes() == (here / "outputs/finetune/weld" / name / file).read_bytes(), "the same again, to the byte"


def test_another_rank_trains_adapters_again_and_nothing_else(here, tmp_path, monkeypatch):
    shutil.copytree(here / "outputs/finetune/weld", tmp_path / "all")
    trained = []
    monkeypatch.setattr(weld_finetune, "_variant", lambda task, config, *_: trained.append((config.adapt, config.rank, config.last)))
    weld_finetune.finetune(params.load(), asked(sizes=SIZES._replace(rank=2), out=tmp_path / "all"))
    assert trained == [("lora", 2, 0)]


def test_media_are_read_as_the_encoder_entries_of_the_data_set_say(here):
    said = read_config(here / "outputs/finetune/weld/lora")
    assert said.reading.crop == (0, 0.2, 0, 0) and said.reading.relative and (said.reading.limit, said.reading.arc_above) == (8, 4)
    assert said.classes == ["normal", "undercut"]
    assert said.shape._asdict() == {"frames": 4, "frame_size": 16, "views": 5, "image_size": 32, "rate": 16000, "bands": 64, "steps": 16, "sensors": 6,
                                      "rate_hz": 8.0, "clock_s": 2.0}  # fmt: skip


def test_the_paper_label_is_not_seen_and_what_lies_below_it_is(assay, here, tmp_path):
    shutil.copytree(here / "welds", tmp_path / "painted")

    def scores(folder):
        code, out, err = assay("weld", "score", str(here / "outputs/finetune/weld/last"), str(folder), "--json")
        assert code == 0, err
        return {row["record_id"]: row["score"] for row in json.loads(out)["welds"]}

    def paint(rows):
        for path in sorted((tmp_path / "painted").rglob(f"{PHOTOS}/*.png")):
            pixels = np.array(Image.open(path))
            pixels[rows] = (250, 10, 10)
            Image.fromarray(pixels).save(path)

    before = scores(here / "welds")
    paint(slice(0, 9))  # of 45 rows
    assert scores(tmp_path / "painted") == before
    paint(slice(9, 30))
    after = scores(tmp_path / "painted")
    assert all(abs(after[one] - before[one]) > 1e-4 for one in before)


def test_pictures_show_where_it_looked(assay, here, tmp_path):
    code, out, err = assay("weld", "score", "outputs/finetune/weld/frozen", "--split", "test", "--grad-cam", str(tmp_path / "cam"), "--worst", "2")
    names = sorted(path.name for path in (tmp_path / "cam").iterdir())
    worst = sorted(of("frozen").items(), key=lambda one: -one[1])[:2]
    assert code == 0 and names == sorted(f"{number}-{one}-{what}.png" for number, (one, _) in enumerate(worst, 1) for what in ("image", "video")), err
    picture = np.array(Image.open(tmp_path / "cam" / names[0]), dtype=int)
    assert picture.shape == (5 * (96 + 22), 2 * 96 + 6, 3), "five views, each beside its map"
    left, right = picture[:, :96], picture[:, 102:]
    assert (right[..., 0] - right[..., 2] > left[..., 0] - left[..., 2] + 20).any(), "something is warm"
    assert "4 pictures of where it looked" in out


def test_a_view_that_is_not_there_speaks_for_nothing_and_what_is_frozen_stays_frozen():
    model = finetuned.build(config("frozen"), None)
    features = welds().take([3]).features
    for name, places in (("image", 3), ("video", 2)):
        layer = weld_looked_at.last_convolution(model.encoders[name].network, weld_looked_at.AXES[name])
        heat = weld_looked_at.looked(model, layer, features, name)
        assert heat.shape[0] == places and (heat >= 0).all() and heat[0].max() > 0 and not any(one.requires_grad for one in model.encoders.parameters())
        if name == "image":
            assert features["mask.post_images"].tolist() == [[True, False, True]] and heat[1].max() == 0 < heat[2].max()


def test_a_weld_whose_class_nobody_knows_is_not_learnt_from(here, tmp_path):
    shutil.copytree(here / "data", tmp_path / "data")
    (tmp_path / "welds").symlink_to(here / "welds")
    place = tmp_path / "data/weld/manifest.json"
    manifest = io.read_json(place)
    (first, *rest) = [row for row in manifest["samples"] if row["split"] == "train"]
    first["label"] = UNKNOWN
    io.write_json(place, manifest)
    assert [row.record_id for row in split_of("weld", "train", tmp_path).rows] == [row["record_id"] for row in rest]


def test_a_weld_without_any_medium_is_listed_without_a_score(assay, here, tmp_path):
    shutil.copytree(here / "welds", tmp_path / "some")
    gone = sorted((tmp_path / "some/s00").iterdir())[0]
    shutil.rmtree(gone)
    next((tmp_path / "some/s01").rglob("*.avi")).unlink()
    code, out, _ = assay("weld", "score", str(here / "outputs/finetune/weld/lora"), str(tmp_path / "some"), "--json")
    rows = json.loads(out)["welds"]
    assert code == 0 and [row["weld"] for row in rows if row["verdict"] == "no media"] == [f"s00/{gone.name}"] and rows[-1]["score"] is None
    assert [row["absent"] for row in rows if row["absent"]] == ["video", "video image audio series"]


def test_what_cannot_be_is_one_line_and_exit_code_1(assay, here, tmp_path):
    lora = here / "outputs/finetune/weld/lora"
    shutil.copytree(lora, tmp_path / "other")
    said = json.loads((lora / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(said | {"fingerprints": said["fingerprints"] | {"video": "0"}}))
    shutil.copytree(lora, tmp_path / "half", ignore=shutil.ignore_patterns("model.safetensors"))
    for arguments, expected in {
        ("finetune", "--adapt", "lora,all"): "--adapt must be of frozen, lora, last",
        ("finetune", "--adapt", ","): "--adapt must be of frozen, lora, last",
        ("finetune", "--model", "knn"): "--model knn is classical.knn",
        ("finetune", "--model", "cross-atention"): "no run of params.yaml has the row 'cross-atention'",
        ("finetune", "--image", "dinov2-base"): "E101 dinov2-base",
        ("score", str(lora)): "give a folder in the layout of the release, or --split",
        ("score", str(lora), "--split", "tset"): "--split must be one of train, val, test",
        ("score", str(lora), str(tmp_path / "nowhere")): "is no folder",
        ("score", str(tmp_path), "--split", "test"): "holds no fine-tuned model",
        ("score", str(tmp_path / "half"), "--split", "test"): "lacks model.safetensors",
        ("score", str(tmp_path / "other"), "--split", "test"): "is not the video backbone that the model was learnt with",
    }.items():
        code, out, err = assay("weld", *arguments)
        assert code == 1 and expected in err and not out and len(err.strip().splitlines()) == 1, (arguments, err)
    assert not (here / ".resume").exists()


def test_a_quick_test_and_precision_that_is_not_to_be_had_say_so(assay, here, tmp_path):
    code, out, err = assay("weld", "finetune", "--quick-test", "--mixed-precision", "--adapt", "lora", "--film-size", "16", "--photo-size", "32", "--rank", "2",
                           "-o", str(tmp_path / "quick"), "--batch-size", "2", "--num-epochs", "1", "--seed", "3")  # fmt: skip
    assert code == 0 and "it is ignored" in out, err
    found = io.read_json(tmp_path / "quick/finetune.json")
    assert found["quick_test"] and found["seed"] == 3 and found["epochs"] == 1 and found["welds"] == {"train": 4, "val": 4, "test": 4}
    assert found["variants"][0]["difference"] is None, "there is no frozen one to compare it with"


def test_folders_of_published_architectures_are_adapted_scored_and_told_from_others(assay, here, tmp_path):
    """V-JEPA 2, DINOv2 and AST at small size with random weights, sound as samples."""
    pytest.importorskip("transformers")
    made = {"video": networks.vjepa2, "image": networks.dinov2, "audio": networks.ast}
    for name, make in made.items():
        if not (here / "backbones" / name).exists():
            make(here / "backbones" / name)
    flags = [part for name in made for part in (f"--{name}", name)] + ["--film-size", "32", "--photo-size", "56", "--rank", "2", "--num-epochs", "1"]
    code, out, err = assay("weld", "finetune", *flags, "-o", str(tmp_path), "--json")
    assert code == 0, err
    found = json.loads(out)
    frozen, lora, last = found["variants"]
    assert lora["trainable_of_encoders"] == 2 * 2 * 2 * 2 * (48 + 32 + 32) and last["trainable_of_encoders"] > 0 == frozen["trainable_of_encoders"]
    assert not any("twins" in note for note in found["notes"]) and "twins" not in weld_finetune.render(found)
    for adapt in ADAPTS:
        code, out, err = assay("weld", "score", str(tmp_path / adapt), "--split", "test", "--json", "--grad-cam", str(tmp_path / "cam"), "--worst", "1")
        rows = {row["record_id"]: row["score"] for row in json.loads(out)["welds"]}
        expected = {row["record_id"]: row["score"] for row in io.read_table(tmp_path / adapt / "test.parquet")}
        assert code == 0 and rows == pytest.approx(expected, abs=1e-5) and len(json.loads(out)["pictures"]) == 2, err
    config = here / "backbones/audio/config.json"
    config.write_text(config.read_text() + " ")
    code, _, err = assay("weld", "score", str(tmp_path / "lora"), "--split", "test")
    assert code == 1 and "the folder audio in backbones is not the audio backbone that the model was learnt with" in err

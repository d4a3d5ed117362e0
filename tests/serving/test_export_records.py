"""An export proves itself: files that judge as the model are kept and described, others are removed and said to be."""

import copy
import json

import numpy as np
import pytest

from stages import evaluate_records, io, params, train_records
from stages.datasets import record_sets
from stages.errors import UserError
from stages.fusion import forms
from stages.fusion.deep.maths import graph, pruning
from stages.fusion.deep.maths.encoder import Encoding
from stages.fusion.deep.mid import MidFusion
from stages.fusion.detector import class_of
from stages.metrics.ranking import auroc
from stages.serving import export_proof, export_pruned, export_records
from stages.serving.export_records import ParityFailed, export, session
from stages.serving.record_model import choose, threshold_of
from tests.fusion.synthetic import WIDTHS, samples
from tests.record_results import settings
from tests.stored_records import store

RECORDS = """\
records:
  datasets:
    parts-seen:
      adapter: media_folder
      source: media
  encoders: {}
  extracts: {}
  models:
    deep:
      rows:
        cross:
          detector: deep.cross_attention
          heads: 2
          ffn: 32
          features: 32
          encoding: &small
            width: 16
            heads: 2
            sensor_layers: 1
            sensor_ffn: 32
          learning: &quick
            steps: 10
            learning_rate: 0.003
        two:
          detector: deep.mid
          modalities:
            - text
            - series
          features: 32
          encoding: *small
          learning: *quick
  runs:
    seen-deep:
      dataset: parts-seen
      model: deep
      code: stages/fusion/deep
      maths: stages/fusion/deep/maths
  protocol:
    seeds:
      - 0
    split_seed: 0
    val_fraction: 0.2
    test_fraction: 0.3
    target_false_alarm_rate: 0.1
    bootstrap_resamples: 100
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    settings(folder, RECORDS)
    made = [one for one in samples(0, 120, tokens=12) if {"text", "series"} & set(one.modalities)]
    store(folder, "parts-seen", made, WIDTHS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given = params.load()
        for row in ("cross", "two"):
            train_records.fit(given, "seen-deep", row, 0, "made up")
        results = {row: evaluate_records.judge(given, "seen-deep", row) for row in ("cross", "two")}
        io.write_json(folder / "metrics/parts-seen/deep.json", {"dataset": "parts-seen", "model": "deep", "rows": results})
    return folder


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return params.load()


def test_what_passes_is_kept_and_described_in_the_report_and_in_the_file(here, tmp_path):
    model = choose(here, model="cross")
    found = export(here, model, tmp_path, formats=["onnx"])
    assert found == io.read_json(tmp_path / "export.json")
    exact = found["files"]["onnx"]
    assert exact["file"] == "model.onnx" and exact["flips"] == exact["other_class"] == 0 and exact["max_difference"] < 1e-4
    assert exact["auroc_change"] == pytest.approx(0, abs=1e-9) and exact["latency_ms"]["p50"] > 0
    assert exact["compared"] > exact["records"] > 0  # each again without each of its modalities
    content = (tmp_path / "model.onnx").read_bytes()
    assert len(content) == exact["bytes"]
    import onnx

    (entry,) = onnx.load_from_string(content).metadata_props
    about = json.loads(entry.value)
    assert about == found["about"]
    assert about["classes"] == ["normal", *sorted(WIDTHS)] and about["modalities"]["text"]["encoder"]["kind"] == "made-up"
    assert about["threshold"]["value"] == threshold_of(model).value and about["temperature"] == model.temperature()


def test_the_file_alone_gives_the_scores_that_evaluate_wrote(here, tmp_path):
    """From nothing but the file and stored tokens: the inputs are made as its own description says."""
    from stages.datasets.record_sets import open_split

    model = choose(here, model="cross")
    about = export(here, model, tmp_path, formats=["onnx"])["about"]
    score = session((tmp_path / "model.onnx").read_bytes(), 1)
    test = open_split("parts-seen", "test")
    widths, sizes = ({name: one[key] for name, one in about["modalities"].items()} for key in ("width", "length"))
    found = score(graph.feed(test.take(range(test.samples)), widths, sizes))[0]
    stored = {row["record_id"]: row["score"] for row in io.read_table(model.results / "predictions.parquet") if row["split"] == "test"}
    assert np.abs(found - np.array([stored[name] for name in test.record_ids])).max() < 1e-4


def test_a_model_that_is_shown_some_modalities_is_exported_with_those(here, tmp_path):
    found = export(here, choose(here, model="two"), tmp_path, formats=["onnx"])
    assert [*found["about"]["modalities"]] == ["text", "series"] and found["files"]["onnx"]["refused"] is None


def test_a_file_that_turns_a_verdict_around_is_removed_and_named(here, tmp_path, monkeypatch):
    model = choose(here, model="cross")
    (tmp_path / "model.int8.onnx").write_bytes(b"of an earlier export")
    spoil(monkeypatch, "int8_bytes", lambda score: -score)
    with pytest.raises(
        ParityFailed, match=r"E601 parity failed, not written: model\.int8\.onnx: \d+ verdicts differ.*Kept: model\.onnx"
    ) as raised:
        export(here, model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "model.onnx"]
    said = io.read_json(tmp_path / "export.json")
    assert said == raised.value.found and said["files"]["int8"]["file"] is None and said["files"]["int8"]["flips"] > 0
    assert isinstance(raised.value, UserError)  # so that a command ends with 1 and no traceback


def test_flips_may_be_allowed_but_are_told(here, tmp_path, monkeypatch):
    spoil(monkeypatch, "int8_bytes", lambda score: -score)
    found = export(here, choose(here, model="cross"), tmp_path, allow_flips=True)["files"]["int8"]
    assert found["file"] == "model.int8.onnx" and found["flips"] > 0 and (tmp_path / "model.int8.onnx").is_file()
    assert f"{found['flips']} of {found['compared']} verdicts" in export_records.render(io.read_json(tmp_path / "export.json"))


@pytest.mark.parametrize("spoilt", [lambda score: score + 1e-2, lambda score: np.where(np.arange(len(score)) == 1, np.nan, score)])
def test_scores_beyond_rounding_are_never_kept(here, tmp_path, monkeypatch, spoilt):
    spoil(monkeypatch, "onnx_bytes", spoilt)
    with pytest.raises(ParityFailed, match="more than rounding|1 scores are not numbers"):
        export(here, choose(here, model="cross"), tmp_path, formats=["onnx"], allow_flips=True)
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_that_is_no_network_is_refused_before_anything_is_compared(here, tmp_path, monkeypatch):
    from stages import fusion
    from stages.serving.record_model import RecordModel
    from stages.types import Refusal

    monkeypatch.setattr(RecordModel, "detector", lambda self: fusion.build("classical.forest", {}, at=()))
    with pytest.raises(
        Refusal,
        match="cross cannot be exported: Forest does not get its score .* no form as a graph. Rows of parts-seen that have: two",
    ):
        export(here, choose(here, model="cross"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_format_that_nobody_knows_is_refused(here, tmp_path):
    with pytest.raises(UserError, match="no format 'tflite'; known: onnx, int8, pt2"):
        export(here, choose(here, model="cross"), tmp_path, formats=["tflite"])
    with pytest.raises(UserError, match="--formats names none; known: onnx, int8, pt2"):
        export(here, choose(here, model="cross"), tmp_path, formats=[])
    assert not list(tmp_path.iterdir())


def test_a_record_whose_score_is_the_threshold_is_not_turned_around_by_rounding(here):
    """The conformal threshold is a validation record's score to the last digit."""
    shown, _ = export_proof.compared_on(model := choose(here, model="cross"), model.detector())
    limit = float(shown.score.max())
    for more, flips in ((3e-7, 0), (1e-2, 1)):
        found = export_proof.figures(
            shown, np.where(shown.score == limit, shown.score + more * max(abs(limit), 1), shown.score), None, limit
        )
        assert found["flips"] == flips and found["on_threshold"] == 1 - flips


def test_classes_that_differ_are_counted_also_where_the_model_says_one_alone(here, tmp_path, monkeypatch):
    model = choose(here, model="two")
    detector = model.detector()
    detector.network.heads.shift[0] = 100.0  # it calls all of them normal
    shown, _ = export_proof.compared_on(model, detector)
    assert shown.split == "val" and not shown.kind.any()
    assert export_proof.figures(shown, shown.score, np.ones_like(shown.kind), None)["other_class"] == len(shown.kind)


def test_a_pruned_file_is_smaller_says_which_heads_went_and_is_held_against_the_whole_model(here, tmp_path):
    import onnx

    model = choose(here, model="cross")
    found = export(here, model, tmp_path, allow_flips=True, prune=0.3)
    pruned = found["about"]["pruned"]
    assert (pruned["heads"], pruned["taken"]) == (10, 3) and sum(map(len, pruned["gone"].values())) == 3
    made = _form(model)
    assert pruned["gone"] == pruning.least(export_pruned.worth(model, model.detector(), made), 0.3)
    own = export_pruned.scores(
        pruning.without(made, pruned["gone"]), (shown := export_proof.compared_on(model, model.detector())[0]).records
    )
    exact = found["files"]["onnx"]
    assert exact["max_difference"] == pytest.approx(np.abs(own - shown.score).max(), abs=1e-4) and exact["max_difference"] > 1e-3
    assert exact["beyond_network"] < 1e-4 and exact["file"] == "model.onnx"
    content = (tmp_path / "model.onnx").read_bytes()
    assert found["before"]["onnx"]["bytes"] - len(content) > 3 * 4 * 16 * 8 * 4 // 2  # 3 heads of 8 or 16 columns, 4 matrices, 4 bytes
    assert np.abs(session(content, 1)(graph.feed(shown.records, made.widths, made.lengths))[0] - own).max() < 1e-4
    (entry,) = onnx.load_from_string(content).metadata_props
    assert json.loads(entry.value)["pruned"] == pruned
    text = export_records.render(found)
    assert "3 of 10 heads taken out" in text and f"onnx before: {found['before']['onnx']['bytes']:,} bytes" in text


def test_heads_are_ranked_on_training_records_alone(here, monkeypatch):
    model, asked = choose(here, model="cross"), []
    made = _form(model)
    opened = record_sets.open_split
    monkeypatch.setattr(record_sets, "open_split", lambda dataset, split, *rest: asked.append(split) or opened(dataset, split, *rest))
    worth = export_pruned.worth(model, model.detector(), made)
    train = (store := opened("parts-seen", "train")).take(range(store.samples))
    by_hand = pruning.importance(made, [(train, class_of(train, model.detector().classes))])
    assert asked == ["train"] and all(np.allclose(worth[name], by_hand[name], atol=1e-5) for name in worth)


def test_a_pruned_file_that_turns_verdicts_around_is_removed(here, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "without", lambda form, gone: _with_other_classes(form))
    with pytest.raises(ParityFailed, match=r"not written: model\.onnx: \d+ verdicts differ"):
        export(here, choose(here, model="cross"), tmp_path, formats=["onnx"], prune=0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


def test_a_pruned_file_that_is_not_its_network_is_never_kept(here, tmp_path, monkeypatch):
    spoil(monkeypatch, "onnx_bytes", lambda score: score + 1e-2)
    with pytest.raises(ParityFailed, match="scores differ from those of its own network by"):
        export(here, choose(here, model="cross"), tmp_path, formats=["onnx"], allow_flips=True, prune=0.3)
    assert not (tmp_path / "model.onnx").exists()


def test_without_a_folder_a_pruned_file_lies_beside_the_whole_one(here):
    model = choose(here, model="cross")
    export(here, model, formats=["onnx"], allow_flips=True, prune=0.3)
    export(here, model, formats=["onnx"])
    assert sorted(path.name for path in (export_records.FOLDER / "parts-seen").iterdir()) == ["cross", "cross-pruned-30"]


def test_the_study_begins_with_the_whole_model_and_takes_more_heads_out_of_the_same_order(here):
    model = choose(here, model="cross")
    found = export_pruned.study(here, model, model.detector())
    assert [row["share"] for row in found["rows"]] == [0, 0.25, 0.5, 0.75] and [row["taken"] for row in found["rows"]] == [0, 3, 5, 5]
    whole, *less = found["rows"]
    test = [row for row in io.read_table(model.results / "predictions.parquet") if row["split"] == "test"]
    score, label = (np.array([row[name] for row in test]) for name in ("score", "label"))
    assert whole["test"]["auroc"] == pytest.approx(auroc(score, label)) and whole["test"]["compared"] == len(test)
    assert whole["val"]["flips"] == whole["test"]["flips"] == 0 and whole["val"]["max_difference"] < 1e-4
    for before, after in zip(found["rows"], less, strict=False):
        assert all(set(heads) <= set(after["gone"][name]) for name, heads in before["gone"].items())
        assert after["bytes"] <= before["bytes"]
    text = export_pruned.render(found)
    assert "test is told and chooses nothing" in text and text.count("\n") == 5 and f"{whole['bytes']:,}" in text


def test_a_share_of_all_heads_and_networks_with_nothing_to_rank_are_refused(here, tmp_path):
    model = choose(here, model="cross")
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match=f"--prune-heads must be a share of all heads, from 0 to below 1; got {share:g}"):
            export(here, model, tmp_path, prune=share)
    blind = MidFusion(encoding=Encoding(width=16, heads=2), features=8).open({"text": 4}, classes=["normal", "b"])
    with pytest.raises(UserError, match="cross has no attention, so there are no heads to take out"):
        export_pruned.worth(model, blind, forms.scorer(blind, {"text": 3}))
    made, alone = _form(model), model.detector()
    alone.supervised = False
    with pytest.raises(UserError, match="learnt from normal records alone: no loss says what a head is worth"):
        export_pruned.worth(model, alone, made)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_program_of_torch_export_passes_too_and_carries_the_description(here, tmp_path):
    import torch

    found = export(here, choose(here, model="cross"), tmp_path, formats=["pt2"])
    assert found["files"]["pt2"]["flips"] == 0 and found["files"]["pt2"]["max_difference"] < 1e-4
    beside = {"assay.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=beside)
    assert json.loads(beside["assay.json"]) == found["about"]


def _form(model):
    return export_proof.compared_on(model, model.detector())[1]


def _with_other_classes(form):
    """The same form with every class's weights turned around."""
    turned = copy.deepcopy(form)
    turned.network.heads.classes.weight.mul_(-1)
    return turned


def spoil(monkeypatch, maker: str, change) -> None:
    """Let the next session of what `maker` made say something else than the file does."""
    made, opened = getattr(graph, maker), export_records.session
    wrong = []

    def noted(*given):
        wrong.append(content := made(*given))
        return content

    def changed(content, threads):
        score = opened(content, threads)
        return (lambda feed: (change(score(feed)[0]), *score(feed)[1:])) if content in wrong else score

    monkeypatch.setattr(graph, maker, noted)
    monkeypatch.setattr(export_records, "session", changed)

"""Ablations with tokens of their own: made once, read by the cells, held against the row as it is on the same records."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from stages import extract_records, io, manifest_records, params, prepare_records
from stages.datasets.record_sets import fingerprint
from stages.errors import UserError
from stages.params import ParamsError
from stages.serving import weld_rows, weld_study, weld_tables, weld_tokens
from stages.serving.weld_study import Asked
from stages.serving.weld_tokens import Tokens
from tests.record_results import settings

ASKED = Asked(dataset="plant", protocols=("P2",), seeds=(0,), rows=("mid-fusion",), questions=("steps",))
STEPS = Tokens(encoders={"series": {"steps": 4}})
OTHERS = Tokens({"table": "short.csv"})
ALL = Tokens({"table": "moved.csv"})
TWICE = {"as it is": None, "finer": STEPS, "moved": ALL}
RECORDS = """\
records:
  datasets:
    plant:
      adapter: media_folder
      source: media
      table: records.csv
  encoders:
    sensors:
      kind: windows
      steps: 16
      frequencies: 1
    stands:
      kind: facts
      nominal:
        duration_s:
          - 10
          - 2
  extracts:
    plant-series:
      dataset: plant
      modality: series
      encoder: sensors
      code: stages/encoders/media/windows.py
  models:
    quick:
      rows:
        mid-fusion:
          detector: classical.forest
          trees: 5
  runs:
    plant-quick:
      dataset: plant
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


def plant(folder: Path) -> Path:
    """60 short logs in groups of three; every second group is faulty, which a burst of four steps shows. moved.csv lists logs that say nothing."""
    settings(folder, RECORDS)
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("processes: 2", "processes: 1"))
    media, random, lines = folder / "media", np.random.default_rng(0), []
    for name in ("seen", "blank"):
        (media / name).mkdir(parents=True)
    for number in range(60):
        faulty, log = number // 3 % 2, random.normal(size=16).round(3)
        for name, burst in (("seen", 3.0 * faulty), ("blank", 0.0)):
            rows = log + np.where(np.arange(16) < 4, burst, 0)
            (media / name / f"{number:02d}.csv").write_text("current\n" + "".join(f"{one:.3f}\n" for one in rows))
        lines.append((f"{number:02d}", faulty, "burst" if faulty else "", f"group-{number // 3:02d}"))
    for table, name, count in (("records", "seen", 60), ("moved", "blank", 60), ("short", "seen", 48)):
        body = [["record_id", "label", "fault", "group", "series_path"]]
        body += [[record, str(label), fault, group, f"{name}/{record}.csv"] for record, label, fault, group in lines[:count]]
        with (media / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(body)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A prepared project with a study of three settings of one question, two of which have tokens of their own. Tests only read it."""
    folder = plant(tmp_path_factory.mktemp("plant"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(weld_rows, "ABLATIONS", asked_for(TWICE))
        patch.setattr(weld_tables, "ABLATIONS", weld_rows.ABLATIONS)
        assert not prepare_records.main("plant") and not manifest_records.main("plant") and not extract_records.main("plant")
        assert weld_study.run(params.load(), ASKED)[0] == 0
    return folder


@pytest.fixture
def here(made, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setattr(weld_rows, "ABLATIONS", asked_for(TWICE))
    monkeypatch.setattr(weld_tables, "ABLATIONS", weld_rows.ABLATIONS)
    return made


def asked_for(settings: dict[str, Tokens | None]) -> tuple[weld_rows.Ablation, ...]:
    return (weld_rows.Ablation("as it is", "as it is", of="mid-fusion"), *weld_rows._tokens("steps", "mid-fusion", settings))


def variation_of(tokens: Tokens) -> weld_tokens.Variation:
    return weld_tokens.variation("plant", tokens, fingerprint("plant"))


def test_cells_read_the_tokens_of_their_variation_and_the_difference_is_with_the_row_as_it_is(here):
    lines = {line["setting"]: line for line in csv.DictReader((weld_study.OUT / "tokens.csv").open())}
    assert list(lines) == ["as it is", "finer", "moved"] and {line["row"] for line in lines.values()} == {"mid-fusion"}
    assert float(lines["as it is"]["auroc"]) > 0.8 and float(lines["moved"]["auroc"]) < 0.7  # logs that say nothing
    assert float(lines["finer"]["auroc"]) > 0.9  # a patch that is all burst
    assert not lines["as it is"]["difference"]
    for name in ("finer", "moved"):
        gap = float(lines[name]["auroc"]) - float(lines["as it is"]["auroc"])
        assert float(lines[name]["difference"]) == pytest.approx(gap)
    assert float(lines["moved"]["difference_high"]) < 0
    assert "| steps | moved | mid-fusion |" in (weld_study.OUT / "tokens.md").read_text()
    assert "steps" not in (weld_study.OUT / "ablation.csv").read_text()


def test_only_what_changed_is_made_anew_and_media_are_read_where_they_are(here):
    finer, moved = variation_of(STEPS), variation_of(ALL)
    assert finer.steps == ["copy", "extract series"] and moved.steps == ["prepare", "manifest", "extract series"]
    assert not finer.left and not moved.left and finer.project.parent == Path(".assay/study")
    assert io.read_json(finer.project / "features/plant/series/records.json")["entry"]["steps"] == 4
    assert io.read_json(Path("features/plant/series/records.json"))["entry"]["steps"] == 16
    assert io.read_json(finer.project / "data/plant/dataset.json")["root"] == (here / "media").resolve().as_posix()
    assert params.load(finer.project / "params.yaml").record_task.encoders["sensors"].options["steps"] == 4


def test_a_variation_is_made_once_and_its_fingerprint_is_in_the_keys(here, monkeypatch):
    monkeypatch.setattr(weld_tokens, "_verb", lambda *_: pytest.fail("tokens were made again"))
    monkeypatch.setattr(weld_study, "compute", lambda **_: pytest.fail("a finished cell was computed again"))
    code, planned = weld_study.run(params.load(), ASKED)
    assert code == 0 and len(planned.variations) == 2
    keys = [{cell.key for cell in planned.of(f"steps: {name}", "P2")} for name in TWICE]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert keys[0] == {cell.key for cell in planned.of("mid-fusion", "P2")}  # the row as it is is not fitted twice
    prints = {variation_of(one).data_key() for one in (STEPS, ALL)} | {fingerprint("plant")}
    assert len(prints) == 3
    parted = planned.folds["P2"]
    [row] = [one for one in planned.ablations if one.name == "steps: finer"]
    cells = [weld_study._cells(ASKED, row, parted, {row.tokens.project: data})[0].key for data in prints]
    assert len(set(cells)) == 3 and planned.of("steps: finer", "P2")[0].key in cells


def test_an_interrupted_variation_goes_on_with_the_steps_that_are_left(tmp_path, monkeypatch):
    monkeypatch.chdir(plant(tmp_path))
    assert not prepare_records.main("plant") and not manifest_records.main("plant") and not extract_records.main("plant")
    one, verb, ran = variation_of(ALL), weld_tokens._verb, []

    def interrupted(variation, step):
        ran.append(step)
        if step == "extract series" and len(ran) == 3:
            raise KeyboardInterrupt
        return verb(variation, step)

    monkeypatch.setattr(weld_tokens, "_verb", interrupted)
    before = one.data_key()
    with pytest.raises(KeyboardInterrupt):
        weld_tokens.make(one)
    assert one.left == ["extract series"] and one.data_key() == before == one.project.name
    assert Path.cwd() == tmp_path.resolve()
    weld_tokens.make(one)
    assert ran == ["prepare", "manifest", "extract series", "extract series"] and not one.left
    assert one.data_key() == fingerprint("plant", one.project) != before
    monkeypatch.setattr(weld_tokens, "_verb", lambda *_: 1)
    with pytest.raises(UserError, match="the step 'prepare' ended with exit code 1"):
        weld_tokens.make(variation_of(Tokens({"table": "short.csv"})))


def test_other_records_are_not_compared_and_the_table_says_why(here, monkeypatch, tmp_path):
    monkeypatch.setattr(weld_rows, "ABLATIONS", asked_for({"as it is": None, "short": OTHERS}))
    monkeypatch.setattr(weld_tables, "ABLATIONS", weld_rows.ABLATIONS)
    code, planned = weld_study.run(params.load(), ASKED, tmp_path)
    assert code == 0 and not planned.variations
    words = "its records are not those of plant: 48, and there are 60; 48 have the same id, class and session"
    assert planned.unavailable == {"steps: short": words} and f"- steps, short: {words}" in (tmp_path / "tokens.md").read_text()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (Tokens(encoders={"serise": {"steps": 4}}), "has no encoder of plant serise; did you mean 'series'"),
        (Tokens(encoders={"series": {"stpes": 4}}), "stpes"),
        (Tokens(encoders={"series": {"kind": "widnows"}}), "no kind of encoder 'widnows'; did you mean 'windows'"),
        (Tokens({"tabel": "x.csv"}), "tabel"),
        (Tokens({"adapter": "wled"}), "no adapter of records 'wled'; did you mean 'weld'"),
    ],
)
def test_what_nothing_here_has_is_refused_before_anything_is_made(here, tokens, words, monkeypatch):
    with pytest.raises(ParamsError, match=words):
        variation_of(tokens)
    monkeypatch.setattr(weld_rows, "ABLATIONS", asked_for({"as it is": None, "wrong": tokens}))
    planned = weld_study.plan(params.load(), ASKED)
    assert words in planned.unavailable["steps: wrong"] and not planned.variations


def test_a_kind_replaces_the_entry_and_other_options_are_added_to_it(here):
    other = variation_of(Tokens(encoders={"series": {"kind": "sensor_steps", "steps": 8}})).settings["records"]["encoders"]["sensors"]
    assert other == {"kind": "sensor_steps", "steps": 8}
    assert variation_of(STEPS).settings["records"]["encoders"]["sensors"] == {"kind": "windows", "steps": 4, "frequencies": 1}
    again = variation_of(Tokens(encoders={"series": {"steps": 4}}))
    assert again.project == variation_of(STEPS).project != variation_of(Tokens(encoders={"series": {"steps": 8}})).project
    assert weld_tokens.variation("plant", STEPS, "another data set").project != again.project


def test_a_question_can_be_asked_alone(here):
    planned = weld_study.plan(params.load(), ASKED._replace(questions=()))
    assert {row.question for row in planned.ablations} == {"as it is", "steps"}
    with pytest.raises(ParamsError, match="there is no ablation 'stesp'; did you mean 'steps'"):
        weld_study.plan(params.load(), ASKED._replace(questions=("stesp",)))
    assert not weld_study.plan(params.load(), ASKED._replace(ablate=False)).variations


def test_before_tokens_are_made_the_plan_counts_their_cells_as_not_done(here, monkeypatch):
    monkeypatch.setattr(weld_rows, "ABLATIONS", asked_for({"as it is": None, "unmade": Tokens(encoders={"series": {"steps": 5}})}))
    told = weld_study.budget(weld_study.plan(params.load(), ASKED))
    assert told[1] == {"protocol": "P2", "what": "ablations", "cells": 10, "done": 5}
    assert json.dumps(told) and not variation_of(Tokens(encoders={"series": {"steps": 5}})).project.exists()

"""The study of a record data set: cells that are computed once, tables that are made of them alone."""

from __future__ import annotations

import csv
import io as text_io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import io, params
from stages.errors import UserError
from stages.params import ParamsError
from stages.serving import weld_cell, weld_oracle, weld_rows, weld_study, weld_tables
from stages.serving.weld_study import Asked
from tests.serving.weld_project import project

ROWS = ("mid-fusion", "setpoint-only", "knn", "image-only")
FAST = Asked(protocols=("P2",), seeds=(0,), rows=ROWS, ablate=False)


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """The project after a study of its classical rows; tests only read it."""
    folder = project(tmp_path_factory.mktemp("studied"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert weld_study.run(params.load(), FAST)[0] == 0
    return folder


@pytest.fixture
def here(studied, monkeypatch) -> Path:
    monkeypatch.chdir(studied)
    return studied


def table(name: str, folder: Path = weld_study.OUT) -> list[dict[str, str]]:
    return list(csv.DictReader(text_io.StringIO((folder / f"{name}.csv").read_text())))


def test_every_row_stands_in_the_main_table_with_its_letter_and_beside_the_control(here):
    lines = {line["row"]: line for line in table("main")}
    assert list(lines) == ["setpoint-only", "image-only", "mid-fusion", "knn"]
    assert [line["letter"] for line in lines.values()] == ["C3", "B", "C2", ""]
    best = lines["mid-fusion"]
    assert float(best["P2_auroc_S"]) > 0.9 > 0.7 > float(lines["setpoint-only"]["P2_auroc_S"])
    assert float(best["P2_auroc_S_low"]) <= float(best["P2_auroc_S"]) <= float(best["P2_auroc_S_high"])
    assert float(best["P2_over_setpoint_S"]) == pytest.approx(float(best["P2_auroc_S"]) - float(lines["setpoint-only"]["P2_auroc_S"]))
    assert float(best["P2_macro_f1"]) > 0.6 and best["P2_ece"] and not lines["setpoint-only"]["P2_over_setpoint_S"]


def test_what_learns_without_labels_shares_no_column_of_figures_with_what_learns_from_them(here):
    by_kind = {kind: [line for line in table("main") if line["learns"] == kind] for kind in "SU"}
    filled = {kind: {key for line in lines for key, value in line.items() if value and "auroc" in key} for kind, lines in by_kind.items()}
    assert filled["S"] and filled["U"] and not filled["S"] & filled["U"]
    text = (weld_study.OUT / "main.md").read_text()
    supervised, good = text.split("**From normal records alone (U)**")
    assert "| mid-fusion |" in supervised and "| knn |" in good and "knn" not in supervised


def test_the_figure_is_the_mean_over_folds_of_what_the_cells_say(here):
    from stages.metrics.ranking import auroc

    planned = weld_study.plan(params.load(), FAST)
    label = {row["record_id"]: row["label"] for row in planned.table}
    areas = [auroc(told["test"], [label[one] for one in cell.fold.test]) for cell, told in weld_study.found(planned, "mid-fusion", "P2", weld_study.OUT)]
    line = next(line for line in table("main") if line["row"] == "mid-fusion")
    assert len(areas) == 5 and float(line["P2_auroc_S"]) == pytest.approx(sum(areas) / 5, abs=1e-9)


def test_the_missing_table_has_every_subset_and_more_media_are_better(here):
    lines = {line["modalities"]: line for line in table("missing")}
    assert len(lines) == 7 and [int(line["count"]) for line in lines.values()] == [1, 1, 1, 2, 2, 2, 3]
    assert float(lines["image+video+series"]["mid-fusion"]) > max(float(lines[name]["mid-fusion"]) for name in ("image", "video", "series"))
    whole = next(line for line in table("main") if line["row"] == "mid-fusion")
    assert float(lines["image+video+series"]["mid-fusion"]) == pytest.approx(float(whole["P2_auroc_S"]), abs=1e-6)


def test_paired_differences_name_their_rows_and_folds_say_what_was_held_out(here):
    told = io.read_json(weld_study.OUT / "paired.json")["differences"]
    assert [one["difference"] for one in told] == [f"{name} - setpoint-only" for name in ("image-only", "mid-fusion", "knn")]
    mid = next(one for one in told if one["first"] == "mid-fusion")
    assert mid["low"] > 0 and not mid["holds_zero"] and next(one for one in told if one["first"] == "knn")["learns"] == ["U", "S"]
    folds = io.read_json(weld_study.OUT / "folds.json")["P2"]
    assert len(folds["folds"]) == 5 and folds["seeds"] == [0] and all(one["sessions_in_test_and_train"] == 0 for one in folds["folds"])


def test_the_proposed_fusion_is_compared_by_the_classes_that_are_told_too(here, tmp_path):
    asked = FAST._replace(rows=("cross-attention", "mid-fusion", "image-only"))
    assert weld_study.run(params.load(), asked, tmp_path)[0] == 0
    told = {one["difference"]: one for one in io.read_json(tmp_path / "paired.json")["differences"]}
    lines = {line["row"]: float(line["P2_macro_f1"]) for line in table("main", tmp_path) if line["P2_macro_f1"]}
    found = told["D - C2"]["macro_f1"]
    assert found["value"] == pytest.approx(lines["cross-attention"] - lines["mid-fusion"], abs=1e-6) and found["low"] < found["value"] < found["high"]
    assert "macro_f1" not in told["D - best single"]  # the one modality tells no classes


def test_a_finished_study_computes_nothing_and_writes_the_same_bytes(here, monkeypatch):
    before = {path.name: path.read_bytes() for path in weld_study.OUT.glob("*.*")}
    monkeypatch.setattr(weld_study, "compute", lambda **_: pytest.fail("a finished cell was computed again"))
    assert weld_study.run(params.load(), FAST)[0] == 0
    assert {path.name: path.read_bytes() for path in weld_study.OUT.glob("*.*")} == before and len(before) == 12


def test_a_cell_that_is_gone_is_computed_again_and_is_the_same(here):
    planned = weld_study.plan(params.load(), FAST)
    path = weld_cell.file_of(weld_study.OUT / "cells", planned.of("mid-fusion", "P2")[2].key)
    before = {key: value for key, value in io.read_json(path).items() if key != "ms"}
    kept = path.read_bytes()
    path.unlink()
    assert sum(line["cells"] - line["done"] for line in weld_study.budget(planned)) == 1
    assert weld_study.run(params.load(), FAST)[0] == 0
    assert {key: value for key, value in io.read_json(path).items() if key != "ms"} == before
    path.write_bytes(kept)
    weld_tables.write(planned, weld_study.OUT)


def test_the_name_of_a_cell_hangs_on_all_that_it_depends_on(here):
    cell = weld_study.plan(params.load(), FAST).of("mid-fusion", "P2")[0]
    row, fold = cell.row, cell.fold
    others = [
        (row._replace(options={**row.options, "trees": 21}), fold, 0, "data", "code"),
        (row._replace(shown=("image",)), fold, 0, "data", "code"),
        (row, fold._replace(train=fold.train[1:]), 0, "data", "code"),
        (row, fold, 1, "data", "code"),
        (row, fold, 0, "other", "code"),
        (row, fold, 0, "data", "other"),
    ]
    keys = {weld_cell.key_of(*one) for one in others} | {weld_cell.key_of(row, fold, 0, "data", "code")}
    assert len(keys) == 7
    renamed = row._replace(name="an ablation that changes nothing"), fold._replace(name="other")
    assert weld_cell.key_of(*renamed, 0, "data", "code") in keys


def test_the_code_of_a_row_is_part_of_it_and_that_of_other_families_is_not(here):
    row = weld_rows.study_rows(params.load().record_task, "weld", ["mid-fusion"])[0]
    assert weld_cell.code_hash(row) != weld_cell.code_hash(row._replace(code=("stages/fusion/perceiver_moe.py", "stages/fusion/perceiver")))


def test_p4_counts_as_open_set_and_runs_with_the_first_seed(here, tmp_path):
    asked = Asked(protocols=("P4",), seeds=(0, 1), rows=("mid-fusion",), ablate=False)
    assert weld_study.run(params.load(), asked, tmp_path)[0] == 0
    [line] = table("main", tmp_path)
    assert line["P4_auroc_O"] and "P2_auroc_S" not in line and io.read_json(tmp_path / "folds.json")["P4"]["seeds"] == [0]
    assert len(list((tmp_path / "cells").iterdir())) == 3


def test_a_row_that_cannot_be_had_stands_with_its_reason(here, monkeypatch, tmp_path):
    planned = weld_study.plan(params.load(), FAST._replace(rows=("image-only",)))
    for _, cell in planned.cells:
        io.write_json(weld_cell.file_of(tmp_path / "cells", cell.key), {"refused": "no normal record to learn from"})
    weld_tables.write(planned, tmp_path)
    assert table("main", tmp_path)[0]["refused"] == "P2: no normal record to learn from"
    assert "- image-only: P2: no normal record to learn from" in (tmp_path / "main.md").read_text()


def test_an_ablation_changes_one_thing_and_what_no_detector_has_is_left_out_with_the_reason(here):
    rows = weld_rows.study_rows(params.load().record_task, "weld")
    found, gone = weld_rows.ablations(rows, "weld")
    by_name = {row.name: row for row in found}
    base = next(row for row in rows if row.name == "cross-attention")
    assert by_name["temperature of the contrast: 0.1"].options == {**base.options, "learning": {**base.options["learning"], "tau": 0.1}}
    assert by_name["without a modality: no video"].shown == ("image", "series")
    assert by_name["kind of fusion: mid-fusion"].detector == "classical.forest"
    assert gone["without a modality: no audio"] == "cross-attention is not shown audio" and "queries" in gone["queries of the fusion: 4"]
    [u] = weld_rows.good_only(rows)
    assert u.name == "cross-attention (Good only)" and u.options["learning"]["normal_only"]


def test_a_setting_that_says_the_default_is_not_fitted_twice(here):
    planned = weld_study.plan(params.load(), FAST._replace(rows=("cross-attention",), ablate=True))
    names = ("cross-attention", "temperature of the contrast: 0.07", "temperature of the contrast: 0.1")
    base, same, other = ([cell.key for cell in planned.of(name, "P2")] for name in names)
    assert base == same != other


def test_the_oracle_of_a_generated_set_bounds_the_tables(here, monkeypatch):
    planned = weld_study.plan(params.load(), FAST)
    ratios = {
        row["record_id"]: {"log_ratio_all": row["label"], "log_ratio_video": 0.0, "log_ratio_image": 0.0, "log_ratio_series": -row["label"]}
        for row in planned.table
    }
    monkeypatch.setattr(weld_oracle, "ratios", lambda planned: ratios)
    assert weld_oracle.auroc_by_protocol(planned) == {"P2_auroc_S": 1.0}
    assert weld_oracle.auroc_by_subset(planned) == {
        frozenset({"video"}): 0.5, frozenset({"image"}): 0.5, frozenset({"series"}): 0.0, frozenset({"video", "image", "series"}): 1.0
    }  # fmt: skip


def test_tables_go_between_their_markers_and_nowhere_else(here, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("before\n" + "".join(f"<!-- weld-{name} -->\nold\n<!-- /weld-{name} -->\nwords\n" for name in weld_tables.OF_RESULTS))
    weld_tables.into_document(page, weld_study.OUT)
    text = page.read_text()
    assert text.startswith("before\n<!-- weld-main -->\n**Supervised (S)**") and text.endswith("words\n") and "old" not in text
    weld_tables.into_document(page, weld_study.OUT)
    assert page.read_text() == text
    page.write_text(text.replace("**Supervised (S)**", "old"))
    weld_tables.into_document(page, weld_study.OUT, ("missing",))
    assert "<!-- weld-main -->\nold\n" in page.read_text()  # a table that is not asked for stays
    page.write_text("no markers")
    with pytest.raises(UserError, match="it needs <!-- weld-main -->"):
        weld_tables.into_document(page, weld_study.OUT)


def test_what_cannot_be_asked_says_so(here):
    settings = params.load()
    with pytest.raises(UserError, match="no protocol 'P9'"):
        weld_study.plan(settings, FAST._replace(protocols=("P9",)))
    with pytest.raises(ParamsError, match="no row 'mid-fusoin'; did you mean 'mid-fusion'"):
        weld_study.plan(settings, FAST._replace(rows=("mid-fusoin",)))


@pytest.mark.slow
def test_killed_it_goes_on_with_the_cells_that_are_not_there(tmp_path):
    folder = project(tmp_path / "killed")
    command = [sys.executable, "-c", "from stages.serving.cli import main; main()", "weld", "study", "--protocol", "P2", "--seeds", "0,1",
               "--rows", "cross-attention,mid-fusion", "--no-ablate"]  # fmt: skip
    seen = os.environ | {"PYTHONPATH": str(Path(weld_study.__file__).parents[2])}
    cells = folder / "metrics/weld/study/cells"
    with subprocess.Popen(command, cwd=folder, env=seen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + 120
        while len(list(cells.glob("*.json"))) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    left = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 3 <= len(left) < 30 and not (folder / "metrics/weld/study/main.csv").exists()
    done = subprocess.run([*command[:-1], "--no-ablate"], cwd=folder, env=seen, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "| D | cross-attention" in done.stdout, done.stderr
    assert all(path.stat().st_mtime_ns == before for path, before in left.items()) and json.loads((folder / "metrics/weld/study/paired.json").read_text())

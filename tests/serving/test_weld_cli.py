"""`assay weld`: train by hand, evaluate, study; errors are one line."""

from __future__ import annotations

import json
import re

import pytest

from tests.serving.weld_project import project


@pytest.fixture
def here(assay, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "project"))
    return tmp_path / "project"


def test_train_quick_debug_then_evaluate_leaves_models_alone(assay, here):
    code, out, err = assay("weld", "train", "--quick-test", "--debug", "--batch-size", "2", "--num-epochs", "2", "--mixed-precision", "--keep-last", "1",
                           "--seed", "0")  # fmt: skip
    assert code == 0, err
    assert "first batch: 2 records" in out and re.search(r"parameters: [\d,]+ in all, [\d,]+ trainable \(100.0%\)", out), out
    assert "mixed precision needs CUDA" in out and "it is ignored" in out
    place = here / ".assay/one_off/models/weld/quick/cross-attention/seed0"
    assert (place / "model.safetensors").is_file() and len(list((place / "last").iterdir())) == 1 and not (here / "models").exists()
    config = json.loads((place / "config.json").read_text())
    assert config["options"]["learning"] == {"epochs": 2, "steps": 20, "learning_rate": 0.01, "batch_size": 2, "mixed_precision": True}
    assert "next: assay weld evaluate --dataset weld --model cross-attention --one-off" in out
    code, out, _ = assay("weld", "evaluate", "--one-off")
    assert code == 0 and "AUROC" in out and "confusion: a row is what a record is" in out
    code, _, err = assay("weld", "evaluate")
    assert code == 1 and "holds no fitted model. Run `assay weld train --dataset weld --model cross-attention` first" in err


def test_evaluate_says_of_its_own_bank_what_the_seed_expects_of_it_only_by_distance(assay, here):
    """A record is its own nearest neighbour: alone or by distance it is always told right, outvoted by four others it may not be."""
    code, out, _ = assay("weld", "train", "--model", "mid-fusion", "--json")
    assert code == 0 and json.loads(out) == {"run": "weld-quick", "model": "mid-fusion", "root": ".", "exit_code": 0}
    found = {}
    for name, flags in {"five": (), "distance": ("--by-distance",), "one": ("--neighbours", "1")}.items():
        code, out, _ = assay("weld", "evaluate", "--model", "mid-fusion", "--split", "train", "--json", *flags)
        assert code == 0
        found[name] = json.loads(out)
    assert found["distance"]["knn_accuracy"] == found["one"]["knn_accuracy"] == 1 >= found["five"]["knn_accuracy"]
    assert found["five"]["auroc"] > 0.95 and sum(map(sum, found["five"]["confusion"])) == found["five"]["records"]


def test_the_same_flags_are_options_of_the_verb(here):
    from stages import train_records
    from stages.fusion.one_off import parsed

    assert train_records.main(*parsed(["weld-quick", "--model", "knn", "--quick-test"])) == 0
    assert (here / ".assay/one_off/models/weld/quick/knn/seed0/model.safetensors").is_file()
    begun = here / ".assay/resume/weld-quick/of another row"
    begun.mkdir(parents=True)
    assert train_records.main(*parsed(["weld-quick", "--model", "knn"])) == 0 and begun.is_dir()  # one row by hand ends nothing that the pipeline has begun
    assert train_records.main("weld-quick") == 0 and not begun.exists()
    assert len(list((here / "models/weld/quick").rglob("config.json"))) == 7  # two seeds of the two rows that draw, one of the others


def test_study_plans_and_computes(assay, here):
    flags = ("--protocol", "P1", "--seeds", "0", "--rows", "knn,setpoint-only", "--no-ablate", "-o", "out")
    code, out, _ = assay("weld", "study", *flags, "--dry-run", "--json")
    assert code == 0 and json.loads(out) == [{"protocol": "P1", "what": "rows", "cells": 2, "done": 0}]
    code, out, err = assay("weld", "study", *flags)
    assert code == 0 and "| C3 | setpoint-only |" in out and (here / "out/main.csv").is_file(), err
    code, out, _ = assay("weld", "study", *flags, "--dry-run", "--json")
    assert json.loads(out)[0]["done"] == 2


def test_what_cannot_be_is_one_line_and_exit_code_1(assay, here):
    for arguments, words in (
        (("train", "--model", "mid-fusoin"), "no run of params.yaml fits 'mid-fusoin' on weld; did you mean 'mid-fusion'"),
        (("train", "--model", "knn", "--num-epochs", "3"), "classical.knn has no option 'epochs', so --num-epochs cannot"),
        (("evaluate", "--dataset", "wled"), "wled"),
        (("evaluate", "--split", "all"), "--split must be one of train, val, test"),
        (("study", "--seeds", "zero"), "--seeds must be whole numbers with commas between"),
        (("study", "--protocol", "P7"), "no protocol 'P7'"),
        (("study", "--protocol", ","), "no protocol is asked for; known: P1"),
        (("study", "--document", "nowhere.md"), "nowhere.md is not here. Give a document that has <!-- weld-main -->"),
        (("study", "--ablations", "hard negatives"), "there is no ablation 'hard negatives'; did you mean 'hard negatives (beta)'"),
        (("study", "--document", "params.yaml", "--tables", "idaes"), "there is no table 'idaes'; did you mean 'ideas'"),
        (("study", "--document", "params.yaml", "--tables", "ideas"), "it needs <!-- weld-ideas -->"),
        (("study", "--document", "params.yaml"), "has no place for the table: it needs <!-- weld-main -->"),
    ):
        code, _, err = assay("weld", *arguments)
        assert code == 1 and words in err and "Traceback" not in err, (arguments, err)


def test_labels_counts_the_welds_of_a_prepared_data_set_and_of_a_folder(assay, here):
    code, out, _ = assay("weld", "labels", "--json")
    found = json.loads(out)
    assert code == 0 and set(found["classes"]) == {"good", "image", "series", "video"} and found["sessions"]["good"] == 20
    assert sum(sum(one.values()) for one in found["classes"].values()) == found["welds"] == 120
    code, _, err = assay("weld", "labels", "wold")
    assert code == 1 and "no entry 'wold'; did you mean 'weld'" in err
    code, _, err = assay("weld", "labels", ".")
    assert code == 1 and "E440" in err
    code, _, err = assay("weld", "check", ".")
    assert code == 1 and "E440" in err


def test_export_needs_a_fitted_model(assay, here):
    code, _, err = assay("weld", "export")
    assert code == 1 and "Traceback" not in err


@pytest.mark.slow
def test_export_writes_a_file_that_is_held_against_the_model(assay, here):
    from stages import evaluate_records, train_records

    assert train_records.main("weld-quick") == evaluate_records.main("weld-quick") == 0
    code, out, err = assay("weld", "export", "--formats", "onnx", "-o", "exported", "--json")
    assert code == 0, err
    assert (here / "exported/model.onnx").is_file() and json.loads(out) == json.loads((here / "exported/export.json").read_text())


@pytest.mark.slow
def test_export_takes_heads_out_or_says_what_that_would_cost(assay, here):
    from stages import evaluate_records, train_records

    assert train_records.main("weld-quick") == evaluate_records.main("weld-quick") == 0
    code, out, _ = assay("weld", "export", "--formats", "onnx", "-o", "less", "--prune-heads", "0.3", "--allow-flips", "--json")
    assert code == 0 and 0 < (pruned := json.loads(out)["about"]["pruned"])["taken"] < pruned["heads"] and pruned["share"] == 0.3
    code, out, _ = assay("weld", "export", "-o", "studied", "--prune-study")
    rows = json.loads((here / "studied/pruning.json").read_text())["rows"]
    assert code == 0 and len(rows) == 4 and [path.name for path in (here / "studied").iterdir()] == ["pruning.json"]
    assert "test is told and chooses nothing" in out and f"{rows[1]['bytes']:,}" in out
    code, _, err = assay("weld", "export", "--prune-heads", "1")
    assert code == 1 and "must be a share of all heads, from 0 to below 1; got 1" in err


def test_loss_check_holds_and_a_broken_loss_is_found(assay, here, monkeypatch):
    code, out, _ = assay("weld", "loss-check")
    assert code == 0 and out.count("ok ") == 6 and "NOT" not in out
    from stages.fusion.deep.maths.supcon import SupConLoss

    forward = SupConLoss.forward
    monkeypatch.setattr(SupConLoss, "forward", lambda self, features, label=None: forward(self, features, label) * 1.001)
    code, out, _ = assay("weld", "loss-check")
    assert code == 1 and "NOT the loss is that of its formula" in out

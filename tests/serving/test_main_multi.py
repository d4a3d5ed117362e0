"""The command line of the field: its own flags, a checkpoint and a log entry for each epoch, and what it refuses."""

import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file

from stages.datasets.record_lists import scanned, write_list
from stages.serving import cli, record_checkpoint, record_trial
from tests.datasets.record_corpus import series

SMALL = json.dumps({"width": 16, "latents": 4, "heads": 2, "blocks": 1, "experts": 2, "hidden": 16})
EPOCHS = 6


def write_pairs(folder, count=48):
    """Pictures and notes; where a record is anomalous both lie apart. A third has no picture, a third no note."""
    draw = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        label = number // 3 % 2
        image, text = torch.randn(8, generator=draw), torch.randn(2, 6, generator=draw)
        image[:4] += 3 * label
        text[:, ::2] += 3 * label
        content = {"img_feat": image, "text_feat": text, "label": label}
        if number % 3:
            del content["img_feat" if number % 3 == 1 else "text_feat"]
        torch.save(content, folder / f"{number:03d}.pt")


def asked(*more, epochs=EPOCHS):
    return [
        "main-multi", "--root", "files", "--pattern", "**/*.pt", "--make_json", "True", "--total_json", "multiall.json", "--batch_size", "8", "--lr", "1e-2",
        "--epochs", str(epochs), "--thr", "0.5", "--ckpt_dir", "ck", "--log_json", "train_multi.json", "--train", "True", "--device", "cpu",
        "--options", SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trained once; tests that need it only read it."""
    place = tmp_path_factory.mktemp("trained")
    write_pairs(place / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", ["assay", *asked()])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return place


@pytest.fixture
def trained(folder, assay, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_every_epoch_leaves_a_checkpoint_and_an_entry_of_the_log(trained):
    log = json.loads((trained / "train_multi.json").read_text())
    assert [one["epoch"] for one in log["epochs"]] == list(range(1, EPOCHS + 1)) and set(log["epochs"][0]) >= {"loss", "val_auc", "val_f1", "lr", "seconds"}
    assert sorted(path.name for path in (trained / "ck").glob("*.safetensors")) == [f"epoch_{epoch:03d}.safetensors" for epoch in range(1, EPOCHS + 1)]
    assert len(json.loads((trained / "multiall.json").read_text())) == 48
    sizes = {name: sum(counts[label] for label in ("normal", "anomalous")) for name, counts in log["split"].items()}
    assert sum(sizes.values()) == 48 and sizes["val"] in (6, 7, 8) and sizes["test"] in (6, 7, 8)
    assert all(counts["normal"] and counts["anomalous"] for counts in log["split"].values())
    assert log["test"]["auroc"] > 0.9
    assert not (trained / "ck" / ".resume").exists()


def test_a_checkpoint_named_as_a_pt_is_judged_as_training_judged_it(assay, trained):
    log = json.loads((trained / "train_multi.json").read_text())
    best = f"ck/epoch_{log['best_epoch']:03d}.pt"
    code, out, err = assay("main-multi", "--test_json", "ck/test.json", "--ckpt_load", best, "--train", "False", "--device", "cpu", "--json")
    assert code == 0, err
    judged, file = json.loads(out), json.loads((trained / "test_multi.json").read_text())
    assert judged == file and {key: judged[key] for key in log["test"]} == log["test"]
    counts = judged["confusion"]
    assert judged["accuracy"] == (counts["tp"] + counts["tn"]) / judged["records"]
    assert sum(one["records"] for one in judged["subsets"].values()) == judged["records"] == len(json.loads((trained / "ck/test.json").read_text())["items"])
    assert set(judged["subsets"]) <= {"image", "text", "image+text"}
    code, out, _ = assay("main-multi", "--test_json", "ck/test.json", "--ckpt_load", best, "--train", "False", "--thr", "1.0", "--json")
    assert json.loads(out)["confusion"]["tp"] == 0 and json.loads(out)["f1"] == 0


def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not(folder, tmp_path, monkeypatch):
    whole, log = [path.read_bytes() for path in sorted((folder / "ck").glob("epoch_*"))], json.loads((folder / "train_multi.json").read_text())
    monkeypatch.setattr(record_trial, "CHECKPOINT_S", 0.0)
    told, heard = record_trial.Watcher.__call__, []

    def stopped(self, row):
        heard.append(row["epoch"])
        told(self, row)
        if len(heard) == 3:  # it is in the log, and not in what the training goes on from
            raise KeyboardInterrupt

    monkeypatch.setattr(record_trial.Watcher, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        record_trial.train(folder / "multiall.json", plan(), tmp_path / "ck", tmp_path / "train_multi.json", lambda text: None)
    record_trial.train(folder / "multiall.json", plan(), tmp_path / "ck", tmp_path / "train_multi.json", lambda text: None)
    assert heard == [0, 1, 2, *range(2, EPOCHS)]
    assert [path.read_bytes() for path in sorted((tmp_path / "ck").glob("epoch_*"))] == whole
    again = json.loads((tmp_path / "train_multi.json").read_text())
    timeless = [[{key: value for key, value in one.items() if key != "seconds"} for one in entries["epochs"]] for entries in (log, again)]
    assert timeless[0] == timeless[1] and again["test"] == log["test"]


def plan():
    options = {"learning_rate": 1e-2, "epochs": EPOCHS, "batch_size": 8, "patience": None, **json.loads(SMALL)}
    return record_trial.Plan("perceiver_moe", options, 0.5, 0, "cpu", "auto", False)


def test_a_pickle_of_another_program_is_refused_unopened(assay, tmp_path):
    write_pairs(tmp_path / "files", 6)
    write_list(tmp_path / "l.json", scanned(tmp_path / "files"))
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck" / "epoch_034.pt").write_bytes(pickle.dumps({"model": 1}))
    code, _, err = assay("main-multi", "--test_json", "l.json", "--ckpt_load", "ck/epoch_034.pt", "--train", "False")
    assert code == 1 and "E103 ck/epoch_034.pt: is no checkpoint of Assay" in err and "epoch_034.safetensors" in err
    code, _, err = assay("main-multi", "--test_json", "l.json", "--ckpt_load", "ck/epoch_035.pt", "--train", "False")
    assert code == 1 and "neither ck/epoch_035.pt nor epoch_035.safetensors" in err
    (tmp_path / "ck" / "epoch_036.safetensors").write_bytes(b"{}")
    code, _, err = assay("main-multi", "--test_json", "l.json", "--ckpt_load", "ck/epoch_036.pt", "--train", "False")
    assert code == 1 and "DamagedFile" in err


def test_records_without_labels_are_no_training(assay, tmp_path):
    (tmp_path / "files").mkdir()
    for place in range(5):
        torch.save(series(), tmp_path / "files" / f"{place}.pt")
    code, _, err = assay(*asked())
    assert code == 1 and "5 of 5 files cannot be used" in err and "E303 labels has no label, and training needs one" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--train", "maybe"), "--train takes True or False, got 'maybe'"),
        (("--train", "False"), "--train False needs --test_json"),
        (("--make_json", "True"), "--make_json True needs --root"),
        (("--total_json", "gone.json"), "E328 gone.json: is neither a folder nor a list"),
        (("--options", "{width"), "--options is no JSON"),
        (("--options", '{"widht": 3}'), "widht"),
        (("--options", '{"heads": 5}'), "--options: width must be a multiple of heads"),
        (("--model", "perceiver_mo"), "--model: there is no detector of records 'perceiver_mo'; did you mean 'perceiver_moe'?"),
        (("--model", "classical.knn"), "gives no probability"),
        (("--lr", "0"), "--lr must be above 0, got 0"),
        (("--lr", "nan"), "--lr must be above 0, got nan"),
        (("--device", "gpu", "--total_json", "gone.json"), "--device must be one of auto, cpu, cuda, got 'gpu'"),
        (("--device", "gpu", "--train", "False", "--test_json", "gone.json", "--ckpt_load", "gone.pt"), "--device must be one of"),
    ],
)
def test_flags_that_do_not_fit_say_what_would(assay, arguments, words):
    code, _, err = assay("main-multi", *arguments)
    assert code == 1 and words in err and "Traceback" not in err


def lists_of(folder):
    """Record id -> list, and the rule of the groups."""
    gathered = record_trial.gather(folder, "auto", False, lambda text: None)
    lists, _ = record_trial.split(gathered, 0)
    return {gathered.records[at].record_id: name for name, positions in lists.items() for at in positions}, gathered.grouping


def test_whole_groups_stay_in_one_list(tmp_path):
    write_pairs(tmp_path / "files")
    for place in range(48):
        path = tmp_path / "files" / f"{place:03d}.pt"
        torch.save({**torch.load(path, weights_only=True), "group": f"shift{place // 6}"}, path)
    lists, rule = lists_of(tmp_path / "files")
    assert rule == "said" and len(lists) == 48 and set(lists.values()) == {"train", "val", "test"}
    assert all(len({lists[f"{place:03d}"] for place in range(first, first + 6)}) == 1 for first in range(0, 48, 6))


def test_copies_of_a_file_stay_in_its_list(tmp_path):
    write_pairs(tmp_path / "files", 24)
    for place in range(24):
        (tmp_path / "files" / f"copy{place:03d}.pt").write_bytes((tmp_path / "files" / f"{place:03d}.pt").read_bytes())
    lists, rule = lists_of(tmp_path / "files")
    assert rule == "file" and all(lists[f"{place:03d}"] == lists[f"copy{place:03d}"] for place in range(24))


def test_a_checkpoint_holds_all_that_it_takes(folder):
    loaded = record_checkpoint.load(folder / "ck" / "epoch_002.safetensors")
    assert loaded.detector.widths == {"image": 8, "text": 6} and loaded.about["epoch"] == 2 and loaded.about["options"]["width"] == 16
    assert loaded.about["thr"] == 0.5 and loaded.about["temperature"] > 0


def test_a_safetensors_of_another_program_is_no_checkpoint_and_not_damaged(assay, tmp_path):
    from stages import io

    write_pairs(tmp_path / "files", 6)
    write_list(tmp_path / "l.json", scanned(tmp_path / "files"))
    for about in (None, {"assay": "[]"}, {"assay": json.dumps({"kind": "other"})}):
        save_file({"w": torch.zeros(2)}, tmp_path / "epoch_001.safetensors", about)
        code, _, err = assay("main-multi", "--test_json", "l.json", "--ckpt_load", "epoch_001.pt", "--train", "False")
        assert code == 1 and "E103 epoch_001.safetensors: is no checkpoint of main-multi" in err and "amaged" not in err
    io.write_model(tmp_path / "epoch_001.safetensors", {"w": torch.zeros(2)}, {"format": 1, "detector": "perceiver_moe"})
    code, _, err = assay("main-multi", "--test_json", "l.json", "--ckpt_load", "epoch_001.pt", "--train", "False")
    assert code == 1 and "E103" in err


@pytest.mark.parametrize("unlabelled", [6, 2])
def test_records_without_labels_are_scored_and_no_figure_is_of_them(assay, trained, tmp_path, unlabelled):
    write_pairs(tmp_path / "files", 6)
    for path in sorted((tmp_path / "files").glob("*.pt"))[:unlabelled]:
        torch.save({**torch.load(path, weights_only=True), "label": None}, path)
    write_list(tmp_path / "l.json", scanned(tmp_path / "files"))
    asked = ("main-multi", "--test_json", str(tmp_path / "l.json"), "--ckpt_load", "ck/epoch_006.pt", "--train", "False", "--device", "cpu")
    asked += ("--log_json", str(tmp_path / "log.json"))
    code, out, err = assay(*asked, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["record_id"] for one in found["verdicts"]] == [f"{place:03d}" for place in range(6)]
    assert all(one["verdict"] == ("anomalous" if one["probability"] > 0.5 else "normal") for one in found["verdicts"])
    assert found["note"].startswith(f"{unlabelled} of 6 records have no label") and ("auroc" in found) == (unlabelled == 2)
    assert found["records"] == 6
    code, out, _ = assay(*asked)
    assert code == 0 and f"{unlabelled} of 6 records have no label" in out and ("AUROC" in out) == (unlabelled == 2)


@pytest.mark.parametrize(("model", "epochs"), [("classical.concat_mlp", 3), ("classical.mean_logit", 1)])
def test_other_detectors_take_the_flags_that_they_have(assay, tmp_path, model, epochs):
    write_pairs(tmp_path / "files")
    code, out, err = assay("main-multi", "--root", "files", "--make_json", "True", "--epochs", "3", "--model", model, "--device", "cpu")
    assert code == 0, err
    log = json.loads((tmp_path / "train_multi.json").read_text())
    assert len(log["epochs"]) == epochs and log["test"]["auroc"] > 0.5
    assert ("has no learning_rate, epochs, batch_size" in out) == (model == "classical.mean_logit")
    assert log["asked"]["options"].get("patience") == (3 if epochs == 3 else None)

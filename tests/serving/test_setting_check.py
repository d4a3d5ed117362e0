"""`assay predict` and `assay weld evaluate` beside the settings that a model has seen: warned of, refused on request, and silent where nothing is known."""

import json

import pytest
import torch

from stages import io
from stages.datasets.record_files import written
from stages.datasets.record_sets import fingerprint
from tests.fusion.synthetic import samples
from tests.serving.facts_project import WIDTHS, judged
from tests.stored_records import work

MODEL = ("--dataset", "weld", "--model", "cross-attention")
FACTS = {
    "plain": None,
    "inside": {"current_a": 185, "steel_type": "FE410", "inspector": "A"},
    "hot": {"current_a": 230.0, "steel_type": "St37"},
}
PLACE = "models/weld/telling/cross-attention/seed0"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = judged(tmp_path_factory.mktemp("facts"))
    for name, facts in FACTS.items():
        torch.save(written(samples(1, 3, WIDTHS)[0]) | ({} if facts is None else {"facts": facts}), folder / f"{name}.pt")
    return folder


@pytest.fixture
def here(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def of_before(here):
    """The model as it was fitted before ranges were kept."""
    path = here / PLACE / "config.json"
    content = path.read_text()
    io.write_json(path, {name: value for name, value in json.loads(content).items() if name != "settings"})
    yield
    path.write_text(content)


def verdict(assay, *arguments):
    code, out, err = assay("predict", *arguments, *MODEL, "--json")
    assert code == 0, err
    return json.loads(out)[0]


def test_a_model_stores_the_range_of_what_it_learnt_from_and_the_same_bytes_again(here):
    config = (here / PLACE / "config.json").read_text()
    assert json.loads(config)["settings"] == {"current_a": {"least": 180.0, "most": 190.0}, "steel_type": {"levels": ["BSK46", "FE410"]}}
    work(here, ("train_records", "weld-telling"))
    assert (here / PLACE / "config.json").read_text() == config


def test_one_that_learns_from_normal_records_alone_has_seen_their_settings_alone(here):
    labels = {row["record_id"]: (row["split"], row["label"]) for row in io.read_json(here / "data/weld/manifest.json")["samples"]}
    rows = io.read_table(here / "data/weld/samples.parquet")
    changed = [row | {"fact_current_a": 300.0} if labels[row["record_id"]] == ("train", 1) else row for row in rows]
    table = here / "data/weld/samples.parquet"
    before = table.read_bytes()
    io.write_table(table, {name: [row[name] for row in changed] for name in changed[0]})
    try:
        work(here, ("train_records", "weld-telling"))
        configs = {name: io.read_json(here / f"models/weld/telling/{name}/seed0/config.json") for name in ("knn", "cross-attention")}
    finally:
        table.write_bytes(before)
        work(here, ("train_records", "weld-telling"))
    assert {name: config["settings"]["current_a"]["most"] for name, config in configs.items()} == {"knn": 190.0, "cross-attention": 300.0}


def test_within_nothing_is_said_and_outside_each_fact_is_one_line(assay, here):
    assert verdict(assay, "inside.pt")["outside"] == [] and verdict(assay, "inside.pt")["warnings"] == []
    hot = verdict(assay, "hot.pt")
    assert hot["outside"] == [
        {"fact": "current_a", "value": 230.0, "seen": {"least": 180.0, "most": 190.0}},
        {"fact": "steel_type", "value": "St37", "seen": {"levels": ["BSK46", "FE410"]}},
    ]
    assert hot["verdict"] == verdict(assay, "plain.pt")["verdict"]
    _, out, _ = assay("predict", "hot.pt", *MODEL)
    assert "  outside what the model has seen: current_a is 230, in training it was 180 to 190\n" in out
    assert "steel_type is St37, in training it was one of BSK46, FE410" in out


def test_refused_a_record_is_for_review_with_its_score_and_one_within_is_not(assay, here):
    hot, inside = verdict(assay, "hot.pt", "--refuse-outside"), verdict(assay, "inside.pt", "--refuse-outside")
    assert (hot["verdict"], hot["decision"]) == ("review", "review") and "current_a is 230" in hot["warnings"][0]
    assert hot["score"] == inside["score"] and inside["verdict"] == verdict(assay, "inside.pt")["verdict"] != "review"


def test_facts_of_the_command_hold_for_files_that_say_nothing_else(assay, here):
    assert [one["fact"] for one in verdict(assay, "plain.pt", "--fact", "current_a=230")["outside"]] == ["current_a"]
    assert verdict(assay, "inside.pt", "--fact", "current_a=230")["outside"] == []
    assert verdict(assay, "plain.pt", "--fact", "steel_type=FE410", "--fact", "current_a=190")["outside"] == []


def test_without_facts_nothing_is_said(assay, here, of_before):
    told = verdict(assay, "plain.pt")
    assert told["outside"] is None and told["warnings"] == []


def test_a_model_of_before_does_not_know_and_can_refuse_nothing(assay, here, of_before):
    told = verdict(assay, "hot.pt")
    assert told["outside"] is None and "was fitted before the ranges of settings were kept" in told["warnings"][0]
    code, _, err = assay("predict", "hot.pt", *MODEL, "--refuse-outside")
    assert code == 1 and "--refuse-outside: cross-attention was fitted before" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plain.pt", "--fact", "curent_a=190"), "has seen no setting 'curent_a'; did you mean 'current_a'"),
        (("plain.pt", "--fact", "current_a"), "--fact takes NAME=VALUE"),
        (("plain.pt", "--fact", "current_a=much"), "--fact current_a is a number, in training 180 to 190; got 'much'"),
        (("photo.png", "--fact", "current_a=190"), "are for records"),
        (("photo.png", "--refuse-outside"), "are for records"),
    ],
)
def test_facts_that_make_no_sense_are_one_line(assay, here, arguments, said):
    code, _, err = assay("predict", *arguments)
    assert code == 1 and said in err and err.count("\n") == 1, err


def test_a_verdict_says_which_model_and_data_it_is_from(assay, here):
    told = verdict(assay, "plain.pt")
    assert told["model_id"] == "weld/telling/cross-attention/seed0"
    assert told["model_sha256"] == io.file_hash(here / PLACE / "model.safetensors") and told["data"] == fingerprint("weld", here)


def test_evaluate_counts_the_records_that_lie_outside(assay, here):
    code, out, _ = assay("weld", "evaluate", "--model", "cross-attention", "--json")
    assert code == 0 and json.loads(out)["outside"] == []
    rows = io.read_table(here / "data/weld/samples.parquet")
    table = here / "data/weld/samples.parquet"
    before, test = table.read_bytes(), {row["record_id"] for row in io.read_json(here / "data/weld/manifest.json")["samples"] if row["split"] == "test"}
    changed = [row | {"fact_current_a": 230.0} if row["record_id"] in test else row for row in rows]
    io.write_table(table, {name: [row[name] for row in changed] for name in changed[0]})
    try:
        _, out, _ = assay("weld", "evaluate", "--model", "cross-attention")
    finally:
        table.write_bytes(before)
    assert f"outside what it has seen: current_a is 230 in {len(test)} of {len(test)} records; in training it was 180 to 190" in out

"""Verdicts on records: a stored record is scored as evaluate scored it, what is missing is said, contributions sum, and what cannot be judged says why."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages import io, params
from stages.datasets.record_files import write_record
from stages.datasets.records import Record, Tokens
from stages.errors import Missing
from stages.fusion.occlusion import Span
from stages.serving import record_predict
from stages.serving.record_model import choose, threshold_of
from stages.serving.record_thresholds import first_threshold
from tests.fusion.synthetic import WIDTHS, samples
from tests.serving.record_project import trained

MODEL = ("--dataset", "parts-seen", "--model", "logits")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = trained(tmp_path_factory.mktemp("seen"))
    for record in samples(0, 180):
        write_record(folder / f"records/{record.record_id}.pt", record)
    return folder


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def judged(*names: str, model: str = "logits") -> list[record_predict.RecordVerdict]:
    settings = params.load()
    chosen = choose(settings, model=model)
    files = [Path("records", f"{name}.pt") for name in names]
    return list(record_predict.predict(settings, chosen, files, {}, threshold_of(chosen)))


@pytest.mark.parametrize("model", ["logits", "knn"])
def test_a_file_is_scored_and_explained_as_evaluate_did_with_the_same_record(here, model):
    folder = here / "metrics/parts-seen/plain" / model
    stored = {row["record_id"]: row for row in io.read_table(folder / "predictions.parquet") if row["split"] == "test"}
    added = {row["record_id"]: row for row in io.read_table(folder / "contributions.parquet")}
    for name, verdict in zip(list(stored)[:12], judged(*list(stored)[:12], model=model), strict=True):
        row = stored[name]
        assert verdict.score == pytest.approx(row["score"], abs=1e-5)
        assert verdict.probability == (None if row["probability"] is None else pytest.approx(row["probability"], abs=1e-5))
        assert verdict.verdict == ("anomalous" if row["score"] > first_threshold(folder).value else "normal")
        assert sum(verdict.contributions.values()) == pytest.approx(verdict.score - verdict.nothing_known, abs=1e-5)
        for modality in WIDTHS:
            assert added[name][modality] == pytest.approx(verdict.contributions.get(modality, 0.0), abs=1e-5)


def test_what_a_record_lacks_is_said_and_adds_nothing(here):
    lacking = next(record for record in samples(0, 180) if len(record.modalities) == 1)
    (verdict,) = judged(lacking.record_id)
    assert verdict.present == [*lacking.modalities] == [*verdict.contributions]
    assert {*verdict.missing, *verdict.present} == {*WIDTHS} and f"missing: {', '.join(verdict.missing)}" in record_predict.render(verdict)


def test_the_percentile_is_the_share_of_normal_validation_records_that_score_no_higher(here):
    rows = io.read_table(here / "metrics/parts-seen/plain/logits/predictions.parquet")
    normal = [row["score"] for row in rows if row["split"] == "val" and row["label"] == 0]
    names = [row["record_id"] for row in rows if row["split"] == "test"][:15]
    verdicts = judged(*names)
    for verdict in verdicts:
        assert verdict.percentile == pytest.approx(100 * sum(score <= verdict.score + 1e-6 for score in normal) / len(normal))
        assert verdict.normal_records == len(normal)
    assert len({verdict.percentile for verdict in verdicts}) > 3


def test_the_command_prints_verdicts_and_json_and_takes_another_threshold(here, assay, monkeypatch):
    monkeypatch.chdir(here)
    names = [record.record_id for record in samples(0, 2)]
    files = [f"records/{name}.pt" for name in names]
    code, out, _ = assay("predict", *files, *MODEL)
    assert code == 0 and out.count("what each added") == 2 and "false alarms expected per 1,000 normal records" in out
    code, out, _ = assay("predict", *files, *MODEL, "--threshold", "1e9", "--json")
    verdicts = json.loads(out)
    assert code == 0 and [one["verdict"] for one in verdicts] == ["normal"] * 2 and verdicts[0]["threshold"] == 1e9
    code, out, _ = assay("predict", files[0], *MODEL, "--false-alarm-rate", "0.5", "--json")
    assert code == 0 and json.loads(out)[0]["threshold"] < first_threshold(here / "metrics/parts-seen/plain/logits").value
    code, _, err = assay("predict", files[0], *MODEL, "--false-alarm-rate", "0.5", "--threshold", "1")
    assert code == 1 and "exclude each other" in err


def test_without_a_name_the_recommended_or_else_the_best_model_answers(here):
    settings = params.load()
    assert choose(settings).name == "logits"
    io.write_json(here / "metrics/report/verdicts.json", {"parts-seen": "knn"})
    try:
        assert choose(settings).name == "knn"
    finally:
        (here / "metrics/report/verdicts.json").unlink()


def test_a_record_that_cannot_be_judged_has_a_verdict_of_its_own_and_the_others_go_on(here, tmp_path, assay, monkeypatch):
    good = samples(0, 1)[0].record_id
    write_record(tmp_path / "wide.pt", Record("wide", {"text": Tokens(torch.ones(2, 99), torch.zeros(2))}))
    write_record(tmp_path / "smell.pt", Record("smell", {"smell": Tokens(torch.ones(2, 3), torch.zeros(2))}))
    (tmp_path / "broken.pt").write_bytes(b"no tensors")
    monkeypatch.chdir(here)
    broken = [str(tmp_path / f"{name}.pt") for name in ("wide", "smell", "broken")]
    code, out, _ = assay("predict", *broken, f"records/{good}.pt", *MODEL, "--json")
    verdicts = json.loads(out)
    assert code == 1 and [one["verdict"] for one in verdicts[:3]] == ["unreadable"] * 3 and verdicts[3]["score"] is not None
    assert "text has width 99, in training it had 8" in verdicts[0]["warnings"][0]
    assert "never saw the modality 'smell'" in verdicts[1]["warnings"][0] and "E103" in verdicts[2]["warnings"][0]


def test_media_name_a_modality_that_the_model_knows_and_a_file_that_is_here(here, assay, monkeypatch):
    monkeypatch.chdir(here)
    Path("note.txt").write_text("a scratch")
    for arguments, said in (
        (["text=gone.txt"], "gone.txt is not here"),
        (["text=note.txt", "text=note.txt"], "text is given twice"),
        (["txt=note.txt"], "knows no modality 'txt'; did you mean 'text'"),
        (["text=note.txt", "note.txt"], "says no modality"),
    ):
        code, _, err = assay("predict", *arguments, *MODEL)
        assert code == 1 and said in err, err


def test_a_folder_of_photographs_is_a_medium_and_no_file_of_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("b.pt").mkdir()
    assert record_predict.given([Path("image=images")]) == ([], {"image": Path("images")})
    with pytest.raises(Missing, match="b.pt is not here"):
        record_predict.given([Path("b.pt")])


def test_an_image_with_a_sign_of_equality_in_its_name_is_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.png").write_bytes(b"")
    assert [record_predict.is_record(Path(name)) for name in ("a=b.png", "image=x.png", "x.PT", "photos", ".", "image=/y/x.png")] == [
        False, True, True, False, False, True,
    ]  # fmt: skip


def test_a_score_that_is_no_number_is_no_verdict(here, monkeypatch):
    from stages.fusion.classical.mean_logit import MeanLogit

    monkeypatch.setattr(MeanLogit, "score", lambda self, records: torch.full((records.samples,), float("nan")))
    (verdict,) = judged(samples(0, 1)[0].record_id)
    assert verdict.verdict == "unreadable" and verdict.score is None and "the score NaN" in verdict.warnings[0]


def test_files_are_read_as_those_of_training_were(here, tmp_path):
    """The model knows text of width 8; as tokens a film (2, 3, 8) is one of width 8, else one of width 24."""
    settings = params.load()
    chosen = choose(settings, model="logits")
    torch.save({"video_tokens": torch.ones(2, 3, 8)}, tmp_path / "film.pt")
    about = here / "features/parts-seen/stored/records.json"
    seen = []
    for as_tokens in (False, True):
        io.write_json(about, {"entry": {"name": "stored", "kind": "stored", "as_tokens": as_tokens}})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(record_predict, "_judged", lambda *given: seen.append(given[4]) or record_predict._unreadable(chosen, "", OSError()))
            list(record_predict.predict(settings, chosen, [tmp_path / "film.pt"], {}, threshold_of(chosen)))
    about.unlink()
    about.parent.rmdir()
    assert [record.modalities["video"].values.shape for record in seen] == [(2, 24), (6, 8)]


def _stub(read):
    from stages.encoders.media.encoder import TokenEncoder

    def encode(notes):
        return [Tokens(torch.ones(1, WIDTHS["text"]), torch.zeros(1)) for _ in notes]

    return TokenEncoder("text", WIDTHS["text"], read, encode, {})


def test_media_that_cannot_be_read_are_one_verdict_and_the_files_another(here, tmp_path, assay, monkeypatch):
    from stages.datasets.media import read_text
    from stages.encoders import media

    monkeypatch.chdir(here)
    monkeypatch.setattr(media, "rebuild", lambda about, place: _stub(read_text))
    (tmp_path / "bad.txt").write_bytes(b"\xff\x00\xfe\x00\x01")
    (tmp_path / "good.txt").write_text("a scratch")
    good = samples(0, 1)[0].record_id
    code, out, err = assay("predict", f"text={tmp_path}/bad.txt", f"records/{good}.pt", *MODEL, "--json")
    verdicts = json.loads(out)
    assert code == 1 and [one["score"] is None for one in verdicts] == [False, True] and verdicts[1]["verdict"] == "unreadable", err
    assert "bad.txt" in verdicts[1]["warnings"][0]
    code, out, _ = assay("predict", f"text={tmp_path}/good.txt", *MODEL, "--json")
    assert code == 0 and json.loads(out)[0]["present"] == ["text"]


def test_media_are_not_for_a_model_that_learnt_from_stored_files(here, assay, monkeypatch):
    monkeypatch.chdir(here)
    Path("note.txt").write_text("a scratch")
    features = here / "features/parts-seen"
    features.rename(here / "features/kept")
    (features / "stored").mkdir(parents=True)
    try:
        code, _, err = assay("predict", "text=note.txt", *MODEL)
    finally:
        (features / "stored").rmdir()
        features.rmdir()
        (here / "features/kept").rename(features)
    assert code == 1 and "learnt from .pt files, and which encoder made their text is not known. Give a .pt file" in err


@pytest.mark.parametrize(
    ("entry", "span", "said"),
    [
        ({"kind": "views", "views": 5}, (0.9, 1.0), "photograph 5 of 5, by image"),
        ({"kind": "views", "views": 5}, (0.2, 0.6), "photograph 2 to 3 of 5, by image"),
        ({"kind": "arc_film", "onset": True, "clock_s": 40.0}, (0.1, 0.2), "4.0 to 8.0 s from the arc, by image"),
        ({"kind": "frames"}, (0.1, 0.2), "10 to 20 % of the record, by image"),
    ],
)
def test_where_a_fault_is_suspected_is_said_in_what_the_encoder_counts(tmp_path, entry, span, said):
    io.write_json(tmp_path / "features/welds/image/records.json", {"entry": entry})
    model = SimpleNamespace(project=tmp_path, dataset="welds")
    assert record_predict.moment(model, Span("r", "image", *span, 1.0)) == said

"""What the report says of records: the worst cases with their causes, names as text, a page that stays small."""

import json
import os
import shutil

import pytest

from stages import io, params, report
from stages.serving import record_summary
from stages.serving.leaderboard import leaderboard, results
from stages.serving.record_thresholds import first_threshold
from tests.record_results import finished

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
def project(tmp_path, monkeypatch):
    finished(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def section() -> dict:
    settings = params.load()
    found, rows = results(settings), leaderboard(settings)["station"]
    return record_summary.section(settings, "station", rows, {found[row.folder]["model"]: found[row.folder] for row in rows})


def test_the_worst_cases_are_beyond_the_threshold_and_their_bars_sum_to_what_is_said(project):
    made = section()
    folder = project / "metrics/station/perceiver-moe"
    threshold = first_threshold(folder).value
    rows = {row["record_id"]: row for row in io.read_table(folder / "contributions.parquet")}
    assert made["recommended"] == "perceiver-moe" and {case["outcome"] for case in made["cases"]} == {"missed", "false alarm"}
    for place, case in enumerate(made["cases"]):
        row = rows[case["record_id"]]
        assert (row["label"] == 1) == (case["outcome"] == "missed") == (row["score"] <= threshold)
        assert case["sum"] == pytest.approx(sum(row[name] for name in ("text", "image", "video", "audio", "series")))
        values = [
            bar["value"]
            for layer in made["charts"][f"case:{place}"]["layer"]
            for bar in layer.get("data", {}).get("values", [])
            if "said" in bar
        ]
        assert sum(dict.fromkeys(values)) == pytest.approx(case["sum"], abs=2e-3)
    worst = min(row["score"] for row in rows.values() if row["label"] == 1)
    assert made["cases"][0]["margin"] == pytest.approx(worst - threshold)


def test_a_normal_record_below_the_threshold_is_no_false_alarm(project):
    folder = project / "metrics/station/perceiver-moe"
    normal = sorted(row["score"] for row in io.read_table(folder / "contributions.parquet") if row["label"] == 0)
    path = folder / "thresholds.json"
    content = io.read_json(path)
    content["all"]["thresholds"]["conformal"][0]["value"] = (normal[-1] + normal[-2]) / 2
    io.write_json(path, content)
    assert [case["outcome"] for case in section()["cases"]] == ["missed", "missed", "false alarm"]


def test_a_record_shows_its_picture_and_one_without_says_which_modality_is_missing(project):
    for case in section()["cases"]:
        there = (project / f"data/station/media/{case['record_id']}/image.png").is_file()
        assert (case["picture"] is not None) == there
    shutil.rmtree(project / "data/station/media")
    assert [case["picture"] for case in section()["cases"]] == [None] * 4  # the page is made without them


def test_every_plot_has_a_place_on_the_page_and_the_section_stays_small(project):
    report.main()
    text = (project / "metrics/report/index.html").read_text()
    for chart in ("quality", "missing", "subsets", "faults", "reliability", "spreads", "experts", "case:0", "case:3"):
        assert f'data-chart="{chart}"' in text, chart
    data = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    markup = text.split("<main>")[1].split("</main>")[0]
    assert len(data) + len(markup) < 120_000
    assert json.loads((project / "metrics/report/verdicts.json").read_text()) == {"station": "perceiver-moe"}


def test_without_tables_and_costs_the_section_has_the_leaderboard_alone(project):
    for path in project.glob("metrics/station/**/*"):
        if path.name in ("subsets.csv", "faults.csv", "contributions.parquet", "calibration.json", "experts.json"):
            path.unlink()
    (project / "metrics/bench/station.json").unlink()
    made = section()
    assert list(made["charts"]) == ["quality"] and made["cases"] == [] and made["verdict"]["headline"] == "Take perceiver-moe"
    report.main()


def test_a_data_set_whose_models_were_all_refused_says_so(project):
    for path in project.glob("metrics/station/*.json"):
        content = io.read_json(path)
        refused = {"dataset": "station", "label": "", "seeds": [0], "refused": "E101 no weights"}
        rows = content.get("rows")
        new = content | {"rows": {name: refused | {"model": name} for name in rows}} if rows else refused | {"model": content["model"]}
        io.write_json(path, new)
    made = section()
    assert made["recommended"] is None and "No model could be judged" in made["verdict"]["headline"] and made["charts"] == {}
    report.main()


@pytest.mark.skipif(os.name == "nt", reason="names of files may not hold these characters")
def test_a_hostile_fault_or_record_is_text(project):
    path = project / "data/station/samples.parquet"
    rows = io.read_table(path)
    for row in rows:
        row["fault"] = HOSTILE if row["label"] else ""
    io.write_table(path, {name: [row[name] for row in rows] for name in rows[0]})
    for table in project.glob("metrics/station/**/faults.csv"):
        table.write_text(table.read_text().replace("crack", HOSTILE))
    report.main()
    text = (project / "metrics/report/index.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text

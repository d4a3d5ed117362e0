"""Result trees of any origin become one table."""

import csv
import json

import pytest

from stages import io
from stages.errors import Missing
from stages.serving import collect, outputs

SUMMARY = "category,image_auroc,image_f1_max,pixel_auroc,pixel_f1_max,aupro\nbottle,{0},0.9,0.8,,0.6\nmean,{0},0.9,0.8,,0.6\n"


@pytest.fixture
def results(tmp_path):
    """Two trees of `assay run` on mvtec, one of visa that has a summary alone, and a workspace that is nobody's result."""

    def tree(place: str, auroc: float, **about) -> None:
        io.write_text(tmp_path / place / "summary_metrics.csv", SUMMARY.format(auroc))
        for name, content in about.items():
            io.write_json(tmp_path / place / f"{name}.json", content)

    def configuration(method: str, experiment: str, k_shot: int | None) -> dict:
        return {"data": {"dataset": "mvtec", "k_shot": k_shot}, "model": {"name": method}, "experiment": {"name": experiment}}

    tree(
        "mvtec/a",
        0.7,
        experiment={"configuration": configuration("winclip", "first", 0), "weights": "random"},
        latency={"latency_ms": 12.5},
    )
    tree("mvtec/b", 0.95, experiment={"configuration": configuration("patchcore", "full", None)})
    tree("visa/winclip/old", 0.5)
    tree(".assay/projects/x/metrics/mvtec/patchcore", 0.1)
    return tmp_path


def test_every_tree_is_a_row_by_data_set_and_the_best_comes_first(results):
    rows = collect.collect(results)
    assert [(row["dataset"], row["method"], row["experiment"], row["image_auroc"]) for row in rows] == [
        ("mvtec", "patchcore", "full", 0.95), ("mvtec", "winclip", "first", 0.7), ("visa", "winclip", "old", 0.5),
    ]  # fmt: skip
    assert [row["k_shot"] for row in rows] == ["all", 0, None] and [row["latency_ms"] for row in rows] == [None, 12.5, None]
    assert [row["pixel_f1"] for row in rows] == [None] * 3 and {row["categories"] for row in rows} == {1} and rows[0]["pro"] == 0.6


def test_the_files_hold_the_table_in_full_in_percent_and_as_a_picture(results, tmp_path):
    written = collect.write(collect.collect(results), tmp_path / "out")
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image_auroc"] for row in rows] == ["0.95", "0.7", "0.5"] and rows[2]["k_shot"] == ""
    lines = written[1].read_text().splitlines()
    assert lines[0] == (
        "| dataset | method | experiment | k_shot | weights | categories | image AUROC | image F1 | pixel AUROC | PRO | ms (batch 1) |"
    )
    assert lines[3] == "| mvtec | winclip | first | 0 | random | 1 | 70.0 | 90.0 | 80.0 | 60.0 | 12.5 |"
    assert written[2].name == "comparison.png" and written[2].read_bytes().startswith(b"\x89PNG")


def test_every_figure_stands_in_the_picture():
    from stages.plots.comparison import bars

    rows = [{"dataset": "d", "experiment": "e", "a": 0.25, "b": None}, {"dataset": "d", "experiment": "f", "a": 0.5, "b": 0.75}]
    values = bars(rows, {"a": "A", "b": "B"})["data"]["values"]
    assert [(one["experiment"], one["metric"], one["value"]) for one in values] == [("e", "A", 0.25), ("f", "A", 0.5), ("f", "B", 0.75)]


@pytest.mark.parametrize("width", [80, 160])
def test_no_figure_is_cut_off_on_a_terminal(results, width):
    text = collect.render(collect.collect(results), width)
    assert "95.0" in text and "12.5" in text and "…" not in text and max(map(len, text.splitlines())) <= width


def test_a_folder_without_results_says_what_makes_them(tmp_path):
    with pytest.raises(Missing, match="`assay run CONFIG` writes one"):
        collect.collect(tmp_path)
    with pytest.raises(Missing, match="is no folder"):
        collect.collect(tmp_path / "gone")


def test_the_trees_that_the_pipeline_writes_are_read(trained, tmp_path):
    outputs.write_trees(trained, "tiny-patchcore", tmp_path)
    [row] = collect.collect(tmp_path / "results")
    mean = io.read_json(trained / "metrics/tiny/patchcore.json")["mean"]
    assert (row["dataset"], row["method"], row["experiment"]) == ("tiny", "patchcore", "assay")
    assert {row[name] == mean[theirs]["value"] for name, theirs in collect.METRICS.items()} == {True}


def test_the_command_prints_the_table_and_the_files(results, assay):
    code, out, _ = assay("leaderboard", "--collect", str(results), "-o", str(results / "out"), "--json")
    said = json.loads(out)
    assert code == 0 and [row["method"] for row in said["rows"]] == ["patchcore", "winclip", "winclip"]
    assert [path.rsplit("/", 1)[1] for path in said["written"]] == ["comparison.csv", "comparison.md", "comparison.png"]
    assert assay("leaderboard", "--collect", str(results))[0] == 0 and (results / "comparison.png").is_file()
    assert assay("leaderboard", "--collect", str(results / "out"))[0] == 1

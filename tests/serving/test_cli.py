"""What a person types: exit codes, JSON, and errors of one line."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from stages.serving import cli


@pytest.fixture
def assay(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASSAY_DEBUG", "")  # --debug sets it in this process; set here, it is restored

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return command


def pictures(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)


def test_data_check_says_what_it_found_and_changes_nothing(assay, tmp_path):
    pictures(tmp_path / "photos", *(f"good/{number}.png" for number in range(6)), "bad/0.png")
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = assay("data", "check", "photos")
    assert code == 0 and "good" in out and "6" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_data_check_exits_1_where_nothing_normal_can_be_learnt(assay, tmp_path):
    pictures(tmp_path / "photos", "bad/0.png", "bad/1.png")
    code, out, _ = assay("data", "check", "photos", "--json")
    found = json.loads(out)
    assert code == 1 and not found["ok"] and any(problem["code"] == "E201" for problem in found["problems"])


def test_data_check_of_no_folder_says_so(assay):
    code, out, err = assay("data", "check", "nowhere")
    assert code == 1 and "nowhere" in out and "Traceback" not in out + err


def test_weights_list_says_what_is_absent_and_where_it_would_lie(assay):
    code, out, _ = assay("weights", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and rows["wide_resnet50_2.tv_in1k"]["place"] is None
    assert rows["efficientnet-lite0"]["place"].startswith("package") and len(rows["efficientnet-lite0"]["sha256"]) == 64


def test_packed_weights_unpack_elsewhere_and_verify(assay, tmp_path):
    assert assay("weights", "pack", "efficientnet-lite0", "-o", "usb")[0] == 0
    assert assay("weights", "unpack", "usb", "--backbones", "here")[0] == 0
    code, out, _ = assay("weights", "verify", "--backbones", "here", "--json")
    assert code == 0 and {row["name"]: row["status"] for row in json.loads(out)}["efficientnet-lite0"] == "ok"
    [file] = [path for path in (tmp_path / "here").iterdir() if path.suffix != ".json"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, out, _ = assay("weights", "verify", "--backbones", "here", "--json")
    assert code == 1 and {row["name"]: row["status"] for row in json.loads(out)}["efficientnet-lite0"] == "altered"


def test_packing_what_is_absent_names_the_file_and_the_way(assay):
    code, _, err = assay("weights", "pack", "resnet18.tv_in1k", "-o", "usb")
    assert code == 1 and "E101" in err and "resnet18.tv_in1k.safetensors" in err and "Traceback" not in err


def test_leaderboard_without_a_project_says_where_to_run(assay):
    code, _, err = assay("leaderboard")
    assert code == 1 and "params.yaml is not here" in err


def test_a_wrong_option_exits_1(assay):
    code, _, err = assay("weights", "list", "--colour")
    assert code == 1 and "--colour" in err


def test_a_defect_exits_2_and_debug_shows_where(assay, monkeypatch):
    from stages.encoders import weights_bundle

    def broken(folder):
        raise KeyError("surprise")

    monkeypatch.setattr(weights_bundle, "list_weights", broken)
    code, _, err = assay("weights", "list")
    assert code == 2 and "defect of Assay" in err and "Traceback" not in err
    code, _, err = assay("--debug", "weights", "list")
    assert code == 2 and "in broken" in err

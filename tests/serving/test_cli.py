"""What a person types: exit codes, JSON, and errors of one line."""

import json
import subprocess
import sys

import numpy as np
from PIL import Image


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


def test_a_clip_that_is_absent_cannot_be_checked_and_a_misspelt_category_cannot_be_left_out(assay):
    code, _, err = assay("weights", "check-clip", "ViT-B-16-plus-240.laion400m_e31")
    assert code == 1 and "E101" in err and "Traceback" not in err
    code, _, err = assay("weights", "train-tiny-clip", "--leave-out", "weav")
    assert code == 1 and "did you mean 'weave'" in err


def test_leaderboard_without_a_project_says_where_to_run(assay):
    code, _, err = assay("leaderboard")
    assert code == 1 and "params.yaml is not here" in err


def test_every_command_takes_json():
    import typer

    from stages.serving import cli

    def commands(command, *names):
        own = getattr(command, "commands", None)
        return [found for name, one in own.items() for found in commands(one, *names, name)] if own else [(" ".join(names), command)]

    options = {name: {flag for one in command.params for flag in one.opts} for name, command in commands(typer.main.get_command(cli.app))}
    assert len(options) >= 25 and [name for name, flags in options.items() if "--json" not in flags] == []


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


def test_labels_written_as_csv_are_read_back_as_they_were(assay, tmp_path):
    pictures(tmp_path / "photos", *(f"good/{number}.png" for number in range(6)), "bad/0.png")
    plain = json.loads(assay("data", "check", "photos", "--json")[1])
    assert assay("data", "check", "photos", "--write-csv", "labels.csv")[0] == 0
    assert (tmp_path / "labels.csv").read_text().splitlines()[:2] == ["path,label,category,split,mask,group", "photos/bad/0.png,bad,photos,,,"]
    table = json.loads(assay("data", "check", "labels.csv", "--json")[1])
    assert table["layout"] == "folder (CSV)" and table["tree"] == plain["tree"] == {"photos": {"all": {"bad": 1, "good": 6}}}


def test_a_csv_that_could_not_reach_its_images_is_refused(assay, tmp_path):
    pictures(tmp_path / "photos", *(f"good/{number}.png" for number in range(6)))
    (tmp_path / "other").mkdir()
    code, _, err = assay("data", "check", "photos", "--write-csv", "other/labels.csv")
    assert code == 1 and "must lie in photos or in a folder above it" in err and not (tmp_path / "other/labels.csv").exists()


def test_the_sheet_has_a_row_for_each_type(assay, tmp_path):
    from stages.datasets.thumbnails import CAPTION, GAP, SIDE

    pictures(tmp_path / "photos", *(f"good/{number}.png" for number in range(6)), "bad/0.png")
    assert assay("data", "check", "photos", "--sheet", "sheet.png")[0] == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    row = SIDE + CAPTION + GAP
    filled = [sum(sheet[top + CAPTION : top + row, GAP + x * (SIDE + GAP) + 4].mean() < 250 for x in range(8)) for top in (0, row)]
    assert sheet.shape[0] == 2 * row and filled == [1, 6]  # bad first


def test_the_fractions_of_params_yaml_are_those_of_the_plan(assay, tmp_path, root):
    pictures(tmp_path / "photos", *(f"good/{number}.png" for number in range(20)), "bad/0.png")
    assert any("test 1 anomalous + 8 normal" in line for line in json.loads(assay("data", "check", "photos", "--json")[1])["plan"])
    text = (root / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("test_fraction: 0.4", "test_fraction: 0.1"))
    assert any("test 1 anomalous + 2 normal" in line for line in json.loads(assay("data", "check", "photos", "--json")[1])["plan"])


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['assay', '--help']\n"
        "from stages.serving import cli\n"
        "try:\n    cli.main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'PIL', 'matplotlib', 'ruamel', 'psutil', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_distilling_a_teacher_takes_folders_and_a_schedule_and_prints_both_losses(assay, tmp_path, monkeypatch):
    """The command passes its arguments on and prints the losses."""
    from stages.encoders import distill_pdn, pretraining

    asked = {}

    def make(name, images, folder, **options):
        asked.update(options, name=name, images=len(images), folder=folder.name)
        return pretraining.Outcome(name, "here/it.safetensors", "0" * 64, 1, 1, 2, 0.5, 1.0)

    monkeypatch.setattr(distill_pdn, "make", make)
    pictures(tmp_path / "photos", "0.png", "deep/1.png")
    code, out, _ = assay("weights", "distill-pdn", "pdn-small-quarter", "--images", "photos", "--steps", "2", "--backbones", "here", "--json")
    assert code == 0 and json.loads(out)[0]["loss"] == 0.5
    assert asked["name"] == "pdn-small-quarter" and asked["images"] == 2 and asked["steps"] == 2 and asked["folder"] == "here"
    code, _, err = assay("weights", "distill-pdn", "--images", "nowhere")
    assert code == 1 and "nowhere is no folder" in err

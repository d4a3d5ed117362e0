"""Extract, from files to batches: the same bytes every time, the same features in every form, and a refusal that is data."""

import copy
import itertools
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from stages import extract, io, params
from stages.encoders.batches import open_batches, refusal
from stages.encoders.encoder import Encoder
from stages.encoders.pixels import load_pixels
from stages.errors import UserError, guarded
from stages.types import Refusal

SIZE = 32
LAYERS = ["layer1", "layer2"]


class Project:
    """A folder with raw images of two categories, prepared, and a params.yaml that names a small random network."""

    def __init__(self, folder, root, images=7):
        self.folder, self.images = folder, images
        self.settings = YAML(typ="safe").load(root / "params.yaml")
        net = {"kind": "cnn", "image_size": SIZE, "backbone": "resnet18", "weights": "random", "layers": LAYERS, "runtime": "torch"}
        self.settings["encoders"] = {"pixels": {"kind": "pixels", "image_size": SIZE}, "net": net}
        self.settings["extracts"] = {
            "set-pixels": {"dataset": "set", "encoder": "pixels", "reads": "data/set/samples.parquet", "code": "stages/encoders/pixels.py"},
            "set-net": {"dataset": "set", "encoder": "net", "reads": "features/set/pixels", "code": "stages/encoders/cnn.py"},
        }
        self.settings["features"] = {"budget_gb": 1, "form": "float32", "shard_mb": 1, "batch_size": 3}
        self.settings["compute"].update(device="cpu", threads=1)
        self.rows = [self._sample(category, number) for category in ("cup", "lid") for number in range(images)]
        columns = {key: [row[key] for row in self.rows] for key in self.rows[0]}
        io.write_table(folder / "data/set/samples.parquet", columns)
        io.write_json(folder / "data/set/dataset.json", {"root": "raw", "mask_threshold": 0})
        self.save()

    def _sample(self, category, number):
        path = f"{category}{number}.png"
        (self.folder / "raw").mkdir(exist_ok=True)
        values = np.random.default_rng([number, len(category), ord(category[0])]).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(values).save(self.folder / "raw" / path)
        bad = number % 3 == 2
        if bad:
            Image.fromarray((values[:, :, 0] > 200).astype(np.uint8) * 255).save(self.folder / "raw" / f"mask_{path}")
        mask = f"mask_{path}" if bad else None
        return {"sample_id": f"{category}/{number}", "category": category, "label": int(bad), "image_path": path, "mask_path": mask}

    def save(self):
        YAML().dump(self.settings, self.folder / "params.yaml")

    def change(self, section, **values):
        self.settings[section].update(values)
        self.save()

    def extract(self, *encoders):
        assert [extract.main("set", encoder) for encoder in encoders or ("pixels", "net")] == [0] * len(encoders or "12")

    def open(self, layers=LAYERS, encoder="net", rows=None, batch_size=None):
        return open_batches("set", encoder, self.rows if rows is None else rows, layers, params.load(), batch_size)

    def bytes(self):
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted((self.folder / "features").rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, root)


def joined(batches, name):
    return torch.cat([batch.features[name] for batch in batches])


def test_batches_hold_features_pixels_masks_labels_and_ids_of_the_rows_asked_for(project):
    project.extract()
    chosen = [project.rows[position] for position in (9, 2, 0, 13)]
    first, second = project.open(rows=chosen, batch_size=3)
    assert first.sample_id == ["lid/2", "cup/2", "cup/0"] and second.sample_id == ["lid/6"]
    assert first.category == ["lid", "cup", "cup"] and first.label.tolist() == [1, 1, 0]
    assert list(first.features) == ["layer1", "layer2", "pixels"]
    assert torch.equal(first.features["pixels"][1], load_pixels(project.folder / "raw/cup2.png", SIZE))
    assert first.mask.dtype == torch.bool and first.mask[0].any() and not first.mask[2].any()


def test_stored_and_live_features_are_equal_bit_for_bit(project):
    """The promise that predict rests on, for both runtimes and both stored forms."""
    for runtime, form in itertools.product(("torch", "onnxruntime"), ("float32", "float16")):
        project.settings["encoders"]["net"]["runtime"] = runtime
        project.change("features", form=form)
        project.extract()
        settings = params.load()
        live = Encoder.from_entry("net", settings.encoders["net"], "cpu", 1, project.folder, form)
        for batch in project.open(batch_size=3):
            features = live.encode(batch.features["pixels"])
            for layer in LAYERS:
                assert torch.equal(features[layer], batch.features[layer]), (runtime, form, layer)


def test_a_streamed_encoder_gives_what_the_store_would_and_stores_nothing(project):
    project.extract()
    stored = joined(project.open(), "layer2")
    project.change("features", form="streamed")
    project.extract("net")
    assert sorted(path.name for path in (project.folder / "features/set/net").iterdir()) == ["encoder.json", "index.parquet"]
    batches = project.open()
    assert torch.equal(joined(batches, "layer2"), stored)
    assert torch.equal(joined(copy.deepcopy(batches), "layer2"), stored)


def test_float16_is_half_the_bytes_and_float32_to_the_detector(project):
    project.extract()
    exact = joined(project.open(), "layer1")
    full = (project.folder / "features/set/net/cup-000.pt").stat().st_size
    project.change("features", form="float16")
    project.extract("net")
    assert (project.folder / "features/set/net/cup-000.pt").stat().st_size < 0.55 * full
    assert torch.equal(joined(project.open(), "layer1"), exact.half().float())


def test_above_the_budget_nothing_is_stored_and_the_estimate_is_printed(project, capsys):
    project.extract()
    stored = joined(project.open(), "layer1")
    project.change("features", budget_gb=1e-6)
    project.extract()
    shape_bytes = 4 * (64 * 8 * 8 + 128 * 4 * 4)
    assert f"set/net: 14 images x {shape_bytes / 1e6:.2f} MB" in capsys.readouterr().out
    assert not list((project.folder / "features").rglob("*.pt"))
    assert torch.equal(joined(project.open(), "layer1"), stored)  # pixels are decoded, features encoded, as they are read
    assert next(iter(project.open())).mask[2].any()


def test_another_process_writes_the_same_bytes_and_needs_neither_timm_nor_onnx_for_pixels(project):
    project.settings["encoders"]["net"]["runtime"] = "onnxruntime"
    project.save()
    project.extract()
    first = project.bytes()
    shutil.rmtree(project.folder / "features")
    code = (
        "import sys; from stages import extract; extract.main('set', 'pixels')\n"
        "print([name for name in ('timm', 'onnx', 'onnxruntime') if name in sys.modules]); extract.main('set', 'net')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert project.bytes() == first and len(first) == 8
    assert "[]" in done.stdout.splitlines()


def test_the_batch_size_changes_no_byte_of_the_store(project):
    project.settings["encoders"]["net"]["runtime"] = "onnxruntime"
    stores = []
    for batch_size in (1, 4, 14):
        project.change("features", batch_size=batch_size)
        project.extract()
        stores.append(project.bytes())
    assert stores[0] == stores[1] == stores[2]


def test_nothing_of_this_machine_is_in_what_is_written(project):
    project.extract()
    for name, content in project.bytes().items():
        assert str(project.folder).encode() not in content, name


def test_the_record_says_what_made_the_features(project):
    project.settings["encoders"]["net"]["runtime"] = "onnxruntime"
    project.save()
    project.extract()
    about = io.read_json(project.folder / "features/set/net/encoder.json")
    assert about["entry"]["backbone"] == "resnet18" and about["runtime"] == "onnxruntime" and len(about["onnx_sha256"]) == 64
    assert about["weights"]["name"] == "random" and about["threads"] == 1 and about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert about["layers"]["layer2"] == {"shape": [128, 4, 4], "dtype": "float32"} and about["images"] == 14
    assert about["parameters"] == 683_072  # of ResNet-18 up to layer2, by hand: 9,536 + 147,968 + 525,568
    assert project.open().encoder_identity == about


def test_a_model_may_ask_for_fewer_layers_or_for_pixels_alone(project):
    project.extract()
    assert list(project.open(["layer2"]).take([3]).features) == ["layer2", "pixels"]
    assert list(project.open([]).take([3]).features) == ["pixels"]
    assert list(project.open(["pixels"], encoder="pixels").take([3]).features) == ["pixels"]


def test_a_layer_that_the_entry_does_not_give_says_what_to_add(project):
    project.extract()
    with pytest.raises(params.ParamsError, match=r"gives layer1, layer2, but layer4 is asked for: add it to encoders\.net\.layers"):
        project.open(["layer2", "layer4"])


def test_an_unknown_label_is_minus_one(project):
    project.extract("pixels")
    rows = [{**project.rows[0], "label": None}]
    assert project.open([], "pixels", rows).take([0]).label.tolist() == [-1]


def test_a_data_set_without_masks_has_none_in_its_batches(project):
    columns = {key: [row[key] for row in project.rows] for key in project.rows[0]}
    io.write_table(project.folder / "data/set/samples.parquet", {**columns, "mask_path": [None] * len(project.rows)})
    project.extract("pixels")
    assert project.open([], "pixels").take([2]).mask is None


def test_missing_weights_are_a_recorded_refusal_and_exit_zero(project, capsys):
    project.settings["encoders"]["net"]["weights"] = "resnet18.tv_in1k"
    project.save()
    project.extract()
    assert "set/net: not extracted. E101 resnet18.tv_in1k" in capsys.readouterr().out
    assert refusal("set", "net").startswith("E101") and refusal("set", "pixels") is None
    assert io.read_table(project.folder / "features/set/net/index.parquet") == []
    with pytest.raises(Refusal, match=r"backbones/resnet18\.tv_in1k\.safetensors"):
        project.open()


def test_altered_weights_are_one_line_on_stderr_and_exit_one(project, capsys):
    project.settings["encoders"]["net"].update(backbone="tf_efficientnet_lite0", weights="efficientnet-lite0")
    project.save()
    project.extract("pixels")
    (project.folder / "backbones").mkdir()
    (project.folder / "backbones/efficientnet-lite0-57934424.pth").write_bytes(b"altered")
    assert guarded(lambda: extract.main("set", "net")) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("WeightsAltered: E102 backbones/efficientnet-lite0-57934424.pth")
    assert not (project.folder / "features/set/net/encoder.json").exists()


def test_an_encoder_of_another_size_than_its_pixels_is_refused(project):
    project.extract("pixels")
    project.settings["encoders"]["net"]["image_size"] = 64
    project.save()
    with pytest.raises(params.ParamsError, match=r"image_size is 64, but features/set/pixels holds images of 32 px"):
        extract.main("set", "net")


def test_features_that_are_not_finite_are_refused_by_sample_and_layer(project, monkeypatch):
    project.extract("pixels")
    encode = Encoder.encode

    def broken(self, pixels):
        features = encode(self, pixels)
        features["layer2"][-1, 0, 0, 0] = float("inf")
        return features

    monkeypatch.setattr(Encoder, "encode", broken)
    with pytest.raises(UserError, match="E301 layer2 of cup/2 is not finite"):
        extract.main("set", "net")
    assert not (project.folder / "features/set/net/encoder.json").exists()


def test_nothing_of_an_earlier_run_stays(project):
    project.extract()
    stale = project.folder / "features/set/net/gone-000.pt"
    stale.write_bytes(b"stale")
    project.extract("net")
    assert not stale.exists()


@pytest.mark.slow
def test_a_killed_extraction_leaves_no_store_and_a_rerun_ends_as_a_clean_one(project):
    project.extract()
    clean = project.bytes()
    code = (
        "import os, signal, sys; from stages.encoders import shards; from stages import extract\n"
        "shards.ShardWriter.close = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "extract.main('set', 'net')"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9
    with pytest.raises(FileNotFoundError):
        project.open()
    project.extract("net")
    assert project.bytes() == clean


def test_an_image_that_cannot_be_read_stops_with_its_name(project):
    (project.folder / "raw/lid3.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"E204 .*lid3\.png"):
        extract.main("set", "pixels")


MEASURE = textwrap.dedent("""
    import re, sys, threading, time
    from pathlib import Path
    from stages import extract, io, params
    from stages.encoders.batches import open_batches
    peak = 0
    def watch():
        global peak
        while True:
            peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)))
            time.sleep(0.005)
    threading.Thread(target=watch, daemon=True).start()
    extract.main("set", "pixels"), extract.main("set", "net")
    rows = [{**row, "label": 0} for row in io.read_table(Path("data/set/samples.parquet"))]
    total = sum(float(batch.features["layer1"].sum()) for batch in open_batches("set", "net", rows, ["layer1"], params.load()))
    print(peak)
""")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="anonymous memory is read from /proc, which Linux has")
def test_ten_times_the_images_take_the_same_anonymous_memory_within_a_tenth(project):
    """4,500 images make 295 MB of features here: held in memory, they would double what the process needs."""
    project.settings["encoders"]["net"].update(image_size=64, layers=["layer1"])
    project.settings["encoders"]["pixels"]["image_size"] = 64
    project.change("features", shard_mb=8, batch_size=16)
    peak_kb = {}
    for count in (450, 4500):
        rows = [{**project.rows[n % 14], "sample_id": f"s{n}", "category": "cup"} for n in range(count)]
        io.write_table(project.folder / "data/set/samples.parquet", {key: [row[key] for row in rows] for key in rows[0]})
        done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
        peak_kb[count] = int(done.stdout.splitlines()[-1])
    assert abs(peak_kb[4500] - peak_kb[450]) <= 0.1 * peak_kb[450], peak_kb
    written = sum(path.stat().st_size for path in (project.folder / "features/set/net").glob("*.pt"))
    assert written > 0.5 * 1024 * peak_kb[450], (written, peak_kb)  # or the test would prove nothing

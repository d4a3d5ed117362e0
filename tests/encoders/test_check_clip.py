"""The check of CLIP weights: a network that knows the photographs passes, one that does not is refused, and so is the wrong activation."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from stages.encoders import check_clip, weights
from stages.encoders.check_clip import PHOTOGRAPHS, check, photographs
from stages.encoders.clip import Text, Vision, whole_network
from stages.encoders.weights import Row
from stages.errors import Missing, UserError
from stages.params import ParamsError


@pytest.fixture(scope="module")
def taught():
    """test-clip, made to know these photographs (QuickGELU): a few steps on them alone."""
    network = whole_network("test-clip", "random", 0, weights.Path(), quick_gelu=True)[0]
    vision, text = Vision(network, ["image"], 128), Text(network)
    images = (photographs(128).float() / 255 - vision.mean) / vision.std
    tokens = text.tokens([f"a photo of {what}." for what in PHOTOGRAPHS.values()])
    end, learnt = tokens.argmax(dim=1), [*network.visual.parameters(), *text.transformer.parameters(), text.projection]
    for parameter in learnt:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(learnt, lr=2e-3)
    for _ in range(40):
        embedded = vision.embed(images)
        for block in network.visual.transformer.resblocks:
            embedded = block(embedded)
        seen, said = F.normalize(vision.project(embedded[:, 0]), dim=1), F.normalize(text.read(text.token_embedding(tokens), end), dim=1)
        loss = F.cross_entropy(20 * seen @ said.T, torch.arange(len(tokens)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rows of the lock for files that the tests write."""
    about = {
        "loads": "state_dict",
        "sha256": None,
        "bytes": None,
        "licence": "MIT",
        "commercial": True,
        "source": "nowhere",
        "used_by": ["a test"],
    }
    rows = {name: Row(file=f"{name}.safetensors", clip="test-clip", **about) for name in ("taught", "mixed", "quick")}
    monkeypatch.setattr(weights, "lock", lambda: rows)
    monkeypatch.setitem(check_clip.architecture("test-clip"), "quick_gelu", True)
    return tmp_path


def test_a_network_that_knows_what_photographs_show_passes(folder, taught):
    save_file(taught, folder / "taught.safetensors")
    checked = check("taught", folder)
    assert checked.right >= 12 and len(checked.answers) == len(PHOTOGRAPHS) == 14 and not checked.other_activation
    assert checked.answers[3].right == "a cat" and sum(answer.given == answer.right for answer in checked.answers) == checked.right
    assert sum(answer.sure for answer in checked.answers) / 14 > 0.5  # by chance 1 in 14


def test_one_whose_towers_do_not_belong_together_is_refused(folder, taught):
    stranger = whole_network("test-clip", "random", 4, folder)[0].state_dict()
    save_file({name: taught[name] if name.startswith("visual.") else stranger[name] for name in taught}, folder / "mixed.safetensors")
    with pytest.raises(
        UserError, match=r"E103 mixed in test-clip: \d+ of 14 photographs are named rightly.*Is it the file of this network"
    ):
        check("mixed", folder)


def test_the_wrong_activation_is_told(folder, taught, monkeypatch):
    save_file(taught, folder / "quick.safetensors")
    monkeypatch.setitem(check_clip.architecture("test-clip"), "quick_gelu", False)
    with pytest.raises(UserError, match=r"E104 quick is surer .* with QuickGELU .*set `quick_gelu: true`"):
        check("quick", folder)


def test_a_name_that_is_no_clip_and_a_machine_without_photographs_are_said(folder, monkeypatch):
    with pytest.raises(ParamsError, match="does not know which CLIP resnet18 is for: name it by --backbone"):
        check("resnet18", folder)
    monkeypatch.setattr(check_clip.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Missing, match="come with scikit-image"):
        photographs(64)

"""What learns is what was asked for, tokens made once are tokens made each time, and what is written is what is read."""

import json

import pytest
import torch

from stages.fusion import finetuned, finetuning
from stages.fusion.deep.maths.learning import Learning
from stages.fusion.finetuned import WrongModel, build
from stages.fusion.finetuning import CannotLearn
from stages.fusion.raw_media import encoded, extracted
from stages.training import Run
from tests.fusion.raw_welds import OPTIONS, config, welds

LEARNING = Learning(**OPTIONS["learning"])


def fitted(adapt, learning=LEARNING, model=None, **given):
    chosen = config(adapt)
    model = model or build(chosen, None)
    train, val = welds(), welds(6, first=20)
    run = Run(seed=0, quiet=True, **given)
    start = extracted(model, train), extracted(model, val)
    finetuning.fit(model, train, val, learning, run, start, "finetune")
    return model, run


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("adapt", "learns"),
    [
        ("frozen", ()),
        ("lora", ("q_proj.down", "q_proj.up", "v_proj.down", "v_proj.up")),
        ("last", ("layer.3.",)),
    ],
)
def test_only_what_was_asked_for_learns_and_the_rest_is_the_same_to_the_bit(adapt, learns):
    before = state(build(config(adapt), None))
    model, _ = fitted(adapt)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    of_encoders = {name for name in changed if name.startswith("encoders.")}
    expected = {name for name in before if name.startswith("encoders.") and any(part in name for part in learns)}
    assert of_encoders == expected and (adapt == "frozen") == (not expected)
    assert any(name.startswith("network.fusion") for name in changed) and "network.heads.classes.weight" in changed


def test_every_variant_begins_as_the_same_function():
    batch = welds().take([0, 1, 2]).features
    tokens = [encoded(build(config(adapt), None), batch) for adapt in finetuned.ADAPTS]
    for other in tokens[1:]:
        for name, part in tokens[0].items():
            torch.testing.assert_close(other[name].values, part.values)


def test_what_learns_from_tokens_made_once_is_what_learns_end_to_end(monkeypatch):
    """Also: with tokens made once no encoder is run while it learns."""
    made_once, _ = fitted("frozen")
    monkeypatch.setattr(finetuning, "learns", lambda model: True)
    end_to_end, _ = fitted("frozen")
    for name, tensor in made_once.network.state_dict().items():
        torch.testing.assert_close(end_to_end.network.state_dict()[name], tensor, atol=1e-5, rtol=0)
    monkeypatch.setattr(finetuning, "learns", lambda model: False)
    model = build(config("frozen"), None)
    train, val = welds(), welds(6, first=20)
    start = extracted(model, train), extracted(model, val)
    monkeypatch.setattr(type(model), "tokens", lambda *_: pytest.fail("an encoder was run"))
    finetuning.fit(model, train, val, LEARNING, Run(seed=0, quiet=True), start, "finetune")


def test_the_last_layers_have_a_rate_of_their_own_and_adapters_that_of_the_head():
    for adapt, slow in (("last", True), ("lora", False)):
        model = build(config(adapt), None)
        parameters = [one for one in model.parameters() if one.requires_grad]
        groups = finetuning.optimiser(model, LEARNING)(parameters).param_groups
        rates = {id(one): group["lr"] for group in groups for one in group["params"]}
        assert {rates[id(one)] for one in model.network.parameters()} == {0.01}
        assert {rates[id(one)] for one in model.encoders.parameters() if one.requires_grad} == {0.0001 if slow else 0.01}
        assert all((group["weight_decay"] > 0) == all(one.ndim > 1 for one in group["params"]) for group in groups)


def test_a_frozen_backbone_stays_in_evaluation_while_its_last_layer_trains():
    model = build(config("last"), None)
    trainee = finetuning.FineTuner(model, LEARNING, 10)
    for mode in (True, False):
        trainee.train(mode)
        for encoder in model.encoders.values():
            assert [block.training for block in encoder.network.blocks] == [False] * (len(encoder.network.blocks) - 1) + [mode]


def test_tokens_are_in_the_units_and_classes_at_the_shares_of_the_training_welds():
    model, _ = fitted("lora")
    tokens = extracted(build(config("lora"), None), welds()).tokens
    for name, part in tokens.items():
        torch.testing.assert_close(model.network.encoder.adapters[f"of_{name}"].standard.centre, part.values.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.network.heads.shift, torch.zeros(3), atol=1e-6, rtol=0)  # each class is a third of them


def test_tokens_are_packed_as_stored_ones_are():
    """Without the missing view, the missing film and the gap of the clock."""
    tokens = encoded(build(config(), None), welds().take([0, 1, 2]).features)
    assert {name: part.lengths.tolist() for name, part in tokens.items()} == {"video": [8, 0, 8], "image": [2, 3, 3], "audio": [15, 15, 15], "series": [26] * 3}
    assert tokens["image"].time.tolist() == [0, 1, 0, 0.5, 1, 0, 0.5, 1]
    assert (tokens["series"].time[:26] * 32).round().tolist() == [*range(8), *range(14, 32)]


def test_media_that_do_not_fit_into_memory_are_the_same():
    kept, anew = welds(), welds(held=0)
    for name, tensor in kept.take([3, 1]).features.items():
        assert torch.equal(anew.take([3, 1]).features[name], tensor) and torch.equal(kept.take([3, 1]).features[name], tensor)


def test_killed_it_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] > 3:
            raise Killed

    whole, _ = fitted("lora")
    with pytest.raises(Killed):
        fitted("lora", resume=tmp_path, checkpoint_s=0, heard=kill)
    saved = next(tmp_path.iterdir())
    assert saved.stat().st_size < 4e6, "frozen backbones are no part of a checkpoint"
    again, _ = fitted("lora", resume=tmp_path, checkpoint_s=0)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("adapt", finetuned.ADAPTS)
def test_what_is_written_scores_as_what_was_trained(tmp_path, adapt):
    model, _ = fitted(adapt)
    finetuned.save(tmp_path, model, config(adapt, threshold=0.5))
    again, said = finetuned.load(tmp_path, None)
    assert said == config(adapt, threshold=0.5)
    score, logits = finetuning.answers(model, extracted(model, welds(6, first=40)))
    for mine, theirs in zip(finetuning.answers(again, extracted(again, welds(6, first=40))), (score, logits), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    size = (tmp_path / "model.safetensors").stat().st_size
    network = sum(one.numel() for one in model.network.state_dict().values()) * 4
    assert abs(size - network - finetuned.kept_bytes(model)) < 4e4, "a backbone was written"


def test_what_does_not_fit_is_one_line(tmp_path):
    model = build(config("lora"), None)
    with pytest.raises(WrongModel, match="config.json is not there"):
        finetuned.load(tmp_path, None)
    finetuned.save(tmp_path, model, config("lora"))
    said = json.loads((tmp_path / "config.json").read_text())

    def changed(**changes):
        (tmp_path / "config.json").write_text(json.dumps(said | changes))
        with pytest.raises(WrongModel) as error:
            finetuned.load(tmp_path, None)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "the twin that this machine draws is not the image backbone" in changed(fingerprints=said["fingerprints"] | {"image": "0"})
    assert "these adapters are not of this network" in changed(rank=2)
    assert "these adapters are not of this network" not in changed(adapt="last") and "tensors of the encoders differ" in changed(adapt="last")
    assert "does not fit its config.json" in changed(classes=said["classes"][:2])
    assert "is not that of a fine-tuned model" in changed(pickle=1)
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WrongModel, match="lacks model.safetensors"):
        finetuned.load(tmp_path, None)


def test_a_folder_of_other_weights_is_known_by_its_files(tmp_path):
    folder = tmp_path / "dino"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    first = finetuned.fingerprint("image", "dino", tmp_path, 0)
    said = config(backbones={"video": "twin", "image": "dino", "audio": "twin"}, fingerprints=config().fingerprints | {"image": first})
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert finetuned.fingerprint("image", "dino", tmp_path, 0) != first
    with pytest.raises(WrongModel, match="the folder dino in .* is not the image backbone that the model was learnt with"):
        build(said, tmp_path)


def test_settings_that_need_stored_tokens_are_refused():
    finetuning.check(LEARNING, False)
    with pytest.raises(CannotLearn, match=r"learning.pretrain_epochs must be 0"):
        finetuning.check(LEARNING.model_copy(update={"pretrain_epochs": 2}), False)
    with pytest.raises(CannotLearn, match=r"encoding.align"):
        finetuning.check(LEARNING, True)


@pytest.mark.slow
def test_two_welds_of_each_of_twelve_classes_are_learnt_by_heart():
    chosen = config("lora", classes=12)
    model, train = build(chosen, None), welds(24, classes=12)
    learning = LEARNING.model_copy(update={"epochs": 25, "classes_per_batch": 12, "modality_dropout": 0.0, "learning_rate": 0.01})
    finetuning.fit(model, train, train, learning, Run(seed=0, quiet=True), (extracted(model, train),) * 2, "finetune")
    _, logits = finetuning.answers(model, extracted(model, train))
    assert logits.argmax(1).tolist() == train.classes.tolist()

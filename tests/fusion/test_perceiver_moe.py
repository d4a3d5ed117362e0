"""The Perceiver with a mixture of experts as a detector: whatever is missing, however it is batched, stopped or stored, the verdict is the same."""

import itertools
from collections.abc import Mapping

import pytest
import torch

from stages.datasets.records import Ragged, Records
from stages.fusion import artefact, build
from stages.fusion.perceiver.learning import Source, Trainee, optimiser
from stages.fusion.perceiver.tokens import without
from stages.fusion.perceiver_moe import PerceiverMoE
from stages.metrics.ranking import auroc
from stages.training import Run
from stages.types import NotFitted
from tests.fusion.perceiver.made_records import SMALL, WIDTHS, drawn

SUBSETS = [subset for count in range(1, 6) for subset in itertools.combinations(WIDTHS, count)]


def run(seed: int = 0, **kept) -> Run:
    return Run(seed=seed, quiet=True, **kept)


def fitted(steps: int = 24, seed: int = 0, **options) -> PerceiverMoE:
    return PerceiverMoE(**{**SMALL, "steps": steps, **options}).fit(drawn(64), drawn(32, seed=1), run(seed))


def joined(one: Records, other: Records) -> Records:
    """The records of both, one after another."""
    tokens = {}
    for name, first in one.tokens.items():
        second = other.tokens[name]
        offsets = torch.cat([first.offsets, second.offsets[1:] + first.offsets[-1]])
        tokens[name] = Ragged(torch.cat([first.values, second.values]), torch.cat([first.time, second.time]), offsets)
    return Records(one.record_id + other.record_id, torch.cat([one.label, other.label]), tokens)


@pytest.fixture(scope="module")
def detector() -> PerceiverMoE:
    return fitted()


def test_the_order_of_modalities_does_not_count(detector):
    records = drawn(10, seed=2)
    turned = records._replace(tokens=dict(reversed(records.tokens.items())))
    assert torch.allclose(detector.score(records), detector.score(turned), atol=1e-5)


def test_a_batch_of_one_is_a_row_of_a_batch_however_much_padding_that_has(detector):
    records = drawn(9, seed=2, most=3)
    longest = drawn(10, seed=3, most=60, missing=0.0)
    alone = torch.cat([detector.score(records.take([number])) for number in range(9)])
    assert torch.allclose(alone, detector.score(records), atol=1e-5)
    for number in (0, 5):
        assert torch.allclose(detector.score(joined(records.take([number]), longest))[0], alone[number], atol=1e-5)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_any_modalities_will_do(detector, subset):
    records = drawn(4, seed=2, missing=0.0)
    found = detector(records.only(subset))
    assert found.logits.isfinite().all() and (len(subset) == 5 or (found.logits - detector.score(records)).abs().max() > 1e-6)
    assert torch.equal(found.logits.sigmoid(), found.probs) and torch.equal(found.score, found.logits)


def test_the_value_of_what_is_missing_cannot_change_the_score(detector):
    records = drawn(12, seed=2, missing=0.0)
    gone = torch.arange(12) % 3 == 0
    spoilt = records.tokens["audio"]._replace(values=records.tokens["audio"].values.clone())
    spoilt.values[torch.repeat_interleave(gone, spoilt.lengths)] = 1e6
    one, other = (records._replace(tokens={**records.tokens, "audio": without(audio, gone)}) for audio in (records.tokens["audio"], spoilt))
    assert torch.equal(detector.score(one), detector.score(other))
    assert (detector.score(one) - detector.score(records))[gone].abs().min() > 1e-6  # and that it is missing does


def test_single_tokens_are_enough(detector):
    records = drawn(20, seed=2, most=1)
    model = PerceiverMoE(**SMALL, steps=4).fit(records, records, run())
    assert model.score(records).isfinite().all() and detector.score(records).isfinite().all()


def test_only_chosen_experts_have_gates(detector):
    gates = detector(drawn(8, seed=2)).gates
    assert gates.shape == (2, 8, 4, 4) and torch.allclose(gates.sum(3), torch.ones(2, 8, 4)) and ((gates > 0).sum(3) == 2).all()


def test_every_expert_is_taught_within_fifty_steps():
    torch.manual_seed(0)
    model = PerceiverMoE(**SMALL).open(WIDTHS, seed=3)
    trainee = Trainee(model.network, 0.999, model.objective, 50, 0.0).train()
    adam = optimiser(trainee, 3e-3, 0.05)([one for one in trainee.parameters() if one.requires_grad])
    source, taught = Source(drawn(64)), torch.zeros(2, 4)
    for step in range(50):
        adam.zero_grad()
        trainee.loss(source.take([(16 * step + place) % 64 for place in range(16)]), torch.Generator().manual_seed(step)).backward()
        taught += torch.stack([block.feed.experts.first.grad.abs().sum((1, 2)) for block in trainee.live.blocks])
        adam.step()
    assert (taught > 0).all()


def test_sixteen_records_can_be_learnt_by_heart():
    noise = drawn(16, strength=0.0)
    model = PerceiverMoE(
        **{**SMALL, "modality_dropout": 0.0, "dropout": 0.0, "steps": 80, "epochs": 80, "learning_rate": 5e-3, "patience": None}
    )
    model.fit(noise, noise.take([]), run())
    assert ((model.score(noise) > 0).int() == noise.label).all()


def test_what_shows_in_any_modality_is_learnt(detector):
    records = drawn(200, seed=5)
    assert auroc(detector.score(records).numpy(), records.label.numpy()) > 0.9


def test_logits_are_of_the_share_of_anomalies_that_was_learnt_from():
    """Nothing to learn, one in five anomalous, which count four times: the probability is still about a fifth."""
    records = drawn(300, strength=0.0)
    kept = [number for number in range(300) if number % 2 == 0 or number % 8 == 1]
    rare = records.take(kept)
    model = PerceiverMoE(**{**SMALL, "steps": 30, "weight_decay": 0.5}).fit(rare, rare.take([]), run())
    assert abs(model(rare).probs.mean().item() - rare.label.float().mean().item()) < 0.07


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    config = {"model": "moe", "detector": "perceiver_moe", "options": {**SMALL, "steps": 6}}
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        drawing = run(seed)
        model = PerceiverMoE(**config["options"]).fit(drawn(64), drawn(32, seed=1), drawing)
        artefact.save(tmp_path / name, model, config, drawing.history)
    for file in ("model.safetensors", "config.json", "history.json"):
        one, two, other = ((tmp_path / name / file).read_bytes() for name in ("one", "two", "other"))
        assert one == two and (one != other or file == "config.json")


@pytest.mark.parametrize("options", [{}, {"ffn": "dense"}, {"routing": "uniform"}, {"gate": "laplace", "share_weights": True}], ids=str)
def test_what_is_stored_scores_the_same(tmp_path, options):
    records, options = drawn(12, seed=2), {**SMALL, "steps": 4, **options}
    model = build("perceiver_moe", options, at=()).fit(drawn(64), drawn(32, seed=1), run())
    artefact.save(tmp_path, model, {"model": "moe", "detector": "perceiver_moe", "options": options}, [])
    assert torch.equal(artefact.load(tmp_path).score(records), model.score(records))


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path):
    def kill(row: Mapping[str, float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    options = {**SMALL, "epochs": 4}
    whole, stopped = run(), run(resume=tmp_path, checkpoint_s=0.0, heard=kill)
    wanted = PerceiverMoE(**options).fit(drawn(40), drawn(32, seed=1), whole)
    with pytest.raises(KeyboardInterrupt):
        PerceiverMoE(**options).fit(drawn(40), drawn(32, seed=1), stopped)
    again = run(resume=tmp_path, checkpoint_s=0.0)
    found = PerceiverMoE(**options).fit(drawn(40), drawn(32, seed=1), again)
    assert all(torch.equal(one, two) for one, two in zip(wanted.state_dict().values(), found.state_dict().values()))
    assert again.history == whole.history


def test_each_epoch_is_told_with_the_model_that_would_be_kept():
    told, val, model = [], drawn(32, seed=1), PerceiverMoE(**SMALL, epochs=3, patience=None)
    hearing = run(heard=lambda row: told.append((row["epoch"], row["val_auroc"], auroc(model.score(val).numpy(), val.label.numpy()))))
    model.fit(drawn(40), val, hearing)
    assert [epoch for epoch, _, _ in told] == [0, 1, 2] and all(seen == measured for _, seen, measured in told)


def test_what_has_learnt_nothing_says_so():
    with pytest.raises(NotFitted, match="has learnt nothing yet"):
        PerceiverMoE(**SMALL)(drawn(2))


def test_the_units_of_a_dimension_do_not_count():
    """A sensor in other units, before and after the fit: the same scores but for rounding."""
    found = []
    for factor in (1.0, 5000.0):
        train, val, test = (drawn(count, seed=seed) for seed, count in enumerate((64, 32, 20)))
        for records in (train, val, test):
            records.tokens["series"].values[:, 1].mul_(factor).add_(factor)
        found.append(PerceiverMoE(**{**SMALL, "steps": 4}).fit(train, val, run()).score(test))
    assert torch.allclose(*found, atol=1e-3)


def test_the_best_epoch_is_kept():
    drawing, val = run(), drawn(32, seed=1, strength=0.3)
    model = PerceiverMoE(**{**SMALL, "epochs": 6, "patience": 2}).fit(drawn(48, strength=0.3), val, drawing)
    assert auroc(model.score(val).numpy(), val.label.numpy()) == max(row["val_auroc"] for row in drawing.history)


def test_validation_records_that_nobody_judged_are_left_out():
    val = drawn(32, seed=1)
    unknown = val._replace(label=torch.where(torch.arange(32) < 8, -1, val.label).to(torch.int8))
    drawing = run()
    PerceiverMoE(**SMALL, steps=4).fit(drawn(64), unknown, drawing)
    other = run()
    PerceiverMoE(**SMALL, steps=4).fit(drawn(64), val.take(range(8, 32)), other)
    assert drawing.history == other.history


def test_usage_is_told_of_every_layer_and_of_none_where_nothing_is_routed(detector):
    told = detector.experts_usage(drawn(30, seed=2))
    assert told["experts"] == 4 and len(told["layers"]) == 2 and set(told["layers"][0]["information"]["present"]) == set(WIDTHS)
    assert all(sum(layer["first_choice"]) == pytest.approx(1) for layer in told["layers"])
    assert fitted(steps=1, ffn="dense").experts_usage(drawn(4))["layers"] == []


@pytest.mark.parametrize("wrong", [{"modality_dropout": 1.0}, {"ema": -0.1}, {"heads": 3}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PerceiverMoE(**{**SMALL, **wrong})

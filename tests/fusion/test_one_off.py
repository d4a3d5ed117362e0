"""A training by hand: what its flags change, and that nothing else does."""

import pytest
import torch

from stages import io
from stages.fusion import build
from stages.fusion.one_off import PLAIN, OneOff, first_batch, keeper, merged, parsed, place_of
from stages.params import ParamsError
from stages.training import Run
from tests.fusion.synthetic import records

SMALL = {"features": 16, "encoding": {"width": 16, "heads": 2, "sensor_layers": 1, "sensor_ffn": 32}, "learning": {"epochs": 3, "tau": 0.1}}


def test_the_command_line_is_the_run_and_its_flags():
    assert parsed(["weld-fusion"]) == ("weld-fusion", PLAIN)
    name, asked = parsed("weld-fusion --model mid-fusion --quick-test --debug --batch-size 16 --num-epochs 100 --mixed-precision --keep-last 3".split())
    assert name == "weld-fusion" and asked == OneOff("mid-fusion", True, True, 16, 100, True, 3)
    with pytest.raises(SystemExit):
        parsed(["weld-fusion", "--epochs-num", "3"])


def test_flags_change_their_options_and_leave_the_others():
    found = OneOff(batch_size=2, num_epochs=100, mixed_precision=True).options("deep.mid", SMALL)
    assert found == SMALL | {"learning": {"epochs": 100, "tau": 0.1, "batch_size": 2, "mixed_precision": True}}
    assert OneOff(num_epochs=5, batch_size=8).options("classical.concat_mlp", {"hidden": 4}) == {"hidden": 4, "epochs": 5, "batch_size": 8}
    assert PLAIN.options("deep.mid", SMALL) == SMALL and SMALL["learning"] == {"epochs": 3, "tau": 0.1}
    assert OneOff(quick_test=True).options("deep.mid", {})["learning"] == {"steps": 20, "epochs": 2}
    assert OneOff(quick_test=True, num_epochs=9).options("deep.mid", {})["learning"] == {"steps": 20, "epochs": 9}


def test_a_flag_that_a_detector_has_no_option_for_is_an_error_but_a_quick_test_is_of_all():
    with pytest.raises(ParamsError, match="classical.knn has no option 'mixed_precision', so --mixed-precision cannot"):
        OneOff(mixed_precision=True).options("classical.knn", {})
    assert OneOff(quick_test=True).options("classical.knn", {"neighbours": 3}) == {"neighbours": 3}
    assert place_of("deep.mid", "features") == ("features",) and place_of("deep.mid", "tau") == ("learning", "tau") and place_of("deep.mid", "x") is None
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}


def test_a_batch_of_two_trains_as_each_record_has_two_views():
    """Default batch of the seed; with one view there would be no positive and no contrast."""
    made = records(0, 24, missing=0.0)
    options = OneOff(batch_size=2, quick_test=True).options("deep.mid", SMALL)
    detector = build("deep.mid", options, ("models",))
    assert detector.learning.batch == 2
    run = Run(seed=0, quiet=True)
    detector.fit(made, made.take([]), run)
    assert run.history[-1]["step"] == 20 and run.history[-1]["train_contrast"] > 0


def test_a_quick_test_sees_two_records_of_each_class():
    made = records(0, 60)
    few = OneOff(quick_test=True).few(made)
    kinds = [fault or "normal" for fault in few.fault]
    assert {kind: kinds.count(kind) for kind in kinds} == {"normal": 2, "text": 2, "image": 2, "series": 2}
    assert PLAIN.few(made) is made


def test_only_what_differs_goes_to_a_folder_of_its_own():
    assert not OneOff("mid-fusion", debug=True).differs and OneOff().root.as_posix() == "."
    for asked in (OneOff(quick_test=True), OneOff(batch_size=2), OneOff(num_epochs=1), OneOff(mixed_precision=True), OneOff(seed=0), OneOff(keep_last=1)):
        assert asked.differs and asked.root.as_posix() == ".assay/one_off"
    with pytest.raises(ParamsError, match="no row 'mid-fusoin'; did you mean 'mid-fusion'"):
        OneOff("mid-fusoin").rows(["mid-fusion", "late-fusion"])


def test_the_first_batch_is_told_with_its_shapes_labels_presence_and_parameters():
    made = records(0, 20, missing=0.3)
    detector = build("deep.mid", merged(SMALL, {"learning": {"batch_size": 4}}), ("models",))
    text = first_batch(detector, made, 0)
    batch = made.take(range(4))
    assert "first batch: 4 records" in text and f"label: {batch.label.tolist()}" in text
    one = batch.tokens["image"]
    assert f"image: values {tuple(one.values.shape)}, tokens {one.lengths.tolist()}, present {batch.present[:, 1].int().tolist()}" in text
    total = sum(one.numel() for one in detector.parameters())
    assert f"parameters: {total:,} in all, {total:,} trainable (100.0%)" in text


def test_the_last_states_are_kept_and_the_newest_is_the_one_that_training_ended_with(tmp_path):
    made = records(0, 24)
    detector = build("deep.mid", merged(SMALL, {"learning": {"epochs": 4}}), ("models",))
    run = Run(seed=0, quiet=True, heard=keeper(detector, tmp_path, 2))
    detector.fit(made, made.take([]), run)
    kept = sorted(tmp_path.iterdir())
    steps = [row["step"] for row in run.history]
    assert len(steps) == 4 and [path.stem for path in kept] == [f"network-{step:06d}" for step in steps[-2:]]
    last, before = (io.read_model(path) for path in reversed(kept))
    state = detector.state_dict()
    assert set(last) == set(state) and all(torch.equal(last[key], state[key]) for key in state)
    assert any(not torch.equal(last[key], before[key]) for key in state)
    assert keeper(detector, tmp_path, 0) is None

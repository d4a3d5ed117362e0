"""What the masked autoencoder promises beyond the contract of every detector of signals (test_contract.py)."""

import re
import signal
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import pytest
import torch

from stages.timeseries.masked import masks
from stages.timeseries.masked.export import OUTPUTS, WindowScorer, export
from stages.timeseries.masked_autoencoder import MaskedAutoencoder
from stages.timeseries.stream import Stream
from stages.training import Run
from stages.types import NotFitted, Refusal
from tests.projects import ROOT
from tests.timeseries.series import segment, values

TINY = {
    "seq_length": 20, "num_patches": 5, "d_model": 16, "nhead": 2, "dim_feedforward": 32, "num_encoder_layers": 1, "num_teacher_layers": 1,
    "steps": 12, "batch_size": 8, "lengths": (3, 10),
}  # fmt: skip
TRAIN, VAL, TEST = (values(steps, seed=seed) for seed, steps in enumerate((300, 120, 160)))
LABEL = np.zeros(300, np.int8)
LABEL[100:130] = 1


def make(**options) -> MaskedAutoencoder:
    return MaskedAutoencoder(**TINY | options)


def fit(label: np.ndarray | None = None, run: Run | None = None, val: bool = True, **options) -> MaskedAutoencoder:
    run = run or Run(seed=0, quiet=True)
    return make(**options).fit([segment(TRAIN, label)], [segment(VAL)] if val else [], run)


def weights(model: MaskedAutoencoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("regime", ["unsup-contaminated", "unsup-clean", "synth-erase"])
def test_labels_change_nothing_but_in_the_regime_weak(regime):
    assert torch.equal(weights(fit(regime=regime)), weights(fit(LABEL, regime=regime)))


def test_labels_change_the_regime_weak():
    assert not torch.equal(weights(fit(np.zeros(300, np.int8), regime="weak")), weights(fit(LABEL, regime="weak")))
    with pytest.raises(Refusal, match="learns from labels"):
        fit(regime="weak")


def test_each_regime_learns_something_else():
    found = [weights(fit(LABEL, regime=regime)) for regime in ("unsup-contaminated", "weak", "synth-erase")]
    assert not any(torch.equal(first, second) for first, second in zip(found, [*found[1:], found[0]], strict=True))


def test_the_push_drives_the_student_away_on_labelled_patches():
    """On the same patches, with the push and without it."""
    pushed, plain = (
        fit(LABEL, regime="weak", margin_type=margin, margin=4.0, steps=120, teacher_warmup=0.0) for margin in ("hinge", "none")
    )
    window = pushed.standardised(torch.from_numpy(TRAIN))[105:125][None]
    mask = masks.last(5, 2)

    def apart(model: MaskedAutoencoder) -> float:
        output = model.network(window, mask)
        return (output.teacher - output.student)[:, -8:].square().mean().item()

    assert apart(pushed) > 2 * apart(plain)


def test_the_first_steps_train_the_teacher_alone():
    model = make(steps=2, teacher_warmup=1.0)
    model._new_network(3, seed=0)
    torch.manual_seed(0)
    from stages.timeseries.windows import Windows

    model.fit([segment(TRAIN)], [], Run(seed=0, quiet=True))
    batch = Windows([model._stretch(segment(TRAIN))], 20, 20).take([0, 1])
    for done, learns in ((0.0, False), (1.0, True)):
        model.zero_grad()
        model._loss(batch, torch.Generator().manual_seed(0), done).backward()
        assert any(one.grad is not None for one in model.network.student.parameters()) == learns


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "normalised", "multiscale"])
def test_every_score_mode_finds_a_planted_shift_and_names_its_variable(mode):
    model = fit(score_mode=mode, steps=60, learning_rate=5e-3)
    planted = TEST.copy()
    planted[70:90, 1] += 8 * TEST[:, 1].std()
    score, added = model.score(torch.from_numpy(planted)), model.attribution(torch.from_numpy(planted))
    assert score[70:90].mean() > score[:40].mean() and score[70:90].mean() > score[130:].mean()
    assert added[72:88].mean(0).argmax() == 1


def test_the_parts_of_a_multiscale_score_add_up_to_it():
    model, given = fit(score_mode="multiscale"), torch.from_numpy(TEST)
    torch.testing.assert_close(model.attribution(given).sum(1), model.score(given))


def test_components_are_the_two_parts_of_the_combined_score():
    model, given = fit(lambda_discrepancy=0.25), torch.from_numpy(TEST)
    found = model.components(given)
    torch.testing.assert_close(found["combined"], found["reconstruction"] + 0.25 * found["discrepancy"])
    assert torch.equal(found["combined"], model.score(given))


def test_calibration_sees_validation_data_and_nothing_else():
    first = fit(score_mode="normalised")
    other = make(score_mode="normalised").fit([segment(TRAIN)], [segment(VAL[::-1].copy())], Run(seed=0, quiet=True))
    assert torch.equal(weights(first), weights(other)) and not torch.equal(first.calibration.middle, other.calibration.middle)


def test_without_validation_data_the_training_data_stands_in():
    assert fit(val=False, score_mode="multiscale").score(torch.from_numpy(TEST)).isfinite().all()


def test_a_second_look_forgives_what_stands_beside_an_anomaly():
    planted = TEST.copy()
    planted[80:84] += 10 * TEST.std(0)
    given = torch.from_numpy(planted)
    model = fit(look_again=0.99, passes=5, score_stride=4, steps=200, learning_rate=5e-3)
    twice = model.score(given)
    model.look_again = 0.0
    once = model.score(given)
    beside = [*range(66, 80), *range(84, 98)]
    assert twice[beside].mean() < once[beside].mean() and twice[80:84].min() > once[beside].max()


@pytest.mark.parametrize("mode", ["fixed", "multiscale"])
@pytest.mark.parametrize(
    "scoring", [{"scoring": "last_patch"}, {"scoring": "all_patches", "score_stride": 5}, {"look_again": 0.9}, {"scoring": "centre"}]
)
def test_a_stream_scores_as_the_stored_series_does(scoring, mode):
    model = fit(score_mode=mode, **scoring)
    rows = torch.from_numpy(TEST)
    stream = Stream(model, every=20)
    found = [one.score for row in rows for one in stream.push(row)] + [one.score for one in stream.flush()]
    rounding = 1e-6 if mode == "fixed" else 5e-6  # of float32, which whitening enlarges
    torch.testing.assert_close(torch.tensor(found), model.score(rows), rtol=rounding, atol=1e-6)


def test_the_last_patch_needs_no_step_that_is_still_to_come():
    model = fit(scoring="last_patch")
    changed = TEST.copy()
    changed[101:] += 9
    first, second = model.score(torch.from_numpy(TEST)), model.score(torch.from_numpy(changed))
    assert model.future == 0 and model.past == 19
    torch.testing.assert_close(first[:101], second[:101], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"scoring": "last_patch"}, {"scoring": "centre", "score_mode": "adaptive"}, {"masking_strategy": "feature_wise", "patchify_mode": "patch_cnn"},
     {"mask_stage": "before", "patchify_mode": "cnn_first"}],
)  # fmt: skip
def test_the_exported_scorer_gives_the_same_errors_and_scores(options):
    model = fit(**options)
    session = onnxruntime.InferenceSession(export(model), providers=["CPUExecutionProvider"])
    windows = torch.from_numpy(np.stack([TEST[start : start + 20] for start in range(0, 140, 7)]))
    with torch.no_grad():
        expected = WindowScorer(model)(windows)
    for name, found, wanted in zip(OUTPUTS, session.run(None, {"window": windows.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_exported_score_of_a_window_is_the_score_of_its_last_step():
    model = fit(scoring="last_patch")
    score = model.score(torch.from_numpy(TEST))
    with torch.no_grad():
        found = WindowScorer(model)(torch.from_numpy(TEST[None, 50:70]))[2]
    torch.testing.assert_close(found[0], score[69], rtol=1e-4, atol=1e-6)


def test_what_has_learnt_nothing_is_not_exported():
    with pytest.raises(NotFitted, match="before it is exported"):
        export(make())


class Killed(Exception):
    pass


@pytest.mark.parametrize("regime", ["unsup-contaminated", "weak"])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(regime, tmp_path, monkeypatch):
    options = {"regime": regime, "margin_type": "dynamic", "dropout": 0.1}
    whole = fit(LABEL, **options)
    original, calls = MaskedAutoencoder._loss, []

    def stops(self, *arguments):
        calls.append(1)
        if len(calls) == 8:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(MaskedAutoencoder, "_loss", stops)
    with pytest.raises(Killed):
        fit(LABEL, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0), **options)
    monkeypatch.setattr(MaskedAutoencoder, "_loss", original)
    run = Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0)
    resumed = fit(LABEL, run, **options)
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in whole.state_dict().items())


KILL_ME = """
from tests.timeseries.test_masked_autoencoder import fit
from stages.training import Run
from pathlib import Path
import sys
model = fit(run=Run(seed=0, quiet=True, resume=Path(sys.argv[1]), checkpoint_s=0.0), steps=400)
"""


@pytest.mark.slow
def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILL_ME, str(tmp_path)], cwd=ROOT)
    while not list(tmp_path.glob("*.safetensors")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    whole, resumed = fit(steps=400), fit(run=Run(seed=0, quiet=True, resume=tmp_path), steps=400)
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in whole.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_patches": 7}, "divide seq_length"),
        ({"mask_last_n": 5}, "multiple of the patch size 4"),
        ({"masking_ratio": 1.0}, "between 0 and 1"),
        ({"passes": 1}, r"passes must be in 2..5"),
        ({"look_again": 0.99, "scoring": "last_patch"}, "look_again needs what follows"),
        ({"trim": 1.0}, "trim"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_configuration_of_its_page_is_one():
    from ruamel.yaml import YAML

    from stages.timeseries import build

    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/masked_autoencoder.md").read_text(), re.DOTALL).group(1)
    options = dict(YAML(typ="safe").load(block)["masked-autoencoder"])
    model = build(options.pop("detector"), options, at=("series", "models", "masked-autoencoder"))
    assert model.hidden == 8 and model.stride == 40 and model.regime == "unsup-contaminated"

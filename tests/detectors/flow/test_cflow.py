"""CFLOW against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from stages.detectors.flow import cflow
from stages.detectors.flow.cflow import CFlow, Fibres, encode_positions, log_likelihood, warm_up_then_cosine
from stages.training import Run
from tests.arrays import SIZE, ArrayBatches, features_of, grid_features, normal_pixels, plant_defect

SMALL = {  # for the contract test
    "layers": ("layer1", "layer2"),
    "depth": 2,
    "condition": 8,
    "steps": 60,
    "fibre_batch_size": 64,
    "learning_rate": 2e-2,
}


def make(**options) -> CFlow:
    return CFlow(**{**SMALL, "steps": 4, **options})


def one_layer(**options) -> CFlow:
    return make(**{"layers": ("layer2",), **options})


def built(width: int, **options) -> CFlow:
    """With weights as they are drawn and maxima of 0 and 1, which is enough for what follows from the equations."""
    detector = one_layer(**options)
    detector._build(torch.tensor([width]), seed=0)
    detector.layer_max, detector.sum_max = torch.zeros(1), torch.ones(1)
    return detector.eval()


@pytest.mark.parametrize("permutation", ["soft", "hard"])
def test_the_likelihood_is_that_of_a_change_of_variables_with_its_constant(permutation):
    """Against torch.distributions and the Jacobian of autograd."""
    flow = built(6, permutation=permutation).flows[0].requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    fibres, position = torch.randn(3, 6, generator=generator), torch.randn(3, 8, generator=generator)
    got = log_likelihood(flow, fibres, position)
    for row in range(3):
        forward = lambda x, row=row: flow(x[None], position[row : row + 1])[0][0]  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(forward, fibres[row])
        log_p = torch.distributions.Normal(0, 1).log_prob(forward(fibres[row])).sum() + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(got[row], log_p, rtol=1e-4, atol=1e-4)


def test_the_loss_is_minus_log_sigmoid_of_the_likelihood_for_each_channel():
    detector = built(6)
    fibres = Fibres(ArrayBatches(grid_features(3, width=6)), "layer2", 8)
    batch = fibres.take([0, 17, 40])
    log_p = log_likelihood(detector.flows[0], batch.features["fibre"], batch.features["position"])
    expected = (1 + (-log_p / 6).exp()).log().mean()
    torch.testing.assert_close(cflow._loss(detector.flows[0], batch), expected)


def test_the_encoding_of_a_position_is_the_papers_formula():
    """Column in the first half, row in the second; by the formula, one number at a time."""
    channels, height, width = 16, 3, 5
    got = encode_positions(channels, height, width).view(height, width, channels)
    for row in range(height):
        for column in range(width):
            for k in range(channels // 4):
                omega = 10000 ** (-2 * k / (channels / 2))
                values = [math.sin(column * omega), math.cos(column * omega), math.sin(row * omega), math.cos(row * omega)]
                places = [2 * k, 2 * k + 1, 8 + 2 * k, 8 + 2 * k + 1]
                torch.testing.assert_close(got[row, column, places], torch.tensor(values), rtol=1e-5, atol=1e-6)


def test_a_fibre_keeps_its_channels_its_image_and_its_position():
    features = grid_features(3, width=6, grid=(4, 5))
    fibres = Fibres(ArrayBatches(features, batch_size=2), "layer2", 8)
    assert fibres.samples == 3 * 20
    taken = fibres.take([20 + 2 * 5 + 3, 0]).features  # image 1, row 2, column 3; image 0, row 0, column 0
    assert torch.equal(taken["fibre"], torch.stack([features["layer2"][1, :, 2, 3], features["layer2"][0, :, 0, 0]]))
    assert torch.equal(taken["position"], encode_positions(8, 4, 5)[[13, 0]])


def test_the_map_by_hand_two_layers_relative_to_their_maxima_from_corner_to_corner():
    """exp(log p / C - max) is 1 and 1/2 in the columns of the first layer and 1/4 everywhere in the second; the sum is taken from the
    maximum 1.25. Aligned corners: the first and last of five pixels are the two cells, and what lies between is on the line."""
    detector = make()
    detector.layer_max, detector.sum_max = torch.tensor([2.0, 3.0]), torch.tensor([1.25])
    first = torch.tensor([[2.0, 2.0 + math.log(0.5)]])[None]
    second = torch.full((1, 1, 1), 3.0 + math.log(0.25))
    got = detector.sum_max - detector._likelihood([first, second], (1, 5))
    torch.testing.assert_close(got, torch.tensor([[[0.0, 0.125, 0.25, 0.375, 0.5]]]))


def test_cflow_a_the_maxima_are_those_of_training_and_stored_so_no_other_image_matters(run):
    features = features_of(normal_pixels(8))
    detector = make(steps=20).fit(ArrayBatches(features), None, run)
    logs = detector._log_likelihoods(features)
    for layer, (values, greatest) in enumerate(zip(logs, detector.layer_max, strict=True)):
        assert greatest == values.max(), layer
    assert detector.sum_max == detector._likelihood(logs, (SIZE, SIZE)).max()
    assert detector.score(features).anomaly_map.min() == 0  # at the likeliest training pixel, and it may be lower elsewhere
    assert {"layer_max", "sum_max"} <= set(detector.state_dict())
    planted = features_of(torch.cat([normal_pixels(1), plant_defect(normal_pixels(3, seed=2))]))
    alone = detector.score({name: values[:1] for name, values in planted.items()})
    assert torch.equal(alone.anomaly_map[0], detector.score(planted).anomaly_map[0])


def test_cflow_b_each_batch_of_fibres_is_one_step_of_the_optimiser(run, monkeypatch):
    """6 images of 16 positions in batches of 32 fibres: 3 steps an epoch, and not one for each image or for all of them."""
    steps = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args, **more: steps.append(1) or step(self, *args, **more))
    one_layer(steps=None, epochs=2, fibre_batch_size=32).fit(ArrayBatches(grid_features(6, width=6)), None, run)
    assert len(steps) == 2 * 3 and [row["step"] for row in run.history] == [3, 6]


def test_cflow_b_fibres_of_all_positions_of_all_images_are_shuffled_together(run, monkeypatch):
    seen = []
    take = Fibres.take
    monkeypatch.setattr(Fibres, "take", lambda self, positions: seen.append(positions) or take(self, positions))
    one_layer(steps=3, fibre_batch_size=32).fit(ArrayBatches(grid_features(6, width=6)), None, run)
    for positions in seen:
        assert len({position // 16 for position in positions}) >= 4 and len({position % 16 for position in positions}) >= 8


def test_cflow_c_features_get_no_gradient_and_no_network_is_run(run):
    """Only the flow learns: the maps that were given are leaves that the loss does not reach."""
    features = {**grid_features(6, width=6), "pixels": torch.zeros(6, 3, SIZE, SIZE, dtype=torch.uint8)}
    fibres = Fibres(ArrayBatches(features), "layer2", 8)
    batch = fibres.take([0, 1])
    assert not any(values.requires_grad for values in batch.features.values())
    detector = one_layer().fit(ArrayBatches(features), None, run)
    assert all(name.startswith("flows.") for name, _ in detector.named_parameters())


def test_cflow_d_every_fibre_counts_once_an_epoch_and_the_last_batch_is_what_is_left(run, monkeypatch):
    seen = []
    take = Fibres.take
    monkeypatch.setattr(Fibres, "take", lambda self, positions: seen.append(positions) or take(self, positions))
    one_layer(steps=None, epochs=1, fibre_batch_size=40).fit(ArrayBatches(grid_features(6, width=6)), None, run)
    assert [len(positions) for positions in seen] == [40, 40, 16]
    assert Counter(position for positions in seen for position in positions) == Counter(range(96))


def test_the_learning_rate_warms_up_for_2_of_25_parts_and_ends_at_a_thousandth():
    """By hand: a tenth at the start, the cosine at 2/25 of the way, half (and half a thousandth) in the middle."""
    factors = [warm_up_then_cosine(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[100] == pytest.approx(1e-3)
    assert factors[8] == pytest.approx(1e-3 + 0.999 * (1 + math.cos(math.pi * 0.08)) / 2)
    assert factors[4] == pytest.approx((factors[0] + factors[8]) / 2)
    assert factors[50] == pytest.approx(0.5005)
    assert factors[:9] == sorted(factors[:9]) and factors[8:] == sorted(factors[8:], reverse=True)


def test_the_kept_state_of_each_layer_is_its_best_on_held_out_fibres(run, monkeypatch):
    """The best of the second epoch; the schedule does not depend on what follows, so 2 of 3 epochs by hand end in the same state."""
    batches = ArrayBatches(grid_features(6, width=6))
    values = iter([5.0, 4.0, 4.5])
    monkeypatch.setattr(cflow, "_val_loss", lambda flow, held_out, device: {"val_loss": next(values)})
    monkeypatch.setattr(cflow, "warm_up_then_cosine", lambda step, total: 1.0)
    kept = one_layer(steps=None, epochs=3).fit(batches, batches, run)
    two_epochs = one_layer(steps=None, epochs=2).fit(batches, None, Run(seed=0, quiet=True))
    assert all(torch.equal(value, kept.state_dict()[key]) for key, value in two_epochs.state_dict().items())


def test_the_held_out_loss_is_a_mean_over_all_fibres(monkeypatch):
    monkeypatch.setattr(cflow, "FIBRES_AT_ONCE", 40)
    detector, fibres = built(6), Fibres(ArrayBatches(grid_features(6, width=6)), "layer2", 8)
    expected = cflow._loss(detector.flows[0], fibres.take(list(range(96)))).item()
    assert cflow._val_loss(detector.flows[0], fibres, torch.device("cpu"))["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """Killed in the second of two layers: the first is not trained again."""
    batches = ArrayBatches(features_of(normal_pixels(4)))
    whole = make().fit(batches, None, Run(seed=0, quiet=True))
    take, reads = Fibres.take, []

    def dying(self, positions):
        reads.append(positions)
        if len(reads) == 4 + 3:
            raise KeyboardInterrupt
        return take(self, positions)

    monkeypatch.setattr(Fibres, "take", dying)
    with pytest.raises(KeyboardInterrupt):
        make().fit(batches, None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0))
    resumed = make().fit(batches, None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0))
    assert len(reads) == 7 + 2
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_the_position_matters_where_the_same_fibre_is_normal_in_one_place_alone(run):
    """Left half of channel 0 is 2, right half -2, with noise: swapped halves hold no value that training has not seen."""
    features = grid_features(12, width=4)
    features["layer2"] *= 0.1
    features["layer2"][:, 0] += torch.tensor([2.0, 2.0, -2.0, -2.0])
    detector = one_layer(steps=120, depth=4, fibre_batch_size=96, learning_rate=1e-2).fit(ArrayBatches(features), None, run)
    swapped = {**features, "layer2": features["layer2"].flip(3)}
    assert detector.score(swapped).anomaly_map.mean() > 1.3 * detector.score(features).anomaly_map.mean()


def test_features_of_another_width_are_refused_and_so_is_a_condition_that_is_no_multiple_of_4():
    with pytest.raises(ValueError, match="layer2 had 6 channels in training and has 5"):
        built(6).score(grid_features(2, width=5))
    with pytest.raises(ValueError, match=r"multiple of 4 \(sine and cosine of two axes\), got 6"):
        CFlow(condition=6)


def test_the_papers_defaults():
    model = CFlow()
    assert (model.depth, model.condition, model.clamp, model.permutation) == (8, 128, 1.9, "soft")
    assert (model.epochs, model.fibre_batch_size, model.learning_rate) == (25 * 8, 256, 2e-4)
    model._build(torch.tensor([10]), seed=0)
    first, _, second = model.flows[0].layers[0].subnet
    assert (first.in_features, first.out_features, second.out_features) == (5 + 128, 2 * (5 + 128), 2 * 5)
    assert F.softplus(model.flows[0].layers[0].gamma[0], beta=0.5).item() == pytest.approx(10, rel=1e-5)

"""SuperSimpleNet against its formulas. The letters are those of the list of what implementations get wrong, in the order given there."""

import pytest
import torch
import torch.nn.functional as F

from stages.detectors.discriminative.supersimplenet import Network, SuperSimpleNet, decay
from stages.detectors.maps import gaussian_blur
from stages.training import Run
from stages.types import Batch, Refusal
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels, plant_defect, upsampled

SMALL = {  # for the contract test
    "layers": ["layer1", "layer2"], "width": 32, "class_width": 8, "upscale": 1, "steps": 40, "batch_size": 4,
    "learning_rate": 3e-3, "noise_std": 1.0, "score_from": "map", "blur_sigma": 1.0,
}  # fmt: skip


class LabelledBatches(ArrayBatches):
    """With labels and masks of their own."""

    def __init__(self, features, label, mask, **options) -> None:
        super().__init__(features, **options)
        self.label, self.mask = label, mask

    def take(self, positions: list[int]) -> Batch:
        mask = None if self.mask is None else self.mask[positions]
        return super().take(positions)._replace(label=self.label[positions], mask=mask)


def make(**options) -> SuperSimpleNet:
    return SuperSimpleNet(**{**SMALL, "steps": 3, **options})


def built(**options) -> SuperSimpleNet:
    """With random weights, as if fitted: two layers of 8 and 12 channels."""
    detector = make(**options)
    detector.network = detector._new_network(20, seed=3)
    detector.steps_trained = torch.tensor([1])
    return detector.eval()


def some_defects():
    """Eight images, the last two of them with a labelled defect in the lower left."""
    pixels = torch.cat([normal_pixels(6), plant_defect(normal_pixels(2, seed=5))])
    mask = torch.zeros(8, 32, 32, dtype=torch.bool)
    mask[6:, 18:28, 3:13] = True
    return LabelledBatches(features_of(pixels), torch.tensor([0] * 6 + [1] * 2), mask)


def test_the_features_lie_on_twice_the_finest_grid_averaged_over_three_by_three():
    """By hand in the middle of a constant layer, and at its corner, where 4 of 9 cells are inside; the coarse layer is bilinear."""
    features = {"layer2": torch.ones(1, 1, 4, 6), "layer3": torch.arange(6.0).view(1, 1, 2, 3), "pixels": torch.zeros(1, 3, 8, 12)}
    embedded = make(layers=["layer3", "layer2"], upscale=2)._embed(features)
    assert embedded.shape == (1, 2, 8, 12)
    assert embedded[0, 1, 4, 4].item() == pytest.approx(1) and embedded[0, 1, 0, 0].item() == pytest.approx(4 / 9)
    fine = F.interpolate(features["layer3"], (8, 12), mode="bilinear", align_corners=False)
    assert embedded[0, 0, 4, 4].item() == pytest.approx(fine[0, 0, 3:6, 3:6].mean().item())


def test_the_map_is_the_blurred_logits_and_the_image_score_the_heads_logit():
    detector, features = built(score_from="head"), features_of(normal_pixels(3))
    embedded = detector._embed(features)
    logits, scores = detector.network(embedded, detector.network.adaptor(embedded))
    image_score, anomaly_map = detector.score(features)
    torch.testing.assert_close(anomaly_map, gaussian_blur(upsampled(logits[:, 0], 32), 1.0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image_score, scores, rtol=1e-4, atol=1e-5)
    detector.score_from = "map"
    assert torch.equal(detector.score(features).image_score, anomaly_map.amax(dim=(1, 2)))


def test_the_head_pools_maximum_and_mean_of_its_convolution_and_of_the_map():
    """Four and two numbers into the linear layer, each with a weight of its own."""
    network = Network(3, 8, 2, stop_gradient=True, adapted_classification=False).eval()
    embedded, adapted = torch.randn(2, 1, 3, 5, 5).unbind()
    logits, scores = network(embedded, adapted)
    hidden = network.convolution(torch.cat([embedded, logits], dim=1))
    pooled = [hidden.amax(dim=(2, 3)), hidden.mean(dim=(2, 3)), logits.amax(dim=(2, 3)), logits.mean(dim=(2, 3))]
    torch.testing.assert_close(scores, network.classification(torch.cat(pooled, dim=1))[:, 0])


@pytest.mark.parametrize("first", [False, True])
def test_supersimplenet_a_the_classification_head_sees_adapted_features_in_the_first_paper_only(first):
    detector = built(adapted_classification=first)
    network, embedded = detector.network, detector._embed(features_of(normal_pixels(2)))
    adapted = network.adaptor(embedded)
    logits, scores = network(embedded, adapted)
    assert torch.equal(network(embedded + 9, adapted)[0], logits)  # the map never sees them unadapted
    assert torch.equal(network(embedded + 9, adapted)[1], scores) == first


@pytest.mark.parametrize("first", [False, True])
def test_supersimplenet_b_the_noise_comes_after_the_adaptor_and_is_the_same_on_both(first, monkeypatch):
    """An adaptor that doubles, so that noise before it would come out twice as large."""
    detector = built(adapted_classification=first, noise_std=0.5)
    network = detector.network
    network.adaptor.weight.data = 2 * torch.eye(20).view(20, 20, 1, 1)
    network.adaptor.bias.data.zero_()
    seen = {}
    monkeypatch.setattr(network, "forward", lambda e, a: seen.update(embedded=e, adapted=a) or (a[:, :1], a[:, 0, 0, 0]))
    batch = ArrayBatches(features_of(normal_pixels(4))).take([0, 1, 2, 3])
    detector._loss(batch, torch.Generator().manual_seed(1))
    clean = detector._embed(batch.features).repeat(2, 1, 1, 1)
    noise = seen["adapted"] - 2 * clean
    torch.testing.assert_close(seen["embedded"] - clean, noise, atol=1e-5, rtol=0)
    touched = (noise.abs() > 1e-4).any(dim=1)
    assert noise.permute(0, 2, 3, 1)[touched].std().item() == pytest.approx(0.5, rel=0.05) and 0 < touched.float().mean() < 0.6


def test_half_of_the_masks_are_empty_and_the_target_is_where_noise_is():
    detector = make()
    drawn = detector._blotches(torch.zeros(400, 1, 16, 16), torch.Generator().manual_seed(0))
    filled = drawn.flatten(1).any(dim=1).float().mean().item()
    assert 0.4 < filled < 0.55 and set(drawn.unique().tolist()) == {0.0, 1.0}


def test_noise_and_its_labels_never_lie_on_a_labelled_defect():
    mask = torch.zeros(100, 1, 16, 16)
    mask[:, :, :8] = 1
    drawn = make()._blotches(mask, torch.Generator().manual_seed(0))
    assert drawn[:, :, :8].sum() == 0 and drawn[:, :, 8:].sum() > 0


@pytest.mark.parametrize("supervised", [False, True])
def test_the_classification_loss_reaches_the_map_only_where_training_is_supervised(supervised):
    detector = built(supervised=supervised)
    embedded = detector._embed(features_of(normal_pixels(2)))
    _, scores = detector.network(embedded, detector.network.adaptor(embedded))
    scores.sum().backward()
    slopes = [parameter.grad for parameter in (*detector.network.segmentation.parameters(), *detector.network.adaptor.parameters())]
    assert all((slope is not None and slope.abs().sum() > 0) == supervised for slope in slopes)


def test_unsupervised_training_does_not_look_at_labels_or_masks():
    labelled = some_defects()
    one = make().fit(labelled, None, Run(seed=0, quiet=True))
    other = make().fit(ArrayBatches(labelled.features), None, Run(seed=0, quiet=True))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_supervised_the_labelled_defect_is_part_of_the_target():
    """A 32 px mask on the grid of 16: half the pixels, where the bilinear value reaches one half; both copies have it."""
    detector = make(supervised=True)
    embedded, mask, label = detector._targets(some_defects().take([0, 7]))
    assert label.tolist() == [0, 1] and mask[0].sum() == 0
    expected = F.interpolate(some_defects().mask[7:8, None].float(), (16, 16), mode="bilinear") >= 0.5
    assert torch.equal(mask[1:2].bool(), expected) and mask[1, 0, 9:14, 2:6].min() == 1 and embedded.shape[2:] == (16, 16)


def test_supervised_features_and_mask_are_flipped_together(monkeypatch):
    """A defect marked in the features by 100: wherever it is flipped to, its mask lies there."""
    detector = built(supervised=True, noise_std=1e-6, layers=["layer2"])
    detector.network = detector._new_network(4, seed=0)
    features = grid_features(1, 4, (16, 16))
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 2:10, 20:28] = True
    features["layer2"][:, :, 1:5, 10:14] += 100
    batch = LabelledBatches(features, torch.tensor([1]), mask).take([0])
    places, seen = set(), {}
    monkeypatch.setattr("stages.detectors.discriminative.supersimplenet.truncated_l1", lambda s, m, margin: seen.update(mask=m) or s.sum())
    monkeypatch.setattr(detector.network, "forward", lambda e, a: seen.update(embedded=e) or (a[:, :1], a[:, 0, 0, 0]))
    monkeypatch.setattr(detector, "_blotches", lambda mask, generator: torch.zeros_like(mask))
    for seed in range(20):
        detector._loss(batch, torch.Generator().manual_seed(seed))
        marked = seen["embedded"].mean(dim=1, keepdim=True) > 50
        assert (marked & (seen["mask"] > 0)).sum() >= 0.7 * marked.sum() > 0
        places.add(tuple(marked[0, 0].nonzero()[0].tolist()))
    assert len(places) == 4


def test_supervised_each_step_is_clipped_to_norm_one():
    for supervised, norm in ((True, 1.0), (False, 40.0)):
        detector = built(supervised=supervised)
        optimiser = detector._optimiser([])
        weight = detector.network.classification.bias
        for parameter in detector.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad[:] = 40.0
        optimiser.step()
        assert weight.grad.item() == pytest.approx(norm, rel=1e-4)


def test_the_heads_learn_twice_as_fast_as_the_adaptor_and_every_weight_is_in_one_group():
    detector = built(learning_rate=1e-4)
    groups = detector._optimiser([]).param_groups
    assert [group["lr"] for group in groups] == [1e-4, 2e-4] and {group["weight_decay"] for group in groups} == {1e-5}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in detector.network.parameters())


def test_the_rate_falls_at_four_fifths_and_nine_tenths():
    assert [round(decay(step, 100), 6) for step in (0, 79, 80, 89, 90, 99)] == [1, 1, 0.4, 0.4, 0.16, 0.16]


def test_supervised_without_anomalous_images_or_their_masks_is_refused(run):
    batches = some_defects()
    with pytest.raises(Refusal, match="needs anomalous images with masks among the training images, and there are none"):
        make(supervised=True).fit(ArrayBatches(batches.features), None, run)
    with pytest.raises(Refusal, match="a mask for each anomalous training image; without one: image6, image7"):
        make(supervised=True).fit(LabelledBatches(batches.features, batches.label, None), None, run)


def test_labelled_defects_teach_what_noise_does_not():
    """Noise far too small to matter: only the labels can have taught the margin."""
    options = {"noise_std": 1e-4, "steps": 40, "batch_size": 8, "perlin_threshold": 0.6}
    planted, normal = features_of(plant_defect(normal_pixels(6, seed=9))), features_of(normal_pixels(6, seed=9))
    margin = {}
    for supervised in (True, False):
        detector = make(**options, supervised=supervised).fit(some_defects(), None, Run(seed=0, quiet=True))
        margin[supervised] = detector.score(planted).image_score.min() - detector.score(normal).image_score.max()
    assert margin[True] > 0.3 and margin[True] > margin[False] + 0.3


def test_the_kept_state_is_that_of_the_lowest_loss_on_the_same_simulated_anomalies(run):
    held_out = ArrayBatches(features_of(normal_pixels(5, seed=3)), batch_size=2)
    detector = make(steps=24, batch_size=6).fit(ArrayBatches(features_of(normal_pixels(12))), held_out, run)
    best = min(run.history, key=lambda row: row["val_loss"])
    assert detector.steps_trained.item() == best["step"]
    assert detector._val_loss(held_out, run) == pytest.approx(best["val_loss"], rel=1e-5)
    assert run.history[-1]["val_loss"] < 0.5 * run.history[0]["val_loss"]


def test_a_training_that_was_killed_ends_in_the_same_state(tmp_path, monkeypatch):
    batches, options = ArrayBatches(features_of(normal_pixels(8))), {"steps": 8, "batch_size": 4, "supervised": False}
    whole = make(**options).fit(batches, None, Run(seed=0, quiet=True))
    killed, losses = make(**options), 0

    def loss(batch, generator):
        nonlocal losses
        losses += 1
        if losses == 6:
            raise KeyboardInterrupt
        return SuperSimpleNet._loss(killed, batch, generator)

    monkeypatch.setattr(killed, "_loss", loss)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(batches, None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0))
    resumed = make(**options).fit(batches, None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0))
    assert losses == 6 and all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"), [({"width": 0}, "width must be"), ({"noise_std": 0.0}, "nothing to tell"), ({"score_from": "x"}, "head or map")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

"""STFPM against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import copy

import pytest
import torch
import torch.nn.functional as F

from stages.detectors.distillation.stfpm import STFPM, half_squared_distance
from stages.training import Run
from tests.arrays import LAYERS, ArrayBatches, TinyCNN, features_of, normal_pixels, plant_defect, upsampled

SMALL = {"backbone": "tiny", "steps": 40, "batch_size": 8}  # for the contract test
pytestmark = pytest.mark.usefixtures("tiny_cnn")


def make(**options) -> STFPM:
    return STFPM(**{"backbone": "tiny", "steps": 20, "batch_size": 8, **options})


def with_student(student: torch.nn.Module) -> STFPM:
    detector = make()
    detector.student = student
    detector.steps_trained = torch.tensor([1])
    return detector.eval()


def test_equal_weights_give_a_zero_map():
    detector = with_student(TinyCNN(seed=1234, trainable=True))  # the weights of the teacher in features_of
    image_score, anomaly_map = detector.score(features_of(normal_pixels(3)))
    assert anomaly_map.abs().max() < 1e-12 and image_score.abs().max() < 1e-12


def test_the_distance_is_half_the_squared_distance_of_unit_vectors():
    """By hand: (3, 4) and (4, 3) are (.6, .8) and (.8, .6): half of .04 + .04. Length does not matter; opposite vectors give 2, the most
    there is."""
    teacher = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert half_squared_distance(teacher, torch.tensor([4.0, 3.0]).view(1, 2, 1, 1), "layer1").item() == pytest.approx(0.04)
    assert half_squared_distance(teacher, 7 * teacher, "layer1").item() == pytest.approx(0, abs=1e-7)
    assert half_squared_distance(teacher, -teacher, "layer1").item() == pytest.approx(2)


def test_the_map_is_the_product_of_the_layers_bilinear_and_without_a_blur():
    student = TinyCNN(seed=5, trainable=True).eval()
    features = features_of(normal_pixels(2))
    seen, expected = student(features["pixels"]), torch.ones(2, 32, 32)
    for layer in LAYERS:
        cosine = F.cosine_similarity(features[layer], seen[layer], dim=1)
        expected *= upsampled(1 - cosine, 32)  # half the squared distance of unit vectors is 1 - cosine
    image_score, anomaly_map = with_student(student).score(features)
    torch.testing.assert_close(anomaly_map, expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(image_score, anomaly_map.amax(dim=(1, 2)))


def test_stfpm_a_the_loss_is_a_mean_over_the_batch_so_copies_of_an_image_do_not_change_it():
    """A sum over images would double it, and with it the learning rate."""
    detector = with_student(TinyCNN(seed=5, trainable=True))
    batches = ArrayBatches(features_of(normal_pixels(3)))
    once = detector._loss(batches.take([0, 1, 2]), torch.Generator())
    twice = detector._loss(batches.take([0, 1, 2, 0, 1, 2]), torch.Generator())
    torch.testing.assert_close(once, twice)


def test_stfpm_a_the_loss_sums_layers_and_averages_positions_with_the_half():
    student = TinyCNN(seed=5, trainable=True).eval()
    features = features_of(normal_pixels(3))
    seen = student(features["pixels"])
    expected = sum((1 - F.cosine_similarity(features[layer], seen[layer], dim=1)).mean() for layer in LAYERS)
    got = with_student(student)._loss(ArrayBatches(features).take([0, 1, 2]), torch.Generator())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_stfpm_b_the_papers_learning_rate_of_0_4_is_stable_with_the_mean(run):
    detector = make(steps=40).fit(ArrayBatches(features_of(normal_pixels(16))), ArrayBatches(features_of(normal_pixels(4, seed=3))), run)
    assert detector.learning_rate == 0.4
    assert run.history[-1]["loss"] < 0.3 * run.history[0]["loss"]


def test_stfpm_c_the_student_trains_its_batch_statistics_and_scores_with_them(run):
    detector = make().fit(ArrayBatches(features_of(normal_pixels(16))), None, run)
    normalisation = detector.student.stages[0][1]
    assert normalisation.num_batches_tracked == 20 and not detector.student.training
    assert not torch.allclose(normalisation.running_mean, torch.zeros(8), atol=1e-3)


def test_stfpm_c_the_teacher_is_never_run_so_its_features_are_what_was_stored(run, monkeypatch):
    """Features of a teacher that no network could give from these pixels are matched as they are."""
    batches = ArrayBatches(features_of(normal_pixels(8)))
    for layer in LAYERS:
        batches.features[layer] = torch.zeros_like(batches.features[layer])
        batches.features[layer][:, 0] = 1.0
    make(steps=60).fit(batches, None, run)
    assert run.history[-1]["loss"] < 0.2 * run.history[0]["loss"]


def test_stfpm_d_the_kept_state_is_the_one_with_the_lowest_mean_map_on_held_out_normals():
    """Not the last one, and not one that test images have chosen: trained on, then measured again by hand."""
    held_out = ArrayBatches(features_of(normal_pixels(6, seed=3)), batch_size=4)
    run = Run(seed=0, quiet=True)
    detector = make(steps=None, epochs=12, patience=None).fit(ArrayBatches(features_of(normal_pixels(16))), held_out, run)
    best = min(run.history, key=lambda row: row["val_map_mean"])
    assert detector.steps_trained.item() == best["step"] and len(run.history) == 12
    mean = detector.score(held_out.features).anomaly_map.double().mean().item()
    assert mean == pytest.approx(best["val_map_mean"], rel=1e-5)


def test_stfpm_d_training_stops_after_patience_epochs_without_a_better_one(run, monkeypatch):
    values = iter([5.0, 4.0, 4.5, 4.0, 3.0])
    monkeypatch.setattr(STFPM, "_map_mean", lambda self, batches: next(values))
    batches = ArrayBatches(features_of(normal_pixels(8)))
    detector = make(steps=None, epochs=50, patience=2).fit(batches, batches, run)
    assert [row["val_map_mean"] for row in run.history] == [5.0, 4.0, 4.5, 4.0] and detector.steps_trained.item() == 2


def test_an_empty_validation_split_is_none(run):
    nothing = ArrayBatches({key: value[:0] for key, value in features_of(normal_pixels(2)).items()})
    detector = make(steps=3).fit(ArrayBatches(features_of(normal_pixels(8))), nothing, run)
    assert detector.steps_trained.item() == 3 and "val_map_mean" not in run.history[0]


def test_two_seeds_start_from_two_students():
    batches = ArrayBatches(features_of(normal_pixels(8)))
    one, other = (make(steps=1, learning_rate=1e-9).fit(batches, None, Run(seed=seed, quiet=True)) for seed in (0, 1))
    assert not torch.allclose(one.student.stages[0][0].weight, other.student.stages[0][0].weight)


def test_a_teacher_of_another_shape_is_refused_by_layer():
    detector = with_student(TinyCNN(seed=0, trainable=True))
    features = features_of(normal_pixels(2))
    features["layer2"] = features["layer2"][:, :5]
    with pytest.raises(
        ValueError, match=r"layer2 of teacher and student are \(5, 8, 8\) and \(12, 8, 8\): give encoder and model the same backbone"
    ):
        detector.score(features)


def test_the_optimiser_is_the_papers():
    """SGD with momentum 0.9 and weight decay 1e-4 at 0.4: two steps by hand, through the loop, give the same weights."""
    features = features_of(normal_pixels(4))
    run = Run(seed=0, quiet=True)
    trained = make(steps=2, batch_size=4).fit(ArrayBatches(features), None, run)
    detector = make(steps=2)
    start = detector._new_student(__import__("stages.seed", fromlist=["derive"]).derive(0, "student"))
    detector.student = copy.deepcopy(start).train()
    velocity = {name: torch.zeros_like(value) for name, value in detector.student.named_parameters()}
    for _ in range(2):
        loss = detector._loss(ArrayBatches(features).take([0, 1, 2, 3]), torch.Generator())
        names, values = zip(*detector.student.named_parameters(), strict=True)
        for name, value, slope in zip(names, values, torch.autograd.grad(loss, values), strict=True):
            velocity[name] = 0.9 * velocity[name] + slope + 1e-4 * value.detach()
            value.data -= 0.4 * velocity[name]
    for name, value in detector.student.named_parameters():
        torch.testing.assert_close(trained.student.get_parameter(name), value, rtol=1e-4, atol=1e-6)


def test_a_longer_training_sees_a_defect_better():
    batches = ArrayBatches(features_of(normal_pixels(16)))
    margins = []
    for steps in (1, 60):
        detector = make(steps=steps).fit(batches, None, Run(seed=0, quiet=True))
        normal = detector.score(features_of(normal_pixels(6, 4))).image_score
        planted = detector.score(features_of(plant_defect(normal_pixels(6, 4)))).image_score
        margins.append((planted / normal).mean())
    assert margins[1] > 3 * margins[0]


@pytest.mark.slow
def test_with_a_real_network_a_copy_of_the_teacher_gives_a_zero_map(monkeypatch):
    """The encoder `cnn` itself as teacher and student, from timm, with random weights."""
    import sys

    monkeypatch.delitem(sys.modules, "stages.encoders.cnn")
    from stages.encoders.cnn import CNN

    pixels = normal_pixels(2)
    teacher = CNN(backbone="tf_efficientnet_lite0", layers=LAYERS, weights="random", seed=3)
    detector = STFPM(backbone="tf_efficientnet_lite0", steps=2, batch_size=2)
    features = {**teacher(pixels), "pixels": pixels}
    detector.student = CNN(backbone="tf_efficientnet_lite0", layers=LAYERS, weights="random", seed=3, trainable=True)
    detector.steps_trained = torch.tensor([1])
    assert detector.eval().score(features).anomaly_map.abs().max() < 1e-9
    trained = detector.fit(ArrayBatches(features), None, Run(seed=0, quiet=True))
    assert trained.score(features).image_score.isfinite().all() and trained.steps_trained.item() == 2

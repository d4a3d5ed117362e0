"""UniNet against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import copy

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import nn

from stages.detectors.distillation import uninet
from stages.detectors.distillation.maths.reverse import TwoBranches
from stages.detectors.distillation.uninet import UniNet, decided_share, mean_of_highest, select_features, similarity_loss
from stages.training import Run
from tests.arrays import LAYERS, ArrayBatches, TinyCNN, features_of, normal_pixels

TEACHER = {"backbone": "tiny", "weights": "random", "weights_seed": 1234, "kernel": 3}  # what gave features_of its features
SMALL = {**TEACHER, "layers": ("layer1", "layer2"), "steps": 60, "batch_size": 6}  # for the contract test
pytestmark = pytest.mark.usefixtures("tiny_cnn")


def make(**options) -> UniNet:
    return UniNet(**{**TEACHER, "layers": ("layer1", "layer2"), "steps": 2, "batch_size": 4, **options})


@pytest.fixture
def fitted(run):
    return make().fit(ArrayBatches(features_of(normal_pixels(4))), None, run)


class Echo(nn.Module):
    def forward(self, features):
        return [3 * values for values in features]


def test_a_student_that_restores_both_teachers_which_are_still_the_same_has_a_zero_map(fitted):
    fitted.network.target, fitted.network.student = TinyCNN(seed=1234, trainable=True).eval(), Echo()
    image_score, anomaly_map = fitted.score(features_of(normal_pixels(3)))
    assert anomaly_map.abs().max() < 1e-9 and image_score.abs().max() < 1e-9


def test_a_position_against_its_own_counterpart_by_hand():
    """Two positions, student (1, 0) and (0, 1), teacher alike, temperature 1: P_ii = e / (e + 1). Cosines are 1. Loss 0.3 * -log P + 1 - P;
    crossed, cosines are 0 and P_ii = 1 / (1 + e): 0.7 more."""
    one = torch.eye(2).view(1, 2, 1, 2)
    share = torch.e / (torch.e + 1)
    expected = -0.3 * torch.log(torch.tensor(share)) + 1 - share
    assert similarity_loss(one, 5 * one, 1.0, 0.3).item() == pytest.approx(expected.item(), rel=1e-5)
    crossed = 0.7 - 0.3 * torch.log(torch.tensor(1 - share)) + share
    assert similarity_loss(one, one.flip(3), 1.0, 0.3).item() == pytest.approx(crossed.item(), rel=1e-5)


def test_selection_by_hand():
    """One channel, teacher 0 and log 3: softmax 1/4 and 3/4, mean log(3) / 2. theta 0 gives 1, the highest; a very low one gives 0.5."""
    teacher = torch.tensor([0.0, torch.log(torch.tensor(3.0))]).view(1, 1, 1, 2)
    student, mean = torch.tensor([2.0, 4.0]).view(1, 1, 1, 2), teacher.mean()
    for theta, expected in [(0.0, 1.0), (9.0, 1.0), (-50.0, 0.5)]:
        got = select_features(student, teacher, torch.full((1, 1, 1, 1), theta)).flatten()
        torch.testing.assert_close(got, torch.stack([0.5 * (expected + mean), 3 * (expected + mean)]))


def test_uninet_a_the_score_is_the_mean_of_the_highest_pixels_not_the_first_of_them():
    """By hand: of maxima 0, 0 and 1 only the last is above the mean chance, so alpha * 1 = 0.25 of 16 pixels: 16, 15, 14 and 13."""
    shares = decided_share(torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]), alpha=0.25, beta=0.05)
    assert shares == pytest.approx([0.25, 0.125, 0.05])
    maps = torch.arange(1.0, 17.0).view(1, 4, 4)
    assert mean_of_highest(maps, [0.25]).item() == 14.5
    assert mean_of_highest(maps, [0.01]).item() == 16  # one pixel at least


def test_uninet_a_a_wider_anomaly_moves_the_score_where_the_highest_pixel_stays():
    narrow = torch.zeros(1, 10, 10)
    narrow[0, 0, 0] = 1
    wide = narrow.clone()
    wide[0, 0, 1:4] = 1
    assert mean_of_highest(narrow, [0.05]).item() == pytest.approx(0.2) and mean_of_highest(wide, [0.05]).item() == pytest.approx(0.8)


def test_uninet_b_no_head_is_trained_on_labels(fitted):
    """Nothing is learnt but student, target teacher and theta, and labels do not move the loss."""
    assert {name.split(".")[0] for name, _ in fitted.network.named_parameters()} == {"target", "student", "theta"}
    batch = ArrayBatches(features_of(normal_pixels(4))).take([0, 1])
    other = batch._replace(label=torch.ones(2, dtype=torch.int64))
    assert torch.equal(fitted._loss(batch, torch.Generator()), fitted._loss(other, torch.Generator()))


def test_uninet_c_the_score_sees_the_map_blurred_by_scipys_kernel_the_map_itself_is_not_blurred(fitted):
    """And the six maps are held against the teachers crosswise: what came from the target teacher against the source."""
    features = features_of(normal_pixels(2))
    with torch.no_grad():
        target = fitted.network.target(features["pixels"])
        restored = fitted.network.student([torch.cat([target[layer], features[layer]]) for layer in fitted.needs.layers])
    expected, maxima = torch.zeros(2, 32, 32), []
    for layer, values in zip(fitted.needs.layers, restored, strict=True):
        for teacher, student in ((features[layer], values[:2]), (target[layer], values[2:])):
            part = 1 - F.cosine_similarity(teacher, student)
            maxima.append(part.flatten(1).amax(dim=1))
            expected += F.interpolate(part[:, None], (32, 32), mode="bilinear", align_corners=True)[:, 0].detach()
    image_score, anomaly_map = fitted.score(features)
    torch.testing.assert_close(anomaly_map, expected, rtol=1e-4, atol=1e-5)
    shares = decided_share(torch.stack(maxima, dim=1), 0.01, 3e-5)
    for image in range(2):
        blurred = torch.from_numpy(gaussian_filter(expected[image].numpy(), sigma=4)).flatten().sort(descending=True).values
        assert image_score[image].item() == pytest.approx(blurred[: max(1, int(shares[image] * 1024))].mean().item(), rel=1e-4)


def test_uninet_d_teachers_and_students_go_from_layer1_on_source_before_target(run):
    detector = make(layers=LAYERS).fit(ArrayBatches(features_of(normal_pixels(4))), None, run)
    features = features_of(normal_pixels(2))
    teachers, students = detector._pairs(features)
    assert [len(maps[0]) for maps in teachers] == [len(maps[0]) for maps in students] == [8, 12, 16] * 2
    assert all(torch.equal(teacher, features[layer]) for teacher, layer in zip(teachers, LAYERS, strict=False))


def test_uninet_e_gradients_flow_to_the_target_teacher_which_learns_at_its_own_rate(fitted):
    batch = ArrayBatches(features_of(normal_pixels(4))).take([0, 1, 2, 3])
    fitted.network.train()
    fitted._loss(batch, torch.Generator()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fitted.network.target.stages[0][0].parameters())
    groups = fitted._optimiser([]).param_groups
    assert [group["lr"] for group in groups] == [5e-3, 1e-6] and {group["weight_decay"] for group in groups} == {1e-5}
    known = {parameter for group in groups for parameter in group["params"]}
    assert known == set(fitted.network.parameters()) and set(groups[1]["params"]) == set(fitted.network.target.parameters())


def test_uninet_f_rows_of_similarities_give_the_loss_and_the_gradient_of_the_whole_matrix(monkeypatch):
    """Against the plain softmax over all 36 positions, when only 10 rows' similarities are held at once."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 6, 6, generator=generator, requires_grad=True) for _ in range(2))
    one, other = (F.normalize(values.flatten(2), dim=1) for values in (student, teacher))
    own = torch.softmax(one.transpose(1, 2) @ other / 0.5, dim=2).diagonal(dim1=1, dim2=2)
    plain = 0.7 * (1 - (one * other).sum(dim=1)).mean(dim=1) + 0.3 * -own.log().mean(dim=1) + (1 - own).mean(dim=1)
    sizes = []
    whole = uninet._log_sums
    monkeypatch.setattr(uninet, "_log_sums", lambda part, *rest: (sizes.append(part.shape[1]), whole(part, *rest))[1])
    monkeypatch.setattr(uninet, "SIMILARITIES_AT_ONCE", 2 * 36 * 10)
    chunked = similarity_loss(student, teacher, 0.5, 0.3)
    assert sizes == [10, 10, 10, 6]
    torch.testing.assert_close(chunked, plain)
    slopes = [torch.autograd.grad(loss.sum(), (student, teacher)) for loss in (chunked, plain)]
    for got, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_uninet_g_feature_selection_can_be_left_out_and_is_of_training_only(fitted):
    features = features_of(normal_pixels(2))
    without = copy.deepcopy(fitted)
    without.select = False
    assert not torch.allclose(fitted._losses(features), without._losses(features), rtol=1e-3)
    for theta in fitted.network.theta:
        theta.data.fill_(-5.0)
    assert torch.equal(fitted.score(features).anomaly_map, without.score(features).anomaly_map)


def test_the_source_teacher_is_never_run_and_the_target_must_start_as_its_copy(run):
    """Features that no copy gives are refused, by layer; so are another network's."""
    features = features_of(normal_pixels(4))
    with pytest.raises(ValueError, match="must start as a copy of the encoder, but its layer1 differs from the stored features"):
        make(weights_seed=5).fit(ArrayBatches(features), None, run)
    features["layer2"] = features["layer2"].flip(2)
    with pytest.raises(ValueError, match="but its layer2 differs"):
        make().fit(ArrayBatches(features), None, Run(seed=0, quiet=True))


def test_the_block_has_two_branches_and_fuses_them():
    block = TwoBranches(7, 12, 6, 7, 2).eval()
    values = torch.randn(2, 7, 8, 8)
    halves = [branch(half) for branch, half in zip(block.branches, (values[:, :3], values[:, 3:]), strict=True)]
    assert [tuple(branch[0].kernel_size) for branch in block.branches] == [(3, 3), (7, 7)] and block(values).shape == (2, 12, 4, 4)
    torch.testing.assert_close(block(values), F.relu(block.fuse(torch.cat(halves, dim=1)) + block.skip(values)))


def test_a_kill_in_the_middle_ends_in_the_same_state(tmp_path):
    """Both groups of the optimiser, theta and the target teacher's batch statistics come back."""
    batches = ArrayBatches(features_of(normal_pixels(8)))
    straight = make(steps=4).fit(batches, None, Run(seed=0, quiet=True))

    class Killed(Exception):
        pass

    class Dying(ArrayBatches):
        def take(self, positions):
            if self.reads == 3:  # one to see the shapes, two steps
                raise Killed
            return super().take(positions)

    with pytest.raises(Killed):
        make(steps=4).fit(Dying(batches.features), None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0))
    assert list(tmp_path.iterdir())
    resumed = make(steps=4).fit(batches, None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0))
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in straight.state_dict().items())

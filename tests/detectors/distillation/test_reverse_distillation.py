"""Reverse Distillation against its paper: shapes, loss and map. The letters are those of the list of what implementations get wrong, in the
order given there."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.detectors.distillation.maths.reverse import Embedding, Pyramid, Residual, ReverseStudent, Style, summed_map, unit_distance
from stages.detectors.distillation.reverse_distillation import ReverseDistillation
from stages.detectors.maps import gaussian_blur
from stages.training import Run
from tests.arrays import LAYERS, ArrayBatches, features_of, normal_pixels

SMALL = {"layers": ("layer1", "layer2"), "steps": 60, "batch_size": 6, "blur_sigma": 1.0}  # for the contract test

WIDE_RESNET = Pyramid((256, 512, 1024), (0, 1, 1))
RESNET18 = Pyramid((64, 128, 256), (0, 1, 1))
LITE0 = Pyramid((24, 40, 112), (0, 1, 1))


def make(**options) -> ReverseDistillation:
    return ReverseDistillation(**{"steps": 6, "batch_size": 8, **options})


def given(pyramid: Pyramid, size: int = 256, images: int = 2) -> list[torch.Tensor]:
    """Features of the pyramid's shapes, the first layer at stride 4."""
    found, side = [], size // 4
    for channels, halvings in zip(*pyramid, strict=True):
        side //= 2**halvings
        found.append(torch.randn(images, channels, side, side))
    return found


class Echo(nn.Module):
    """A student that gives back what it gets, in other lengths."""

    def forward(self, features):
        return [3 * values for values in features]


def with_student(student: nn.Module, **options) -> ReverseDistillation:
    detector = make(**options)
    detector.pyramid = Pyramid((8, 12, 16), (0, 1, 1)).to_tensor()
    detector.student = student
    return detector.eval()


def test_a_student_that_restores_every_direction_has_a_zero_map_and_loss():
    features = features_of(normal_pixels(3))
    image_score, anomaly_map = with_student(Echo()).score(features)
    assert anomaly_map.abs().max() < 1e-12 and image_score.abs().max() < 1e-12
    assert with_student(Echo())._losses(features).abs().max() < 1e-5


def test_shapes_of_the_paper_for_wide_resnet_50():
    """Section 3.2 at 256 pixels: 256 x 64, 512 x 32 and 1024 x 16 squared in and out, 2048 x 8 squared between; nothing is computed."""
    with torch.device("meta"):
        student = ReverseStudent(WIDE_RESNET, Style.of(WIDE_RESNET, "auto", None), seed=0)
        features = given(WIDE_RESNET)
        assert student.embedding(features).shape == (2, 2048, 8, 8)
        assert [layer.shape for layer in student(features)] == [layer.shape for layer in features]
        assert [path(layer).shape[1:] for path, layer in zip(student.embedding.paths, features, strict=True)] == [(1024, 16, 16)] * 3
    assert [[block.main[0].weight.shape[0] for block in stage] for stage in student.decoder.stages] == [[512] * 3, [256] * 4, [128] * 6]
    assert [path[0].weight.shape[:2] for path in student.embedding.paths if len(path)] == [(512, 256), (1024, 512)]


@pytest.mark.parametrize(
    "pyramid", [RESNET18, LITE0, Pyramid((24, 40), (0, 2)), Pyramid((6, 10, 10, 4), (0, 1, 0, 1)), Pyramid((16,), (0,))]
)
def test_any_channels_and_strides_come_back_in_their_own_shapes(pyramid):
    student = ReverseStudent(pyramid, Style.of(pyramid, "auto", 0.5), seed=0).eval()
    features = given(pyramid, 64)
    assert [layer.shape for layer in student(features)] == [layer.shape for layer in features]
    assert student.embedding(features).shape[1] == 2 * pyramid.channels[-1]


def test_grids_of_odd_sizes_come_back_too():
    """14, 7 and 4 columns: half of 7 is 4 with a 3 x 3 convolution, and twice 4 is cut to 7."""
    features = {
        f"layer{place + 1}": torch.randn(2, count, 16 // 2**place, width)
        for place, (count, width) in enumerate([(8, 14), (12, 7), (16, 4)])
    }
    pyramid = Pyramid.of(features, LAYERS)
    assert pyramid == Pyramid((8, 12, 16), (0, 1, 1))
    student = ReverseStudent(pyramid, Style.of(pyramid, "auto", None), seed=0).eval()
    assert [layer.shape for layer in student(list(features.values()))] == [layer.shape for layer in features.values()]
    with pytest.raises(ValueError, match="layers must be ordered from fine to coarse, but layer3, layer1 have"):
        Pyramid.of(features, ("layer3", "layer1"))


def test_the_map_of_one_cell_by_hand():
    """cos((3, 4), (4, 3)) = 24 / 25 in both layers: twice 0.04 everywhere."""
    one, other = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([4.0, 3.0]).view(1, 2, 1, 1)
    distance = unit_distance(one, other)
    assert distance.item() == pytest.approx(0.04, rel=1e-5)
    assert torch.allclose(summed_map([distance, distance], (3, 3)), torch.full((1, 3, 3), 0.08))


def test_reverse_distillation_a_the_layers_maps_are_added_between_corners_and_blurred():
    features = features_of(normal_pixels(2))
    torch.manual_seed(0)
    student = ReverseStudent(Pyramid((8, 12, 16), (0, 1, 1)), Style(False, 1.0, 2, (2,)), seed=3).eval()
    with torch.no_grad():
        pairs = zip((features[layer] for layer in LAYERS), student([features[layer] for layer in LAYERS]), strict=True)
        parts = [1 - F.cosine_similarity(one, other) for one, other in pairs]
    added = sum(F.interpolate(part[:, None], (32, 32), mode="bilinear", align_corners=True)[:, 0] for part in parts)
    image_score, anomaly_map = with_student(student, blur_sigma=2.0).score(features)
    torch.testing.assert_close(anomaly_map, gaussian_blur(added, 2.0), rtol=1e-4, atol=1e-5)
    assert torch.equal(image_score, anomaly_map.amax(dim=(1, 2)))


def test_reverse_distillation_a_a_layer_that_agrees_takes_nothing_from_the_others():
    """A product would be zero where one scale is restored."""
    agrees, differs = torch.zeros(1, 4, 4), torch.full((1, 2, 2), 0.5)
    assert torch.allclose(summed_map([agrees, differs], (8, 8)), torch.full((1, 8, 8), 0.5))


def test_reverse_distillation_b_no_backbone_runs_in_fit_so_other_pixels_leave_the_same_state(monkeypatch):
    """The encoder cannot leave evaluation mode, for it is not there."""

    class Forbidden:
        def __init__(self, **_options):
            raise AssertionError("a backbone was built")

    monkeypatch.setitem(sys.modules, "stages.encoders.cnn", types.SimpleNamespace(CNN=Forbidden))
    states = []
    for pixels in (normal_pixels(10), normal_pixels(10, seed=77)):
        batches = ArrayBatches({**features_of(normal_pixels(10)), "pixels": pixels})
        states.append(make().fit(batches, batches, Run(seed=0, quiet=True)).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(("pyramid", "channels"), [(WIDE_RESNET, 3072), (RESNET18, 768), (LITE0, 336), (Pyramid((24, 40), (0, 1)), 80)])
def test_reverse_distillation_c_the_first_block_sees_all_layers_on_its_skip_too(pyramid, channels):
    with torch.device("meta"):
        first = Embedding(pyramid, Style.of(pyramid, "auto", None).block, 2).blocks[0]
    assert first.main[0].weight.shape[1] == channels
    assert first.skip[0].weight.shape[1:] == (channels, 1, 1) and first.skip[0].stride == (2, 2)


@pytest.mark.parametrize(
    ("pyramid", "width", "inner", "kernels", "blocks"),
    [
        (RESNET18, None, 512, (3, 3), (2, [2, 2, 2])),
        (LITE0, 0.25, 56, (3, 3), (2, [2, 2, 2])),
        (WIDE_RESNET, None, 1024, (1, 3, 1), (3, [3, 4, 6])),
        (WIDE_RESNET, 1.0, 512, (1, 3, 1), (3, [3, 4, 6])),
    ],
)
def test_reverse_distillation_d_blocks_follow_the_teacher(pyramid, width, inner, kernels, blocks):
    """ResNet-18 and other slim networks: two basic blocks each. WideResNet-50-2 and ResNet-50: bottlenecks, twice as wide in the first."""
    with torch.device("meta"):
        student = ReverseStudent(pyramid, Style.of(pyramid, "auto", width), seed=0)
    last = student.embedding.blocks[-1]
    convolutions = [module for module in last.main if isinstance(module, nn.Conv2d)]
    assert tuple(module.kernel_size[0] for module in convolutions) == kernels
    assert convolutions[0].out_channels == inner and isinstance(last.skip, nn.Identity)
    assert (len(student.embedding.blocks), [len(stage) for stage in student.decoder.stages]) == blocks


def test_a_transposed_block_enlarges_each_cell_on_its_own_also_in_the_skip():
    """Kernel 2 and stride 2: a cell of the input decides four of the output, and no other, until the 3 x 3 convolution mixes neighbours."""
    block = Residual(3, 5, 4, bottleneck=False, factor=2, up=True)
    assert [type(part) for part in (block.main[0], block.skip[0])] == [nn.ConvTranspose2d] * 2
    values = torch.zeros(1, 3, 4, 4)
    values[:, :, 1, 2] = 1
    assert block.skip[0](values).abs().sum(dim=1)[0].nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_the_loss_is_the_sum_over_layers_of_the_cosine_between_flattened_features():
    features = features_of(normal_pixels(3))

    class Turned(nn.Module):
        def forward(self, layers):
            return [torch.roll(values, 1, dims=1) for values in layers]

    detector = with_student(Turned())
    expected = []
    for image in range(3):
        total = 0.0
        for layer in LAYERS:
            one, other = features[layer][image].flatten().double(), torch.roll(features[layer][image], 1, dims=0).flatten().double()
            total += 1 - (one @ other / (one.norm() * other.norm())).item()
        expected.append(total)
    torch.testing.assert_close(detector._losses(features), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    batch = ArrayBatches(features).take([0, 1, 2])
    assert detector._loss(batch, torch.Generator()).item() == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_reverse_distillation_e_the_optimiser_is_adam_with_the_authors_decay(monkeypatch, run):
    """0.999, not 0.99."""
    seen = {}

    class Spy(torch.optim.Adam):
        def __init__(self, parameters, **options):
            seen.update(options)
            super().__init__(parameters, **options)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    make(steps=1).fit(ArrayBatches(features_of(normal_pixels(8))), None, run)
    assert seen == {"lr": 0.005, "betas": (0.5, 0.999)}


def test_the_kept_state_has_the_lowest_loss_on_held_out_images(run):
    held_out = ArrayBatches(features_of(normal_pixels(6, seed=3)))
    detector = make(steps=None, epochs=6, learning_rate=0.05, patience=None).fit(
        ArrayBatches(features_of(normal_pixels(12))), held_out, run
    )
    best = min(row["val_loss"] for row in run.history)
    assert len(run.history) == 6 and detector._mean_loss(held_out) == pytest.approx(best, rel=1e-5)


def test_loading_builds_the_student_that_was_stored_and_leaves_the_global_generator_alone(run):
    fitted = make(width=0.5).fit(ArrayBatches(features_of(normal_pixels(8))), None, run)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    fresh = make(width=0.5)
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(before, torch.random.get_rng_state()) and not fresh.student.training
    with pytest.raises(RuntimeError, match="size mismatch"):
        make(width=1.0).load_state_dict(fitted.state_dict())


def test_features_of_another_network_are_refused(run):
    fitted = make(steps=1).fit(ArrayBatches(features_of(normal_pixels(8))), None, run)
    features = features_of(normal_pixels(2))
    features["layer2"] = features["layer2"][:, :5]
    with pytest.raises(ValueError, match=r"the student knows layers of \(8, 12, 16\) channels, these have \(8, 5, 16\)"):
        fitted.score(features)

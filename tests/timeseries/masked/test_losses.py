"""Losses by hand: two windows, three patches of two steps, one variable."""

import math

import pytest
import torch

from stages.timeseries.masked.losses import Losses, patch_means
from stages.timeseries.masked.network import MAEOutput

TARGET = torch.zeros(2, 6, 1)
MASK = torch.tensor([[True, True, False], [True, False, True]])
NORMAL = torch.zeros(2, 3, dtype=torch.bool)


def output(teacher: list[list[float]], student: list[list[float]] | None = None) -> MAEOutput:
    """Constant within each patch."""
    drawn = [torch.tensor(rows).repeat_interleave(2, dim=1)[..., None] for rows in (teacher, student or teacher)]
    return MAEOutput(*drawn, MASK.repeat_interleave(2, dim=1), torch.empty(0))


GIVEN = output(
    [[1.0, 2.0, 50.0], [3.0, 50.0, 0.0]], [[1.0, 1.0, -50.0], [5.0, -50.0, 3.0]]
)  # squared distance of hidden patches: 0, 1, 4, 9


def test_the_mean_over_hidden_patches():
    terms = Losses("none")(GIVEN, TARGET, MASK, NORMAL)
    assert terms.reconstruction.item() == pytest.approx((1 + 4 + 9 + 0) / 4) and terms.distillation.item() == pytest.approx(14 / 4)
    assert terms.push.item() == 0


def test_what_is_visible_changes_no_loss():
    changed = MAEOutput(*(part.clone() for part in GIVEN[:2]), *GIVEN[2:])
    target = TARGET.clone()
    for part in (changed.teacher, changed.student, target):
        part[~GIVEN.mask] += 7
    for first, second in zip(Losses()(GIVEN, TARGET, MASK, NORMAL), Losses()(changed, target, MASK, NORMAL), strict=True):
        assert torch.equal(first, second)


def test_an_anomalous_patch_is_neither_redrawn_nor_imitated_but_pushed():
    anomalous = NORMAL.clone()
    anomalous[0, 1] = True  # at a distance of 1
    terms = Losses("hinge", margin=1.5)(GIVEN, TARGET, MASK, anomalous)
    assert terms.reconstruction.item() == pytest.approx((1 + 9) / 3) and terms.distillation.item() == pytest.approx(13 / 3)
    assert terms.push.item() == pytest.approx(0.5)
    assert Losses("hinge", margin=0.5)(GIVEN, TARGET, MASK, anomalous).push.item() == 0
    assert Losses("softplus", margin=1.5)(GIVEN, TARGET, MASK, anomalous).push.item() == pytest.approx(math.log1p(math.exp(0.5)))


def test_a_visible_anomalous_patch_is_not_pushed():
    anomalous = NORMAL.clone()
    anomalous[0, 2] = True
    assert Losses("hinge", margin=9.0)(GIVEN, TARGET, MASK, anomalous).push.item() == 0


def test_by_window_a_single_anomalous_patch_makes_the_window_anomalous():
    anomalous = NORMAL.clone()
    anomalous[0, 1] = True
    terms = Losses("hinge", margin=2.0, patch_level=False)(GIVEN, TARGET, MASK, anomalous)
    assert terms.distillation.item() == pytest.approx((4 + 9) / 2) and terms.push.item() == pytest.approx(2 - (0 + 1) / 2)


def test_the_dynamic_margin_is_mean_plus_k_deviations_of_normal_discrepancies():
    rows = torch.arange(40.0).reshape(2, 20)
    drawn = MAEOutput(torch.zeros(2, 20, 1), rows.sqrt()[..., None], torch.ones(2, 20, dtype=torch.bool), torch.empty(0))
    anomalous = torch.zeros(2, 20, dtype=torch.bool)
    anomalous[0, 0] = True  # at a distance of 0: all of the margin is missing
    terms = Losses("dynamic", dynamic_k=2.0)(drawn, torch.zeros(2, 20, 1), torch.ones(2, 20, dtype=torch.bool), anomalous)
    normal = torch.arange(1.0, 40.0)
    assert terms.push.item() == pytest.approx((normal.mean() + 2 * normal.std()).item(), rel=1e-5)


def test_too_few_normal_patches_fall_back_on_the_running_margin():
    losses = Losses("dynamic", dynamic_k=1.0)
    losses.running.copy_(torch.tensor([5.0, 2.0]))
    anomalous = NORMAL.clone()
    anomalous[0, 0] = True  # at a distance of 0
    assert losses(GIVEN, TARGET, MASK, anomalous).push.item() == pytest.approx(7.0)
    assert losses.running.tolist() == [5.0, 2.0]


def test_trimming_leaves_out_the_worst_share():
    assert Losses("none", trim=0.25)(GIVEN, TARGET, MASK, NORMAL).reconstruction.item() == pytest.approx((1 + 4 + 0) / 3)


def test_the_teacher_feels_nothing_of_the_discrepancy():
    teacher, student = torch.ones(2, 6, 1, requires_grad=True), torch.zeros(2, 6, 1, requires_grad=True)
    terms = Losses()(MAEOutput(teacher, student, GIVEN.mask, torch.empty(0)), TARGET, MASK, NORMAL)
    terms.distillation.backward()
    assert teacher.grad is None and student.grad is not None


def test_by_variable_only_hidden_variables_count():
    error = torch.arange(8.0).reshape(1, 4, 2)  # patch 0: means 1 and 2; patch 1: 5 and 6
    mask = torch.tensor([[[True, False], [True, True]]])
    means, share = patch_means(error, mask)
    assert means.tolist() == [[1.0, 5.5]] and share.tolist() == [[0.5, 1.0]]

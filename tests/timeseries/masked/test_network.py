import pytest
import torch

from stages.timeseries.masked import masks
from stages.timeseries.masked.network import Embedding, Network, Shape

SMALL = Shape(steps=20, variables=3, patches=5, width=16, heads=2, encoder_layers=1, teacher_layers=2, feedforward=32)
MODES = ("linear", "cnn_first", "patch_cnn")


def network(**change) -> Network:
    torch.manual_seed(0)
    return Network(SMALL._replace(**change)).eval()


def window(batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 20, 3, generator=torch.Generator().manual_seed(seed))


def mask_of(*hidden: int) -> torch.Tensor:
    mask = torch.zeros(1, 5, dtype=torch.bool)
    mask[:, list(hidden)] = True
    return mask


def moved(mode: str, changed_step: int, **change) -> list[int]:
    """The tokens that a change of one step alters, nothing being hidden."""
    torch.manual_seed(0)
    embed = Embedding(SMALL._replace(patchify=mode, **change)).eval()
    before, after = window(1), window(1)
    after[:, changed_step] += 1
    seen = mask_of()
    return (embed(before, seen) != embed(after, seen)).any(2)[0].nonzero()[:, 0].tolist()


def test_the_default_has_about_as_many_parameters_as_specified():
    assert sum(parameter.numel() for parameter in Network(Shape()).parameters()) == pytest.approx(408_000, rel=0.01)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("by_variable", [False, True])
def test_shapes_of_the_output(mode, before, by_variable):
    output = network(patchify=mode, mask_before=before, by_variable=by_variable)(window(), generator=torch.Generator().manual_seed(0))
    assert output.teacher.shape == output.student.shape == (2, 20, 3) and output.latent.shape == (2, 5, 16)
    assert output.mask.shape == ((2, 20, 3) if by_variable else (2, 20)) and output.mask.dtype == torch.bool


@pytest.mark.parametrize("mode", ["linear", "patch_cnn"])
def test_a_patch_alters_its_own_token_alone(mode):
    assert moved(mode, 8) == [2] and moved(mode, 11) == [2]


def test_cnn_first_leaks_two_steps_into_the_neighbours():
    assert moved("cnn_first", 8, norm="batch") == [1, 2] and moved("cnn_first", 10, norm="batch") == [2, 3]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", [False, True])
def test_hidden_values_reach_nothing(mode, before):
    model, mask = network(patchify=mode, mask_before=before), mask_of(1, 3)
    other = window(1).masked_fill(mask.repeat_interleave(4, dim=1)[..., None], 9.0)
    for first, second in zip(model(window(1), mask), model(other, mask), strict=True):
        assert torch.equal(first, second)


def test_without_its_guard_cnn_first_sees_what_is_hidden():
    model, mask = network(patchify="cnn_first", leak_guard=False), mask_of(1, 3)
    other = window(1).masked_fill(mask.repeat_interleave(4, dim=1)[..., None], 9.0)
    assert not torch.equal(model(window(1), mask).teacher, model(other, mask).teacher)


@pytest.mark.parametrize("mode", MODES)
def test_hiding_a_variable_hides_its_values_and_no_others(mode):
    model = network(patchify=mode, by_variable=True)
    mask = torch.zeros(1, 5, 3, dtype=torch.bool)
    mask[:, 2, 1] = True
    hidden, seen = window(1), window(1)
    hidden[:, 8:12, 1] = 9
    seen[:, 8:12, 0] = 9
    before = model(window(1), mask).teacher
    assert torch.equal(before, model(hidden, mask).teacher) and not torch.equal(before, model(seen, mask).teacher)


def test_a_window_is_redrawn_alike_in_any_company():
    model, mask = network(), mask_of(0, 4)
    together = model(window(6), mask.expand(6, -1)).teacher
    alone = torch.cat([model(one[None], mask).teacher for one in window(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_nothing_of_a_call_stays_behind():
    model = network()
    first = model(window(), mask_of(1).expand(2, -1)).teacher
    model(window(seed=5), mask_of(0, 2).expand(2, -1))
    assert torch.equal(first, model(window(), mask_of(1).expand(2, -1)).teacher)


def test_equal_teacher_and_student_do_not_differ():
    model = network(teacher_layers=1, student_layers=1, shared_mask_token=True)
    model.student.load_state_dict(model.teacher.state_dict())
    model.student_head.load_state_dict(model.teacher_head.state_dict())
    output = model(window(), mask_of(1, 2).expand(2, -1))
    assert torch.equal(output.teacher, output.student)


def test_a_shared_trunk_feels_nothing_of_the_student():
    model = network(shared_layers=1)
    model(window(), mask_of(1).expand(2, -1)).student.square().sum().backward()
    assert all(parameter.grad is None for parameter in [*model.teacher.parameters(), *model.encoder.parameters()])
    assert all(parameter.grad is not None for parameter in model.student.parameters())


def test_the_mask_token_stands_where_patches_are_hidden():
    model = network()
    latent = model(window(1), mask_of(1, 3)).latent[0]
    assert all(torch.equal(latent[place], model.mask_token) == (place in (1, 3)) for place in range(5))


def test_sizes_that_do_not_fit_are_refused():
    for change, message in (({"patches": 3}, "divide seq_length"), ({"heads": 3}, "divide d_model"), ({"shared_layers": 3}, "0..2")):
        with pytest.raises(ValueError, match=message):
            network(**change)


def test_a_mask_of_spans_leaves_the_ends_in_sight():
    mask = masks.drawn_spans(1, 5, 0.4, torch.Generator().manual_seed(0))
    assert network()(window(1), mask).mask.sum() == 8
